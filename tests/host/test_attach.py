"""Law 6: disabling, or leaving the `with` block in any way, leaves the model exactly as it was."""

from __future__ import annotations

from typing import Any

import accelerate
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.hooks import HookRegistry, ModelHook

import mixcache
from tests.helpers import Scripted, state_of
from tests.zoo.pipelines import Tiny, wan

POLICIES = {
    "step": "static:every=2",
    "blocks": "firstblock:threshold=0.1",
    "all": ["static:every=2", "cfg:every=2", "firstblock:threshold=0.1"],
}


@pytest.fixture(params=POLICIES)
def policies(request: pytest.FixtureRequest) -> Any:
    return POLICIES[request.param]


def test_an_untouched_model_is_as_it_was(fresh_wan: Tiny, policies: Any) -> None:
    model = fresh_wan.pipe.transformer
    before = state_of(model)
    session = mixcache.enable(fresh_wan.pipe, policies)
    assert state_of(model) != before
    session.disable()
    assert state_of(model) == before
    assert not session.enabled


def test_a_model_that_has_run_is_as_it_was(random_tiny: Tiny, policies: Any) -> None:
    bare = random_tiny.run(4)
    before = state_of(random_tiny.pipe.transformer)
    with mixcache.enable(random_tiny.pipe, policies):
        random_tiny.run(4)
    assert state_of(random_tiny.pipe.transformer) == before
    assert torch.equal(random_tiny.run(4), bare)


def test_an_exception_restores_too(tiny_wan_random: Tiny, policies: Any) -> None:
    tiny_wan_random.run(2)
    before = state_of(tiny_wan_random.pipe.transformer)

    def fail(*_: Any) -> dict[str, Any]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), mixcache.enable(tiny_wan_random.pipe, policies):
        tiny_wan_random.run(4, callback_on_step_end=fail)
    assert state_of(tiny_wan_random.pipe.transformer) == before


def test_disabling_twice_is_harmless_and_records_stay(fresh_wan: Tiny) -> None:
    with mixcache.enable(fresh_wan.pipe, "static:every=2") as session:
        fresh_wan.run(4)
        session.disable()
        assert torch.equal(fresh_wan.run(4), fresh_wan.run(4))
    session.disable()
    assert len(session.records) == 8
    assert session.report().evaluations == 6


def test_no_policy_for_blocks_puts_no_hook_on_them(fresh_wan: Tiny) -> None:
    with mixcache.enable(fresh_wan.pipe, ["static:every=2", "cfg:every=2"]):
        hooked = [n for n, m in fresh_wan.pipe.transformer.named_modules() if hasattr(m, "_diffusers_hook")]
    assert hooked == [""]


class Doubles(ModelHook):
    """A diffusers hook of somebody else's, with a forward of its own."""

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        result = self.fn_ref.original_forward(*args, **kwargs)
        return tuple(2 * r for r in result) if isinstance(result, tuple) else 2 * result


def put_hook(module: torch.nn.Module) -> None:
    registry = HookRegistry.check_if_exists_or_initialize(module)
    registry.register_hook(Doubles(), "doubles")
    registry.invalidate_child_registries_cache()


@pytest.mark.parametrize("where", ["root", "block"])
def test_a_diffusers_hook_that_was_there_stays(fresh_wan: Tiny, policies: Any, where: str) -> None:
    model = fresh_wan.pipe.transformer
    put_hook(model if where == "root" else model.blocks[1])
    want = fresh_wan.run(4)
    before = state_of(model)
    with mixcache.enable(fresh_wan.pipe, policies):
        fresh_wan.run(4)
    assert state_of(model) == before
    assert torch.equal(fresh_wan.run(4), want)


@pytest.mark.parametrize("where", ["root", "block"])
def test_a_diffusers_hook_that_came_later_stays(fresh_wan: Tiny, policies: Any, where: str) -> None:
    """It wraps ours; taking ours away must not take it away."""
    model = fresh_wan.pipe.transformer
    module = model if where == "root" else model.blocks[1]
    fresh_wan.run(4)
    session = mixcache.enable(fresh_wan.pipe, policies)
    put_hook(module)
    session.disable()
    other = wan()
    put_hook(other.pipe.transformer if where == "root" else other.pipe.transformer.blocks[1])
    assert torch.equal(fresh_wan.run(4), other.run(4))
    HookRegistry.check_if_exists_or_initialize(module).remove_hook("doubles")
    assert torch.equal(fresh_wan.run(4), wan().run(4))


def test_a_cache_of_diffusers_own_stays(fresh_wan: Tiny) -> None:
    fresh_wan.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.3))
    want = fresh_wan.run(6)
    before = state_of(fresh_wan.pipe.transformer)
    with mixcache.enable(fresh_wan.pipe, "static:every=1"):
        assert torch.equal(fresh_wan.run(6), want)
    assert state_of(fresh_wan.pipe.transformer) == before
    assert torch.equal(fresh_wan.run(6), want)


class Counts(accelerate.hooks.ModelHook):
    """An accelerate hook of somebody else's."""

    calls = 0

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return args, kwargs


def test_an_accelerate_hook_stays_whenever_it_came(fresh_wan: Tiny) -> None:
    """Ours sits inside of it: it is called for a step that is reused too, and may be taken off while ours is on."""
    model = fresh_wan.pipe.transformer
    bare = fresh_wan.run(4)
    hook = Counts()
    accelerate.hooks.add_hook_to_module(model, hook)
    before = state_of(model)
    with mixcache.enable(fresh_wan.pipe, "static:every=2") as session:
        fresh_wan.run(4)
        assert hook.calls == 8
        assert session.report().evaluations == 6
        accelerate.hooks.remove_hook_from_module(model)
        fresh_wan.run(4)
        assert session.report().evaluations == 12
        accelerate.hooks.add_hook_to_module(model, hook)
        fresh_wan.run(4)
        assert session.report().evaluations == 18
    after = state_of(model)
    changing = {"forward", "_old_forward"}  # accelerate makes new ones whenever it is put on
    strip = lambda state: {n: {k: v for k, v in m.items() if k not in changing} for n, m in state.items()}  # noqa: E731
    assert strip(after) == strip(before)
    accelerate.hooks.remove_hook_from_module(model)
    assert torch.equal(fresh_wan.run(4), bare)


def test_what_cannot_be_attached_to_is_refused_and_untouched(fresh_wan: Tiny) -> None:
    before = state_of(fresh_wan.pipe.transformer)
    for policies, error, said in [
        ("statik", mixcache.UnknownNameError, "Did you mean 'static'"),
        ([], mixcache.ConfigurationError, "at least one policy"),
        ("static:every=2,at=module", mixcache.ConfigurationError, "at must be one of step, cfg, block, got 'module'"),
    ]:
        with pytest.raises(error, match=said):
            mixcache.enable(fresh_wan.pipe, policies)
    for how in ({"basis": "nose"}, {"forecast": "tailor"}, {"rule": "unanimus"}, {"samples": "median"}, {"adapter": 3}):
        with pytest.raises(mixcache.ConfigurationError):
            mixcache.enable(fresh_wan.pipe, "static", **how)
    assert state_of(fresh_wan.pipe.transformer) == before


def test_targets_that_are_none() -> None:
    with pytest.raises(mixcache.AttachError, match="must be a diffusers pipeline or a transformer, got int"):
        mixcache.enable(3, "static")
    with pytest.raises(mixcache.AttachError, match="has no spans of blocks to skip"):
        mixcache.enable(torch.nn.Linear(2, 2), "static:at=block")


def test_a_span_outside_the_model_attaches_nothing(fresh_wan: Tiny) -> None:
    class Beyond(mixcache.Policy):
        """Asks for a block that is not there."""

        def spans(self, blocks: int) -> tuple[tuple[int, int], ...]:
            return ((0, blocks + 1),)

    before = state_of(fresh_wan.pipe.transformer)
    with pytest.raises(mixcache.ConfigurationError, match="asks for blocks 0 to 4, but WanTransformer3DModel has 3"):
        mixcache.enable(fresh_wan.pipe, Beyond(at="block"))
    assert state_of(fresh_wan.pipe.transformer) == before


def test_a_transformer_that_nobody_described_works_by_its_hidden_states() -> None:
    model = Scripted()
    before = state_of(model)
    with mixcache.enable(model, "static"), pytest.raises(mixcache.RunError, match="cannot tell which step"):
        model(torch.zeros(1, 2))
    assert state_of(model) == before

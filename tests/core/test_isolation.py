"""Law 3: no run sees another's history, whatever happened to the other, whoever shares the transformer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import mixcache
from tests.helpers import POLICIES, verdicts
from tests.zoo.pipelines import Tiny


@pytest.mark.parametrize(("policy", "how"), POLICIES)
def test_every_run_is_like_a_first(tiny: Tiny, policy: str, how: dict[str, Any]) -> None:
    with mixcache.enable(tiny.pipe, policy, **how) as session:
        first, decided = tiny.run(), verdicts(session)
        assert torch.equal(tiny.run(), first)
        assert verdicts(session) == decided
        assert session.report().runs == 2
        assert session.report().foreign_calls == 0


class Interrupted(Exception):
    pass


def interrupt_at(step: int) -> Callable[..., dict[str, Any]]:
    def callback(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == step:
            raise Interrupted
        return {}

    return callback


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize(("policy", "how"), POLICIES)
def test_a_run_that_was_broken_off_leaves_nothing_behind(
    random_tiny: Tiny, policy: str, how: dict[str, Any], at: int
) -> None:
    with mixcache.enable(random_tiny.pipe, policy, **how) as session:
        first = random_tiny.run()
    with mixcache.enable(random_tiny.pipe, policy, **how) as session:
        with pytest.raises(Interrupted):
            random_tiny.run(callback_on_step_end=interrupt_at(at))
        assert torch.equal(random_tiny.run(), first)
        assert [visit for visit in verdicts(session) if visit[2]]


def test_an_exception_inside_the_model_leaves_nothing_behind(random_tiny: Tiny) -> None:
    class Broken(Exception):
        pass

    with mixcache.enable(random_tiny.pipe, "static:every=2"):
        first = random_tiny.run()
    module = next(m for m in random_tiny.pipe.transformer.modules() if isinstance(m, torch.nn.Linear))
    calls = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Broken

    with mixcache.enable(random_tiny.pipe, "static:every=2"):
        handle = module.register_forward_hook(fail)
        with pytest.raises(Broken):
            random_tiny.run()
        handle.remove()
        assert torch.equal(random_tiny.run(), first)


@pytest.mark.parametrize(("policy", "how"), POLICIES)
def test_another_shape_or_length_is_another_run(random_tiny: Tiny, policy: str, how: dict[str, Any]) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"batch": 2},
        {"batch": 1},
        random_tiny.other_size,
        {"steps": 5},
        {"seed": 7},
        {},
    ]

    def alone(change: dict[str, Any]) -> torch.Tensor:
        with mixcache.enable(random_tiny.pipe, policy, **how):
            return random_tiny.run(**change)

    expected = [alone(change) for change in changes]
    with mixcache.enable(random_tiny.pipe, policy, **how):
        for change, want in zip(changes, expected):
            assert torch.equal(random_tiny.run(**change), want)


def test_a_sample_is_not_spoiled_by_its_neighbour_in_the_batch(tiny_wan_random: Tiny) -> None:
    """Fixed schedules treat samples alone; both samples of a batch come out as they would by themselves."""
    noise = torch.randn(2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    with mixcache.enable(tiny_wan_random.pipe, "static:every=3", basis="noise", forecast="linear:abscissa=sigma"):
        both = tiny_wan_random.run(batch=2, latents=noise)
        each = torch.cat([tiny_wan_random.run(latents=noise[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(both, each)


def test_a_broken_run_is_over_and_holds_no_tensors(tiny_wan_random: Tiny) -> None:
    """What a dead request cached is dropped when the next one starts, not added to it."""
    with mixcache.enable(tiny_wan_random.pipe, "static:every=2") as session:
        tiny_wan_random.run()
        alone = session.report().peak_bytes
        with pytest.raises(Interrupted):
            tiny_wan_random.run(callback_on_step_end=interrupt_at(4))
        tiny_wan_random.run()
        assert session.report().peak_bytes == alone


def test_after_disabling_and_enabling_again_nothing_is_remembered(tiny_wan_random: Tiny) -> None:
    first = mixcache.enable(tiny_wan_random.pipe, "static:every=2")
    want = tiny_wan_random.run()
    with pytest.raises(Interrupted):
        tiny_wan_random.run(callback_on_step_end=interrupt_at(4))
    first.disable()
    with mixcache.enable(tiny_wan_random.pipe, "static:every=2") as second:
        assert torch.equal(tiny_wan_random.run(), want)
    assert len(first.records) == 10
    assert len(second.records) == 16
    assert [session.report().visits["step"].ideal_speedup > 1 for session in (first, second)] == [True, True]

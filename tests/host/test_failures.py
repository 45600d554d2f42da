"""Failures at every place where one can happen: what is left behind, what is said, and what goes on."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import pickle
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import frozen
from diffusers import WanTransformer3DModel
from torch import Tensor

import mixcache
from mixcache import AttachError, Basis, Forecaster, PluginError, Point, Policy, Reading, Vote, hookimpl
from mixcache.core import loop, store
from tests.conftest import built
from tests.helpers import Scripted, follow, reused_steps, state_of
from tests.zoo.pipelines import Tiny

ALL = ["static:every=2", "cfg:every=2,first_steps=1", "firstblock:threshold=0.5"]


# an error at every visited point


class Bomb:
    """A plugin that counts visits and raises at one of them, when it is asked for a vote or told what came of it."""

    def __init__(self, at: int, where: str, error: type[BaseException]) -> None:
        self.at, self.where, self.error, self.count = at, where, error, 0

    def _tick(self, where: str) -> None:
        if where == self.where:
            self.count += 1
            if self.count == self.at + 1:
                raise self.error("boom")

    @hookimpl
    def mixcache_vote(self, point: Point) -> None:
        self._tick("vote")

    @hookimpl
    def mixcache_observe(self, point: Point) -> None:
        self._tick("observe")


@contextmanager
def plugin(thing: Any) -> Iterator[Any]:
    mixcache.register(thing, name="under-test")
    try:
        yield thing
    finally:
        mixcache.catalogue.manager().unregister(name="under-test")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError, torch.OutOfMemoryError])
@pytest.mark.parametrize("where", ["vote", "observe"])
def test_an_error_at_any_visited_point_leaves_the_next_run_clean(
    tiny_wan_random: Tiny, where: str, error: type[BaseException]
) -> None:
    pipe = tiny_wan_random.pipe
    bare, before = tiny_wan_random.run(4), state_of(pipe.transformer)
    with mixcache.enable(pipe, ALL) as session:
        expected = tiny_wan_random.run(4)
    visits = len(session.records)
    assert visits > 10
    for at in range(visits):
        bomb = Bomb(at, where, error)
        with plugin(bomb):
            session = mixcache.enable(pipe, ALL)
            with pytest.raises(PluginError if error is RuntimeError else error, match="boom"):
                tiny_wan_random.run(4)
        assert torch.equal(tiny_wan_random.run(4), expected), f"after {error.__name__} at visit {at}"
        session.disable()
        assert state_of(pipe.transformer) == before
    assert torch.equal(tiny_wan_random.run(4), bare)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, torch.OutOfMemoryError])
def test_an_error_in_any_call_of_the_model_or_a_block_leaves_the_next_run_clean(
    tiny_wan_random: Tiny, error: type[BaseException]
) -> None:
    model = tiny_wan_random.pipe.transformer
    before = state_of(model)
    for module in (model.proj_out, model.blocks[0].ffn, model.blocks[2].attn1):
        made: list[int] = []
        with mixcache.enable(tiny_wan_random.pipe, ALL) as session:
            counter = module.register_forward_pre_hook(lambda *_, made=made: made.append(1))
            expected = tiny_wan_random.run(4)
            counter.remove()
            assert made
            for at in range(len(made)):
                seen = iter(range(100))

                def fail(*_: Any, at: int = at, seen: Iterator[int] = seen) -> None:
                    if next(seen) == at:
                        raise error("boom")

                handle = module.register_forward_pre_hook(fail)
                try:
                    with pytest.raises(error, match="boom"):
                        tiny_wan_random.run(4)
                finally:
                    handle.remove()
                assert torch.equal(tiny_wan_random.run(4), expected)
            assert session.enabled
        assert state_of(model) == before


# plugins that fail: named, or survived


@frozen(kw_only=True)
class Fails(Policy):
    """A policy with one fault."""

    name = "fails"
    fault: str = "vote"

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        if self.fault == "vote" and point.step == 2:
            raise ZeroDivisionError("no luck")
        if self.fault == "type" and point.step == 2:
            return "reuse"  # type: ignore[return-value]
        return Vote.reuse() if point.step % 2 else Vote.compute()

    def observe(self, point: Point, outcome: mixcache.Outcome, state: Any) -> None:
        if self.fault == "observe" and point.step == 2:
            raise ZeroDivisionError("no luck")


BROKEN = mixcache.Signal(name="broken", measure=lambda tensors: 1 / 0)
SHAPED = mixcache.Signal(name="shaped", measure=lambda tensors: torch.zeros(3))


@frozen(kw_only=True)
class ReadsBroken(Policy):
    """A policy that reads a signal that cannot be measured."""

    signals = ("broken",)

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        return Vote.reuse() if point.step % 2 else Vote.compute()


@frozen(kw_only=True)
class ReadsShaped(ReadsBroken):
    """A policy that reads a signal of the wrong shape."""

    signals = (SHAPED,)


@frozen
class WrongWeights(Forecaster):
    """A forecaster with one fault."""

    name = "wrong-weights"
    fault: str = "none"

    def weights(self, nodes: Any, target: float) -> list[float]:
        return {"none": [], "more": [0.5, 0.5], "NaN": [float("nan")]}[self.fault]


@frozen
class WrongForecast(Forecaster):
    """A forecaster with one fault."""

    name = "wrong-forecast"
    fault: str = "raises"

    def forecast(self, history: Any, point: Point, beside: Any) -> Any:
        z = history[-1].z
        if self.fault == "raises":
            raise ZeroDivisionError("no luck")
        return {"type": None, "tensor": z[0], "count": (), "shape": (z[0][..., :1],), "dtype": (z[0].half(),)}[
            self.fault
        ]


@frozen
class WrongBasis(Basis):
    """A basis with one fault."""

    name = "wrong-basis"
    fault: str = "decode"

    def encode(self, output: Any, anchor: Any, point: Point) -> Any:
        if self.fault == "encode":
            raise ZeroDivisionError("no luck")
        return output

    def decode(self, z: Any, anchor: Any, point: Point) -> Any:
        return (z[0][..., :1],) if self.fault == "shape" else 1 / 0


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "policy raises": ({"policies": Fails()}, "policy 'fails' raised ZeroDivisionError: no luck"),
    "policy observes": ({"policies": Fails(fault="observe")}, "policy 'fails' raised ZeroDivisionError: no luck"),
    "policy's type": ({"policies": Fails(fault="type")}, "'fails' must return a Vote from vote(), got 'reuse'"),
    "forecaster raises": ({"forecast": WrongForecast()}, "raised ZeroDivisionError: no luck"),
    **{
        f"forecaster's {fault}": ({"forecast": WrongForecast(fault)}, "must return a tuple of tensors of")
        for fault in ("type", "tensor", "count", "shape", "dtype")
    },
    **{
        f"forecaster's weights: {fault}": (
            {"forecast": WrongWeights(fault)},
            "forecaster 'wrong-weights' must return 1 finite weights",
        )
        for fault in ("none", "more", "NaN")
    },
    "basis raises": ({"basis": WrongBasis()}, "raised ZeroDivisionError: division by zero"),
    "basis encodes": ({"basis": WrongBasis("encode")}, "raised ZeroDivisionError: no luck"),
    "basis's shape": ({"basis": WrongBasis("shape")}, "must return a tuple of tensors of"),
    "signal raises": ({"policies": ReadsBroken()}, "signal 'broken' raised ZeroDivisionError: division by zero"),
    "signal's shape": ({"policies": ReadsShaped()}, "signal 'shaped' must return one number per sample"),
    "rule raises": ({"rule": lambda votes: 1 / 0}, "raised ZeroDivisionError: division by zero"),
    "rule's type": ({"rule": lambda votes: "no"}, "must return True or False, it returned 'no'"),
}


@pytest.fixture
def broken_signal() -> Iterator[None]:
    mixcache.register(BROKEN)
    yield
    mixcache.unregister("signal", "broken")


@pytest.mark.parametrize("name", FAULTS)
def test_a_plugin_that_fails_is_named_or_survived(tiny_wan_random: Tiny, name: str, broken_signal: None) -> None:
    how, said = FAULTS[name]
    how = {"policies": "static:every=2,first_steps=1", **how}
    pipe = tiny_wan_random.pipe
    bare = tiny_wan_random.run()
    with mixcache.enable(pipe, **how) as session, pytest.raises(PluginError) as error:
        tiny_wan_random.run()
    assert said in str(error.value)
    with mixcache.enable(pipe, on_error="compute", **how) as session:
        survived = tiny_wan_random.run()
    assert survived.isfinite().all()
    told = [r.outcome.reason for r in session.records if said in r.outcome.reason]
    assert told
    if not name.startswith("policy"):
        assert torch.equal(survived, bare)
        assert not any(r.outcome.reused for r in session.records)
    assert torch.equal(tiny_wan_random.run(), bare)


class SaysReuse:
    """A plugin whose run-time hook returns no vote."""

    @hookimpl
    def mixcache_vote(self, point: Point) -> Any:
        return "reuse" if point.step == 2 else None


def test_a_hook_that_returns_no_vote_is_named_or_survived(tiny_wan_random: Tiny) -> None:
    said = "'under-test' must return a Vote or None from mixcache_vote, got 'reuse'"
    with plugin(SaysReuse()):
        with mixcache.enable(tiny_wan_random.pipe, "static:every=2"), pytest.raises(PluginError) as error:
            tiny_wan_random.run()
        assert said in str(error.value)
        with mixcache.enable(tiny_wan_random.pipe, "static:every=2", on_error="compute") as session:
            assert tiny_wan_random.run().isfinite().all()
    assert {r.point.step for r in session.records if said in r.outcome.reason} == {2}


def test_on_error_is_checked(tiny_wan_random: Tiny) -> None:
    with pytest.raises(
        mixcache.ConfigurationError, match=r"on_error=\.\.\.\)` must be one of 'raise', 'compute', got 'ignore'"
    ):
        mixcache.enable(tiny_wan_random.pipe, "static", on_error="ignore")


# values that are not finite

OPEN = "first_steps=2,last_steps=0"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("policies", ["static:every=3", "easycache:threshold=99"])
@pytest.mark.parametrize("forecast", ["hold", "linear"])
@pytest.mark.parametrize("host", [True, False], ids=["host", "device"])
def test_what_is_not_finite_is_never_reused(
    policies: str, forecast: str, bad: float, host: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model fails once, at a computed step. On a device, policies without signals do not look (law 7)."""
    if not host:
        if policies.startswith("static"):
            pytest.skip("nothing is read from the device for a policy without signals")
        for module in (loop, store):
            monkeypatch.setattr(module, "on_host", lambda tensor: False)
    generator = torch.Generator().manual_seed(0)
    anchors = list(torch.randn(12, 1, 6, generator=generator))
    model = Scripted()
    for when in range(12):
        outputs = [torch.randn(1, 6, generator=generator) for _ in anchors]
        outputs[when][0, 3] = bad
        with mixcache.enable(model, f"{policies},{OPEN}", forecast=forecast) as session:
            results = follow(session, model, anchors, [[o] for o in outputs])
        reused = reused_steps(session)
        assert reused
        for step in range(12):
            if step in reused:
                assert results[step][0].isfinite().all(), f"broken at {when}, reused at {step}"
        if when not in reused:
            told = [r.point.step for r in session.records if "values that are not finite" in r.outcome.reason]
            assert told == ([when] if host else [when + 1] if when < 11 else [])


def test_a_block_that_overflows_is_not_reused(tiny_wan_random: Tiny) -> None:
    model = tiny_wan_random.pipe.transformer
    calls = iter(range(1000))

    def overflow(_module: Any, _args: Any, result: Tensor) -> Tensor:
        return torch.full_like(result, float("inf")) if next(calls) == 2 else result

    handle = model.blocks[1].register_forward_hook(overflow)
    with mixcache.enable(tiny_wan_random.pipe, "static:every=2,at=block,first_steps=1,last_steps=0") as session:
        tiny_wan_random.run(8, guidance_scale=1.0)
    handle.remove()
    broken = [r.point.step for r in session.records if "values that are not finite" in r.outcome.reason]
    assert broken
    assert not set(reused_steps(session, "block")) & {step + 1 for step in broken}


# copies, files, processes


@pytest.mark.parametrize(
    "make", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))], ids=["copy", "pickle"]
)
def test_a_copy_of_a_cached_pipeline_is_the_plain_pipeline(tiny_wan_random: Tiny, make: Callable[[Any], Any]) -> None:
    bare = tiny_wan_random.run()
    with mixcache.enable(tiny_wan_random.pipe, ALL) as session:
        cached = tiny_wan_random.run()
        twin = Tiny(make(tiny_wan_random.pipe), tiny_wan_random.arguments, steps=tiny_wan_random.steps)
        seen = len(session.records)
        assert torch.equal(twin.run(), bare)
        assert len(session.records) == seen
        for a, b in zip(twin.pipe.transformer.parameters(), tiny_wan_random.pipe.transformer.parameters()):
            assert a.data_ptr() != b.data_ptr()
        with mixcache.enable(twin.pipe, ALL):
            assert torch.equal(twin.run(), cached)
        assert torch.equal(tiny_wan_random.run(), cached)
    assert torch.equal(twin.run(), bare)


def test_a_copy_of_what_others_have_hooked_is_refused(fresh_wan: Tiny) -> None:
    from diffusers.hooks import HookRegistry, ModelHook

    HookRegistry.check_if_exists_or_initialize(fresh_wan.pipe.transformer).register_hook(ModelHook(), "theirs")
    with mixcache.enable(fresh_wan.pipe, "static:every=2"), pytest.raises(AttachError, match="hooks of others"):
        copy.deepcopy(fresh_wan.pipe)


def test_saving_a_cached_pipeline_saves_the_plain_one(tiny_wan_random: Tiny, tmp_path: Path) -> None:
    tiny_wan_random.pipe.transformer.save_pretrained(tmp_path / "plain")
    with mixcache.enable(tiny_wan_random.pipe, ALL):
        tiny_wan_random.run(4)
        tiny_wan_random.pipe.transformer.save_pretrained(tmp_path / "cached")
    files = sorted(path.name for path in (tmp_path / "plain").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "cached").iterdir())
    assert len(files) == 2
    for name in files:
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "cached" / name).read_bytes()
    loaded = WanTransformer3DModel.from_pretrained(tmp_path / "cached")
    assert not hasattr(loaded, "_diffusers_hook")


def _forked(queue: Any) -> None:
    queue.put(built("wan").run().tolist())


def _spawned(pickled: bytes, policies: Any, arguments: dict[str, Any], queue: Any) -> None:
    torch.set_num_threads(1)
    pipe = pickle.loads(pickled)
    pipe.set_progress_bar_config(disable=True)
    with mixcache.enable(pipe, policies) as session:
        result = pipe(return_dict=False, generator=torch.Generator().manual_seed(1), **arguments)[0]
    queue.put((result.tolist(), session.report().evaluations))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_worker_goes_on_caching(tiny_wan_random: Tiny) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with mixcache.enable(tiny_wan_random.pipe, ALL):
        expected = tiny_wan_random.run()
        worker = context.Process(target=_forked, args=(queue,))
        worker.start()
        assert torch.equal(torch.tensor(queue.get(timeout=120)), expected)
        worker.join()
        assert torch.equal(tiny_wan_random.run(), expected)


def test_a_spawned_worker_caches_what_it_was_sent(tiny_wan_random: Tiny) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    arguments = {"num_inference_steps": 8, "output_type": "latent", **tiny_wan_random.arguments(1)}
    with mixcache.enable(tiny_wan_random.pipe, ALL) as session:
        expected = tiny_wan_random.run(8)
        sent = (pickle.dumps(tiny_wan_random.pipe), ALL, arguments, queue)
        worker = context.Process(target=_spawned, args=sent)
        worker.start()
        result, evaluations = queue.get(timeout=300)
        worker.join()
    assert torch.equal(torch.tensor(result), expected)
    assert evaluations == session.report().evaluations


# many runs


def many(runs: int) -> None:
    model = Scripted()
    anchors = list(torch.ones(4, 1, 6))
    outputs = [[torch.ones(1, 6)] for _ in anchors]
    with mixcache.enable(model, "easycache:threshold=0.5,first_steps=1") as session:
        for _ in range(20):
            follow(session, model, anchors, outputs)
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        tensors = sum(isinstance(thing, Tensor) for thing in gc.get_objects())
        for _ in range(runs):
            follow(session, model, anchors, outputs)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert sum(isinstance(thing, Tensor) for thing in gc.get_objects()) <= tensors
        assert len(session.records) == len(anchors)
        assert session.report().runs == runs + 20
        assert session.report().evaluations_uncached == 4 * session.report().runs
    assert grown < 64_000  # however many runs: the records are those of the last one, all else is counted
    assert not hasattr(model, "_diffusers_hook")
    assert len(model._forward_hooks) == len(model._forward_pre_hooks) == 0


def test_many_runs_in_a_row_leak_nothing() -> None:
    many(300)


@pytest.mark.slow
def test_ten_thousand_runs_in_a_row_leak_nothing() -> None:
    many(10_000)


def test_enabling_many_times_leaves_no_hooks(tiny_wan_random: Tiny) -> None:
    tiny_wan_random.run(2)
    before = state_of(tiny_wan_random.pipe.transformer)
    for _ in range(50):
        with mixcache.enable(tiny_wan_random.pipe, ALL):
            pass
    assert state_of(tiny_wan_random.pipe.transformer) == before

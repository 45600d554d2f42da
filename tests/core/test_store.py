"""The store: what is kept, how much, and that nothing outlives its run or aliases the model's tensors."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

import mixcache
from tests.helpers import Scripted, follow
from tests.zoo.pipelines import Tiny


def run(policy: str, steps: int, **how: Any) -> tuple[mixcache.Session, list[list[torch.Tensor]]]:
    model, anchors = Scripted(), [torch.full((1, 1000), float(i)) for i in range(steps)]
    with mixcache.enable(model, policy, **how) as session:
        return session, follow(session, model, anchors, [[3 * a] for a in anchors], sigmas=[0.5] * steps)


@pytest.mark.parametrize(("forecast", "tensors"), [("hold", 1), ("linear", 2), ("taylor:order=3", 4)])
def test_the_cache_is_as_large_as_the_forecaster_needs(forecast: str, tensors: int) -> None:
    for steps in (12, 30):
        session, _ = run("static:every=2", steps, forecast=forecast)
        assert session.report().peak_bytes == tensors * 4000


def test_what_signals_remember_is_counted() -> None:
    session, _ = run("easycache:threshold=0.05", 30)
    # z, the previous anchor, the last computed anchor and output (the two anchors are one tensor after a compute)
    assert 3 * 4000 < session.report().peak_bytes <= 4 * 4000 + 100


def test_changing_a_result_in_place_does_not_change_the_cache() -> None:
    model = Scripted()
    anchor, computed = torch.ones(1, 4), torch.full((1, 4), 5.0)
    with mixcache.enable(model, "schedule:1000", basis="output") as session, session.run(4) as opened:
        model.next = computed
        for step in range(4):
            with opened.step(step), opened.branch("cond"):
                (result,) = model(anchor)
            assert torch.equal(result, torch.full((1, 4), 5.0))
            result.mul_(7)
            anchor.add_(1)


def test_what_a_run_stored_is_gone_when_it_ends(tiny_wan_random: Tiny) -> None:
    with mixcache.enable(tiny_wan_random.pipe, "static:every=2") as session:
        kept: list[weakref.ref[torch.Tensor]] = []

        def look(pipe: Any, index: int, *_: Any) -> dict[str, Any]:
            (current,) = session._calls.requests.open_runs
            slots = current.memory.store._slots.values()
            kept.extend(weakref.ref(t) for slot in slots for t in slot.tensors())
            return {}

        tiny_wan_random.run(5, callback_on_step_end=look)
        gc.collect()
        assert kept
        assert not [ref for ref in kept if ref() is not None]
        assert not session._calls.requests.open_runs


def test_a_changed_dtype_drops_the_history() -> None:
    model = Scripted()
    anchors = [torch.ones(1, 4), torch.ones(1, 4, dtype=torch.float64), torch.ones(1, 4, dtype=torch.float64)]
    with mixcache.enable(model, "static:every=9,first_steps=1,last_steps=0") as session:
        results = follow(session, model, anchors, [[a] for a in anchors])
    assert [r.outcome.reused for r in session.records] == [False, False, True]
    assert "shape changed from (1, 4) torch.float32 on cpu to (1, 4) torch.float64" in session.records[1].outcome.reason
    assert [r[0].dtype for r in results] == [a.dtype for a in anchors]


@pytest.mark.parametrize(
    "how", ["static:every=3", "firstblock:threshold=0.5", "static:every=3 + cfg:every=2 + dbcache:first_blocks=1"]
)
def test_the_bytes_reported_are_the_bytes_held(tiny_wan_random: Tiny, how: str) -> None:
    with mixcache.enable(tiny_wan_random.pipe, how, forecast="linear") as session:
        held: list[int] = []

        def look(pipe: Any, index: int, *_: Any) -> dict[str, Any]:
            (current,) = session._calls.requests.open_runs
            tensors = [t for slot in current.memory.store._slots.values() for t in slot.tensors()]
            held.append(sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()))
            assert current.memory.store.held_bytes == held[-1]
            return {}

        tiny_wan_random.run(8, callback_on_step_end=look)
        assert session.report().peak_bytes >= max(held) > 0


def test_a_cache_that_is_too_small_computes_and_says_so(tiny_wan_random: Tiny) -> None:
    with mixcache.enable(tiny_wan_random.pipe, "static:every=2") as session:
        uncached, peak = tiny_wan_random.run(6), session.report().peak_bytes
    for limit, reuses in ((0, 0), (peak // 2, 1), (peak, 2)):
        with mixcache.enable(tiny_wan_random.pipe, "static:every=2", max_cache_bytes=limit) as session:
            tiny_wan_random.run(6)
            report = session.report()
        assert report.peak_bytes <= limit
        branches = {r.point.branch for r in session.records if r.outcome.reused}
        assert len(branches) == reuses
        assert any("no room in the cache" in r for r in report.visits["step"].reasons) == (limit < peak)
    assert uncached is not None


@pytest.mark.parametrize("limit", [-1, 1.5, "1GB", True])
def test_a_cache_size_that_is_none_is_refused(limit: Any) -> None:
    with pytest.raises(mixcache.ConfigurationError, match="max_cache_bytes"):
        mixcache.enable(Scripted(), "static", max_cache_bytes=limit)


def test_an_offloaded_cache_gives_the_same(tiny_wan_random: Tiny) -> None:
    results = []
    for offload in (None, "cpu"):
        with mixcache.enable(tiny_wan_random.pipe, "static:every=2", forecast="linear", offload=offload):
            results.append(tiny_wan_random.run(6))
    assert torch.equal(*results)
    with pytest.raises(mixcache.ConfigurationError, match="offload"):
        mixcache.enable(Scripted(), "static", offload="disk")

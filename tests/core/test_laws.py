"""The laws of the design for whole-step caching, on every pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import mixcache
from mixcache import trace
from mixcache.session import Session
from tests.pipelines import Tiny

REUSING = [
    ("static:every=2", {}),
    ("static:every=3,first_steps=1", {"basis": "noise", "forecast": "linear:abscissa=sigma"}),
    ("easycache:threshold=0.5,first_steps=2", {}),
]


def verdicts(session: Session, run: int = 0) -> list[tuple[int, str, bool]]:
    return [(r.point.step, r.point.branch, r.outcome.reused) for r in session.records if r.run == run]


# 1. exact when it computes


@pytest.mark.parametrize("policy", ["static:every=1", "easycache:threshold=0", "static:every=2,first_steps=99"])
def test_a_policy_that_never_reuses_changes_no_bit(tiny: Tiny, policy: str) -> None:
    bare = tiny.run()
    with mixcache.enable(tiny.pipe, policy) as session:
        assert torch.equal(tiny.run(), bare)
        assert torch.equal(tiny.run(batch=2), tiny.run(batch=2))
        report = session.report()
    assert report.evaluations == report.evaluations_uncached > 0
    assert torch.equal(tiny.run(), bare)


def test_a_policy_that_reuses_does_change_the_output(tiny: Tiny) -> None:
    bare = tiny.run()
    with mixcache.enable(tiny.pipe, "static:every=2") as session:
        cached = tiny.run()
        assert 0 < session.report().evaluations < session.report().evaluations_uncached
    assert not torch.equal(cached, bare)
    assert cached.isfinite().all()


# 3. isolation: every run is as if it were the first


@pytest.mark.parametrize(("policy", "how"), REUSING)
def test_every_run_is_like_a_first(tiny: Tiny, policy: str, how: dict[str, Any]) -> None:
    with mixcache.enable(tiny.pipe, policy, **how) as session:
        first = tiny.run()
        assert torch.equal(tiny.run(), first)
        assert verdicts(session, 0) == verdicts(session, 1)
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
@pytest.mark.parametrize(("policy", "how"), REUSING)
def test_a_run_that_was_broken_off_leaves_nothing_behind(
    tiny: Tiny, policy: str, how: dict[str, Any], at: int
) -> None:
    with mixcache.enable(tiny.pipe, policy, **how) as session:
        first = tiny.run()
    with mixcache.enable(tiny.pipe, policy, **how) as session:
        with pytest.raises(Interrupted):
            tiny.run(callback_on_step_end=interrupt_at(at))
        assert torch.equal(tiny.run(), first)
        assert [visit for visit in verdicts(session, 1) if visit[2]]


def test_an_exception_inside_the_model_leaves_nothing_behind(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Exception):
        pass

    with mixcache.enable(tiny.pipe, "static:every=2"):
        first = tiny.run()
    module = next(m for m in tiny.pipe.transformer.modules() if isinstance(m, torch.nn.Linear))
    calls = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Broken

    with mixcache.enable(tiny.pipe, "static:every=2"):
        handle = module.register_forward_hook(fail)
        with pytest.raises(Broken):
            tiny.run()
        handle.remove()
        assert torch.equal(tiny.run(), first)


@pytest.mark.parametrize(("policy", "how"), REUSING)
def test_another_shape_or_length_is_another_run(tiny: Tiny, policy: str, how: dict[str, Any]) -> None:
    changes: list[dict[str, Any]] = [{}, {"batch": 2}, {"batch": 1}, tiny.other_size, {"steps": 5}, {"seed": 7}, {}]

    def alone(change: dict[str, Any]) -> torch.Tensor:
        with mixcache.enable(tiny.pipe, policy, **how):
            return tiny.run(**change)

    expected = [alone(change) for change in changes]
    with mixcache.enable(tiny.pipe, policy, **how):
        for change, want in zip(changes, expected):
            assert torch.equal(tiny.run(**change), want)


def test_a_sample_is_not_spoiled_by_its_neighbour_in_the_batch(tiny_wan_random: Tiny) -> None:
    """Fixed schedules treat samples alone; both samples of a batch come out as they would by themselves."""
    tiny = tiny_wan_random
    noise = torch.randn(2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    with mixcache.enable(tiny.pipe, "static:every=3", basis="noise", forecast="linear:abscissa=sigma"):
        both = tiny.run(batch=2, latents=noise)
        each = torch.cat([tiny.run(latents=noise[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(both, each)


# 7. no hidden transfer


@contextmanager
def transfers() -> Iterator[list[str]]:
    """Every way in which the host can read a tensor, counted."""
    names = ["tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__", "__array__"]
    seen: list[str] = []
    busy = False

    def counted(name: str, original: Any) -> Any:
        def method(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal busy
            if busy:  # one that is made of another counts once
                return original(self, *args, **kwargs)
            seen.append(name)
            busy = True
            try:
                return original(self, *args, **kwargs)
            finally:
                busy = False

        return method

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(torch.Tensor, name, counted(name, getattr(torch.Tensor, name)))
        yield seen


def extra_transfers(tiny: Tiny, policy: str, steps: int, **how: Any) -> tuple[int, Session]:
    tiny.run(steps)
    with transfers() as bare:
        tiny.run(steps)
    with mixcache.enable(tiny.pipe, policy, **how) as session:
        with transfers() as cached:
            tiny.run(steps)
    return len(cached) - len(bare), session


def test_a_static_policy_reads_the_device_no_more_often_in_a_longer_run(tiny: Tiny) -> None:
    how = {"basis": "noise", "forecast": "linear:abscissa=sigma"}
    short, _ = extra_transfers(tiny, "static:every=1", 4, **how)
    long, _ = extra_transfers(tiny, "static:every=1", 9, **how)
    assert short == long <= 3  # the noise levels, once a run


def test_a_measuring_policy_reads_the_device_once_a_measured_visit(tiny: Tiny) -> None:
    static, _ = extra_transfers(tiny, "static:every=1", 9)
    measuring, session = extra_transfers(tiny, "easycache:threshold=0", 9)
    measured = sum(any(v is not None for v in record.reading.values()) for record in session.records)
    assert measuring - static == measured
    assert 0 < measured <= 9


def test_reusing_reads_nothing_either(tiny: Tiny) -> None:
    """With reuse the model runs less often, so there can only be fewer reads than with a policy that computes."""
    computing, _ = extra_transfers(tiny, "static:every=1", 9)
    reusing, session = extra_transfers(tiny, "static:every=3", 9)
    assert session.report().evaluations < session.report().evaluations_uncached
    assert reusing <= computing


# 8. replay


@pytest.mark.parametrize(("policy", "how"), REUSING)
def test_a_recorded_trace_replays_to_the_same_verdicts(
    tiny: Tiny, policy: str, how: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "trace.jsonl"
    with mixcache.enable(tiny.pipe, policy, trace=path, **how) as session:
        tiny.run()
        tiny.run(steps=5, batch=2)
    records = trace.read(path)
    assert records == session.records
    assert list(trace.replay(records, session.plan.policies)) == [record.verdict for record in records]
    assert {record.run for record in records} == {0, 1}
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_a_trace_can_be_replayed_through_another_policy(tiny_wan_random: Tiny) -> None:
    with mixcache.enable(tiny_wan_random.pipe, "easycache:threshold=0") as session:
        tiny_wan_random.run()
    (always,) = {v.reuse for v in trace.replay(session.records, mixcache.plugins.build_policies("static:every=1"))}
    assert always is False
    loose = mixcache.plugins.build_policies("easycache:threshold=1000,first_steps=2")
    assert sum(v.reuse for v in trace.replay(session.records, loose)) > 0


def test_a_trace_without_the_signals_that_a_policy_reads_is_an_error(tiny_wan_random: Tiny) -> None:
    with mixcache.enable(tiny_wan_random.pipe, "static:every=2") as session:
        tiny_wan_random.run()
    with pytest.raises(mixcache.TraceError, match="lacks signals that 'easycache' reads: predicted_change"):
        list(trace.replay(session.records, mixcache.plugins.build_policies("easycache")))

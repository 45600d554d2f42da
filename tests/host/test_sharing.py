"""Law 3 for those who share: two pipelines on one transformer, two sessions, two experts, several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mixcache
from tests.helpers import Scripted, follow, reused_steps, runs_of, state_of, verdicts
from tests.zoo.pipelines import Tiny, flux, wan, wan_transformer

POLICY = "static:every=3"


def test_two_pipelines_share_one_transformer_and_tell_nothing() -> None:
    """The other pipeline's calls are computed and reported; the cached one is as if it were alone."""
    ours = flux()
    theirs = flux(transformer=ours.pipe.transformer)
    bare = theirs.run(6)
    with mixcache.enable(ours.pipe, POLICY) as session:
        want, first = ours.run(), verdicts(session)
        assert torch.equal(theirs.run(6), bare)
        assert torch.equal(ours.run(), want)
        assert verdicts(session) == first
        assert session.report().foreign_calls == 6
    assert "6 calls belonged to no run of this pipeline" in str(session.report())


def test_two_pipelines_share_one_transformer_and_tell_their_steps(tiny_wan_random: Tiny, tmp_path: Path) -> None:
    """Wan's calls say where they stand: each run has its own memory, also one in the middle of the other.

    The run that was interrupted goes on with its own history afterwards.
    """
    ours, theirs = tiny_wan_random, wan(tiny_wan_random.pipe.transformer)
    how = {"basis": "noise", "forecast": "linear:abscissa=sigma"}

    def alone(tiny: Tiny, steps: int) -> torch.Tensor:
        with mixcache.enable(tiny.pipe, POLICY, **how):
            return tiny.run(steps)

    want = alone(ours, 8), alone(theirs, 11)
    between: list[torch.Tensor] = []

    def callback(pipe: Any, index: int, *_: Any) -> dict[str, Any]:
        if index == 4:
            between.append(theirs.run(11))
        return {}

    with mixcache.enable(ours.pipe, POLICY, trace=tmp_path / "trace", **how) as session:
        assert torch.equal(ours.run(8), want[0])
        assert torch.equal(theirs.run(11), want[1])
        interrupted = ours.run(8, callback_on_step_end=callback)
        assert torch.equal(between[0], want[1])
        assert torch.equal(interrupted, want[0])
        assert torch.equal(ours.run(8), want[0])
        assert session.report().foreign_calls == 0
    runs = runs_of(tmp_path / "trace")
    assert len(runs) == 5
    assert verdicts(runs[0]) == verdicts(runs[2]) == verdicts(runs[4])
    assert verdicts(runs[1]) == verdicts(runs[3])


def test_two_pipelines_share_a_cached_transformer(tiny_wan_random: Tiny) -> None:
    """Enabled on the transformer itself, every pipeline's runs are its own."""
    one, two = tiny_wan_random, wan(tiny_wan_random.pipe.transformer)

    def alone(tiny: Tiny, steps: int) -> torch.Tensor:
        with mixcache.enable(tiny.pipe, POLICY):
            return tiny.run(steps)

    want = alone(one, 8), alone(two, 6)
    with mixcache.enable(one.pipe.transformer, POLICY) as session:
        for _ in range(2):
            for tiny, steps, wanted in ((one, 8, want[0]), (two, 6, want[1])):
                assert torch.equal(tiny.run(steps), wanted)
                assert reused_steps(session)
                assert all(step >= 2 for step in reused_steps(session))
    assert session.report().runs == 4


def test_two_sessions_on_one_transformer_are_refused(tiny_wan_random: Tiny) -> None:
    other = wan(tiny_wan_random.pipe.transformer)
    with mixcache.enable(tiny_wan_random.pipe, POLICY) as session:
        for target in (tiny_wan_random.pipe, other.pipe, other.pipe.transformer):
            with pytest.raises(mixcache.AttachError, match="enabled on this WanTransformer3DModel already"):
                mixcache.enable(target, "easycache")
        assert session.enabled
        assert tiny_wan_random.run().isfinite().all()
        assert reused_steps(session) == [2, 3, 5, 6]


def test_two_sessions_on_two_pipelines_of_one_class(tiny_wan_random: Tiny) -> None:
    """Disabling one leaves the other on."""
    one, two = tiny_wan_random, wan(wan_transformer(seed=5))
    with mixcache.enable(two.pipe, POLICY):
        want = two.run()
    first, second = mixcache.enable(one.pipe, POLICY), mixcache.enable(two.pipe, POLICY)
    one.run()
    first.disable()
    assert torch.equal(two.run(), want)
    assert len(second.records) == 16
    assert len(first.records) == 16
    second.disable()


def test_two_experts_are_one_run(fresh_wan: Tiny) -> None:
    """Wan 2.2: the first steps go to `transformer`, the rest to `transformer_2`; each has a history of its own."""
    two = wan(fresh_wan.pipe.transformer, transformer_2=wan_transformer(seed=3), boundary_ratio=0.9)
    bare = two.run()
    with mixcache.enable(two.pipe, "static:every=1") as session:
        assert torch.equal(two.run(), bare)
    with mixcache.enable(two.pipe, "static:every=2,first_steps=0,last_steps=0") as session:
        two.run()
    components = {r.point.step: r.point.component for r in session.records}
    assert {r.point.path for r in session.records} == {"step"}
    assert set(components.values()) == {"transformer", "transformer_2"}
    assert session.report().runs == 1
    begin = min(step for step, component in components.items() if component == "transformer_2")
    assert begin % 2 == 1, "choose a boundary where the second expert begins with a reuse"
    (missed,) = [r for r in session.records if r.verdict.reuse and not r.outcome.reused]
    assert (missed.point.step, missed.point.component) == (begin, "transformer_2")
    assert missed.outcome.reason.startswith("no history to reuse")


def in_threads(*jobs: Callable[[], Any]) -> list[Any]:
    """The results of jobs run at once, or the exceptions that they raised."""
    results: list[Any] = [None] * len(jobs)

    def work(index: int) -> None:
        try:
            results[index] = jobs[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_threads_with_a_pipeline_each_share_a_cached_transformer(tiny_wan_random: Tiny, tmp_path: Path) -> None:
    """They meet after every step, so their calls really alternate."""
    model = tiny_wan_random.pipe.transformer
    pipes = [wan(model) for _ in range(3)]
    with mixcache.enable(model, POLICY):
        want = [pipe.run(seed=i) for i, pipe in enumerate(pipes)]
    meeting = threading.Barrier(3, timeout=30)

    def callback(*_: Any) -> dict[str, Any]:
        meeting.wait()
        return {}

    with mixcache.enable(model, POLICY, trace=tmp_path / "trace") as session:
        jobs = [lambda i=i, pipe=pipe: pipe.run(seed=i, callback_on_step_end=callback) for i, pipe in enumerate(pipes)]
        results = in_threads(*jobs)
    for result, expected in zip(results, want):
        assert torch.equal(result, expected)
    assert session.report().runs == 3
    runs = runs_of(tmp_path / "trace")
    assert len(runs) == 3
    assert len({tuple(verdicts(records)) for records in runs.values()}) == 1


@pytest.mark.parametrize("build", [wan, flux])
def test_two_threads_on_one_pipeline_are_refused_and_leave_nothing_behind(build: Callable[[], Tiny]) -> None:
    """One noise scheduler cannot serve two runs at once: both are told, and the next run is like a first."""
    tiny = build()
    tiny.run()
    before = state_of(tiny.pipe.transformer)
    began, ended = threading.Event(), threading.Event()

    def pause(pipe: Any, index: int, *_: Any) -> dict[str, Any]:
        if index == 3:
            began.set()
            ended.wait(30)
        return {}

    def disturbed() -> torch.Tensor:
        return tiny.run(callback_on_step_end=pause)

    def disturbing() -> torch.Tensor:
        began.wait(30)
        try:
            return tiny.run(callback_on_step_end=lambda pipe, index, *_: ended.set() or {})
        finally:
            ended.set()

    with mixcache.enable(tiny.pipe, POLICY) as session:
        want, first = tiny.run(), verdicts(session)
        results = in_threads(disturbed, disturbing)
        refused = [r for r in results if isinstance(r, mixcache.RunError)]
        assert refused, results
        assert all("two threads drive one noise scheduler" in str(error) for error in refused)
        assert isinstance(results[0], mixcache.RunError), results[0]
        assert torch.equal(tiny.run(), want)
        assert verdicts(session) == first
    assert state_of(tiny.pipe.transformer) == before


def test_each_thread_opens_a_run_of_its_own() -> None:
    anchors = [torch.full((1, 2), float(i)) for i in range(6)]
    models = [Scripted() for _ in range(2)]
    sessions = [mixcache.enable(model, "schedule:110100") for model in models]

    def job(i: int) -> list[list[torch.Tensor]]:
        return follow(sessions[i], models[i], anchors, [[a * (i + 2)] for a in anchors])

    one, two = in_threads(lambda: job(0), lambda: job(1))
    # reuse adds the stored increment to the anchor: v_c - x_c is (factor - 1) * x_c
    assert [r[0][0, 0].item() for r in one] == [0, 2, 3, 6, 7, 8]
    assert [r[0][0, 0].item() for r in two] == [0, 3, 4, 9, 10, 11]
    for session in sessions:
        session.disable()

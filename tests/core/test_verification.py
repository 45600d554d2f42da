"""Verification: a part of the model that is really run on a rebuilt value tells how far off that was.

As SpeCa does it (arXiv 2509.11628), by a third-party policy of a few lines.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import define, field, frozen
from torch import Tensor

import mixcache
from mixcache import Granularity, Point, Policy, Reading, Signal, Vote, parse_granularity, study
from mixcache.core import loop, store
from mixcache.core.trace import Learned
from tests.core.test_transfers import transfers
from tests.zoo import toy


@frozen(kw_only=True)
class Verifies(Policy):
    """Reuses the first three blocks until the last one, run on the result, was too far off."""

    signals = ("verify_error",)
    branches = "independent"
    exact_history = True
    one_state = True

    at: Granularity = field(default=Granularity.BLOCK, converter=parse_granularity)
    threshold: float = 0.02

    @define
    class State:
        """The branches whose last check failed, and what was learned, in order."""

        failed: set[str] = field(factory=set)

    def spans(self, blocks: int) -> tuple[tuple[int, int], ...]:
        return (0, blocks - 1), (blocks - 1, blocks)

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        if point.span == (0, 3):
            return Vote.compute("failed") if point.branch in state.failed else Vote.reuse("passed")
        return Vote.compute("verifies")

    def learn(self, point: Point, reading: Reading, state: Any) -> None:
        failed = reading["verify_error"] > self.threshold
        (state.failed.add if failed else state.failed.discard)(point.branch)

    def observe(self, point: Point, outcome: Any, state: Any) -> None:
        if point.span == (0, 3) and not outcome.reused:
            state.failed.discard(point.branch)


def latents(steps: int = 12) -> list[Tensor]:
    """Two samples that drift, and faster in the middle."""
    generator = torch.Generator().manual_seed(2)
    start, way = torch.randn(2, 2, 3, generator=generator, dtype=torch.float64)
    return [start + way * (0.02 * t + 0.6 / (1 + (t - 6) ** 2)) for t in range(steps)]


def run(
    policy: Any, xs: list[Tensor], branches: tuple[str, ...] = ("cond",), **how: Any
) -> tuple[mixcache.Session, toy.Toy, list[list[Tensor]]]:
    model = toy.Toy()
    with mixcache.enable(model, policy, adapter=toy.ADAPTER, **how) as session:
        return session, model, toy.walk(session, model, xs, branches=branches)


def unrolled(xs: list[Tensor], threshold: float) -> tuple[list[bool], list[float | None], list[Tensor]]:
    """The published loop, written out: what was reused, how far off the check was, and what came out."""
    reused, errors, outputs = [], [], []
    first = last = None
    failed = False
    for x in xs:
        if first is None or failed:
            h, out = toy.through(x, 0, 3), toy.through(x)
            first, last, failed = h - x, out - h, False
            reused.append(False)
            errors.append(None)
        else:
            h = x + first
            out, forecast = toy.through(h, 3, 4), h + last
            error = float(((out - forecast).abs().mean(1) / forecast.abs().mean(1)).max())
            reused.append(True)
            errors.append(error)
            failed = error > threshold
        outputs.append(out)
    return reused, errors, outputs


@pytest.mark.parametrize("threshold", [0.0, 0.005, 0.02, 1.0])
def test_the_error_of_the_last_block_is_known_before_the_next_steps_vote(threshold: float) -> None:
    xs = latents()
    session, model, outputs = run(Verifies(threshold=threshold), xs)
    reused, errors, expected = unrolled(xs, threshold)
    if 0 < threshold < 1:
        assert 0 < sum(reused[1:]) < len(xs) - 1
    first = [r for r in session.records if r.point.span == (0, 3)]
    last = [r for r in session.records if r.point.span == (3, 4)]
    assert [r.outcome.reused for r in first] == reused
    assert [r.outcome.reused for r in last] == [False] * len(xs)
    for (output,), wanted in zip(outputs, expected):
        torch.testing.assert_close(output, wanted)
    assert model.ran == [reused.count(False)] * 3 + [len(xs)]
    for record, error, before in zip(first[1:], errors, last):
        if error is None:
            assert record.learned == ()
        else:
            point, reading = before.point, {"verify_error": pytest.approx(error, rel=1e-4)}
            assert record.learned == (Learned(point=point, reading=reading),)


def test_it_is_part_of_the_reading_where_it_was_measured_too() -> None:
    xs = latents()
    session, _, _ = run(Verifies(), xs)
    _, errors, _ = unrolled(xs, 0.02)
    known = None
    for record in (r for r in session.records if r.point.span == (3, 4)):
        expected = None if known is None else pytest.approx(known, rel=1e-4)
        assert record.reading == {"verify_error": expected}
        known = errors[record.point.step]  # a computed visit that verifies nothing has nothing to tell


def test_only_exact_visits_are_stored_where_it_compares() -> None:
    """The forecast of the last block's output is made of computed steps alone."""
    xs = latents()
    session, _, _ = run(Verifies(), xs)
    last = [r for r in session.records if r.point.span == (3, 4)]
    reused, _, _ = unrolled(xs, 0.02)
    computed = -1
    for record, skipped in zip(last, reused):
        assert record.point.age == (None if computed < 0 else record.point.step - computed)
        assert (record.exact, record.dense) == ((False, False) if skipped else (True, True))
        computed = computed if skipped else record.point.step


def test_branches_are_verified_alone() -> None:
    xs = latents()
    session, _, outputs = run(Verifies(), xs, branches=("cond", "uncond"))
    reused, _, expected = unrolled(xs, 0.02)
    for branch in ("cond", "uncond"):
        first = [r for r in session.records if r.point.span == (0, 3) and r.point.branch == branch]
        assert [r.outcome.reused for r in first] == reused
    for pair, wanted in zip(outputs, expected):
        for output in pair:
            torch.testing.assert_close(output, wanted)


def test_there_is_one_transfer_for_each_visit_that_learns_or_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 7."""
    for module in (loop, store):
        monkeypatch.setattr(module, "on_host", lambda tensor: False)
    xs = latents()
    with transfers() as bare:
        run("static:every=1,at=block", xs)
    with transfers() as seen:
        session, _, _ = run(Verifies(), xs)
    told = [r for r in session.records if r.learned or any(v is not None for v in r.reading.values())]
    learned = [r for r in session.records if r.learned]
    assert learned
    assert len(seen) - len(bare) == len(told) <= len(session.records)


def test_the_trace_tells_what_was_learned_and_replays(tmp_path: Path) -> None:
    mixcache.register(Verifies)
    try:
        path = tmp_path / "trace.jsonl"
        session, _, _ = run("verifies:threshold=0.005", latents(), branches=("cond", "uncond"), trace=path)
        assert list(study.replay(path)) == [record.verdict for record in session.records]
        looser = list(study.replay(path, "verifies:threshold=1"))
        assert sum(v.reuse for v in looser) > sum(r.verdict.reuse for r in session.records)
    finally:
        mixcache.unregister("policy", "verifies")


def test_what_was_measured_earlier_is_not_learned_again() -> None:
    """At a check, that of the check alone: `output_norm` is of the last computed visit, and was told then."""
    told: list[tuple[int, str, list[str]]] = []

    @frozen(kw_only=True)
    class Both(Verifies):
        """Reads the size of the last output as well."""

        signals = ("verify_error", "output_norm")

        def learn(self, point: Point, reading: Reading, state: Any) -> None:
            told.append((point.step, point.path, sorted(reading)))

    run(Both(), latents(3))
    size, check = ["output_norm"], ["verify_error"]
    assert told == [(0, "blocks[0:3]", size), (0, "blocks[3:4]", size), (1, "blocks[3:4]", check)]


def test_what_was_measured_before_the_shape_changed_is_forgotten() -> None:
    told: list[int] = []

    @frozen(kw_only=True)
    class Listens(Verifies):
        """Keeps the steps that it learned of."""

        def learn(self, point: Point, reading: Reading, state: Any) -> None:
            told.append(point.step)

    xs = latents(4)
    model = toy.Toy()
    with mixcache.enable(model, Listens(), adapter=toy.ADAPTER) as session:
        toy.walk(session, model, [*xs[:2], *(x[:1] for x in xs[2:])])
        first = list(told)
        told.clear()
        toy.walk(session, model, xs[:2])  # what the last step of a run told goes with the run
    assert first == [1]  # measured in the old shape, and learned at the first visit of the new one
    assert told == []


def test_what_a_place_told_before_its_own_shape_changed_is_forgotten() -> None:
    """Nothing that is remembered crosses a shape."""
    told: list[int] = []

    @frozen(kw_only=True)
    class Steps(Policy):
        """Computes every step, and learns where something inside of it was rebuilt."""

        signals = (Signal(name="size", measure=lambda t: t.norm(t.output), when="reused"),)
        exact_history = True

        def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
            return Vote.compute()

        def learn(self, point: Point, reading: Reading, state: Any) -> None:
            told.append(point.step)

    xs = latents(6)
    run([Steps(), *mixcache.Recipe.of("schedule:101101,at=block").policies], [*xs[:5], xs[5][:1]])
    assert told == [1]  # and not 4, after which the shape changed


def test_what_was_measured_where_the_cache_has_no_room_is_forgotten() -> None:
    told: list[int] = []

    @frozen(kw_only=True)
    class Listens(Verifies):
        """Keeps the steps at which it learned something."""

        signals = ("output_norm",)

        def learn(self, point: Point, reading: Reading, state: Any) -> None:
            told.append(point.step)

    xs = latents(4)
    run(Listens(), xs, max_cache_bytes=10_000)
    assert told
    told.clear()
    run(Listens(), xs, max_cache_bytes=8)
    assert told == []


def test_a_step_verifies_what_was_rebuilt_inside_of_it() -> None:
    """Any place downstream of a reuse in the same call does, the whole step as well."""
    size = Signal(name="size", measure=lambda t: t.norm(t.output), when="reused")

    @frozen(kw_only=True)
    class Step(Policy):
        """Computes every step, and reads how large it came out where something inside was rebuilt."""

        signals = (size,)

        def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
            return Vote.compute()

    xs = latents(4)
    session, _, outputs = run([Step(), mixcache.Recipe.of("schedule:1010,at=block").policies[0]], xs)
    steps = [r for r in session.records if r.point.path == "step"]
    assert [r.reading["size"] for r in steps[:2]] == [None, None]
    assert steps[2].reading["size"] == pytest.approx(float(outputs[1][0].abs().mean(1).max()), rel=1e-6)
    assert [r.exact for r in steps] == [True, False, True, False]


def test_a_policy_that_fails_to_learn_is_named_and_computes_if_it_shall() -> None:
    @frozen(kw_only=True)
    class Slow(Verifies):
        """Cannot learn."""

        def learn(self, point: Point, reading: Reading, state: Any) -> None:
            raise ZeroDivisionError("too slow")

    with pytest.raises(mixcache.PluginError, match="policy 'slow' raised ZeroDivisionError: too slow"):
        run(Slow(), latents())
    session, _, _ = run(Slow(), latents(), on_error="compute")
    failed = [r for r in session.records if "failed: policy 'slow'" in r.outcome.reason]
    assert failed
    assert not any(r.outcome.reused for r in failed)

"""SpeCa against its rule written out: what is forecast, what is really run, how far off it is, what that decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import mixcache
from mixcache import ConfigurationError, Granularity, Point, Policy, Reading, Record, Vote
from mixcache.testing import simulate
from mixcache_policies import SpeCa
from tests.conftest import built
from tests.policies.blocks import Seen, ran, recorded_blocks, relative
from tests.zoo import toy
from tests.zoo.tiny import Tiny

BLOCKS = len(toy.WEIGHTS)


def unroll(errors: Sequence[float | None], policy: SpeCa) -> list[bool]:
    """The rule as a loop: which evaluations are forecast. errors: what the check would measure at each."""
    steps, longest = len(errors), policy.longest_run
    forecast, run, failed = [], 0, False
    for t, error in enumerate(errors):
        full = t < max(policy.first_steps, 1) or t >= steps - policy.last_steps or failed or run == longest
        run = 0 if full else run + 1
        failed = not full and error is not None and error > policy.threshold * policy.decay ** (t / steps)
        forecast.append(not full)
    return forecast


def forecasts(records: Sequence[Record], branch: str = "cond") -> list[bool]:
    """For every evaluation whether all blocks but the last were forecast."""
    first = [r for r in records if r.point.span is not None and r.point.span[0] == 0 and r.point.branch == branch]
    return [r.outcome.reused for r in first]


def errors_of(records: Sequence[Record], branch: str = "cond") -> dict[int, float]:
    """The errors that the checks measured, by evaluation."""
    learned = [late for record in records for late in record.learned if late.point.branch == branch]
    return {late.point.step: late.reading["verify_error"] for late in learned if "verify_error" in late.reading}  # type: ignore[misc]


def told(errors: Sequence[float | None]) -> list[dict[str, float | None]]:
    return [{"verify_error": error} for error in errors]


ERRORS = st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=25)
POLICIES = st.builds(
    SpeCa,
    threshold=st.floats(0, 1),
    decay=st.floats(0.01, 1),
    first_steps=st.integers(0, 4),
    last_steps=st.integers(0, 2),
    longest_run=st.none() | st.integers(0, 5),
)


@given(ERRORS, POLICIES)
def test_decides_as_the_rule_does(errors: list[float | None], policy: SpeCa) -> None:
    records = simulate([policy], told(errors))
    assert forecasts(records) == unroll(errors, policy)
    last = [r for r in records if r.point.span == (11, 12)]
    assert len(last) == len(errors)
    assert not any(r.outcome.reused for r in last)


@given(st.lists(st.tuples(st.none() | st.floats(0, 1), st.none() | st.floats(0, 1)), min_size=1, max_size=15), POLICIES)
def test_every_branch_decides_on_its_own(errors: list[tuple[float | None, float | None]], policy: SpeCa) -> None:
    records = simulate([policy], told([one for pair in errors for one in pair]), branches=("cond", "uncond"))
    for i, branch in enumerate(("cond", "uncond")):
        assert forecasts(records, branch) == unroll([pair[i] for pair in errors], policy)


@pytest.mark.parametrize("failing", [3, 4, 7])
@pytest.mark.parametrize("error", [0.31, 5.0, float("inf"), float("nan")])
def test_a_failed_check_makes_exactly_the_next_step_full(failing: int, error: float) -> None:
    policy = SpeCa(threshold=0.3, decay=1.0, first_steps=2, last_steps=0, longest_run=None)
    found = forecasts(simulate([policy], told([error if t == failing else 0.3 for t in range(12)])))
    assert found == [t >= 2 and t != failing + 1 for t in range(12)]


def test_the_threshold_decays_with_the_progress_of_the_run() -> None:
    """0.4 * 0.25^(t/20) falls below 0.2 after step 10: from then on every forecast fails, and every other is full."""
    policy = SpeCa(threshold=0.4, decay=0.25, first_steps=1, last_steps=0, longest_run=None)
    points = [Point(granularity=Granularity.BLOCK, step=t, num_steps=20, span=(11, 12), blocks=12) for t in range(20)]
    assert [policy.allowed(p) for p in points] == pytest.approx([0.4 * 0.25 ** (t / 20) for t in range(20)])
    assert policy.allowed(points[0]) == 0.4
    assert policy.allowed(points[10]) == pytest.approx(0.2)
    found = forecasts(simulate([policy], told([0.199] * 20)))
    assert found == [t >= 1 and t not in (12, 14, 16, 18) for t in range(20)]


# the last block really runs on the rebuilt value


def latents(steps: int, batch: int = 1, speed: float = 0.1) -> list[Tensor]:
    """A smooth way for the toy, whose samples move at different speeds."""
    start = torch.randn(batch, 5, generator=torch.Generator().manual_seed(3))
    pace = torch.arange(1, batch + 1)[:, None]
    return [torch.cos(start + speed * pace * t) + 0.5 * start for t in range(steps)]


def line(known: Sequence[tuple[int, Tensor]], t: int, order: int) -> Tensor:
    """A Taylor series of order 0 or 1 in finite differences of the last computed evaluations."""
    c, now = known[-1]
    if order == 0 or len(known) < 2:
        return now
    b, before = known[-2]
    return now + (now - before) / (c - b) * (t - c)


def by_hand(xs: Sequence[Tensor], policy: SpeCa, *, pooled: bool = False) -> tuple[list[bool], list[Tensor], list[Any]]:
    """The whole algorithm on the toy without mixcache: what is forecast, the outputs, and the errors of the checks."""
    steps, last = len(xs), BLOCKS - 1
    front: list[tuple[int, Tensor]] = []
    back: list[tuple[int, Tensor]] = []
    forecast: list[bool] = []
    outputs: list[Tensor] = []
    errors: list[Any] = []
    run, failed = 0, False
    for t, x in enumerate(xs):
        full = t < policy.first_steps or t >= steps - policy.last_steps or failed or run == policy.longest_run
        entered = toy.through(x, 0, last) if full else x + line(front, t, policy.order)
        left = toy.through(entered, last)
        if full:
            front.append((t, entered - x))
            back.append((t, left - entered))
            run, failed = 0, False
            errors.append(None)
        else:
            expected = entered + line(back, t, policy.order)
            errors.append(relative(left, expected, pooled=pooled))
            run, failed = run + 1, errors[-1] > policy.threshold * policy.decay ** (t / steps)
        forecast.append(not full)
        outputs.append(left)
    return forecast, outputs, errors


CASES = [
    (SpeCa(threshold=0.02, decay=0.5, longest_run=None), 1, "worst"),
    (SpeCa(threshold=0.05, decay=0.2, first_steps=2, last_steps=2), 1, "worst"),
    (SpeCa(threshold=0.04, decay=0.7, order=0), 1, "worst"),
    (SpeCa(threshold=0.05, decay=0.5, longest_run=2), 3, "worst"),
    (SpeCa(threshold=0.05, decay=0.5, longest_run=2), 3, "mean"),
]


@pytest.mark.parametrize(("policy", "batch", "samples"), CASES, ids=repr)
def test_is_the_algorithm_written_by_hand(policy: SpeCa, batch: int, samples: str) -> None:
    """Verdicts, outputs, every error of a check, and how often each block ran."""
    model, xs = toy.Toy(), latents(30, batch)
    with mixcache.enable(model, policy, adapter=toy.ADAPTER, samples=samples) as session:
        results = toy.walk(session, model, xs)
    forecast, outputs, errors = by_hand(xs, policy, pooled=samples == "mean")
    assert forecasts(session.records) == forecast
    assert model.ran == [forecast.count(False)] * (BLOCKS - 1) + [len(xs)]
    for (result,), wanted in zip(results, outputs):
        torch.testing.assert_close(result, wanted)
    known = errors_of(session.records)
    assert set(known) == {t for t, reused in enumerate(forecast[:-1]) if reused}
    assert [known[t] for t in sorted(known)] == pytest.approx([errors[t] for t in sorted(known)], rel=1e-3, abs=1e-6)
    failed = {t for t in known if errors[t] > policy.threshold * policy.decay ** (t / len(xs))}
    assert 0 < len(failed) < len(known), "choose another threshold: nothing is decided here"


def test_nothing_is_kept_of_a_forecast_step() -> None:
    """What the last block gave on a forecast is no history: it is exact nowhere, and nothing is forecast from it."""
    model, xs = toy.Toy(), latents(20)
    policy = SpeCa(threshold=1e9, longest_run=None, first_steps=2)
    with mixcache.enable(model, policy, adapter=toy.ADAPTER) as session:
        toy.walk(session, model, xs)
    for record in session.records:
        assert record.exact is (record.point.step < 2 or record.point.step == 19)
    ages = [r.point.age for r in session.records if r.point.span == (BLOCKS - 1, BLOCKS)]
    assert ages == [None, *range(1, 2), *range(1, 19)]


@pytest.mark.parametrize(
    ("name", "threshold", "decay"), [("wan", 0.05, 0.5), ("flux", 0.02, 0.5), ("cogvideox", 0.2, 0.1)]
)
def test_is_the_rule_on_real_stacks(name: str, threshold: float, decay: float) -> None:
    """Which blocks ran, what entered the last one, the error of its check, and the full step after a failed one."""
    steps, policy = 20, SpeCa(threshold=threshold, decay=decay)
    tiny: Tiny = built(name)
    with mixcache.enable(tiny.pipe, policy) as session, recorded_blocks(tiny.pipe.transformer) as calls:
        tiny.run(steps)
    branches = len(calls) // steps
    names = list(dict.fromkeys(record.point.branch for record in session.records))
    decided = 0
    for i, branch in enumerate(names):
        decided += check_stack(calls[i::branches], policy, errors_of(session.records, branch))
    assert decided


def check_stack(calls: list[list[Seen]], policy: SpeCa, errors: dict[int, float]) -> bool:
    """One branch of a run against the rule; returns whether checks both passed and failed."""
    n, steps = len(calls[0]), len(calls)
    front: list[tuple[int, Tensor]] = []
    back: list[tuple[int, Tensor]] = []
    run, failed, verdicts = 0, False, set()
    for t, call in enumerate(calls):
        full = t < policy.first_steps or t >= steps - policy.last_steps or failed or run == policy.longest_run
        assert ran(call) == (set(range(n)) if full else {n - 1})
        x, entered, left = call[0].entered, call[-1].entered, call[-1].left
        if full:
            front.append((t, entered - x))
            back.append((t, left - entered))
            run, failed = 0, False
            continue
        torch.testing.assert_close(entered, x + line(front, t, 1), atol=1e-4, rtol=1e-3)
        error, allowed = relative(left, entered + line(back, t, 1)), policy.threshold * policy.decay ** (t / steps)
        assert errors[t] == pytest.approx(error, rel=1e-3)
        assert abs(error - allowed) > 1e-4 * allowed, "choose another threshold: rounding could decide"
        run, failed = run + 1, error > allowed
        verdicts.add(failed)
    return verdicts == {True, False}


# beside others, and what it refuses


@attrs.frozen(kw_only=True)
class ComputesBlockOne(Policy):
    """Block 1 runs at every evaluation, whoever is forecast before it."""

    at: Granularity = Granularity.BLOCK

    def spans(self, blocks: int) -> tuple[tuple[int, int], ...]:
        return ((1, 2),)

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        return Vote.compute("block 1 runs")


def test_the_last_block_alone_verifies() -> None:
    """Another block that runs behind a forecast is measured too; as it is far off, it would fail every check."""
    model, xs = toy.Toy((0.5, 0.8, 0.3, 1e-4)), latents(12, speed=0.3)
    policy = SpeCa(threshold=1e-3, decay=1.0, first_steps=2, last_steps=0, longest_run=None)
    with mixcache.enable(model, [policy, ComputesBlockOne()], adapter=toy.ADAPTER) as session:
        toy.walk(session, model, xs)
    late = [one for record in session.records for one in record.learned if one.point.step < 11]
    errors = {
        span: [one.reading["verify_error"] for one in late if one.point.span == span] for span in ((1, 2), (3, 4))
    }
    assert len(errors[1, 2]) == len(errors[3, 4]) == 9
    assert min(errors[1, 2]) > 1e-3 > max(errors[3, 4])
    assert forecasts(session.records) == [False] * 2 + [True] * 10
    assert model.ran == [2, 12, 2, 12]


def test_a_model_of_one_block_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="needs a block to verify by: the model has 1 block"):
        mixcache.enable(toy.Toy((0.5,)), SpeCa(), adapter=toy.ADAPTER)


@pytest.mark.parametrize(
    "spec", ["speca:at=step", "speca:at=cfg", "speca:decay=0", "speca:decay=1.5", "speca:threshold=-1"]
)
def test_a_bad_argument_is_named(spec: str) -> None:
    name = spec.partition(":")[2].partition("=")[0]
    with pytest.raises(ConfigurationError, match=name):
        mixcache.parse(spec)


def test_asks_for_its_forecaster() -> None:
    plan = mixcache.Recipe.of("speca:order=2").plan()
    for span in ((0, 3), (3, 4)):
        site = plan.site(Granularity.BLOCK, span, 4)
        assert site.forecaster(None).order == 2  # type: ignore[attr-defined]
        assert site.basis.name == "residual"

"""MixCache: its prices equal a direct unrolling, each choice is the cheapest, and the paper's rule is the paper's."""

from __future__ import annotations

import re
from itertools import groupby, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mixcache
from mixcache import ConfigurationError, Granularity, Record, load_calibration
from mixcache.testing import simulate
from mixcache_models import tiny_wan
from mixcache_policies import MixCache
from tests.conftest import built
from tests.helpers import reused_steps

Readings = list[dict[str, float | None]]
STEP = Granularity.STEP
VALUES = st.floats(0.001, 0.5)


def reused(policy: MixCache, readings: Readings) -> list[bool]:
    """For every step, whether anything of it was reused."""
    steps = groupby(simulate([policy], readings), key=lambda record: record.point.step)
    return [any(record.outcome.reused for record in records) for _, records in steps]


def readings_of(errors: list[float], changes: list[float] | None = None) -> Readings:
    """One a step; no forecast before two steps were computed, no change before one was."""
    changes = errors if changes is None else changes
    rows: Readings = [{"forecast_error": e, "increment_change": c} for e, c in zip(errors, changes, strict=True)]
    rows[0] = dict.fromkeys(rows[0])
    rows[1] = dict.fromkeys(rows[1])
    return rows


@settings(max_examples=200, deadline=None)
@given(
    st.lists(VALUES, min_size=3, max_size=20),
    st.floats(0.01, 1.0),
    st.lists(VALUES, min_size=1, max_size=7),
)
def test_a_step_is_reused_while_the_predicted_deviation_stays_below_the_threshold(
    errors: list[float], threshold: float, weights: list[float]
) -> None:
    """E = sum over the run of reuses of I(t) D (a / gap)^2, D = 1 at first."""
    steps, row = len(errors), len(weights)
    policy = MixCache(among="step", threshold=threshold, influence={"step": weights})
    expected, last, gap, spent = [False], 0, 1, 0.0
    for t in range(1, steps):
        nearest = round(t * (row - 1) / (steps - 1))
        added = weights[nearest] * row / steps
        added *= (errors[t] if t > 1 else 1.0) * ((t - last) / gap) ** 2
        reuse = added + spent <= threshold and t < steps - 1 and t - last <= 7
        spent = spent + added if reuse else 0.0
        if not reuse:
            last, gap = t, t - last
        expected.append(reuse)
    assert reused(policy, readings_of(errors)) == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(VALUES, min_size=4, max_size=16), st.floats(0.001, 1.0), st.floats(1.0, 5.0))
def test_a_stricter_threshold_never_reuses_later(errors: list[float], threshold: float, more: float) -> None:
    """On the same readings the loose one reuses first, or at the same step and then for as long at least."""
    rows = readings_of(errors)
    strict, loose = reused(MixCache(threshold=threshold), rows), reused(MixCache(threshold=threshold * more), rows)
    if any(strict):
        first = strict.index(True)
        assert any(loose[: first + 1])
        if loose.index(True) == first:
            length = strict.index(False, first) - first
            assert all(loose[first : first + length])


def test_nothing_is_reused_at_threshold_zero_or_on_broken_signals() -> None:
    assert not any(reused(MixCache(threshold=0), readings_of([0.1] * 12)))
    assert not any(reused(MixCache(threshold=0.49), readings_of([float("nan")] * 12)))
    assert not any(reused(MixCache(threshold=1e9), readings_of([float("nan")] * 12))[2:])  # from the first reading on
    broken = dict.fromkeys(("forecast_error", "increment_change"), float("nan"))
    assert not any(reused(MixCache(threshold=1e9), [broken] * 12))
    unmeasured: Readings = [{"forecast_error": None, "increment_change": None}] * 12
    assert not any(reused(MixCache(threshold=0.49), unmeasured))  # counts as an error of 1
    assert not any(reused(MixCache(threshold=1e9, choice="paper"), unmeasured))


def test_the_last_step_and_the_longest_run_hold() -> None:
    found = reused(MixCache(threshold=1e9, longest_run=3), readings_of([0.01] * 14))
    assert max(len(list(run)) for kind, run in groupby(found) if kind) == 3
    assert not found[-1]


# the paper's rule


def test_the_paper_waits_until_the_change_has_settled() -> None:
    changes = [9.0, 9.0, 0.9, 0.5, 0.2, 0.1, *[0.1] * 6]
    found = reused(MixCache(choice="paper", settle=0.15, threshold=0.3), readings_of([0.2] * 12, changes))
    assert found[:7] == [False] * 6 + [True]  # seen at step 5, known when step 6 begins


@pytest.mark.parametrize(("error", "gaps"), [(0.2, [2, 2, 2, 2]), (0.05, [3, 4, 5, 6])])
def test_the_papers_interval_adapts_to_the_measured_deviation(error: float, gaps: list[int]) -> None:
    """Between delta_1 and delta_2 it stays; below delta_1 = threshold / 2 it grows by one at every full step."""
    policy = MixCache(choice="paper", among="step", threshold=0.3, settle=1.0)
    found = reused(policy, readings_of([error] * 30, [0.1] * 30))
    full = [step for step, reuse in enumerate(found) if not reuse]
    assert [b - a for a, b in pairwise(full[2:])][:4] == gaps


def test_the_papers_interval_shrinks_above_delta_2() -> None:
    policy = MixCache(choice="paper", among="step", threshold=0.3, settle=1.0)
    found = reused(policy, readings_of([0.05] * 12 + [0.5] * 18, [0.1] * 30))
    full = [step for step, reuse in enumerate(found) if not reuse]
    gaps = [b - a for a, b in pairwise(full[2:])]
    assert gaps[:3] == [3, 4, 5]
    assert gaps[3:7] == [4, 3, 2, 2]


def records_by_step(session: mixcache.Session) -> list[list[Record]]:
    return [list(group) for _, group in groupby(session.records, key=lambda record: record.point.step)]


def prices(record: Record) -> dict[str, float]:
    """The P's that the vote told."""
    return {psi: float(p) for psi, p in re.findall(r"P\((\w+)\)=([\d.e+-]+)", record.votes[0].reason)}


@pytest.mark.parametrize("name", ["wan", "ltx", "cogvideox"])
@pytest.mark.parametrize("choice", ["paper", "saved"])
def test_a_cached_step_reuses_one_granularity_the_one_that_the_rule_prefers(name: str, choice: Any) -> None:
    """And says why: the prices of all that were measured are in the trace."""
    policy = MixCache(choice=choice, threshold=0.2, settle=9.0, last_blocks=0, among="step/cfg/block")
    with mixcache.enable(built(name).pipe, policy) as session:
        built(name).run(16)
    used = []
    for records in records_by_step(session):
        there = {record.point.granularity for record in records if record.outcome.reused}
        assert len(there) <= 1, "two granularities in one step"
        for record in records:
            if record.outcome.reused and record.point.leads:
                told = prices(record)
                rivals = {p: v for p, v in told.items() if record.point.granularity is STEP or p != "step"}
                if choice == "saved":  # of those below the threshold the one that saves most; blocks save all here
                    assert rivals[record.point.granularity] <= 0.2
                    rivals = {p: {"step": 0, "block": 1, "cfg": 2}[p] for p, v in rivals.items() if v <= 0.2}
                assert min(rivals, key=lambda psi: rivals[psi]) == record.point.granularity
        used += [str(granularity) for granularity in there]
    assert used
    if choice == "paper":  # the factor of 5 keeps it from repeating one blindly
        assert len(set(used)) > 1


def test_the_papers_penalty_is_five() -> None:
    """On what was reused last, whether or not a full step came between."""
    policy = MixCache(choice="paper", settle=9.0)
    told = {}
    with mixcache.enable(built("wan").pipe, policy) as session:
        built("wan").run(16)
    before: Granularity | None = None
    for records in records_by_step(session):
        lead = next(record for record in records if record.point.granularity is STEP)
        for psi, price in prices(lead).items():
            change = lead.reading["increment_change"] if psi == "step" else None
            if change is not None:
                told[psi] = price / change
                assert price == pytest.approx(change * (5 if before == psi else 1), rel=0.01)
        before = next((record.point.granularity for record in records if record.outcome.reused), before)
    assert told


@pytest.mark.parametrize("name", ["flux", "hunyuan"])
def test_a_model_without_a_second_branch_mixes_steps_and_blocks(name: str) -> None:
    with mixcache.enable(built(name).pipe, MixCache(choice="paper", settle=9.0, threshold=9.0)) as session:
        built(name).run(16)
    assert reused_steps(session, "step")
    assert reused_steps(session, "block")
    assert any("'mixcache' decided nothing at 'cfg'" in note for note in session.report().notes)


def test_what_is_not_asked_for_is_not_visited() -> None:
    with mixcache.enable(built("wan").pipe, "mixcache:threshold=1") as session:
        built("wan").run(12)
    assert {record.point.granularity for record in session.records} == {STEP}


# the table


def test_the_embedded_model_comes_with_its_table() -> None:
    (path,) = [path for path in tiny_wan.CALIBRATIONS if path.stem == "mixcache"]
    influence = load_calibration(path, "mixcache").values["influence"]
    assert set(influence) == {"step", "cfg", "block"}
    assert sum(influence["step"]) / len(influence["step"]) == pytest.approx(1.0, abs=1e-3)


def test_an_unknown_model_counts_every_error_alike() -> None:
    with mixcache.enable(built("wan").pipe, "mixcache") as session:
        (policy,) = session.plan.policies
        assert isinstance(policy, MixCache)
        assert policy.influence is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"threshold": -1}, r"threshold=...\)` must be >= 0"),
        ({"choice": "best"}, "one of 'saved', 'paper'"),
        ({"among": "cfg/block"}, "got 'cfg/block'"),
        ({"among": "step/token"}, "got 'step/token'"),
        ({"influence": {"cfg": [1.0]}}, "for 'step' at least"),
        ({"influence": {"step": []}}, "finite numbers"),
        ({"influence": {"step": [float("nan")]}}, "finite numbers"),
        ({"influence": 3}, "must map granularities to numbers, got 3"),
    ],
)
def test_a_bad_argument_is_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        MixCache(**given)


def test_too_many_last_blocks_are_an_error_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"last_blocks=9\)` leaves nothing to skip"):
        mixcache.enable(built("wan").pipe, "mixcache:choice=paper,last_blocks=9")


def test_enabling_leaves_an_uncached_run_as_it_is() -> None:
    tiny = built("wan")
    plain = tiny.run()
    with mixcache.enable(tiny.pipe, "mixcache:threshold=0"):
        assert torch.equal(tiny.run(), plain)

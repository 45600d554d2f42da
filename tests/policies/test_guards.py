"""Policies that guard others, and DBCache: what each does, written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mixcache
from mixcache.testing import simulate
from mixcache_policies import DBCache, ErrorBudget, FirstBlock, Static, Window
from tests.helpers import reused_steps
from tests.zoo.flows import Affine, Trial, euler
from tests.zoo.pipelines import Tiny

EAGER = Static(every=1000, first_steps=0, last_steps=0)


ADVERSARIAL = st.none() | st.floats(0, 0.5) | st.sampled_from([0.0, -0.0, 1e30, float("nan"), float("inf")])


@given(st.lists(ADVERSARIAL, min_size=1, max_size=15), st.floats(0, 0.2), st.floats(0, 3))
def test_a_budget_is_never_overspent(changes: list[float | None], total: float, lipschitz: float) -> None:
    """Exactly the reuses that the sum of charges allows, and no more; a step counts for all that is left of the way."""
    guard = ErrorBudget(total=total, lipschitz=lipschitz)
    records = simulate([EAGER, guard], [{"predicted_change": c} for c in changes])
    spent = accumulated = 0.0
    for step, (record, change) in enumerate(zip(records, changes)):
        finite = change is not None and math.isfinite(change)
        left = record.point.sigma or 0.0
        charge = left * (accumulated + change) * math.exp(lipschitz * left) if finite else math.inf
        wanted = step > 0 and spent + charge <= total
        assert record.outcome.reused is wanted
        accumulated = accumulated + change if wanted else 0.0
        spent += charge if wanted else 0.0
    assert spent <= total


@pytest.mark.parametrize("at", ["step", "cfg", "block"])
def test_a_budget_charges_steps_by_their_size(at: str) -> None:
    """On a run whose noise levels are known: |h| error exp(L sigma after it), from the trace, written out."""
    trial = Trial(
        model=Affine(torch.Generator().manual_seed(5), 1.0),
        scheduler=lambda: euler([1.0, 0.97, 0.9, 0.8, 0.5, 0.45, 0.2, 0.1]),
        layout="sequential",
        guidance=2.0,
    )
    reused = []
    for total in (0.0, 0.02, 0.1, 0.5, 50.0):
        guard = ErrorBudget(total=total, lipschitz=0.7)
        with mixcache.enable(trial.model, [f"static:every=100,at={at}", guard], adapter=trial.adapter) as session:
            trial.run(session)
        spent = accumulated = 0.0
        for record in session.records:
            if not record.point.leads and at != "cfg":
                continue
            if record.outcome.reused:
                accumulated += record.reading["predicted_change"]
                # a loop of one's own does not tell the next sigma: what is left of the way counts
                spent += record.point.sigma * accumulated * math.exp(0.7 * record.point.sigma)
            else:
                accumulated = 0.0
        assert spent <= total
        reused.append(len(reused_steps(session, at)))
    assert reused[0] == 0 < reused[-1]
    assert reused == sorted(reused)


def test_a_budget_knows_the_size_of_a_pipelines_steps(tiny_wan_random: Tiny) -> None:
    policies = "easycache:threshold=9,first_steps=2 + budget:total=0.3"
    with mixcache.enable(tiny_wan_random.pipe, policies) as session:
        tiny_wan_random.run(16)
    sigmas = tiny_wan_random.pipe.scheduler.sigmas.tolist()
    spent = accumulated = 0.0
    for record in (r for r in session.records if r.point.leads):
        i = record.point.step
        change = record.reading["predicted_change"] or 0.0
        accumulated = accumulated + change if record.outcome.reused else 0.0
        spent += (sigmas[i] - sigmas[i + 1]) * accumulated
        assert record.point.level.until == pytest.approx(sigmas[i + 1])
    assert 0 < spent <= 0.3
    vetoed = [r.outcome.reason for r in session.records if "of an error budget of 0.3" in r.outcome.reason]
    assert any("budget: would spend" in reason for reason in vetoed)


@pytest.mark.parametrize("policies", [["static:every=4"], ["static:every=4", "cfg:every=2"], "static:every=2,at=block"])
def test_a_tighter_budget_reuses_less_and_none_at_all_is_exact(tiny_wan_random: Tiny, policies: Any) -> None:
    bare, counts = tiny_wan_random.run(12), []
    for budget in (0.0, 0.01, 0.1, 1e9):
        guarded = [*([policies] if isinstance(policies, str) else policies), ErrorBudget(total=budget)]
        with mixcache.enable(tiny_wan_random.pipe, guarded) as session:
            latents = tiny_wan_random.run(12)
        counts.append(sum(r.outcome.reused for r in session.records))
        assert torch.equal(latents, bare) is (counts[-1] == 0)
    assert counts[0] == 0 < counts[-1]
    assert counts == sorted(counts)


@pytest.mark.parametrize("budget", [-1, float("nan"), float("inf"), "much", True])
def test_a_bad_budget_is_refused(tiny_wan_random: Tiny, budget: Any) -> None:
    with pytest.raises(mixcache.ConfigurationError, match=rf"`ErrorBudget\(total=...\)` must be >= 0, got {budget!r}"):
        ErrorBudget(total=budget)
    with pytest.raises(mixcache.ConfigurationError, match="total"):
        mixcache.enable(tiny_wan_random.pipe, f"static + budget:total={budget}")
    mixcache.enable(tiny_wan_random.pipe, "static").disable()  # nothing was left attached


def test_a_window_binds_policies_that_have_none() -> None:
    records = simulate([EAGER, Window(first_steps=3, last_steps=2, longest_run=2)], [{}] * 12)
    assert [r.point.step for r in records if r.outcome.reused] == [3, 4, 6, 7, 9]
    reasons = {r.point.step: r.outcome.reason for r in records}
    assert reasons[1] == "window: first 3 steps"
    assert reasons[5] == "window: longest run of 2 reached"
    assert reasons[11] == "window: last 2 steps"


GUARDS = [[Window()], [ErrorBudget(total=100)], [ErrorBudget(total=100, among="step"), Window()]]


@pytest.mark.parametrize("guards", GUARDS, ids=repr)
def test_guards_alone_compute_and_are_refused(tiny_wan_random: Tiny, guards: list[mixcache.Policy]) -> None:
    readings = [{"predicted_change": 0.1}] * 5
    assert not any(r.outcome.reused for r in simulate(guards, readings))
    for refused in (mixcache.Recipe.of(guards).plan, lambda: mixcache.enable(tiny_wan_random.pipe, guards)):
        with pytest.raises(mixcache.ConfigurationError, match=r"nothing could ever be reused: .* only guard"):
            refused()


def test_a_guard_stands_wherever_another_policy_decides_and_makes_no_place_visited() -> None:
    everywhere = [Static(at=at, every=9) for at in ("step", "cfg", "block")]
    for policies in ([everywhere[2]], everywhere[:2], everywhere):
        records = simulate([*policies, Window(first_steps=1), ErrorBudget()], [{}] * 3)
        assert {r.point.granularity for r in records} == {policy.at for policy in policies}
        assert all({"window", "budget"} <= {vote.policy for vote in r.votes} for r in records)


def test_a_budget_guards_among_those_it_is_told() -> None:
    policies = [Static(at="step"), Static(at="block"), ErrorBudget(among="block")]
    asked = {r.point.granularity: {v.policy for v in r.votes} for r in simulate(policies, [{}] * 3)}
    assert "budget" in asked[mixcache.Granularity.BLOCK]
    assert "budget" not in asked[mixcache.Granularity.STEP]


@pytest.mark.parametrize("spec", ["window:at=block", "budget:at=step"])
def test_a_guard_has_no_level_of_its_own(spec: str) -> None:
    with pytest.raises(mixcache.ConfigurationError, match="'at'"):
        mixcache.parse(f"static + {spec}")


def test_dbcache_with_one_block_is_first_block(tiny_wan_random: Tiny) -> None:
    results = []
    for policy in (DBCache(first_blocks=1, threshold=0.1, first_steps=0), FirstBlock(threshold=0.1)):
        with mixcache.enable(tiny_wan_random.pipe, policy) as session:
            results.append((tiny_wan_random.run(16), reused_steps(session, "block")))
    assert torch.equal(results[0][0], results[1][0])
    assert 2 < len(results[0][1]) < 15
    assert results[0][1] == results[1][1]


@pytest.mark.parametrize(("first", "last", "ran"), [(1, 0, {0}), (1, 1, {0, 2}), (2, 0, {0, 1})])
def test_dbcache_runs_the_first_and_the_last_blocks(tiny_wan_random: Tiny, first: int, last: int, ran: Any) -> None:
    blocks = tiny_wan_random.pipe.transformer.blocks
    seen: list[set[int]] = []
    handles = [block.attn1.register_forward_pre_hook(lambda *_, i=i: seen[-1].add(i)) for i, block in enumerate(blocks)]
    handles.append(tiny_wan_random.pipe.transformer.register_forward_pre_hook(lambda *_: seen.append(set())))
    policy = DBCache(first_blocks=first, last_blocks=last, threshold=10, first_steps=2, most=3)
    with mixcache.enable(tiny_wan_random.pipe, policy) as session:
        tiny_wan_random.run(8, guidance_scale=1.0)
    for handle in handles:
        handle.remove()
    assert reused_steps(session, "block") == [2, 3, 4]
    assert [ran if step in (2, 3, 4) else {0, 1, 2} for step in range(8)] == seen

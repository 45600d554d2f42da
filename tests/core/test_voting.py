"""Votes and verdicts: the order never matters (law 4), guards hold whatever is measured (law 5)."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

import mixcache
from mixcache import Point, Policy, Reading, Verdict, Vote
from mixcache.testing import simulate
from mixcache.voting import RULES, decide, voters

WEIGHTS = st.floats(0, 10)
ERRORS = st.none() | st.floats(0, 1) | st.sampled_from([math.nan, math.inf])


@st.composite
def a_vote(draw: st.DrawFn) -> Vote:
    choice = draw(st.sampled_from(["reuse", "compute", None]))
    veto = choice == "compute" and draw(st.booleans())
    return Vote(choice, draw(ERRORS), draw(WEIGHTS), veto, draw(st.sampled_from(["", "a", "b"])), draw(st.text("xy")))


@given(st.lists(a_vote(), max_size=6), st.randoms(), st.sampled_from(sorted(RULES)))
def test_the_order_of_votes_never_changes_a_verdict(votes: list[Vote], random: Any, rule: str) -> None:
    shuffled = list(votes)
    random.shuffle(shuffled)
    assert decide(shuffled, RULES[rule]) == decide(votes, RULES[rule])


@given(st.lists(a_vote(), max_size=6), st.sampled_from(sorted(RULES)))
def test_a_veto_or_an_error_that_is_not_finite_computes(votes: list[Vote], rule: str) -> None:
    verdict = decide(votes, RULES[rule])
    broken = any(v.choice is not None and v.error is not None and not math.isfinite(v.error) for v in votes)
    if any(v.veto for v in votes) or broken or all(v.choice is None for v in votes):
        assert verdict.reuse is False
    assert verdict.error is None or math.isfinite(verdict.error)


REUSE, COMPUTE, ABSTAIN = Vote.reuse(), Vote.compute(), Vote.abstain()


@pytest.mark.parametrize(
    ("rule", "votes", "reuse"),
    [
        ("unanimous", [REUSE, REUSE, ABSTAIN], True),
        ("unanimous", [REUSE, COMPUTE, REUSE], False),
        ("any", [COMPUTE, REUSE, COMPUTE], True),
        ("any", [COMPUTE, COMPUTE], False),
        ("any", [REUSE, Vote.compute(veto=True)], False),
        ("majority", [REUSE, REUSE, COMPUTE], True),
        ("majority", [REUSE, COMPUTE, ABSTAIN], False),
        ("weighted", [Vote.reuse(weight=3), COMPUTE, COMPUTE], True),
        ("weighted", [Vote.reuse(weight=2), COMPUTE, COMPUTE], False),
        ("weighted", [Vote.reuse(weight=0.25)] * 3 + [Vote.compute(weight=0.75)], False),
        ("least_error", [Vote.reuse(error=0.1), Vote.compute(error=0.2), COMPUTE], True),
        ("least_error", [Vote.reuse(error=0.3), Vote.compute(error=0.2), REUSE], False),
        ("least_error", [Vote.reuse(error=0.2), Vote.compute(error=0.2)], False),
        ("least_error", [REUSE, COMPUTE], False),
        ("unanimous", [], False),
        ("any", [ABSTAIN], False),
    ],
)
def test_what_each_rule_makes_of_votes(rule: str, votes: list[Vote], reuse: bool) -> None:
    for order in itertools.permutations(votes):
        assert decide(order, RULES[rule]).reuse is reuse


def test_every_rule_is_covered_above() -> None:
    (parametrize,) = test_what_each_rule_makes_of_votes.pytestmark
    assert {case[0] for case in parametrize.args[1]} == set(RULES)


def test_a_verdict_says_who_and_how_much() -> None:
    votes = [Vote.reuse("near", error=0.1).signed("a"), Vote.reuse(error=0.3).signed("b")]
    assert decide(votes, RULES["unanimous"]) == Verdict(reuse=True, reason="a: near; b", error=0.3)
    votes.append(Vote.compute("far", error=0.2).signed("c"))
    assert decide(votes, RULES["unanimous"]) == Verdict(reuse=False, reason="c: far")
    assert decide(votes, RULES["any"]) == Verdict(reuse=True, reason="a: near; b", error=0.3)
    assert decide([], RULES["any"]) == Verdict(reuse=False, reason="no policy voted")


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf, -math.inf])
def test_a_weight_that_cannot_be_is_refused(weight: float) -> None:
    with pytest.raises(mixcache.ConfigurationError, match=r"`Vote\(weight=\.\.\.\)` must be finite and >= 0, got"):
        Vote.reuse(weight=weight)


@pytest.mark.parametrize("choice", ["reuse", None])
def test_only_a_compute_can_be_a_veto(choice: Any) -> None:
    with pytest.raises(mixcache.ConfigurationError, match=r"`Vote\(veto=True\)` must be a compute vote"):
        Vote(choice, veto=True)


# guards


@frozen(kw_only=True)
class Eager(Policy):
    """Wants to reuse whatever it reads."""

    signals = ("anchor_change", "output_norm")

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        return Vote.reuse()


VALUES = st.none() | st.floats(allow_nan=True, allow_infinity=True, width=32)
READING = st.fixed_dictionaries({"anchor_change": VALUES, "output_norm": VALUES})


@given(
    st.lists(READING, min_size=1, max_size=14),
    st.integers(0, 4),
    st.integers(0, 4),
    st.none() | st.integers(0, 3),
    st.sampled_from(sorted(RULES)),
)
def test_guards_hold_whatever_is_measured(
    readings: list[Reading], first: int, last: int, longest: int | None, rule: str
) -> None:
    """Exactly: an eager policy reuses where no guard and no lack of history forbids it, and nowhere else."""
    policy = Eager(first_steps=first, last_steps=last, longest_run=longest)
    in_a_row, expected = 0, []
    for step, reading in enumerate(readings):
        finite = all(value is None or math.isfinite(value) for value in reading.values())
        inside = first <= step < len(readings) - last and step > 0
        reuse = inside and finite and (longest is None or in_a_row < longest)
        in_a_row = in_a_row + 1 if reuse else 0
        expected.append(reuse)
    partners = [policy, Eager(), Eager()]
    records = simulate(partners, readings, rule=RULES[rule])
    assert [record.outcome.reused for record in records] == expected


@pytest.mark.parametrize("name", ["first_steps", "last_steps", "longest_run"])
@pytest.mark.parametrize("value", [-1, math.nan, "three"])
def test_windows_are_checked_when_made(name: str, value: Any) -> None:
    with pytest.raises(mixcache.ConfigurationError, match=rf"`Eager\({name}=\.\.\.\)` must be .*>= 0, got"):
        Eager(**{name: value})


def test_the_run_of_reuses_is_counted_for_each_branch_of_an_independent_policy() -> None:
    @frozen(kw_only=True)
    class Alternates(Policy):
        """Cond computes every second step, uncond never wants to."""

        branches = "independent"

        def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
            return Vote.compute() if point.branch == "cond" and point.step % 2 == 0 else Vote.reuse()

    records = simulate([Alternates(longest_run=2)], [{}] * 12, branches=("cond", "uncond"))
    reused = {b: [r.outcome.reused for r in records if r.point.branch == b] for b in ("cond", "uncond")}
    assert reused["cond"] == [False, True] * 3
    assert reused["uncond"] == [False, True, True, False, True, True]


def test_two_policies_of_one_kind_have_names_of_their_own() -> None:
    assert [voter.label for voter in voters([Eager(), Eager(), Eager()])] == ["eager", "eager#2", "eager#3"]


@pytest.mark.parametrize("rule", sorted(RULES))
def test_the_veto_of_a_joint_policy_holds_for_the_branches_that_follow(rule: str) -> None:
    """Beside a policy that decides each branch alone, and wants to reuse the one that follows."""

    @frozen(kw_only=True)
    class Uncond(Policy):
        """Always reuses uncond."""

        branches = "independent"

        def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
            return Vote.reuse(error=0.0, weight=9) if point.branch == "uncond" else Vote.compute()

    policies = [Uncond(), Eager(first_steps=4)]
    records = simulate(policies, [{}] * 12, branches=("cond", "uncond"), rule=RULES[rule])
    reused = [r.point.step for r in records if r.outcome.reused and r.point.branch == "uncond"]
    assert min(reused, default=4) == 4
    assert all(s >= 4 for s in reused)

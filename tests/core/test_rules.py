"""Rules: what becomes of votes; their order never matters (law 4)."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mixcache
from mixcache import PluginError, Verdict, Vote
from mixcache.core.rules import RULES, decide

WEIGHTS = st.floats(0, 10)
ERRORS = st.none() | st.floats(0, 1) | st.sampled_from([math.nan, math.inf])


@st.composite
def a_vote(draw: st.DrawFn) -> Vote:
    choice = draw(st.sampled_from(["reuse", "compute", None]))
    veto = choice == "compute" and draw(st.booleans())
    how = {"forecast": None, "anchor": None}
    if choice == "reuse":
        how = {name: draw(st.sampled_from([None, "hold", "linear"])) for name in how}
    reason, policy = draw(st.sampled_from(["", "a", "b"])), draw(st.text("xy"))
    return Vote(choice, draw(ERRORS), draw(WEIGHTS), veto, reason, policy, **how)


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


# how to rebuild


@pytest.mark.parametrize(
    ("votes", "forecast", "anchor"),
    [
        ([REUSE], None, None),
        ([REUSE, Vote.reuse(forecast="hold")], "hold", None),
        ([Vote.reuse(error=0.2, forecast="hold"), Vote.reuse(error=0.1, forecast="linear")], "linear", None),
        ([Vote.reuse(forecast="hold"), Vote.reuse(error=9.0, forecast="linear", anchor="zero")], "linear", "zero"),
        ([Vote.reuse(error=0.1), Vote.reuse(error=0.2, anchor="zero")], None, "zero"),
        ([Vote.reuse(forecast="hold").signed("b"), Vote.reuse(forecast="linear").signed("a")], "linear", None),
    ],
)
def test_of_several_ways_to_rebuild_the_smallest_error_has_its_way(
    votes: list[Vote], forecast: str | None, anchor: str | None
) -> None:
    """Ties go by the name of the policy."""
    for order in itertools.permutations(votes):
        verdict = decide(order, RULES["any"])
        assert (verdict.reuse, verdict.forecast, verdict.anchor) == (True, forecast, anchor)


def test_who_was_outvoted_has_no_say_in_how_to_rebuild() -> None:
    verdict = decide([Vote.reuse(forecast="linear"), COMPUTE, COMPUTE], RULES["majority"])
    assert (verdict.reuse, verdict.forecast) == (False, None)


# rules of others


@pytest.mark.parametrize("answer", ["no", None, 0, 1, 0.5, []])
def test_a_rule_that_does_not_say_yes_or_no_is_an_error_that_names_it(answer: Any) -> None:
    def shrug(votes: Any) -> Any:
        return answer

    with pytest.raises(PluginError, match=r"rule 'shrug' must return True or False, it returned"):
        decide([REUSE], shrug)
    for votes in ([], [ABSTAIN], [REUSE, Vote.compute(veto=True)], [Vote.reuse(error=math.nan)]):
        assert decide(votes, shrug).reuse is False  # it is not asked

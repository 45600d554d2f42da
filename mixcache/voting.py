"""Voting: who votes, and how votes become a verdict.

A rule is symmetric in its votes, so the order of policies never matters (law 4).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from attrs import define

from mixcache.errors import PluginError, called
from mixcache.hookspecs import hookimpl
from mixcache.points import Granularity, Outcome, Point, Reading, RunInfo, Verdict, Vote
from mixcache.policy import Policy

Rule = Callable[[Sequence[Vote]], bool]
"""Gets the votes that do not abstain (never empty, no veto among them) and says whether to reuse."""


def unanimous(votes: Sequence[Vote]) -> bool:
    """Reuse only if every policy that has an opinion wants to."""
    return all(vote.choice == "reuse" for vote in votes)


def any_reuse(votes: Sequence[Vote]) -> bool:
    """Reuse if at least one policy wants to."""
    return any(vote.choice == "reuse" for vote in votes)


def majority(votes: Sequence[Vote]) -> bool:
    """Reuse if more policies want to than do not; a tie computes."""
    return sum(1 if vote.choice == "reuse" else -1 for vote in votes) > 0


def weighted(votes: Sequence[Vote]) -> bool:
    """Reuse if the weights for it outweigh those against; a tie computes."""
    return math.fsum(vote.weight if vote.choice == "reuse" else -vote.weight for vote in votes) > 0


def least_error(votes: Sequence[Vote]) -> bool:
    """The policy that predicts the smallest error decides; a tie computes; no prediction at all: unanimous."""
    predicted = [vote for vote in votes if vote.error is not None]
    if not predicted:
        return unanimous(votes)
    best = min(vote.error for vote in predicted if vote.error is not None)
    return all(vote.choice == "reuse" for vote in predicted if vote.error == best)


RULES: dict[str, Rule] = {
    "unanimous": unanimous,
    "any": any_reuse,
    "majority": majority,
    "weighted": weighted,
    "least_error": least_error,
}


def decide(votes: Sequence[Vote], rule: Rule) -> Verdict:
    """The verdict on a point: a veto computes, no opinion computes, otherwise the rule says.

    A vote to reuse with a predicted error that is not finite counts as a vote to compute.
    """
    vetoes = [vote for vote in votes if vote.veto]
    if vetoes:
        return Verdict(reuse=False, reason=_reasons(vetoes))
    voting = [vote for vote in votes if vote.choice is not None]
    broken = [vote for vote in voting if vote.error is not None and not math.isfinite(vote.error)]
    if broken:
        return Verdict(reuse=False, reason=f"predicted error is not finite ({_reasons(broken)})")
    if not voting:
        return Verdict(reuse=False, reason="no policy voted")
    if not rule(voting):
        return Verdict(reuse=False, reason=_reasons([v for v in voting if v.choice == "compute"] or voting))
    agreeing = [vote for vote in voting if vote.choice == "reuse"]
    errors = [vote.error for vote in agreeing if vote.error is not None]
    return Verdict(reuse=True, reason=_reasons(agreeing), error=max(errors) if errors else None)


def _reasons(votes: Sequence[Vote]) -> str:
    """Who said what, in alphabetical order."""
    return "; ".join(sorted({f"{vote.policy}: {vote.reason}" if vote.reason else vote.policy for vote in votes}))


@define
class _Seat:
    """What a voter remembers of one place: who decided there last, and its state.

    covers: whether the policy decides there. run_length: reuses in a row. led: the last step that was decided there on
    its own, and `reused` what came of it; vetoed: the last step with a veto.
    """

    covers: bool
    state: Any
    run_length: int = 0
    led: int = -1
    reused: bool = False
    vetoed: int = -1


class Voter:
    """One policy in one run, as a plugin: its states, its windows, and who leads the branches of a step."""

    def __init__(self, policy: Policy, label: str) -> None:
        self.policy = policy
        self.label = label
        self.follows = policy.branches != "independent"
        """Whether branches after the first of a step follow it."""
        self._shared = policy.State() if policy.one_state else None
        self._seats: dict[tuple[Granularity, str, tuple[int, int] | None, str], _Seat] = {}

    def seat(self, point: Point) -> _Seat:
        """What is remembered of the place of a point; `Policy.covers` is asked once for each."""
        place = (point.granularity, point.site, point.span, "" if self.follows else point.branch)
        seat = self._seats.get(place)
        if seat is None:
            covers = self.policy.covers(point)
            seat = self._seats[place] = _Seat(covers, self._shared if self.policy.one_state else self.policy.State())
        return seat

    @hookimpl
    def mixcache_run_started(self, run: RunInfo) -> None:
        called(("policy", self.label), self.policy.started, run)

    @hookimpl
    def mixcache_vote(self, point: Point, reading: Reading) -> Vote | None:
        seat = self.seat(point)
        if not seat.covers:
            return None
        if self.follows and not point.leads and seat.led == point.step:
            reason, veto = "follows this step's first branch", seat.vetoed == point.step
            return (Vote.reuse(reason) if seat.reused else Vote.compute(reason, veto=veto)).signed(self.label)
        vote = self.policy.guard(point, reading, seat.run_length)
        if vote is None:
            vote = called(("policy", self.label), self.policy.vote, point, reading, seat.state)
        if not isinstance(vote, Vote):
            raise PluginError(f"policy {self.label!r} must return a Vote from vote(), got {vote!r}.")
        if vote.veto:  # nor may another policy reuse the branches that follow
            seat.vetoed = point.step
        return vote.signed(self.label)

    @hookimpl
    def mixcache_observe(self, point: Point, outcome: Outcome) -> None:
        seat = self.seat(point)
        if not seat.covers or (self.follows and not point.leads):
            return
        seat.led, seat.reused = point.step, outcome.reused
        seat.run_length = seat.run_length + 1 if outcome.reused else 0
        called(("policy", self.label), self.policy.observe, point, outcome, seat.state)


def voters(policies: Sequence[Policy]) -> list[Voter]:
    """A fresh voter for each policy, labelled by name ("static", and "static#2" for a second one)."""
    seen: Counter[str] = Counter()
    made = []
    for policy in policies:
        name = policy.policy_name()
        seen[name] += 1
        made.append(Voter(policy, name if seen[name] == 1 else f"{name}#{seen[name]}"))
    return made

"""Voting: who votes, and how votes become a verdict.

A rule is symmetric in its votes, so the order of policies never matters (law 4).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

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
    return "; ".join(sorted({f"{vote.policy}: {vote.reason}" if vote.reason else vote.policy for vote in votes}))


_Key = tuple[Granularity, str, str] | None


class Voter:
    """One policy in one run, as a plugin: its states, its windows, and who leads the branches of a step."""

    def __init__(self, policy: Policy, label: str) -> None:
        self.policy = policy
        self.label = label
        self._states: dict[_Key, Any] = {}
        self._run_lengths: dict[_Key, int] = {}
        self._led: dict[_Key, tuple[int, bool]] = {}
        self._vetoed: dict[_Key, int] = {}
        self._covered: dict[tuple[Granularity, tuple[int, int] | None, int], bool] = {}

    def covers(self, point: Point) -> bool:
        """`Policy.covers`, asked once for each place of a run: a model has many blocks, and each is visited often."""
        place = (point.granularity, point.span, point.blocks)
        if place not in self._covered:
            self._covered[place] = self.policy.covers(point)
        return self._covered[place]

    @property
    def follows(self) -> bool:
        """Whether branches after the first of a step follow it."""
        return self.policy.branches != "independent"

    def _key(self, point: Point) -> _Key:
        return point.granularity, point.site, "" if self.follows else point.branch

    def _state(self, point: Point) -> Any:
        key = None if self.policy.one_state else self._key(point)
        if key not in self._states:
            self._states[key] = self.policy.State()
        return self._states[key]

    @hookimpl
    def mixcache_run_started(self, run: RunInfo) -> None:
        called(("policy", self.label), self.policy.started, run)

    @hookimpl
    def mixcache_vote(self, point: Point, reading: Reading) -> Vote | None:
        if not self.covers(point):
            return None
        key = self._key(point)
        step, reused = self._led.get(key, (-1, False))
        if self.follows and not point.leads and step == point.step:
            reason, veto = "follows this step's first branch", self._vetoed.get(key) == step
            return (Vote.reuse(reason) if reused else Vote.compute(reason, veto=veto)).signed(self.label)
        vote = self.policy.guard(point, reading, self._run_lengths.get(key, 0))
        if vote is None:
            vote = called(("policy", self.label), self.policy.vote, point, reading, self._state(point))
        if not isinstance(vote, Vote):
            raise PluginError(f"policy {self.label!r} must return a Vote from vote(), got {vote!r}.")
        if vote.veto:  # nor may another policy reuse the branches that follow
            self._vetoed[key] = point.step
        return vote.signed(self.label)

    @hookimpl
    def mixcache_observe(self, point: Point, outcome: Outcome) -> None:
        if not self.covers(point) or (self.follows and not point.leads):
            return
        key = self._key(point)
        self._led[key] = (point.step, outcome.reused)
        self._run_lengths[key] = self._run_lengths.get(key, 0) + 1 if outcome.reused else 0
        called(("policy", self.label), self.policy.observe, point, outcome, self._state(point))


def voters(policies: Sequence[Policy]) -> list[Voter]:
    """A fresh voter for each policy, labelled by name ("static", and "static#2" for a second one)."""
    seen: Counter[str] = Counter()
    made = []
    for policy in policies:
        name = policy.policy_name()
        seen[name] += 1
        made.append(Voter(policy, name if seen[name] == 1 else f"{name}#{seen[name]}"))
    return made

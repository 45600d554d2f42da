"""The panel: who votes at a place, what each voter remembers of it, and who leads the branches of a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from attrs import define, evolve, field

from mixcache.core.hooks import Hooks
from mixcache.core.points import Address, Outcome, Point, Reading, RunInfo, Vote
from mixcache.core.policy import Policy
from mixcache.errors import PluginError, called

FOLLOWS = "follows this step's first branch"
"""The reason of a branch that is decided with the first one of its step."""


@define
class Seat:
    """What one policy remembers of one place.

    state: the policy's own. led: the last step that was decided there on its own, and `reused` what came of it, with
    the forecaster and anchor that were chosen. vetoed: the last step with a veto.
    """

    policy: Policy
    label: str
    state: Any
    led: int = -1
    reused: bool = False
    chosen: tuple[str | None, str | None] = (None, None)
    vetoed: int = -1

    def vote(self, point: Point, reading: Reading) -> Vote:
        """This policy's vote, by its window, its leader or itself."""
        if not point.leads and self.led == point.step and self.policy.branches != "independent":
            return _following(self.label, self.reused, self.vetoed == point.step, *self.chosen)
        who = "policy", self.label
        vote = called(who, self.policy.guard_vote, point, reading)
        if vote is None:
            vote = called(who, self.policy.vote, point, reading, self.state)
        if not isinstance(vote, Vote):
            raise PluginError(f"policy {self.label!r} must return a Vote from vote(), got {vote!r}.")
        if vote.forecast is not None or vote.anchor is not None:
            _check_named(self, vote)
        if vote.veto:  # nor may another policy reuse the branches that follow
            self.vetoed = point.step
        return vote.signed(self.label)


def _check_named(seat: Seat, vote: Vote) -> None:
    """A vote may name what its policy says that it may name: sites are made before the first vote."""
    allowed = seat.policy.forecasts, seat.policy.anchors
    for name, spec, known in zip(("forecast", "anchor"), (vote.forecast, vote.anchor), allowed):
        if spec is not None and spec not in known:
            raise PluginError(f"policy {seat.label!r} votes for {name}={spec!r}, which is not in its `{name}s`.")


@lru_cache(maxsize=256)
def _following(label: str, reused: bool, veto: bool, forecast: str | None, anchor: str | None) -> Vote:
    """The vote of a branch that follows the first one of its step."""
    if not reused:
        return Vote.compute(FOLLOWS, veto=veto).signed(label)
    return Vote.reuse(FOLLOWS, forecast=forecast, anchor=anchor).signed(label)


@define
class Panel:
    """All voters of one run: the policies, and whoever listens at the run-time hooks."""

    policies: Sequence[Policy]
    run: RunInfo
    hooks: Hooks = field(factory=Hooks)
    _labels: list[str] = field(init=False)
    _shared: list[Any] = field(init=False)
    _seats: dict[Address, tuple[Seat, ...]] = field(init=False, factory=dict)
    _by_place: dict[tuple[int, Address], Seat] = field(init=False, factory=dict)

    @_labels.default
    def _name_them(self) -> list[str]:
        """By name ("static", and "static#2" for a second one)."""
        seen: Counter[str] = Counter()
        labels = []
        for policy in self.policies:
            name = policy.policy_name()
            seen[name] += 1
            labels.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
        return labels

    @_shared.default
    def _make_shared(self) -> list[Any]:
        labeled = zip(self.policies, self._labels)
        return [self._begun(policy, label) if policy.one_state else None for policy, label in labeled]

    def _begun(self, policy: Policy, label: str) -> Any:
        return called(("policy", label), policy.begin, self.run)

    def seats(self, point: Point) -> tuple[Seat, ...]:
        """The seats of the policies that decide at this place; `Policy.covers` is asked once for each."""
        seats = self._seats.get(point.address)
        if seats is None:
            seats = self._seats[point.address] = tuple(self._seated(point))
        return seats

    def _seated(self, point: Point) -> list[Seat]:
        found = []
        for i, (policy, label) in enumerate(zip(self.policies, self._labels)):
            covers = called(("policy", label), policy.covers, point)
            if not isinstance(covers, bool):
                raise PluginError(f"policy {label!r} must return True or False from covers(), got {covers!r}.")
            if not covers:
                continue
            place = point.address if policy.branches == "independent" else evolve(point.address, branch="")
            seat = self._by_place.get((i, place))
            if seat is None:
                state = self._shared[i] if policy.one_state else self._begun(policy, label)
                seat = self._by_place[i, place] = Seat(policy, label, state)
            found.append(seat)
        return found

    def started(self) -> None:
        """The run begins: every policy may refuse it."""
        for policy, label in zip(self.policies, self._labels):
            called(("policy", label), policy.started, self.run)
        for name, hook in self.hooks.started:
            called(("plugin", name), hook, run=self.run)

    def vote(self, point: Point, reading: Reading) -> tuple[Vote, ...]:
        """All votes, in the order of the voters' names."""
        votes = [seat.vote(point, reading) for seat in self.seats(point)]
        for name, hook in self.hooks.vote:
            vote = called(("plugin", name), hook, point=point, reading=reading)
            if vote is not None:
                if not isinstance(vote, Vote):
                    raise PluginError(f"plugin {name!r} must return a Vote or None from mixcache_vote, got {vote!r}.")
                votes.append(vote if vote.policy else vote.signed(name))
        if len(votes) > 1:
            votes.sort(key=lambda vote: vote.policy)
        return tuple(votes)

    def observe(self, point: Point, outcome: Outcome, chosen: tuple[str | None, str | None] = (None, None)) -> None:
        """What came of the point; chosen: the forecaster and anchor that its verdict names."""
        for seat in self.seats(point):
            if not point.leads and seat.policy.branches != "independent":
                continue
            seat.led, seat.reused, seat.chosen = point.step, outcome.reused, chosen
            called(("policy", seat.label), seat.policy.observe, point, outcome, seat.state)
        for name, hook in self.hooks.observe:
            called(("plugin", name), hook, point=point, outcome=outcome)

    def learn(self, point: Point, reading: Reading) -> None:
        """What was measured after the compute at `point` is known now."""
        for seat in self.seats(point):
            if seat.policy.learns:
                called(("policy", seat.label), seat.policy.learn, point, reading, seat.state)

    def ended(self) -> None:
        """The run is over."""
        for name, hook in self.hooks.ended:
            called(("plugin", name), hook, run=self.run)

"""Every installed policy keeps every law; policies that break one are found out."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import settings

import mixcache
from mixcache import Granularity, Point, Policy, Reading, Vote, catalogue
from mixcache.testing import check_policy, simulate
from mixcache_policies import (
    AdaCache,
    BWCache,
    CFGInterval,
    DBCache,
    DeltaDiT,
    DiCache,
    EasyCache,
    ErrorBudget,
    FasterCache,
    FirstBlock,
    MagCache,
    MixCache,
    Schedule,
    SeaCache,
    SenCache,
    SpeCa,
    Spread,
    Static,
    TaylorSeer,
    TeaCache,
    Window,
)

RATIOS = {"cond": [1.0, 1.1, 1.02, 0.98, 1.0, 0.9], "uncond": [1.0, 0.8, 1.0, 1.0, 1.0, 1.01]}

SENSITIVITY = {"sigma": [1.0, 0.5, 0.0], "x": [1.0, 2.0, 0.5], "t": [0.5, 1.0, 0.0], "output": [1.0, 1.0, 2.0]}

EXAMPLES = max(50, settings.default.max_examples // 2)
"""Random runs for each law and policy: more of them in `make test-long`."""

CONFIGURATIONS = [
    AdaCache(),
    AdaCache(codebook="0.01:5 1:2 3:1", first_steps=2, longest_run=2),
    ErrorBudget(),
    ErrorBudget(total=0.05, first_steps=1),
    BWCache(),
    ErrorBudget(total=0.5, lipschitz=1.0, longest_run=3),
    BWCache(threshold=5.0, run_share=0.3, open_share=2.0, first_steps=1, last_steps=1),
    CFGInterval(),
    DBCache(first_steps=2, most=3, threshold=1.0),
    DeltaDiT(),
    DeltaDiT(every=5, boundary=0.2, last_steps=2, longest_run=3),
    DiCache(),
    DiCache(threshold=3.0, first_share=0.0, longest_run=2),
    EasyCache(),
    EasyCache(threshold=5.0, first_steps=2, longest_run=2),
    FasterCache(),
    FasterCache(every=3, first_share=0.0, last_steps=1),
    FirstBlock(threshold=1.0),
    MagCache(ratios=RATIOS),
    MagCache(ratios=RATIOS, threshold=0.3, longest_run=None, first_share=0.0, inclusive=True),
    MixCache(),
    MixCache(threshold=2.0, longest_run=2, first_steps=1, among="step/cfg"),
    MixCache(choice="paper", settle=5.0, threshold=1.0, influence={"step": [1.0, 2.0], "cfg": [0.5]}),
    Spread(evaluations=3),
    Spread(speedup=2.5, first_steps=2),
    SeaCache(),
    SeaCache(threshold=2.0, first_steps=0, last_steps=0, longest_run=3),
    SenCache(sensitivity=SENSITIVITY),
    SenCache(sensitivity=SENSITIVITY, threshold=5.0, early=1.0, first_steps=2, last_steps=0, longest_run=None),
    SpeCa(),
    SpeCa(threshold=5.0, decay=0.5, first_steps=0, last_steps=0, longest_run=None, order=2),
    Static(),
    Static(blocks=5, at="block", every=3),
    Static(every=4, first_steps=0, last_steps=0, longest_run=2),
    TaylorSeer(),
    TaylorSeer(every=3, first_steps=3, next_full=2, last_steps=1, at="step"),
    TeaCache(coefficients=(0, 0, 0, 1, 0)),
    TeaCache(coefficients=(5.0, -3.0, 0.5, 0.1, -0.01), threshold=1.0, first_steps=0, longest_run=3),
    Window(first_steps=3, last_steps=2, longest_run=1),
]


@pytest.mark.parametrize("policy", CONFIGURATIONS, ids=repr)
def test_installed_policies_keep_the_laws(policy: Policy) -> None:
    check_policy(policy, examples=EXAMPLES)


def test_a_mask_keeps_the_laws_at_its_own_length() -> None:
    check_policy(Schedule("110100110"), num_steps=9, examples=EXAMPLES)


def test_every_installed_policy_is_checked_here() -> None:
    shipped = {kind for kind in catalogue.policies().values() if kind.__module__.startswith("mixcache_policies")}
    assert shipped == {Schedule, *map(type, CONFIGURATIONS)}


def test_a_class_or_a_spec_can_be_checked_too() -> None:
    check_policy(Static, examples=5)
    check_policy("static:every=3", examples=5)


memory: list[int] = []


@attrs.frozen(kw_only=True)
class Remembers(Policy):
    """Keeps what it has seen outside of its state."""

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        return Vote.reuse() if len(memory) % 2 else Vote.compute()

    def observe(self, point: Point, outcome: mixcache.Outcome, state: Any) -> None:
        memory.append(point.step)


@attrs.frozen(kw_only=True)
class CountsInVote(Policy):
    """Changes its state where it must not."""

    @attrs.define
    class State:
        votes: int = 0

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        state.votes += 1
        return Vote.reuse()


@attrs.frozen(kw_only=True)
class ReadsMore(Policy):
    """Reads a signal that it does not name."""

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        return Vote.reuse() if reading["anchor_change"] else Vote.compute()


@attrs.frozen(kw_only=True)
class Unguarded(Policy):
    """Drops the guards."""

    signals = ("anchor_change",)

    def guard_vote(self, point: Point, reading: Reading) -> Vote | None:
        return None

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        return Vote.reuse()


@attrs.frozen(kw_only=True)
class Undocumented(Policy):
    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        return Vote.compute()


@attrs.frozen(kw_only=True)
class Undecorated(Static):
    """A good one, to derive from."""


class Derived(Undecorated):
    """Forgot the decorator."""


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (Remembers(), "outlived the first"),
        (CountsInVote(), "must not change the state"),
        (ReadsMore(), "does not name in `signals`"),
        (Unguarded(), "although it measured"),
        (Unguarded(first_steps=3), "reused"),
        (Undocumented(), "needs a docstring"),
        (Derived(), "decorated with @attrs.frozen"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Policy) else "",
)
def test_a_policy_that_breaks_a_law_is_found_out(policy: Policy, said: str) -> None:
    memory.clear()
    with pytest.raises(AssertionError, match=said):
        check_policy(policy)


def test_a_vote_that_is_none_is_a_plugin_error() -> None:
    @attrs.frozen(kw_only=True)
    class Silent(Policy):
        """Forgets to return."""

        def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
            return None  # type: ignore[return-value]

    with pytest.raises(mixcache.PluginError, match=r"'silent' must return a Vote from vote\(\), got None"):
        check_policy(Silent())


def test_an_unknown_signal_is_an_error() -> None:
    @attrs.frozen(kw_only=True)
    class Asks(Policy):
        """Names a signal that nobody registered."""

        signals = ("anchor_chnage",)

        def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
            return Vote.compute()

    with pytest.raises(mixcache.UnknownNameError, match="Did you mean 'anchor_change'"):
        check_policy(Asks())


# every place where a policy decides is tried


STEP, BLOCK = Granularity.STEP, Granularity.BLOCK
EVERYWHERE = frozenset(Granularity)


@attrs.frozen(kw_only=True)
class Everywhere(Policy):
    """Reuses small changes at all levels and in two spans of blocks; what it remembers is by place."""

    signals = ("anchor_change", "sum(predicted_change)")
    forecasts = ("linear",)
    branches = "independent"

    @attrs.define
    class State:
        """How often the place was visited, and at which places (they are one if the state is shared)."""

        visits: int = 0
        paths: set[str] = attrs.field(factory=set)

    @property
    def granularities(self) -> frozenset[Granularity]:
        return EVERYWHERE

    def spans(self, blocks: int) -> tuple[tuple[int, int], ...]:
        return (1, 4), (4, blocks - 1)

    def rebuilt(self, granularity: Granularity, span: tuple[int, int] | None = None) -> tuple[str | None, str | None]:
        """The two spans are rebuilt in different ways."""
        return ("output", "hold") if span == (1, 4) else ("residual", None)

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        if point.granularity is not STEP and not state.visits and point.age is not None:
            raise RuntimeError("this place has a history, but its state has none")
        change = reading["anchor_change"]
        if change is None or state.visits % 3 == 0 or not change < 0.1:
            return Vote.compute("large")
        return Vote.reuse("small", error=change, forecast="linear" if point.span == (4, point.blocks - 1) else None)

    def observe(self, point: Point, outcome: mixcache.Outcome, state: Any) -> None:
        state.visits += 1
        state.paths.add(point.path)
        if not type(self).one_state and len(state.paths) > 1:
            raise RuntimeError("places share a state that must not")


@attrs.frozen(kw_only=True)
class Shared(Everywhere):
    """The same with one state for both spans."""

    one_state = True
    branches = "leader"

    @property
    def granularities(self) -> frozenset[Granularity]:
        return frozenset((BLOCK,))


@pytest.mark.parametrize("policy", [Everywhere(), Everywhere(longest_run=2, first_steps=1), Shared()], ids=repr)
def test_a_policy_of_all_levels_and_two_spans_passes(policy: Policy) -> None:
    check_policy(policy, examples=EXAMPLES)


def test_simulate_visits_every_place_of_every_call() -> None:
    """A record is kept when a visit ends, so what lies inside comes first."""
    records = simulate([Everywhere()], [{"anchor_change": 1.0}] * 6, branches=("cond", "uncond", "skip"))
    inside = ["blocks[1:4]", "blocks[4:11]"]
    for step in range(2):
        for branch in ("cond", "uncond", "skip"):
            found = [r.point.path for r in records if r.point.step == step and r.point.branch == branch]
            assert found == [*inside, *([] if branch == "cond" else ["cfg"]), "step"]
    alone = simulate([Everywhere()], [{"anchor_change": 1.0}])
    assert [r.point.path for r in alone] == [*inside, "cfg", "step"]


@attrs.frozen(kw_only=True)
class Broken(Everywhere):
    """Breaks a law, at one place alone."""

    place: str = "cfg"
    how: str = "raises"

    def here(self, point: Point) -> bool:
        return point.path == self.place

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        if not self.here(point):
            return Vote.compute("elsewhere")
        if self.how == "raises":
            raise RuntimeError("cannot decide here")
        if self.how == "silent":
            return None  # type: ignore[return-value]
        if self.how == "counts":
            state.visits += 1
        if self.how == "reads":
            return Vote.reuse() if reading["output_change"] else Vote.compute()
        if self.how == "names":
            return Vote.reuse(forecast="adams")
        return Vote.reuse("always")

    def guard_vote(self, point: Point, reading: Reading) -> Vote | None:
        return None if self.how == "unguarded" and self.here(point) else Policy.guard_vote(self, point, reading)

    def observe(self, point: Point, outcome: mixcache.Outcome, state: Any) -> None:
        """Counts nothing, so that only a vote could."""


PLACES = ["step", "cfg", "blocks[1:4]", "blocks[4:11]"]
SAID = {
    "raises": "cannot decide here",
    "silent": "must return a Vote",
    "counts": "must not change the state",
    "reads": "does not name in `signals`",
    "names": "not in its `forecasts`",
    "unguarded": "although it measured",
}


@pytest.mark.parametrize("how", SAID)
@pytest.mark.parametrize("place", PLACES)
def test_a_policy_that_breaks_a_law_at_one_place_alone_is_found_out(place: str, how: str) -> None:
    with pytest.raises((AssertionError, mixcache.PluginError), match=SAID[how]):
        check_policy(Broken(place=place, how=how))


@attrs.frozen(kw_only=True)
class Wishes(Everywhere):
    """Wants to be rebuilt in a way that nobody knows, in its second span alone."""

    def rebuilt(self, granularity: Granularity, span: tuple[int, int] | None = None) -> tuple[str | None, str | None]:
        return ("residual", "guess") if span == (4, 11) else (None, None)


def test_a_forecaster_that_nobody_registered_is_found_out() -> None:
    with pytest.raises(mixcache.UnknownNameError, match="guess"):
        check_policy(Wishes())

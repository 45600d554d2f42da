"""Every installed policy keeps every law; policies that break one are found out."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import settings

import mixcache
from mixcache import Granularity, Point, Policy, Reading, Vote, catalogue
from mixcache.testing import check_policy
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
    Static,
    TaylorSeer,
    TeaCache,
    Window,
)

RATIOS = {"cond": [1.0, 1.1, 1.02, 0.98, 1.0, 0.9], "uncond": [1.0, 0.8, 1.0, 1.0, 1.0, 1.01]}

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
    Static(),
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

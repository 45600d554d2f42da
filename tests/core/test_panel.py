"""The panel: guards hold whatever is measured (law 5), branches follow their leader, the core counts for everybody."""

from __future__ import annotations

import math
from typing import Any

import pytest
from attrs import define, field, frozen
from hypothesis import given
from hypothesis import strategies as st

import mixcache
from mixcache import Address, Granularity, Outcome, Point, Policy, Reading, RunInfo, Vote, parse_granularity
from mixcache.core.panel import Panel
from mixcache.core.rules import RULES
from mixcache.testing import simulate


@frozen(kw_only=True)
class Eager(Policy):
    """Wants to reuse whatever it reads."""

    signals = ("anchor_change", "output_norm")

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        return Vote.reuse()


RUN = RunInfo(index=0, num_steps=10)
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


def point(step: int = 0, branch: str = "cond", **more: Any) -> Point:
    address = Address(branch=branch, path=more.pop("path", "step"))
    return Point(granularity=Granularity.STEP, step=step, num_steps=9, address=address, **more)


def test_two_policies_of_one_kind_have_names_of_their_own() -> None:
    votes = Panel([Eager(), Eager(first_steps=9), Eager()], RUN).vote(point(), {})
    assert [vote.policy for vote in votes] == ["eager", "eager#2", "eager#3"]
    assert [vote.veto for vote in votes] == [False, True, False]


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


# what the core counts


@given(mask=st.text("01", min_size=1, max_size=14), other=st.text("01", min_size=14, max_size=14))
def test_the_core_counts_for_everybody(mask: str, other: str) -> None:
    """Evaluations since the last compute, between the last two, and reuses in a row: for each branch of its own."""

    @frozen
    class Masked(Policy):
        """Computes by a mask, another one for the second branch."""

        branches = "independent"

        def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
            return Vote.compute() if masks[point.branch][point.step] == "1" else Vote.reuse()

    masks = {"cond": mask, "uncond": other}
    records = simulate([Masked()], [{}] * (2 * len(mask)), branches=("cond", "uncond"))
    for branch in masks:
        computed: list[int] = []
        run = 0
        for record in (r for r in records if r.point.branch == branch):
            here = record.point
            assert here.age == (here.step - computed[-1] if computed else None)
            assert here.gap == (computed[-1] - computed[-2] if len(computed) > 1 else None)
            assert here.run_length == run
            run = run + 1 if record.outcome.reused else 0
            computed += [here.step] * (not record.outcome.reused)


# who remembers what


@define
class Steps:
    """The visits that a policy was told of."""

    told: list[tuple[str, str, int]] = field(factory=list)


@frozen(kw_only=True)
class Remembers(Policy):
    """Keeps what it observes, and says at every vote how much that is."""

    State = Steps
    at: Granularity = field(default=Granularity.BLOCK, converter=parse_granularity)

    def spans(self, blocks: int) -> tuple[tuple[int, int], ...]:
        return (0, 2), (2, 4)

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        return Vote.compute(", ".join(f"{branch} {path} {step}" for branch, path, step in state.told))

    def observe(self, point: Point, outcome: Outcome, state: Any) -> None:
        state.told.append((point.branch, point.path.removeprefix("blocks"), point.step))


def said(policy: Policy, branches: tuple[str, ...] = ("cond", "uncond")) -> dict[tuple[int, str, str], str]:
    """What it said in two steps, by step, branch and place."""
    records = simulate([policy], [{}] * (2 * len(branches)), branches=branches, blocks=4)
    return {(r.point.step, r.point.branch, r.point.path.removeprefix("blocks")): r.votes[0].reason for r in records}


def test_the_leader_of_a_step_is_observed_and_each_place_has_its_own_state() -> None:
    """The branch that follows is not asked; it does as the first one did."""
    assert said(Remembers()) == {
        (0, "cond", "[0:2]"): "",
        (0, "cond", "[2:4]"): "",
        (0, "uncond", "[0:2]"): "follows this step's first branch",
        (0, "uncond", "[2:4]"): "follows this step's first branch",
        (1, "cond", "[0:2]"): "cond [0:2] 0",
        (1, "cond", "[2:4]"): "cond [2:4] 0",
        (1, "uncond", "[0:2]"): "follows this step's first branch",
        (1, "uncond", "[2:4]"): "follows this step's first branch",
    }


def test_an_independent_policy_has_a_state_for_each_branch() -> None:
    @frozen(kw_only=True)
    class Alone(Remembers):
        """Each branch on its own."""

        branches = "independent"

    told = said(Alone())
    assert told[1, "cond", "[0:2]"] == "cond [0:2] 0"
    assert told[1, "uncond", "[0:2]"] == "uncond [0:2] 0"


def test_one_state_is_for_all_places_and_branches() -> None:
    @frozen(kw_only=True)
    class One(Remembers):
        """One state for everything."""

        one_state = True
        branches = "independent"

    told = said(One())
    assert told[0, "cond", "[2:4]"] == "cond [0:2] 0"
    assert told[1, "uncond", "[2:4]"].split(", ")[::3] == ["cond [0:2] 0", "uncond [2:4] 0", "uncond [0:2] 1"]


def test_a_policy_is_asked_once_for_each_place_whether_it_covers_it() -> None:
    asked: list[tuple[str, str]] = []

    @frozen(kw_only=True)
    class Asked(Remembers):
        """Covers the first half."""

        def covers(self, point: Point) -> bool:
            asked.append((point.branch, point.path))
            return point.span == (0, 2)

    panel = Panel([Asked(), Remembers()], RUN)
    places = [(branch, f"blocks[{a}:{b}]", (a, b)) for branch in ("cond", "uncond") for a, b in ((0, 2), (2, 4))]
    for step in range(3):
        for branch, path, span in places:
            address = Address(branch=branch, path=path)
            here = Point(granularity=Granularity.BLOCK, step=step, num_steps=3, address=address, span=span, blocks=4)
            votes = panel.vote(here, {})
            assert [vote.policy for vote in votes] == (["asked", "remembers"] if span == (0, 2) else ["remembers"])
    assert asked == [(branch, path) for branch, path, _ in places]


def test_who_learns_is_told_at_its_places_alone() -> None:
    told: list[tuple[str, str]] = []

    @frozen(kw_only=True)
    class Learns(Remembers):
        """Keeps what it learns."""

        def learn(self, point: Point, reading: Reading, state: Any) -> None:
            told.append((point.path, reading["x"]))

    panel = Panel([Learns(), Remembers(), Learns(at="step")], RUN)
    for path, span in (("blocks[0:2]", (0, 2)), ("blocks[1:3]", (1, 3))):
        address = Address(path=path)
        panel.learn(
            Point(granularity=Granularity.BLOCK, step=0, num_steps=1, address=address, span=span, blocks=4), {"x": path}
        )
    panel.learn(point(), {"x": "step"})
    assert told == [("blocks[0:2]", "blocks[0:2]"), ("step", "step")]

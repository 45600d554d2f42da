"""Tickets nest and interleave: nothing in the loop is "the current visit"."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from attrs import define, evolve, frozen
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixcache import (
    Address,
    Granularity,
    Input,
    NoiseLevel,
    Outcome,
    Point,
    Policy,
    Reading,
    Recipe,
    RunInfo,
    Value,
    Vote,
)
from mixcache.core.loop import Loop
from mixcache.core.plan import Plan
from mixcache.core.trace import Record
from tests.core.test_verification import Verifies
from tests.zoo import toy


@frozen(kw_only=True)
class Moody(Policy):
    """Reuses while the change since the last compute, as it counts it itself, stays small."""

    signals = ("anchor_change", "sum(anchor_change)")
    branches = "independent"
    threshold: float = 0.3

    @define
    class State:
        """What it has seen since it computed."""

        total: float = 0.0

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        change = reading["anchor_change"]
        if change is None:
            return Vote.compute("nothing before")
        total = state.total + change
        return Vote.reuse("near", error=total) if total < self.threshold else Vote.compute("far", error=total)

    def observe(self, point: Point, outcome: Outcome, state: Any) -> None:
        state.total = state.total + (outcome.reading["anchor_change"] or 0.0) if outcome.reused else 0.0


def plan() -> Plan:
    """At STEP and in two spans of blocks; one of them is verified by the other."""
    policies = [Moody(threshold=0.25), Moody(at="block", threshold=0.2), Verifies(threshold=0.01)]
    return Recipe.of(policies, forecast="linear", rule="any").plan()


def latents(seed: int, steps: int, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list((0.2 * torch.randn(steps, batch, 3, generator=generator, dtype=torch.float64)).cumsum(0) + 1)


STEP = Address()
"""The whole step, of a run that nobody named."""


@define
class Found:
    """What came of a run."""

    outputs: list[Value]
    records: list[Record]

    def plain(self) -> tuple[list[tuple[list[float], bool, bool]], list[Record]]:
        """To compare it: numbers to the bit, and records without their seconds."""
        values = [(v.streams[0].flatten().tolist(), v.exact, v.dense) for v in self.outputs]
        return values, [evolve(record, seconds=None) for record in self.records]


def visits(loop: Loop, xs: list[Tensor], found: Found, address: Address = STEP) -> Iterator[None]:
    """A run of the toy, visit by visit; it stops after every opening and closing of a ticket."""

    def point(step: int, granularity: Granularity, **more: Any) -> Point:
        return Point(
            granularity=granularity,
            step=step,
            num_steps=len(xs),
            level=NoiseLevel.flow(1 - step / len(xs)),
            **{"address": address, **more},
        )

    for step, x in enumerate(xs):
        outer = loop.open(point(step, Granularity.STEP), Input((x,)))
        yield
        value = outer.output
        if value is None:
            h = Value((x,))
            for span in ((0, 3), (3, 4)):
                there = evolve(address, path=f"blocks[{span[0]}:{span[1]}]")
                entering = Input(h.streams, exact=h.exact)
                inner = loop.open(
                    point(step, Granularity.BLOCK, address=there, span=span, blocks=4, share=0.5), entering
                )
                yield
                if inner.output is None:
                    made = Value((toy.through(h.streams[0], *span),), h.exact, h.dense)
                    h = loop.close(inner, made)
                    yield
                else:
                    h = Value(inner.output.streams, inner.output.exact, h.dense and inner.output.dense)
            value = loop.close(outer, h)
            yield
        found.outputs.append(value)


def started(shared: Plan, index: int, steps: int) -> tuple[Loop, Found]:
    found = Found([], [])
    return Loop(shared, RunInfo(index=index, num_steps=steps), found.records.append), found


def alone(index: int, xs: list[Tensor]) -> Found:
    loop, found = started(plan(), index, len(xs))
    for _ in visits(loop, xs, found):
        pass
    loop.end()
    return found


RUNS = ((11, 9), (12, 6), (13, 7))
"""Seed and steps of the runs that are mixed."""
EXPECTED = [alone(i, latents(seed, steps)) for i, (seed, steps) in enumerate(RUNS)]


def mixed(running: list[Iterator[None]], order: list[int]) -> None:
    """Advance the runs in this order, then each to its end."""
    for which in order:
        next(running[which % len(running)], None)
    for one in running:
        for _ in one:
            pass


def test_the_runs_that_are_mixed_decide_in_every_way() -> None:
    for found in EXPECTED:
        for granularity in (Granularity.STEP, Granularity.BLOCK):
            assert len({r.outcome.reused for r in found.records if r.point.granularity is granularity}) == 2
    assert any(r.learned for found in EXPECTED for r in found.records)
    assert {r.exact for found in EXPECTED for r in found.records} == {True, False}


@given(st.lists(st.integers(0, 2), max_size=80))
def test_runs_that_interleave_give_each_what_it_gives_alone(order: list[int]) -> None:
    """To the bit, with the same readings, votes and verdicts; they share the plan of their session."""
    shared = plan()
    loops = [started(shared, i, steps) for i, (_, steps) in enumerate(RUNS)]
    running = [visits(loop, latents(*run), found) for (loop, found), run in zip(loops, RUNS)]
    mixed(running, order)
    for (loop, found), expected in zip(loops, EXPECTED):
        loop.end()
        assert found.plain() == expected.plain()


@given(st.lists(st.integers(0, 2), max_size=80), st.integers(0, 60))
def test_a_run_that_is_left_midway_leaves_nothing_in_the_others(order: list[int], cut: int) -> None:
    """Its tickets are open, and never closed."""
    shared = plan()
    loops = [started(shared, i, steps) for i, (_, steps) in enumerate(RUNS)]
    running = [visits(loop, latents(*run), found) for (loop, found), run in zip(loops, RUNS)]
    for which in order[:cut]:
        next(running[which % 3], None)
    loops[0][0].end()
    mixed(running[1:], [which % 2 for which in order[cut:]])
    for (_, found), expected in zip(loops[1:], EXPECTED[1:]):
        assert found.plain() == expected.plain()


PLACES = [Address("a"), Address("b"), Address("a", branch="uncond"), Address("a", component="transformer_2")]


@pytest.mark.parametrize("other", PLACES[1:], ids=str)
@given(order=st.lists(st.integers(0, 1), max_size=60))
def test_in_one_loop_visits_of_different_addresses_may_interleave(other: Address, order: list[int]) -> None:
    """A branch may be opened before the other one is closed, and the components of one run may take turns."""
    recipe = Recipe.of([Moody(threshold=0.25), Moody(at="block", threshold=0.2)], forecast="linear", rule="any").plan()

    def told(addresses: list[Address], order: list[int]) -> dict[Address, list[Any]]:
        records: list[Record] = []
        loop = Loop(recipe, RunInfo(index=0, num_steps=8), records.append)
        found = {address: Found([], []) for address in addresses}
        running = [visits(loop, latents(20 + PLACES.index(a), 8), found[a], a) for a in addresses]
        mixed(running, order)
        kept: dict[Address, list[Any]] = {}
        for address in addresses:
            own = [r for r in records if evolve(r.point.address, path="step") == address]
            kept[address] = [*Found(found[address].outputs, own).plain()]
        return kept

    together = told([PLACES[0], other], order)
    for address in (PLACES[0], other):
        assert together[address] == told([address], [])[address]

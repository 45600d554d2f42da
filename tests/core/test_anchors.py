"""Anchors: a third-party one, cheap to know before computing, at STEP and at BLOCK, by recipe and by vote."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import define, field, frozen
from torch import Tensor

import mixcache
from mixcache import (
    Anchor,
    Beside,
    ConfigurationError,
    Granularity,
    Outcome,
    Point,
    Policy,
    Reading,
    Streams,
    Vote,
    ge,
    parse_granularity,
    study,
)
from mixcache.core import trace
from tests.helpers import Scripted, follow, reused_steps
from tests.zoo import toy


@frozen
class Guess(Anchor):
    """x + gain * sin(x): what the toy's blocks do, in one go and only nearly. It costs a part of them."""

    name = "guess"
    gain: float = 0.9
    price: float = field(default=0.25, validator=ge(0), kw_only=True)

    @property
    def cost(self) -> float:
        return self.price

    def make(self, entering: Streams, point: Point, state: Any, beside: Beside) -> Streams:
        return tuple(x + self.gain * torch.sin(x) for x in entering)


@frozen
class Drift(Anchor):
    """What enters, carried on by how it moved since the last visit; it remembers that."""

    name = "drift"
    stateful = True

    @define
    class State:
        """What entered last."""

        before: list[Tensor] = field(factory=list)

    def make(self, entering: Streams, point: Point, state: Any, beside: Beside) -> Streams:
        before = state.before or entering
        state.before = [x.detach().clone() for x in entering]
        return tuple(x + (x - b) for x, b in zip(entering, before))


@frozen(kw_only=True)
class Masked(Policy):
    """Computes by a mask, and reuses as it is told to. It may begin with a reuse."""

    name = "masked"
    mask: str = "0"
    forecast: str | None = None
    anchor: str | None = None
    first: int = 0
    last: int | None = None

    @property
    def forecasts(self) -> tuple[str, ...]:  # type: ignore[override]
        return () if self.forecast is None else (self.forecast,)

    @property
    def anchors(self) -> tuple[str, ...]:  # type: ignore[override]
        return () if self.anchor is None else (self.anchor,)

    def spans(self, blocks: int) -> tuple[tuple[int, int], ...]:
        return ((self.first, blocks if self.last is None else self.last),)

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        if self.mask[point.step % len(self.mask)] == "1":
            return Vote.compute()
        return Vote.reuse(forecast=self.forecast, anchor=self.anchor)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """The plugins of this file, for their specs."""
    for plugin in (Guess, Drift, Masked):
        mixcache.register(plugin)
    yield
    for kind, name in (("anchor", "guess"), ("anchor", "drift"), ("policy", "masked")):
        mixcache.unregister(kind, name)


def latents(steps: int = 5, batch: int = 2, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(steps, batch, 3, generator=generator, dtype=torch.float64))


def run(recipe: Any, xs: list[Tensor], **how: Any) -> tuple[mixcache.Session, toy.Toy, list[Tensor]]:
    model = toy.Toy()
    sigmas = how.pop("sigmas", None)
    with mixcache.enable(model, recipe, adapter=toy.ADAPTER, **how) as session:
        return session, model, [outputs[0] for outputs in toy.walk(session, model, xs, sigmas=sigmas)]


def guess(x: Tensor, gain: float = 0.9) -> Tensor:
    return x + gain * torch.sin(x)


# none: the anchor is the output

BY_RECIPE = [
    "masked:at={level} @ forecast=none anchor=guess",
    "masked:at={level} @ forecast.{level}=none anchor.{level}=guess",
]
WAYS: list[Any] = [
    *[way.format(level=level) for level in ("step", "block") for way in BY_RECIPE],
    *[Masked(at=level, forecast="none", anchor="guess") for level in ("step", "block")],
]


@pytest.mark.parametrize("recipe", WAYS, ids=str)
def test_none_gives_the_anchor_to_the_bit_and_needs_no_history(recipe: Any) -> None:
    """Nothing is computed, and no history goes into what comes out.

    From the first step on for spans of blocks that are described; at STEP from the second: the first is watched.
    Nothing is stored, but where only the vote says `none`: the recipe's own forecast is held around both anchors.
    """
    xs = latents()
    session, model, outputs = run(recipe, xs)
    first = sum(r.point.granularity is Granularity.STEP for r in session.records[:1])
    assert torch.equal(outputs[0], toy.through(xs[0]) if first else guess(xs[0]))
    assert all(torch.equal(output, guess(x)) for x, output in zip(xs[1:], outputs[1:]))
    assert model.ran == [first] * 4
    decided = [(r.outcome.reused, r.exact, r.dense) for r in session.records]
    assert decided == [(False, True, True)] * first + [(True, True, False)] * (5 - first)
    report = session.report()
    assert report.peak_bytes == (0 if isinstance(recipe, str) else first * 2 * xs[0].nbytes)
    assert report.estimated == 5 - first


def test_the_first_step_of_a_run_is_computed_and_says_so() -> None:
    """Whatever the policy wants: only the solver's first step shows what a reuse could be told by."""
    session, model, _ = run("masked @ forecast=none", latents(3))
    assert model.ran == [1] * 4
    assert reused_steps(session) == [1, 2]
    assert session.records[0].outcome.reason == "no history to reuse; masked"
    assert session.records[0].verdict.reuse
    assert session.report().evaluations == 1


def test_what_the_recipe_chooses_for_another_level_does_not_count() -> None:
    xs = latents()
    _, model, outputs = run("masked:at=block,mask=10000 @ forecast.step=none anchor.step=guess", xs)
    assert all(torch.equal(output, x + (toy.through(xs[0]) - xs[0])) for x, output in zip(xs[1:], outputs[1:]))
    assert model.ran == [1] * 4


def test_none_around_what_enters_skips_the_place() -> None:
    """As if the blocks were not there."""
    xs = latents()
    _, model, outputs = run("masked:at=block,first=1,last=3 @ forecast=none", xs)
    assert all(torch.equal(y, toy.through(toy.through(x, 0, 1), 3, 4)) for x, y in zip(xs, outputs))
    assert model.ran == [5, 0, 0, 5]


@pytest.mark.parametrize("basis", ["output", "noise", "clean"])
def test_none_needs_a_z_that_is_zero_at_the_anchor(basis: str) -> None:
    needs = rf"forecast='none' at 'step' .* needs basis='residual' there, got {basis.capitalize()}\(\)"
    with pytest.raises(ConfigurationError, match=needs):
        mixcache.enable(Scripted(), f"masked @ basis={basis} forecast=none")


# what it costs


@pytest.mark.parametrize("cost", [0.0, 0.25, 1.0])
@pytest.mark.parametrize(("first", "last", "share"), [(0, 4, 1.0), (1, 3, 0.5), (0, 1, 0.25)])
def test_a_reuse_saves_its_place_less_what_its_anchor_costs(cost: float, first: int, last: int, share: float) -> None:
    xs = latents()
    recipe = f"masked:at=block,first={first},last={last},mask=10 @ forecast=none anchor='guess:price={cost}'"
    session, _, _ = run(recipe.replace("'", '"'), xs)
    assert [r.outcome.saved for r in session.records] == [0.0, share * (1 - cost)] * 2 + [0.0]
    report = session.report()
    assert report.evaluations == 5 - 2 * share * (1 - cost)
    assert report.evaluations_uncached == 5
    assert report.ideal_speedup == 5 / (5 - 2 * share * (1 - cost))


@pytest.mark.parametrize("level", ["step", "block"])
def test_an_anchor_that_is_made_beside_a_compute_costs_too(level: str) -> None:
    """Where a history is told around it, every computed visit makes it as well."""
    session, _, _ = run(f"masked:at={level},mask=1100 @ forecast=hold anchor=guess", latents(4))
    assert [r.outcome.saved for r in session.records] == [-0.25, -0.25, 0.75, 0.75]
    assert session.report().evaluations == 4 - (2 * 0.75 - 2 * 0.25)


def test_an_anchor_is_made_once_a_visit_and_only_if_it_is_needed() -> None:
    made: list[int] = []

    @frozen
    class Counted(Anchor):
        """What enters."""

        cost = 0.5

        def make(self, entering: Streams, point: Point, state: Any, beside: Beside) -> Streams:
            made.append(point.step)
            return entering

    @frozen
    class Reads(Masked):
        """Reads how far off the cache would have been, for which it has to be rebuilt."""

        signals = ("forecast_error",)

    run(Reads(at="block", mask="11010"), latents(), anchor=Counted())
    assert made == [0, 1, 2, 3, 4]
    made.clear()
    session, _, _ = run(Masked(mask="11010"), latents(), forecast="none", anchor=Counted())
    assert made == [2, 4]
    assert math.fsum(r.outcome.saved for r in session.records) == 2 * 0.5


# hold completes it


@pytest.mark.parametrize("level", ["step", "block"])
@pytest.mark.parametrize("forecast", ["hold", "linear", "taylor:order=2"])
@pytest.mark.parametrize("basis", ["residual", "output", "noise", "clean"])
@pytest.mark.parametrize("anchor", ["guess", "zero", "input", "drift"])
def test_reusing_at_the_same_input_gives_the_computed_output(
    level: str, forecast: str, basis: str, anchor: str
) -> None:
    """Law 2, around any anchor."""
    xs = latents(1) * 10
    recipe = f"masked:at={level},mask=1011001110 @ forecast={forecast} basis={basis} anchor={anchor}"
    session, model, outputs = run(recipe, xs, sigmas=[0.6] * 10)
    for output in outputs:
        torch.testing.assert_close(output, toy.through(xs[0]))
    assert model.ran == [6] * 4
    assert not any(r.exact for r in session.records if r.outcome.reused)
    assert session.report().estimated == 0


@pytest.mark.parametrize("how", ["recipe", "vote"])
@pytest.mark.parametrize("level", ["step", "block"])
def test_hold_adds_what_the_anchor_lacked(level: str, how: str) -> None:
    xs = latents()
    recipe: Any = f"masked:at={level},mask=10010 @ anchor=guess"
    if how == "vote":
        recipe = Masked(at=level, mask="10010", anchor="guess")
    session, _, outputs = run(recipe, xs)
    for t, (x, output) in enumerate(zip(xs, outputs)):
        c = xs[0] if t < 3 else xs[3]
        lacked = toy.through(c) - guess(c)
        torch.testing.assert_close(output, toy.through(x) if t in (0, 3) else guess(x) + lacked)
    assert [r.verdict.anchor for r in session.records if r.outcome.reused] == [None if how == "recipe" else "guess"] * 3


def test_the_same_forecast_around_different_anchors_has_a_history_of_each() -> None:
    """A vote may change its mind from visit to visit: what was stored serves both."""

    @frozen
    class Alternates(Policy):
        """Computes twice, then reuses around one and around the other."""

        anchors = ("guess", "zero")

        def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
            return Vote.compute() if point.step < 2 else Vote.reuse(anchor=(None, "guess", "zero")[point.step % 3])

    xs = latents(8)
    _, _, outputs = run(Alternates(), xs, forecast="linear")
    around = [lambda x: x, guess, torch.zeros_like]
    for t in range(2, 8):
        anchor = around[t % 3]
        z = [toy.through(x) - anchor(x) for x in xs[:2]]
        torch.testing.assert_close(outputs[t], anchor(xs[t]) + z[1] + (t - 1) * (z[1] - z[0]))


def test_two_anchors_of_one_name_are_two() -> None:
    xs = latents(3)

    @frozen
    class Both(Policy):
        """The weaker guess first, then the stronger one."""

        forecasts = ("none",)
        anchors = ("guess:gain=0.5", "guess:gain=2")

        def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
            return Vote.compute() if point.step == 0 else Vote.reuse(anchor=self.anchors[point.step - 1])

    for forecast, added in (("none", 0.0), ("hold", 1.0)):
        _, _, outputs = run(Both(), xs, forecast=forecast)
        for t, gain in ((1, 0.5), (2, 2.0)):
            lacked = toy.through(xs[0]) - guess(xs[0], gain)
            torch.testing.assert_close(outputs[t], guess(xs[t], gain) + added * lacked)


@pytest.mark.parametrize("named", ["input", "guess"])
def test_naming_the_anchor_that_holds_anyway_changes_nothing(named: str) -> None:
    """Nor is anything stored twice."""
    xs = latents()
    plain, _, expected = run(Masked(mask="11000"), xs, forecast="linear", anchor=named)
    session, _, outputs = run(Masked(mask="11000", anchor=named), xs, forecast="linear", anchor=named)
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected))
    assert session.report().peak_bytes == plain.report().peak_bytes
    assert session.report().evaluations == plain.report().evaluations


# an estimate is no history


def test_what_is_computed_after_an_estimate_is_exact_but_not_dense() -> None:
    """So it may be stored where only exact visits are; after a reuse from history it may not."""

    @frozen(kw_only=True)
    class First(Policy):
        """Rebuilds the first two blocks at every second step, and never the others."""

        exact_history = True
        forecast: str = "none"
        forecasts = ("none", "hold")

        def spans(self, blocks: int) -> tuple[tuple[int, int], ...]:
            return ((0, 2), (2, blocks))

        def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
            first = point.span == (0, 2) and point.step % 2
            return Vote.reuse(forecast=self.forecast) if first else Vote.compute()

    for forecast, exact, ages in (("none", True, [None, 1, 1, 1]), ("hold", False, [None, 1, 2, 1])):
        session, _, _ = run(First(at="block", forecast=forecast), latents(4), anchor="guess")
        last = [r for r in session.records if r.point.span == (2, 4)]
        assert [(r.exact, r.dense) for r in last] == [(True, True), (exact, False)] * 2
        assert [r.point.age for r in last] == ages


def test_an_estimate_of_what_history_went_into_is_not_exact() -> None:
    @frozen(kw_only=True)
    class Both(Policy):
        """Holds the first half and estimates the second."""

        forecasts = ("none", "hold")

        def spans(self, blocks: int) -> tuple[tuple[int, int], ...]:
            return ((0, 2), (2, blocks))

        def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
            return Vote.reuse(forecast="hold" if point.span == (0, 2) else "none")

    session, _, outputs = run(Both(at="block"), xs := latents(2), anchor="guess")
    assert torch.equal(outputs[0], guess(toy.through(xs[0], 0, 2)))
    assert [(r.outcome.reused, r.exact) for r in session.records] == [
        (False, True),
        (True, True),
        (True, False),
        (True, False),
    ]
    assert session.report().estimated == 1


def test_what_is_computed_beside_a_rebuilt_branch_is_not_exact() -> None:
    """At CFG it is told around the conditional prediction, which history went into."""

    @frozen(kw_only=True)
    class Cond(Policy):
        """Rebuilds the conditional branch of every second step."""

        branches = "independent"

        def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
            return Vote.reuse() if point.branch == "cond" and point.step % 2 else Vote.compute()

    @frozen(kw_only=True)
    class Exact(Masked):
        """Computes; stores what is exact."""

        exact_history = True

    model, xs = Scripted(), latents(4)
    with mixcache.enable(model, [Cond(), Exact(at="cfg", mask="1")]) as session:
        follow(session, model, xs, [[2 * x, 3 * x] for x in xs], branches=("cond", "uncond"))
    beside = [r for r in session.records if r.point.granularity is Granularity.CFG]
    assert [(r.exact, r.dense) for r in beside] == [(True, True), (False, True)] * 2
    assert [r.point.age for r in beside] == [None, 1, 2, 1]


# a state


def test_a_stateful_anchor_remembers_from_visit_to_visit() -> None:
    xs = latents()
    session, _, outputs = run("masked @ forecast=none anchor=drift", xs)
    expected = [toy.through(xs[0]), xs[1], *(x + (x - before) for before, x in pairwise(xs[1:]))]
    assert all(torch.equal(*pair) for pair in zip(outputs, expected))
    assert [(r.exact, r.dense) for r in session.records] == [(True, True)] + [(False, False)] * 4
    assert session.report().estimated == 0


def test_its_state_is_counted_as_cache() -> None:
    """From its first reuse on, which is never the first step."""
    for mask, steps in (("0", 1), ("0", 2), ("0", 5), ("10", 2), ("10", 6)):
        xs = latents(steps)
        session, _, _ = run(f"masked:mask={mask} @ forecast=none anchor=drift", xs)
        assert session.report().peak_bytes == (xs[0].nbytes if "0" in (mask * steps)[1:steps] else 0)


def test_its_state_has_no_room_where_the_cache_has_none() -> None:
    """Then the place is computed, and says so."""
    xs = latents()
    for limit, reused in ((xs[0].nbytes, [1, 2, 3, 4]), (xs[0].nbytes - 1, [1])):
        session, _, _ = run("masked @ forecast=none anchor=drift", xs, max_cache_bytes=limit)
        assert reused_steps(session) == reused
        assert session.report().peak_bytes <= limit
        first, *refused = [r.outcome.reason for r in session.records if not r.outcome.reused]
        assert first.startswith("no history to reuse")
        assert len(refused) == 4 - len(reused)
        assert all(reason.startswith("no room in the cache to reuse") for reason in refused)


def test_its_state_goes_with_the_history_when_the_shape_changes() -> None:
    small, large = latents(3, batch=1), latents(3, batch=2, seed=1)
    _, _, outputs = run("masked @ forecast=none anchor=drift", [*small, *large])
    assert torch.equal(outputs[3], large[0])
    assert torch.equal(outputs[4], large[1] + (large[1] - large[0]))


def test_an_estimate_of_another_shape_than_before_is_no_error() -> None:
    """What was computed last says what form an output has, until the shape changes."""
    small, large = latents(1, batch=1), latents(3, batch=2, seed=1)
    _, _, outputs = run("masked:mask=1000 @ forecast=none anchor=guess", [*small, *large])
    assert all(torch.equal(output, guess(x)) for x, output in zip(large, outputs[1:]))


def test_its_state_goes_with_the_history_when_that_is_broken() -> None:
    xs = latents(4)
    xs[1] = torch.full_like(xs[1], math.nan)
    _, _, outputs = run("masked:mask=0100 @ forecast=hold anchor=drift", xs)
    assert [output.isfinite().all().item() for output in outputs] == [True, False, True, True]
    assert torch.equal(outputs[2], toy.through(xs[2]))  # computed: no history


def test_its_state_goes_when_the_run_ends() -> None:
    seen: list[weakref.ref[Any]] = []

    @frozen
    class Watched(Drift):
        """Lets the test watch its state."""

        @define(slots=False)
        class State:
            """What entered last."""

            before: list[Tensor] = field(factory=list)

        def make(self, entering: Streams, point: Point, state: Any, beside: Beside) -> Streams:
            if not state.before:
                seen.append(weakref.ref(state))
            return super().make(entering, point, state, beside)

    model, xs = toy.Toy(), latents(3)
    with mixcache.enable(model, "masked @ forecast=none", anchor=Watched(), adapter=toy.ADAPTER) as session:
        for _ in range(2):
            outputs = [o[0] for o in toy.walk(session, model, xs)]
            assert torch.equal(outputs[1], xs[1])  # a run begins without the other's state
            assert torch.equal(outputs[2], xs[2] + (xs[2] - xs[1]))
    gc.collect()
    assert len(seen) == 2
    assert [ref() for ref in seen] == [None, None]


def test_branches_and_spans_have_states_of_their_own() -> None:
    model, xs = toy.Toy(), latents(3)
    recipe = "masked:at=block,first=0,last=2 + masked:at=block,first=2 @ forecast=none anchor=drift rule=any"
    with mixcache.enable(model, recipe, adapter=toy.ADAPTER) as session:
        outputs = toy.walk(session, model, xs, branches=("cond", "uncond"))
    a = [xs[0], *(x + (x - before) for before, x in pairwise(xs))]
    b = [a[0], *(x + (x - before) for before, x in pairwise(a))]
    for pair, expected in zip(outputs, b):
        assert all(torch.equal(output, expected) for output in pair)
    assert {r.point.path for r in session.records} == {"blocks[0:2]", "blocks[2:4]"}


# at CFG, the anchor is made of the conditional prediction


def test_an_anchor_at_cfg_is_made_of_the_conditional_prediction() -> None:
    model, xs = Scripted(), latents(3)
    outputs = [[2 * x, 3 * x] for x in xs]
    with mixcache.enable(model, "masked:at=cfg @ forecast=none anchor=guess") as session:
        results = follow(session, model, xs, outputs, branches=("cond", "uncond"))
    assert torch.equal(results[0][1], 3 * xs[0])  # the first evaluation is computed
    assert all(torch.equal(result[1], guess(2 * x)) for x, result in zip(xs[1:], results[1:]))
    assert model.calls == 3 + 1
    assert session.report().evaluations == 3 + 1 + 2 * 0.25


# written down


def test_the_trace_and_the_report_tell_of_it(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    policy = Masked(at="block", mask="100", forecast="none", anchor="guess:gain=0.5")
    session, _, _ = run(policy, latents(6), trace=path)
    read = trace.read(path)
    assert list(read.records) == session.records
    named = ("none", "guess:gain=0.5")
    for record in read.records:
        assert (record.verdict.forecast, record.verdict.anchor) == (named if record.verdict.reuse else (None, None))
        assert [(v.forecast, v.anchor) for v in record.votes] == [(record.verdict.forecast, record.verdict.anchor)]
    assert read.header is not None
    assert read.header.recipe == 'masked:at=block,mask="100",forecast="none",anchor="guess:gain=0.5"'
    assert list(study.replay(path)) == [record.verdict for record in session.records]
    report = session.report()
    assert report.estimated == 4
    assert report.to_dict()["estimated"] == 4


def test_a_policy_is_told_what_was_saved() -> None:
    told: list[tuple[int, float]] = []

    @frozen
    class Listens(Masked):
        """Keeps what it is told."""

        def observe(self, point: Point, outcome: Outcome, state: Any) -> None:
            told.append((point.step, outcome.saved))

    run(Listens(mask="10", at="block"), latents(4), forecast="none", anchor="guess")
    assert told == [(0, 0.0), (1, 0.75), (2, 0.0), (3, 0.75)]


def test_levels_are_known_to_the_recipe() -> None:
    recipe = mixcache.parse("masked @ anchor=zero anchor.block=guess:gain=2")
    plan = recipe.plan()
    assert {g: repr(plan.anchor[g]) for g in Granularity} == {
        parse_granularity("step"): "Zero()",
        parse_granularity("cfg"): "Zero()",
        parse_granularity("block"): "Guess(gain=2.0, price=0.25)",
    }

"""The plan: how each place is rebuilt, by the recipe, by the wish of its policies, or by what a vote names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from attrs import field, frozen
from torch import Tensor

import mixcache
from mixcache import (
    ConfigurationError,
    Granularity,
    PluginError,
    Point,
    Policy,
    Reading,
    Recipe,
    Vote,
    parse_granularity,
)
from tests.helpers import Scripted, follow
from tests.zoo import toy


@frozen(kw_only=True)
class Chooses(Policy):
    """Computes by a mask; reuses by the forecaster whose turn it is."""

    forecasts = ("hold", "linear", "taylor:order=2")
    mask: str = "1"
    turns: tuple[str | None, ...] = (None,)
    errors: tuple[float | None, ...] = (None,)

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        if self.mask[point.step] == "1":
            return Vote.compute()
        turn = point.step % len(self.turns)
        return Vote.reuse(forecast=self.turns[turn], error=self.errors[point.step % len(self.errors)])


def latents(steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return list(torch.randn(steps, 2, 3, generator=generator, dtype=torch.float64))


def continued(z: Sequence[Tensor], where: Sequence[int], at: int, order: int) -> Tensor:
    """The polynomial through the last order + 1 of z, at a step."""
    nodes = list(zip(where, z))[-order - 1 :]
    total = torch.zeros_like(z[0])
    for i, (a, value) in enumerate(nodes):
        weight = 1.0
        for j, (b, _) in enumerate(nodes):
            weight *= 1.0 if i == j else (at - b) / (a - b)
        total = total + weight * value
    return total


# a vote chooses the forecaster

ORDERS = {None: 1, "hold": 0, "linear": 1, "taylor:order=2": 2}


@pytest.mark.parametrize("level", ["step", "block"])
def test_a_vote_chooses_the_forecaster_of_its_reuse(level: str) -> None:
    """From visit to visit another; without a name, the one of the recipe. As much is kept as the deepest needs."""
    mask, turns = "1101000000", (None, "hold", "linear", "taylor:order=2")
    xs, model = latents(10), toy.Toy()
    policy = Chooses(at=level, mask=mask, turns=turns)
    with mixcache.enable(model, policy, forecast="linear", adapter=toy.ADAPTER) as session:
        outputs = toy.walk(session, model, xs)
    z = {t: toy.through(xs[t]) - xs[t] for t in (0, 1, 3)}
    for t in range(10):
        known = [c for c in z if c < t]
        if mask[t] == "1":
            assert torch.equal(outputs[t][0], toy.through(xs[t]))
        else:
            order = ORDERS[turns[t % 4]]
            expected = xs[t] + continued([z[c] for c in known], known, t, order)
            torch.testing.assert_close(outputs[t][0], expected)
            assert session.records[t].verdict.forecast == turns[t % 4]
    assert session.report().peak_bytes == 3 * xs[0].nbytes


def test_of_several_votes_the_smallest_predicted_error_chooses() -> None:
    xs, model = latents(5), Scripted()
    sure = Chooses(mask="11000", turns=("linear",), errors=(0.1, 0.3))
    unsure = Chooses(mask="11000", turns=("hold",), errors=(0.2,))
    for policies in ([sure, unsure], [unsure, sure]):
        with mixcache.enable(model, policies, basis="output") as session:
            results = follow(session, model, xs, [[2 * x] for x in xs])
        assert [r.verdict.forecast for r in session.records] == [None, None, "linear", "hold", "linear"]
        torch.testing.assert_close(results[3][0], 2 * xs[1])
        torch.testing.assert_close(results[4][0], 2 * xs[1] + 3 * (2 * xs[1] - 2 * xs[0]))


def test_the_branches_of_a_step_follow_the_choice_of_the_first() -> None:
    xs, model = latents(4), Scripted()
    outputs = [[2 * x, 5 * x] for x in xs]
    with mixcache.enable(model, Chooses(mask="1100", turns=("hold", "linear")), basis="output") as session:
        results = follow(session, model, xs, outputs, branches=("cond", "uncond"))
    assert [r.verdict.forecast for r in session.records[4:]] == ["hold", "hold", "linear", "linear"]
    for b, factor in ((0, 2), (1, 5)):
        torch.testing.assert_close(results[2][b], factor * xs[1])
        torch.testing.assert_close(results[3][b], factor * (xs[1] + 2 * (xs[1] - xs[0])))


@pytest.mark.parametrize("what", ["forecast", "anchor"])
def test_a_vote_names_only_what_its_policy_lists(what: str) -> None:
    """What it lists is built and checked when it is enabled; anything else is an error that names the policy."""

    @frozen
    class Surprises(Policy):
        """Names what it never told of; another policy beside it did."""

        def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
            return (
                Vote.compute() if point.step < 2 else Vote.reuse(**{what: "linear" if what == "forecast" else "zero"})
            )

    @frozen
    class Lists(Policy):
        """Lists both."""

        forecasts = ("linear",)
        anchors = ("zero",)

        def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
            return Vote.abstain()

    model, xs = Scripted(), latents(3)
    said = rf"policy 'surprises' votes for {what}='\w+', which is not in its `{what}s`"
    with mixcache.enable(model, [Surprises(), Lists()]) as session, pytest.raises(PluginError, match=said):
        follow(session, model, xs, [[x] for x in xs])
    with mixcache.enable(model, [Surprises(), Lists()], on_error="compute") as session:
        results = follow(session, model, xs, [[2 * x] for x in xs])
    assert torch.equal(results[2][0], 2 * xs[2])
    assert session.records[2].outcome.reason.startswith(f"failed: policy 'surprises' votes for {what}=")


@pytest.mark.parametrize(("what", "said"), [("forecasts", "unknown forecaster 'lin'"), ("anchors", "unknown anchor")])
def test_what_a_policy_lists_is_checked_when_it_is_enabled(what: str, said: str) -> None:
    @frozen
    class Lists(Policy):
        """Lists what is not there."""

    setattr(Lists, what, ("lin",))
    with pytest.raises(mixcache.UnknownNameError, match=said):
        mixcache.enable(Scripted(), Lists())


# the wishes of policies


@frozen(kw_only=True)
class Halves(Policy):
    """Reuses both halves of the blocks, each rebuilt in another way."""

    at: Granularity = field(default=Granularity.BLOCK, converter=parse_granularity)
    mask: str = "1"

    def spans(self, blocks: int) -> tuple[tuple[int, int], ...]:
        return (0, blocks // 2), (blocks // 2, blocks)

    def rebuilt(self, granularity: Granularity, span: tuple[int, int] | None = None) -> tuple[str | None, str | None]:
        if span is None:
            return None, None
        return ("output", "hold") if span[0] == 0 else ("residual", "linear")

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        return Vote.compute() if self.mask[point.step] == "1" else Vote.reuse()


@pytest.mark.parametrize("chosen", [{}, {"basis": "residual"}, {"forecast": {"block": "hold"}}])
def test_how_a_place_is_rebuilt_may_differ_by_span(chosen: dict[str, Any]) -> None:
    """Unless the caller chooses."""
    xs, model = latents(4), toy.Toy()
    with mixcache.enable(model, Halves(mask="1100"), adapter=toy.ADAPTER, **chosen) as session:
        outputs = toy.walk(session, model, xs)
    halves = [toy.through(x, 0, 2) for x in xs[:2]]
    for t in (2, 3):
        h = halves[1] if "basis" not in chosen else xs[t] + halves[1] - xs[1]
        z = [toy.through(half, 2, 4) - half for half in halves]
        order = 0 if "forecast" in chosen else 1
        torch.testing.assert_close(outputs[t][0], h + continued(z, [0, 1], t, order))
    assert model.ran == [2] * 4


def test_two_policies_that_wish_for_different_things_at_one_place_are_refused() -> None:
    """At another they may."""

    @frozen(kw_only=True)
    class Other(Halves):
        """Wishes for something else in the first half."""

        def rebuilt(
            self, granularity: Granularity, span: tuple[int, int] | None = None
        ) -> tuple[str | None, str | None]:
            return (None, None) if span is None else (None, "linear")

    said = r"the policies at 'block' .* different values of `forecast` \('hold', 'linear'\); choose one with forecast="
    with pytest.raises(ConfigurationError, match=said):
        mixcache.enable(toy.Toy(), [Halves(), Other()], adapter=toy.ADAPTER)
    with mixcache.enable(toy.Toy(), [Halves(), Other()], forecast="hold", adapter=toy.ADAPTER):
        pass
    with mixcache.enable(toy.Toy(), [Halves(), Other(at="step")], adapter=toy.ADAPTER):
        pass


@pytest.mark.parametrize("wish", [None, "residual", ("residual",), ("residual", 3), ["residual", "hold"]])
def test_a_wish_is_a_pair_of_specs(wish: Any) -> None:
    @frozen
    class Wishes(Policy):
        """Wishes."""

        def rebuilt(self, granularity: Granularity, span: tuple[int, int] | None = None) -> Any:
            return wish

    with pytest.raises(PluginError, match=r"policy 'wishes' must return \(basis, forecaster\) from rebuilt\(\)"):
        mixcache.enable(Scripted(), Wishes())


@pytest.mark.parametrize("method", ["rebuilt", "covers", "spans"])
def test_a_policy_that_fails_when_it_is_enabled_is_named(method: str) -> None:
    def fail(self: Any, *args: Any) -> Any:
        raise ZeroDivisionError("not today")

    kind = frozen(type("Fails", (Halves,), {"__doc__": "Fails.", method: fail}))
    model = toy.Toy()
    with pytest.raises(PluginError, match="policy 'fails' raised ZeroDivisionError: not today"):
        mixcache.enable(model, kind(), adapter=toy.ADAPTER)
    assert not hasattr(model, "_diffusers_hook")


# guards


def test_guards_alone_are_refused_with_what_is_missing() -> None:
    for spec in ("window:first_steps=2", "budget:total=0.1 + window"):
        with pytest.raises(
            ConfigurationError, match=r"nothing could ever be reused: .* only guard .*; add one that re"
        ):
            mixcache.enable(Scripted(), spec)


def test_a_guard_is_asked_wherever_others_decide_and_makes_no_place_visited() -> None:
    xs, model = latents(4), toy.Toy()
    with mixcache.enable(
        model, [Halves(mask="1000"), *Recipe.of("window:first_steps=2").policies], adapter=toy.ADAPTER
    ) as session:
        toy.walk(session, model, xs)
    assert {r.point.path for r in session.records} == {"blocks[0:2]", "blocks[2:4]"}
    for record in session.records:
        assert [vote.policy for vote in record.votes] == ["halves", "window"]
        assert record.outcome.reused is (record.point.step >= 2)

"""Ordered evaluations: the count that is asked for is kept, whatever the run, and the recommended recipe orders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mixcache
from mixcache import ConfigurationError, Granularity, NoiseLevel, Outcome, Point, Recipe, RunInfo
from mixcache.core.panel import Panel
from mixcache.testing import check_policy, simulate
from mixcache_policies import Spread, Window
from mixcache_policies.spread import density, influences
from tests.zoo.every.i_to_o import ideogram4
from tests.zoo.pipelines import wan, wan_transformer
from tests.zoo.tiny import Tiny


def computed(session: mixcache.Session) -> set[int]:
    """The evaluations of the last run of which something was computed."""
    return {record.point.step for record in session.records if not record.outcome.reused}


def shifted(shift: float, steps: int) -> list[float]:
    """The sigmas of a flow-matching run, from 1."""
    return [shift * (1 - i / steps) / (1 + (shift - 1) * (1 - i / steps)) for i in range(steps)]


def flow(sigmas: list[float]) -> tuple[NoiseLevel, ...]:
    """The levels of a flow-matching run that ends without noise."""
    return tuple(NoiseLevel.flow(now, until) for now, until in pairwise([*sigmas, 0.0]))


def run(policy: Spread, levels: tuple[NoiseLevel, ...] | None, bends: Sequence[float | None]) -> list[int]:
    """The evaluations computed where a forecast is off by `bends` times what a line misses over its gap."""
    steps = len(bends)
    panel, done = Panel([policy], RunInfo(index=0, num_steps=steps, levels=levels)), [0]
    panel.started()
    first = Point(granularity=Granularity.STEP, step=0, num_steps=steps)
    panel.observe(first, Outcome(reused=False, reason=""))
    for step in range(1, steps):
        age, gap = step - done[-1], done[-1] - done[-2] if len(done) > 1 else None
        point = Point(granularity=Granularity.STEP, step=step, num_steps=steps, age=age, gap=gap)
        reuse = panel.vote(point, {})[0].choice == "reuse"
        panel.observe(point, Outcome(reused=reuse, reason=""))
        if not reuse:
            done.append(step)
            bend = bends[step]
            panel.learn(point, {"forecast_error": None if bend is None else bend * age * (age + (gap or 0)) / 2})
    return done


@given(steps=st.integers(1, 120), data=st.data())
def test_the_density_is_the_share_of_evaluations(steps: int, data: st.DataObject) -> None:
    """Without measured errors, from every computed evaluation to the next is its share of the density that is left,
    rounded up to a whole evaluation: against the density, written down once more."""
    count = data.draw(st.integers(1, max(1, steps // 2)))
    shift = data.draw(st.sampled_from([1.0, 5.0, 8.0]))
    sigmas = shifted(shift, steps)
    alphas = [1 - sigma for sigma in sigmas]
    w = [abs(a - b) / max(c, 1 / 32) for a, b, c in zip(sigmas, [*sigmas[1:], 0.0], alphas)]
    u = np.arange(steps) / max(steps - 1, 1)
    edge = 3 / count
    wanted = np.array(w) ** 0.2 / np.sqrt((u + edge) * (1 - u + edge))
    found = run(Spread(evaluations=count), flow(sigmas), [None] * len(sigmas))
    assert len(found) == count
    for k, (now, after) in enumerate(pairwise([*found, steps])):
        share = wanted[now:].sum() / (count - k)
        last_place = after == steps - (count - k - 1)  # the rest need one evaluation each
        assert wanted[now : after - 1].sum() < share * (1 + 1e-6)
        assert wanted[now:after].sum() > share * (1 - 1e-6) or last_place


def test_it_computes_more_where_forecasts_are_worse_than_usual() -> None:
    """A bend in the middle of a run draws evaluations there, the count stays; without `adapt` it does not."""
    levels = flow(shifted(5.0, 50))
    expected = [p**2 for p in density(50, 20, levels)]
    quiet = run(Spread(evaluations=20), levels, expected)
    assert quiet == run(Spread(evaluations=20), levels, [None] * 50)
    bent = [bend * (20 if 20 <= step < 30 else 1) for step, bend in enumerate(expected)]
    drawn = run(Spread(evaluations=20), levels, bent)
    assert len(drawn) == len(quiet) == 20
    assert sum(20 <= step < 30 for step in drawn) > sum(20 <= step < 30 for step in quiet)
    assert run(Spread(evaluations=20, adapt=0), levels, bent) == quiet


@given(st.lists(st.none() | st.floats(0, 1e6), min_size=2, max_size=60), st.data())
def test_the_count_is_kept_whatever_is_measured(errors: list[float | None], data: st.DataObject) -> None:
    steps = len(errors)
    count = data.draw(st.integers(1, steps))
    levels = data.draw(st.none() | st.just(flow(shifted(5.0, steps))))
    assert len(run(Spread(evaluations=count), levels, errors)) == count


@pytest.mark.parametrize("prediction", ["flow", "epsilon", "v_prediction", "sample"])
def test_an_influence_is_what_an_error_does_to_a_step(prediction: str) -> None:
    """Against a first-order step written out: from the output to clean and noise, and to the next noise level."""

    def clean_and_noise(x: float, output: float, alpha: float, sigma: float) -> tuple[float, float]:
        if prediction == "flow":
            return x - sigma * output, x + alpha * output
        if prediction == "epsilon":
            return (x - sigma * output) / alpha, output
        if prediction == "sample":
            return output, (x - alpha * output) / sigma
        return alpha * x - sigma * output, sigma * x + alpha * output

    sigmas = np.linspace(0.95, 0.1, 9)
    pairs = [(1 - s if prediction == "flow" else math.sqrt(1 - s * s), float(s)) for s in sigmas] + [(1.0, 0.0)]
    levels = tuple(
        NoiseLevel(alpha=a, sigma=s, until=until, prediction=prediction)  # type: ignore[arg-type]
        for (a, s), (_, until) in pairwise(pairs)
    )
    moved = []
    for (alpha, sigma), (after, noise) in pairwise(pairs):
        ends = []
        for output in (0.4, 1.4):
            clean, fresh = clean_and_noise(0.7, output, alpha, sigma)
            ends.append(after * clean + noise * fresh)
        moved.append(abs(ends[1] - ends[0]) / alpha)
    assert influences(levels) == pytest.approx(moved)


@given(steps=st.integers(1, 120), speedup=st.floats(1, 8))
def test_a_speed_up_is_reached_by_as_many_evaluations_as_allow_it(steps: int, speedup: float) -> None:
    records = simulate([Spread(speedup=speedup)], [{}] * steps)
    made = sum(not record.outcome.reused for record in records)
    assert steps / made >= speedup * (1 - 1e-9) or made == 1
    assert made == steps or steps / (made + 1) < speedup * (1 + 1e-9)


@given(steps=st.integers(2, 120), data=st.data())
def test_the_count_is_kept_exactly(steps: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, steps))
    records = simulate([Spread(evaluations=count)], [{}] * steps)
    assert [r.point.step for r in records if not r.outcome.reused][:1] == [0]
    assert sum(not record.outcome.reused for record in records) == count


@given(steps=st.integers(10, 60), first=st.integers(0, 8), data=st.data())
def test_what_a_guard_computes_is_counted(steps: int, first: int, data: st.DataObject) -> None:
    """Evaluations that a guard forces take the place of planned ones."""
    count = data.draw(st.integers(max(2, first), steps))
    records = simulate([Spread(evaluations=count), Window(first_steps=first)], [{}] * steps)
    assert sum(not record.outcome.reused for record in records) == count


def test_it_keeps_the_laws_of_policies() -> None:
    check_policy(Spread(evaluations=3))
    check_policy(Spread(speedup=2.5))


@pytest.mark.parametrize(("choices", "count"), [({}, 6), ({"speedup": 3}, 4), ({"evaluations": 5}, 5)])
def test_enable_without_a_policy_orders(tiny: Tiny, choices: dict[str, float], count: int) -> None:
    """On every pipeline of the zoo: so many evaluations of 12 are computed, all branches of them."""
    with mixcache.enable(tiny.pipe, **choices) as session:
        tiny.run(12)
        evaluations = session.records[0].point.num_steps
        if evaluations == 12:
            assert len(computed(session)) == count
        else:
            assert len(computed(session)) == Spread(**choices).count(evaluations)


def test_a_run_of_few_steps_is_computed_and_told_why(tiny_wan_random: Tiny) -> None:
    plain = tiny_wan_random.run(8)
    with mixcache.enable(tiny_wan_random.pipe) as session:
        with pytest.warns(mixcache.NothingReusedWarning, match="8 steps gains nothing over fewer steps; order a speed"):
            assert torch.equal(tiny_wan_random.run(8), plain)
        tiny_wan_random.run(10)
        assert len(computed(session)) == 5
    with mixcache.enable(tiny_wan_random.pipe, speedup=2) as session:
        tiny_wan_random.run(8)
        assert len(computed(session)) == 4


def test_two_experts_share_the_count() -> None:
    """The evaluation at which the second begins is computed, and is one of those ordered."""
    tiny = wan(transformer_2=wan_transformer(seed=3), boundary_ratio=0.9)
    for count in (4, 5, 6, 7):
        with mixcache.enable(tiny.pipe, evaluations=count) as session:
            tiny.run(12)
            first = {r.point.component: r.point.step for r in reversed(session.records)}
            assert len(computed(session)) == count
            assert first["transformer_2"] in computed(session)


@pytest.mark.parametrize("count", [3, 5, 7])
def test_two_models_of_one_step_count_once(count: int) -> None:
    """Ideogram 4 calls a model for each guidance branch: an evaluation is both, computed or reused together."""
    tiny = ideogram4()
    with mixcache.enable(tiny.pipe, evaluations=count) as session:
        tiny.run(10)
    assert {record.point.component for record in session.records} == {"transformer", "unconditional_transformer"}
    reused = {record.point.step for record in session.records if record.outcome.reused}
    assert computed(session) == set(range(session.records[0].point.num_steps)) - reused
    assert len(computed(session)) == count


def test_as_many_evaluations_as_steps_change_nothing(tiny_wan_random: Tiny) -> None:
    plain = tiny_wan_random.run(6)
    with mixcache.enable(tiny_wan_random.pipe, evaluations=6):
        assert torch.equal(tiny_wan_random.run(6), plain)


def test_orders_that_cannot_be(tiny_wan_random: Tiny) -> None:
    with pytest.raises(ConfigurationError, match=r"evaluations=18, speedup=2\)` orders twice"):
        mixcache.enable(tiny_wan_random.pipe, evaluations=18, speedup=2)
    with pytest.raises(ConfigurationError, match="speedup=2 cannot be ordered of easycache"):
        mixcache.enable(tiny_wan_random.pipe, "easycache", speedup=2)
    with (
        mixcache.enable(tiny_wan_random.pipe, evaluations=18),
        pytest.raises(ConfigurationError, match="more than the 6"),
    ):
        tiny_wan_random.run(6)


def test_an_order_is_part_of_the_recipe() -> None:
    recipe = Recipe.of(None, basis="output").ordered(speedup=2.5)
    assert str(recipe) == "spread:speedup=2.5 @ basis=output"
    assert Recipe.parse(str(recipe)) == recipe
    assert math.isclose(recipe.policies[0].speedup, 2.5)  # type: ignore[attr-defined]

"""Ordered evaluations: the count that is asked for is kept, whatever the run, and the recommended recipe orders."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import mixcache
from mixcache import ConfigurationError, Recipe
from mixcache.testing import check_policy, simulate
from mixcache_policies import Chebyshev, Window
from mixcache_policies.chebyshev import nodes
from tests.zoo.every.i_to_o import ideogram4
from tests.zoo.pipelines import wan, wan_transformer
from tests.zoo.tiny import Tiny


def computed(session: mixcache.Session) -> set[int]:
    """The evaluations of the last run of which something was computed."""
    return {record.point.step for record in session.records if not record.outcome.reused}


@given(steps=st.integers(1, 200), count=st.integers(1, 200))
def test_as_many_nodes_as_asked_for_each_on_an_evaluation_of_its_own(steps: int, count: int) -> None:
    found = nodes(steps, count)
    assert len(set(found)) == len(found) == min(steps, count)
    assert list(found) == sorted(found)
    assert found[0] == 0
    assert 0 <= found[-1] < steps
    if count >= 2:
        assert found[-1] == steps - 1


@given(steps=st.integers(20, 200), share=st.floats(1.5, 5))
def test_the_nodes_follow_the_density(steps: int, share: float) -> None:
    """Each is within one evaluation of where a numerical integral of the density puts it, if there is room."""
    count = int(steps / share)
    u = (np.arange(200_000) + 0.5) / 200_000
    density = 1 / np.sqrt((u + 1 / count) * (1 - u + 1 / count))
    shares = np.cumsum(density) / density.sum()
    wanted = u[np.searchsorted(shares, np.linspace(0, 1, count).clip(0, 1 - 1e-9))] * (steps - 1)
    assume(np.diff(wanted).min() >= 1)
    assert np.abs(np.array(nodes(steps, count)) - wanted).max() <= 1


def test_gaps_are_widest_in_the_middle() -> None:
    gaps = [b - a for a, b in pairwise(nodes(50, 18))]
    assert max(gaps[:3] + gaps[-3:]) <= 2 < min(gaps[6:-6])


@given(steps=st.integers(1, 120), speedup=st.floats(1, 8))
def test_a_speed_up_is_reached_by_as_many_evaluations_as_allow_it(steps: int, speedup: float) -> None:
    records = simulate([Chebyshev(speedup=speedup)], [{}] * steps)
    made = sum(not record.outcome.reused for record in records)
    assert steps / made >= speedup * (1 - 1e-9) or made == 1
    assert made == steps or steps / (made + 1) < speedup * (1 + 1e-9)


@given(steps=st.integers(2, 120), data=st.data())
def test_the_count_is_kept_exactly(steps: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, steps))
    records = simulate([Chebyshev(evaluations=count)], [{}] * steps)
    assert [r.point.step for r in records if not r.outcome.reused] == list(nodes(steps, count))


@given(steps=st.integers(10, 60), first=st.integers(0, 8), data=st.data())
def test_what_a_guard_computes_is_counted(steps: int, first: int, data: st.DataObject) -> None:
    """Evaluations that a guard forces take the place of planned ones."""
    count = data.draw(st.integers(max(2, first), steps))
    records = simulate([Chebyshev(evaluations=count), Window(first_steps=first)], [{}] * steps)
    assert sum(not record.outcome.reused for record in records) == count


def test_it_keeps_the_laws_of_policies() -> None:
    check_policy(Chebyshev(evaluations=3))
    check_policy(Chebyshev(speedup=2.5))


@pytest.mark.parametrize(("choices", "count"), [({}, 6), ({"speedup": 3}, 4), ({"evaluations": 5}, 5)])
def test_enable_without_a_policy_orders(tiny: Tiny, choices: dict[str, float], count: int) -> None:
    """On every pipeline of the zoo: so many evaluations of 12 are computed, all branches of them."""
    with mixcache.enable(tiny.pipe, **choices) as session:
        tiny.run(12)
        evaluations = session.records[0].point.num_steps
        if evaluations == 12:
            assert len(computed(session)) == count
        else:
            assert len(computed(session)) == Chebyshev(**choices).count(evaluations)


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
    assert str(recipe) == "chebyshev:speedup=2.5 @ basis=output"
    assert Recipe.parse(str(recipe)) == recipe
    assert math.isclose(recipe.policies[0].speedup, 2.5)  # type: ignore[attr-defined]

"""Means, their intervals and the worst clip, against what can be computed otherwise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixcache.bench import Spread
from mixcache.bench.statistics import interval

NUMBERS = st.lists(st.floats(-100, 100), min_size=2, max_size=12)


def test_the_interval_of_a_mean_is_that_of_the_normal_law_for_many_values() -> None:
    values = np.random.default_rng(1).normal(50, 4, 400)
    low, high = interval(list(values)) or (0, 0)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.04)
    assert high == pytest.approx(values.mean() + half, abs=0.04)


def test_the_interval_of_two_values_is_that_of_all_their_resamples() -> None:
    """Of two values every resample is one, the other (a quarter of the time each) or their middle."""
    assert interval([1.0, 3.0]) == (1.0, 3.0)
    low, high = interval([1.0, 3.0], lambda drawn: drawn.max(axis=1)) or (0, 0)
    assert (low, high) == (1.0, 3.0)


def test_it_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    found = [interval(list(rng.normal(0, 1, 30))) for _ in range(300)]
    covered = sum(low <= 0 <= high for low, high in filter(None, found)) / 300
    assert 0.89 <= covered <= 0.98


@given(NUMBERS)
def test_laws_of_a_spread(values: list[float]) -> None:
    spread = Spread.of(values, min)
    assert spread.low is not None
    assert spread.high is not None
    assert min(values) - 1e-9 <= spread.low <= spread.high <= max(values) + 1e-9
    assert spread.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert spread.worst == min(values)
    assert Spread.of(values, min) == spread
    moved = Spread.of([value + 7 for value in values], min)
    assert (moved.low, moved.high) == (pytest.approx(spread.low + 7), pytest.approx(spread.high + 7))


def test_where_there_is_no_interval() -> None:
    one = Spread.of([4.0], min)
    assert (one.mean, one.low, one.high, one.worst, one.half_width) == (4.0, None, None, 4.0, None)
    same = Spread.of([math.inf, 50.0], min)
    assert (same.mean, same.low, same.worst) == (math.inf, None, 50.0)
    lost = Spread.of([math.nan, 50.0], min)
    assert math.isnan(lost.mean)
    assert math.isnan(lost.worst)

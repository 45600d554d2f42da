"""FoCa: the closed form against the recursion from visit to visit that it unrolls."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mixcache
from mixcache import catalogue
from mixcache_policies import FoCa
from tests.policies.forecasting import check_constants, check_laws, forecast, line, noise, order_of, told

__all__ = ["line"]


def test_laws() -> None:
    check_laws(FoCa())
    check_constants(FoCa())


def recursion(a: float, b: float, c: float, before: int, gap: int, ahead: int) -> float:
    """F_k+1 = (2 F_k - F_k-1) + (s - (F_k - F_k-1)) / 2, run from the second computed visit on, visit by visit."""

    def visit(now: float, previous: float, slope: float) -> tuple[float, float]:
        predicted = 2 * now - previous
        return predicted + (slope - (now - previous)) / 2, now

    slope = (b - a) / before
    now, previous = b, b - slope
    for _ in range(gap - 1):
        now, previous = visit(now, previous, slope)
    now, previous = c, now  # computed
    for _ in range(ahead):
        now, previous = visit(now, previous, (c - b) / gap)
    return now


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=3), st.integers(1, 6), st.integers(1, 6), st.integers(0, 9))
def test_it_is_the_recursion_unrolled(z: list[float], before: int, gap: int, ahead: int) -> None:
    steps = [2, 2 + before, 2 + before + gap]
    history = told(lambda step: torch.tensor([[z[steps.index(step)]]], dtype=torch.float64), steps)
    made = forecast(FoCa(), history, steps[-1] + ahead)
    assert made.item() == pytest.approx(recursion(*z, before, gap, ahead), rel=1e-9, abs=1e-9)


@given(st.lists(st.integers(0, 40), min_size=2, max_size=5, unique=True).map(sorted), st.integers(1, 9))
def test_exact_on_straight_lines(steps: list[int], ahead: int) -> None:
    def f(step: int) -> torch.Tensor:
        return noise(7, 2, 3) + 0.3 * step * noise(8, 2, 3)

    made = forecast(FoCa(), told(f, steps), steps[-1] + ahead)
    torch.testing.assert_close(made, f(steps[-1] + ahead), rtol=1e-8, atol=1e-8)


def test_it_is_linear_where_every_step_was_computed() -> None:
    history = told(lambda step: noise(step, 2, 3), [4, 7, 8])
    expected = forecast(catalogue.build("forecaster", "linear"), history, 11)
    torch.testing.assert_close(forecast(FoCa(), history, 11), expected)
    torch.testing.assert_close(
        forecast(FoCa(), history[:2], 9), forecast(catalogue.build("forecaster", "linear"), history[:2], 9)
    )


def test_it_bends_less_than_the_parabola_at_the_far_end(line: Callable[[int], torch.Tensor]) -> None:
    """On a square at an interval of 3 the line is short by 4 and 10, the parabola by nothing; FoCa by -2 and 1."""
    history = told(lambda step: torch.tensor([[float(step**2)]]).double(), [0, 3, 6])
    errors = [step**2 - forecast(FoCa(), history, step).item() for step in (7, 8)]
    assert errors == pytest.approx([-2.0, 1.0])
    assert not math.isclose(forecast(FoCa(), told(line, [0, 3, 6]), 7)[0, 0].item(), 0.0)


def test_the_order_of_convergence_is_measured() -> None:
    assert order_of(FoCa(), [0, 3, 6], 2) == pytest.approx(1.0, abs=0.2)


def test_it_counts_in_steps() -> None:
    with pytest.raises(mixcache.ConfigurationError, match=r"FoCa\(abscissa=...\)` must be one of 'step'"):
        catalogue.build("forecaster", "foca:abscissa=sigma")

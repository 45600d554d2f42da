"""Spectrum: the ridge fit of Chebyshev polynomials over the run, against numpy's least squares and the formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mixcache
from mixcache import catalogue
from mixcache_policies import Spectrum
from tests.policies.forecasting import check_constants, check_laws, forecast, noise, order_of, told

EXACT = Spectrum(ridge=0, linear=0)


@pytest.mark.parametrize("spec", ["spectrum", "spectrum:degree=4,ridge=0.1,linear=0.5", "spectrum:ridge=0,linear=0"])
def test_laws(spec: str) -> None:
    forecaster = catalogue.build("forecaster", spec)
    check_laws(forecaster)
    check_constants(forecaster)


def test_the_defaults_are_the_published_ones() -> None:
    assert Spectrum() == catalogue.build("forecaster", "spectrum:degree=4,ridge=0.1,linear=0.5,visits=10")
    assert Spectrum().depth == 10


steps_of = st.lists(st.integers(0, 40), min_size=2, max_size=10, unique=True).map(sorted)


def reference(steps: list[int], values: np.ndarray, target: int, degree: int, ridge: float, run: int) -> float:
    """The formula, with T_n = cos(n arccos tau), and T_0 free of the ridge: fitted about the mean column by column."""
    degree = min(degree, len(steps) - 1)
    tau = 2 * np.array([*steps, target]) / run - 1
    T = np.cos(np.arange(1, degree + 1) * np.arccos(tau)[:, None])
    centre, middle = T[:-1].mean(0), values.mean()
    A = T[:-1] - centre
    slopes = np.linalg.solve(A.T @ A + ridge * np.eye(degree), A.T @ (values - middle)) if degree else np.zeros(0)
    return float(middle + (T[-1] - centre) @ slopes)


@given(steps_of, st.integers(1, 8), st.integers(0, 4), st.floats(0.01, 10), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_weights_are_those_of_the_formula(
    steps: list[int], ahead: int, degree: int, ridge: float, linear: float
) -> None:
    """An intercept without a penalty is the same as fitting what is left of the means."""
    values = noise(len(steps), len(steps)).numpy()
    target = steps[-1] + ahead
    smooth = reference(steps, values, target, degree, ridge, 50)
    line = values[-1] + ahead * (values[-1] - values[-2]) / (steps[-1] - steps[-2])
    history = told(lambda step: torch.tensor([[values[steps.index(step)]]]), steps)
    made = forecast(Spectrum(degree=degree, ridge=ridge, linear=linear), history, target)
    assert made.item() == pytest.approx((1 - linear) * smooth + linear * line, rel=1e-7, abs=1e-7)


@given(
    st.lists(st.integers(0, 40), min_size=5, max_size=8, unique=True).map(sorted),
    st.integers(1, 6),
    st.lists(st.floats(-2, 2), min_size=5, max_size=5),
)
def test_without_ridge_it_reproduces_polynomials_up_to_its_degree(
    steps: list[int], ahead: int, coefficients: list[float]
) -> None:
    def f(step: int) -> torch.Tensor:
        return torch.tensor([[np.polyval(coefficients, 2 * step / 50 - 1)]], dtype=torch.float64)

    target = steps[-1] + ahead
    nodes = [2 * step / 50 - 1 for step in steps]
    slack = 1e-12 * sum(map(abs, EXACT.weights(nodes, 2 * target / 50 - 1))) * 100
    torch.testing.assert_close(forecast(EXACT, told(f, steps), target), f(target), rtol=1e-6, atol=1e-8 + slack)


def test_the_ridge_draws_it_to_the_mean_and_the_share_to_the_line() -> None:
    steps = [0, 3, 6, 9, 12]
    history = told(lambda step: noise(step, 1, 4), steps)
    mean = torch.stack([entry.z[0] for entry in history]).mean(0)
    torch.testing.assert_close(forecast(Spectrum(ridge=1e12, linear=0), history, 14), mean)
    line = catalogue.build("forecaster", "linear")
    torch.testing.assert_close(forecast(Spectrum(linear=1), history, 14), forecast(line, history, 14))


def test_tau_counts_the_whole_run() -> None:
    """The same visits in a longer run lie closer together, so the same ridge bends less."""
    made = []
    for run in (12, 100):
        history = told(lambda step: torch.tensor([[float(step**2)]]).double(), [0, 3, 6], num_steps=run)
        made.append(forecast(Spectrum(linear=0), history, 8, run).item())
        expected = reference([0, 3, 6], np.array([0.0, 9.0, 36.0]), 8, 4, 0.1, run)
        assert made[-1] == pytest.approx(expected)
    assert made[0] > made[1] + 1.0


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_order_of_convergence_is_measured(order: int) -> None:
    fit = Spectrum(degree=order, ridge=0, linear=0)
    assert order_of(fit, [0, 2, 3, 5, 6, 9], 2) == pytest.approx(order, abs=0.2)


def test_visits_that_nearly_coincide_stay_finite() -> None:
    weights = EXACT.weights([-0.5, -0.5 + 1e-12, -0.5 + 2e-12, 0.0], 0.1)
    assert np.isfinite(weights).all()
    assert sum(weights) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("bad", ["degree=-1", "ridge=-0.1", "linear=-1", "visits=0", "abscissa=sigma"])
def test_parameters_are_checked(bad: str) -> None:
    with pytest.raises(mixcache.ConfigurationError, match=r"Spectrum\(.*must be"):
        catalogue.build("forecaster", f"spectrum:{bad}")

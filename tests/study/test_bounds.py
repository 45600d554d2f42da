"""How far a forecast can be off: the bounds hold, against closed forms, and no smaller ones would do."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixcache import ConfigurationError, Forecaster, catalogue
from mixcache.core.forecast.polynomial import Adams, Hermite, Hold, Linear, Taylor
from mixcache.study.bounds import hold_error, remainder
from tests.zoo.flows import FAMILIES, WIDTH


@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=4, unique_by=lambda t: round(t, 1)),
    st.floats(0.2, 3),
    st.floats(0.1, 1.5),
    st.floats(0, 6.3),
)
def test_a_remainder_bounds_the_error_on_smooth_functions(
    nodes: list[float], ahead: float, speed: float, phase: float
) -> None:
    """z(t) = sin(speed t + phase), whose derivative of order k is at most speed^k."""
    nodes = sorted(nodes)
    target = nodes[-1] + ahead
    z = lambda t: math.sin(speed * t + phase)  # noqa: E731
    for forecaster in (Hold(), Linear(), Taylor(order=2), Adams(order=3), Hermite(order=2)):
        kept = nodes[-forecaster.depth :]
        forecast = sum(w * z(t) for w, t in zip(forecaster.weights(kept, target), kept))
        for degree in range(4):
            constant = remainder(forecaster, nodes, target, degree)
            if constant is not None:
                assert abs(forecast - z(target)) <= constant * speed ** (degree + 1) * (1 + 1e-6) + 1e-6


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_the_remainder_of_a_polynomial_is_newtons(order: int) -> None:
    nodes, target = [0.0, 1.0, 2.5, 3.0][-(order + 1) :], 4.2
    wanted = math.prod(target - t for t in nodes) / math.factorial(order + 1)
    found = remainder(Taylor(order=order), nodes, target, order)
    assert found == pytest.approx(wanted)
    assert remainder(Taylor(order=order), nodes, target, order + 1) is None  # it is not exact on that degree


@pytest.mark.parametrize("forecaster", [Hold(), Linear(), Hermite(order=1)])
def test_the_remainder_is_reached(forecaster: Forecaster) -> None:
    """No smaller constant would do: for a first derivative of at most 1, the zigzag that is worst."""
    nodes, target = [0.0, 1.0], 3.0
    kept = nodes[-forecaster.depth :]
    weights = forecaster.weights(kept, target)
    worst = max(
        abs(sum(w * z for w, z in zip(weights, values[2 - len(kept) : 2])) - values[2])
        for values in ([0.0, a, a + b] for a in (-1.0, 1.0) for b in (-2.0, 2.0))
    )
    assert remainder(forecaster, nodes, target, 0) == pytest.approx(worst)


@given(st.integers(0, 1000), st.floats(0, 3), st.floats(0, 1), st.floats(0, 1))
def test_holding_an_increment_errs_at_most_by_its_bound(seed: int, far: float, now: float, then: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = FAMILIES["network"](generator, 1.3)
    M = float(model.drift.detach().norm()) * 0.65  # ||W_2|| ||b||
    a, b = torch.randn(1, WIDTH, generator=generator), torch.randn(1, WIDTH, generator=generator)
    b = a + far * b
    with torch.no_grad():
        last, truth = model.value(a, then), model.value(b, now)
    moved, sigma_moved = float((b - a).norm()), abs(now - then)
    for basis, held in (("residual", b + last - a), ("output", last)):
        bound = hold_error(moved, sigma_moved, K=1.3, M=M, basis=basis)
        assert float((truth - held).norm()) <= bound * (1 + 1e-5) + 1e-5
    with pytest.raises(ConfigurationError, match="must be 'residual' or 'output', got 'noise'"):
        hold_error(1.0, 1.0, K=1.0, M=1.0, basis="noise")


def test_every_linear_forecaster_has_a_remainder_or_says_why() -> None:
    for name, kind in catalogue.forecasters().items():
        if kind.forecast is Forecaster.forecast:
            assert remainder(kind(), [0.0, 1.0, 2.0, 3.0], 4.0, 0) is not None, name

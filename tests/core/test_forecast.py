"""Forecasters: exact on polynomials up to their order at unequal steps, and of the order that they claim."""

from __future__ import annotations

import math

import pytest
import torch
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

import mixcache
from mixcache import Entry, Forecaster, Granularity, NoiseLevel, Point, plugins
from mixcache.forecast import FORECASTERS, lagrange
from tests.helpers import Scripted, follow

ORDERS = {"hold": 0, "linear": 1, "taylor:order=0": 0, "taylor:order=1": 1, "taylor:order=2": 2, "taylor:order=3": 3}


def at(step: int, sigma: float | None = None) -> Point:
    level = None if sigma is None else NoiseLevel.flow(sigma)
    return Point(granularity=Granularity.STEP, step=step, num_steps=1000, level=level)


def entry(value: torch.Tensor, point: Point) -> Entry:
    return Entry(z=(value, -value), point=point)


def test_every_forecaster_is_covered_here() -> None:
    assert {name.split(":")[0] for name in ORDERS} == {kind.name for kind in FORECASTERS}


@given(
    st.sampled_from(sorted(ORDERS)),
    st.lists(st.integers(0, 60), min_size=5, max_size=8, unique=True).map(sorted),
    st.lists(st.floats(-3, 3), min_size=4, max_size=4),
    st.sampled_from(["step", "sigma"]),
)
def test_exact_on_polynomials_up_to_its_order_at_unequal_steps(
    spec: str, steps: list[int], coefficients: list[float], abscissa: str
) -> None:
    order = ORDERS[spec]
    forecaster = plugins.build("forecaster", f"{spec}{',' if ':' in spec else ':'}abscissa={abscissa}", Forecaster)
    places = [at(step, sigma=math.cos(step / 40)) for step in steps]

    def f(point: Point) -> float:
        t = point.step / 10 if abscissa == "step" else point.sigma
        return sum(c * t**k for k, c in enumerate(coefficients[: order + 1]))

    history = [entry(torch.full((2,), f(p), dtype=torch.float64), p) for p in places[:-1]]
    kept = history[-forecaster.depth :]
    z = forecaster.forecast(kept, places[-1])
    nodes = [forecaster.position(e.point) for e in kept]
    amplified = sum(map(abs, lagrange(nodes, forecaster.position(places[-1])))) * 100
    slack = 1e-13 * amplified * max(abs(f(place)) for place in places) + 1e-11
    assert z[0][0].item() == pytest.approx(f(places[-1]), abs=slack)
    assert torch.equal(z[1], -z[0])


@pytest.mark.parametrize("spec", sorted(ORDERS))
def test_the_order_of_convergence_is_measured(spec: str) -> None:
    """On a smooth function the error of a forecast over one step h falls as h^(order + 1)."""
    forecaster, order = plugins.build("forecaster", spec, Forecaster), ORDERS[spec]

    def error(h: float) -> float:
        steps = [0, 2, 3, 5, 6]
        history = [entry(torch.tensor([math.exp(h * s)], dtype=torch.float64), at(s)) for s in steps]
        z = forecaster.forecast(history[-forecaster.depth :], at(7))
        return abs(z[0].item() - math.exp(h * 7))

    coarse, fine = error(0.02), error(0.01)
    assert math.log2(coarse / fine) == pytest.approx(order + 1, abs=0.15)


def test_a_short_history_lowers_the_order() -> None:
    cubic = plugins.build("forecaster", "taylor:order=3", Forecaster)
    history = [entry(torch.tensor([float(2 + 3 * s)]), at(s)) for s in (0, 2)]
    assert cubic.forecast(history, at(5))[0].item() == pytest.approx(17)
    assert cubic.forecast(history[:1], at(5))[0].item() == 2


def test_two_visits_at_one_place_count_as_the_later() -> None:
    """Heun visits one sigma twice; nobody divides by the distance of the two."""
    linear = plugins.build("forecaster", "linear:abscissa=sigma", Forecaster)
    history = [entry(torch.tensor([v]), at(i, s)) for i, (v, s) in enumerate([(1.0, 0.9), (7.0, 0.8), (2.0, 0.8)])]
    assert linear.forecast(history[-2:], at(3, 0.7))[0].item() == 2.0
    assert linear.forecast(history[::2], at(3, 0.7))[0].item() == pytest.approx(3.0)


def test_forecasts_keep_the_dtype_and_alias_nothing() -> None:
    for spec in ORDERS:
        forecaster = plugins.build("forecaster", spec, Forecaster)
        history = [entry(torch.full((3,), float(s), dtype=torch.bfloat16), at(s)) for s in range(4)]
        z = forecaster.forecast(history[-forecaster.depth :], at(5))
        assert z[0].dtype == torch.bfloat16
        assert z[0].data_ptr() not in {e.z[0].data_ptr() for e in history}


def test_the_loop_forecasts_what_a_direct_unrolling_does() -> None:
    """Noise basis, straight line in sigma, written out; a wrong abscissa or history would differ."""
    model, mask = Scripted(), "11011001"
    sigmas = [1.0 / (1 + 0.3 * i) for i in range(1, len(mask) + 1)]
    anchors = [torch.tensor([[math.sin(i), 2.0 - i]], dtype=torch.float64) for i in range(len(mask))]
    outputs = [torch.tensor([[math.cos(i) + i, 0.1 * i**2]], dtype=torch.float64) for i in range(len(mask))]
    with mixcache.enable(model, f"schedule:{mask}", basis="noise", forecast="linear:abscissa=sigma") as session:
        results = follow(session, model, anchors, [[o] for o in outputs], sigmas=sigmas)
    stored: list[tuple[float, torch.Tensor]] = []
    for i, (x, v, s) in enumerate(zip(anchors, outputs, sigmas)):
        if mask[i] == "1":
            stored.append((s, x + (1 - s) * v))
            assert torch.equal(results[i][0], v)
        else:
            (s0, z0), (s1, z1) = stored[-2:]
            z = z1 + (s - s1) / (s1 - s0) * (z1 - z0)
            torch.testing.assert_close(results[i][0], (z - x) / (1 - s))


def test_sigma_as_abscissa_without_sigmas_is_an_error() -> None:
    model = Scripted()
    needs = pytest.raises(mixcache.ConfigurationError, match="abscissa='sigma' needs the sigma of every step")
    with mixcache.enable(model, "schedule:110", forecast="linear:abscissa=sigma") as session, needs:
        follow(session, model, [torch.ones(1, 1)] * 3, [[torch.ones(1, 1)]] * 3)


def test_a_forecaster_of_ones_own() -> None:
    @frozen
    class Fading(Forecaster):
        """The last z, times factor for every step since."""

        name = "fading"
        factor: float = 0.5

        def weights(self, nodes: list[float], target: float) -> list[float]:
            return [self.factor ** (target - nodes[-1])]

    mixcache.register(Fading)
    try:
        model, anchors = Scripted(), [torch.zeros(1, 1)] * 3
        with mixcache.enable(model, "schedule:100", forecast="fading:factor=0.25") as session:
            results = follow(session, model, anchors, [[torch.full((1, 1), 16.0)]] * 3)
        assert [r[0].item() for r in results] == [16, 4, 1]
    finally:
        mixcache.unregister("forecaster", "fading")

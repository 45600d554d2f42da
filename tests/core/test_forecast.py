"""Forecasters: exact on what they claim at unequal steps, of the order that they claim.

The published ones equal their formulas, written again in numpy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st

import mixcache
from mixcache import Address, Entry, Forecaster, Granularity, Input, NoiseLevel, Point, Recipe, Value, catalogue
from mixcache.core.forecast.polynomial import FORECASTERS, Adams, Hermite, Nothing, lagrange
from mixcache.core.loop import Loop
from mixcache_policies import DMD, L2P, FoCa, Spectrum
from mixcache_policies.forecasters import PUBLISHED, Aligned, Scaled, Split
from tests.core.test_transfers import transfers
from tests.helpers import Scripted, follow

ORDERS = {
    "hold": 0,
    "linear": 1,
    **{f"taylor:order={n}": n for n in range(4)},
    "taylor:order=2,reach=0.6": 1,
    **{f"adams:order={n}": min(n, 2) for n in range(1, 5)},
    **{f"hermite:order={n}": 0 for n in range(4)},
    "hermite:order=1,scale=0.7071067811865476": 1,
}
"""The polynomial forecasters, and the degree of polynomials that they are exact on."""

RATIOS = {"cond": [1.0, 1.5, 1.25, 0.75, 0.5], "uncond": [1.0, 2.0, 3.0, 4.0, 5.0]}
GRAMS = {"cond": [[math.cos((s - t) / 9) for t in range(s + 1)] for s in range(20)]}
OTHERS: list[Forecaster] = [Scaled(ratios=RATIOS), Split(), Aligned(), DMD(), FoCa(), L2P(grams=GRAMS), Spectrum()]
EVERY: list[Forecaster] = [*(catalogue.build("forecaster", spec) for spec in ORDERS), *OTHERS]
"""All that keep a history; `none`, which keeps none, has tests of its own in test_anchors.py."""


def name_of(forecaster: Forecaster) -> str:
    return repr(forecaster)


def at(step: int, sigma: float | None = None, num_steps: int = 1000, branch: str = "cond") -> Point:
    level = None if sigma is None else NoiseLevel.flow(sigma)
    address = Address(branch=branch)
    return Point(granularity=Granularity.STEP, step=step, num_steps=num_steps, address=address, level=level)


def entry(value: torch.Tensor, point: Point) -> Entry:
    return Entry(z=(value, -value), point=point)


def prefix(added: torch.Tensor | None) -> dict[str, tuple[torch.Tensor, ...]]:
    """The side input that `aligned` reads, where it is known."""
    return {} if added is None else {"prefix": (added,)}


# all of them


def test_every_forecaster_is_covered_here() -> None:
    shipped = {kind for kind in catalogue.forecasters().values() if kind.__module__.startswith("mixcache")}
    assert {*map(type, EVERY), Nothing} == shipped
    assert {*FORECASTERS, *PUBLISHED} < shipped


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("forecaster", EVERY, ids=name_of)
def test_forecasts_keep_shape_and_dtype_and_alias_nothing(forecaster: Forecaster, dtype: torch.dtype) -> None:
    """At every length of history, and at the place of the last visit, where z is what it was."""
    for count in range(1, forecaster.depth + 1):
        shapes = [(1, 2, 6, 5), (1, 2, 3, 7)]  # two streams
        z = [tuple(torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes) for _ in range(count)]
        history = [Entry(z=z[s], point=at(s), beside=prefix(torch.randn(1, 3).to(dtype))) for s in range(count)]
        kept = [tuple(stream.clone() for stream in entry.z) for entry in history]
        for place in (at(count + 1), history[-1].point):
            made = forecaster.forecast(history, place, history[-1].beside)
            assert [(stream.shape, stream.dtype) for stream in made] == [(shape, dtype) for shape in shapes]
            assert all(m.data_ptr() not in {s.data_ptr() for e in history for s in e.z} for m in made)
        for stream, last in zip(made, kept[-1]):
            torch.testing.assert_close(stream, last, rtol=1e-6, atol=1e-6)
        for entry, before in zip(history, kept):
            assert all(torch.equal(stream, was) for stream, was in zip(entry.z, before))


@pytest.mark.parametrize("forecaster", EVERY, ids=name_of)
def test_forecasts_do_not_wait_for_the_device(forecaster: Forecaster) -> None:
    history = [Entry(z=(torch.randn(1, 1, 5, 5),), point=at(s), beside=prefix(torch.randn(1, 3))) for s in range(5)]
    with transfers() as seen:
        forecaster.forecast(history[-forecaster.depth :], at(8), prefix(torch.randn(1, 3)))
    assert seen == []


# polynomials


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
    abscissa = "step" if spec.startswith("hermite") else abscissa
    forecaster = catalogue.build("forecaster", f"{spec}{',' if ':' in spec else ':'}abscissa={abscissa}")
    places = [at(step, sigma=math.cos(step / 40)) for step in steps]

    def f(point: Point) -> float:
        t = point.step / 10 if abscissa == "step" else point.sigma
        return sum(c * t**k for k, c in enumerate(coefficients[: order + 1]))

    history = [entry(torch.full((2,), f(p), dtype=torch.float64), p) for p in places[:-1]]
    kept = history[-forecaster.depth :]
    z = forecaster.forecast(kept, places[-1], {})
    nodes = [forecaster.position(e.point) for e in kept]
    target = forecaster.position(places[-1])
    amplified = max(sum(map(abs, weigh(nodes, target))) for weigh in (lagrange, forecaster.weights)) * 100
    slack = 1e-13 * amplified * max(abs(f(place)) for place in places) + 1e-11
    assert z[0][0].item() == pytest.approx(f(places[-1]), abs=slack)
    assert torch.equal(z[1], -z[0])


@pytest.mark.parametrize("spec", sorted(ORDERS))
def test_the_order_of_convergence_is_measured(spec: str) -> None:
    """On a smooth function the error of a forecast over one step h falls as h^(order + 1)."""
    forecaster, order = catalogue.build("forecaster", spec), ORDERS[spec]

    def error(h: float) -> float:
        steps = [0, 2, 3, 5, 6]
        history = [entry(torch.tensor([math.exp(h * s)], dtype=torch.float64), at(s)) for s in steps]
        z = forecaster.forecast(history[-forecaster.depth :], at(7), {})
        return abs(z[0].item() - math.exp(h * 7))

    coarse, fine = error(0.02), error(0.01)
    assert math.log2(coarse / fine) == pytest.approx(order + 1, abs=0.15)


def test_a_short_history_lowers_the_order() -> None:
    cubic = catalogue.build("forecaster", "taylor:order=3")
    history = [entry(torch.tensor([float(2 + 3 * s)]), at(s)) for s in (0, 2)]
    assert cubic.forecast(history, at(5), {})[0].item() == pytest.approx(17)
    assert cubic.forecast(history[:1], at(5), {})[0].item() == 2


def test_two_visits_at_one_place_count_as_the_later() -> None:
    """Heun visits one sigma twice; nobody divides by the distance of the two."""
    linear = catalogue.build("forecaster", "linear:abscissa=sigma")
    history = [entry(torch.tensor([v]), at(i, s)) for i, (v, s) in enumerate([(1.0, 0.9), (7.0, 0.8), (2.0, 0.8)])]
    assert linear.forecast(history[-2:], at(3, 0.7), {})[0].item() == 2.0
    assert linear.forecast(history[::2], at(3, 0.7), {})[0].item() == pytest.approx(3.0)


@given(st.integers(0, 4), st.integers(1, 5), st.integers(1, 9), st.sampled_from([0.3, 0.5, 1.0]))
def test_hermite_is_the_published_series_at_equal_distances(order: int, gap: int, ahead: int, scale: float) -> None:
    """The difference quotients of the paper, built visit by visit, in numpy's Hermite series."""
    values = np.random.default_rng(order).normal(size=order + 1)
    quotients: list[float] = []
    for value in values:
        fresh = [float(value)]
        for older in quotients:
            fresh.append((fresh[-1] - older) / gap)
        quotients = fresh
    series = [d / math.factorial(k) * scale**k for k, d in enumerate(quotients)]
    expected = np.polynomial.hermite.hermval(scale * ahead, series)
    places = [gap * i for i in range(order + 1)]
    weights = Hermite(order=order, scale=scale).weights(places, places[-1] + ahead)
    assert np.dot(weights, values) == pytest.approx(float(expected), rel=1e-9, abs=1e-9)


def test_hermite_goes_part_of_the_way() -> None:
    """On a straight line 2 s^2 of it; and the higher terms are contracted more."""
    for scale in (0.25, 0.5, 0.7):
        line = np.dot(Hermite(order=1, scale=scale).weights([0.0, 3.0], 8.0), [10.0, 16.0])
        assert line == pytest.approx(16.0 + 2 * scale**2 * 2.0 * 5.0)
    places, far = [0.0, 2.0, 3.0], 1e5
    for order, power in ((1, 1.0), (2, 2.0)):
        nodes = places[: order + 1]
        values = [p**order for p in nodes]
        ahead = np.dot(Hermite(order=order).weights(nodes, far), values) / far**power
        assert ahead == pytest.approx(0.5**order, rel=1e-3)


def test_hermite_counts_in_steps() -> None:
    with pytest.raises(mixcache.ConfigurationError, match=r"Hermite\(abscissa=...\)` must be one of 'step'"):
        catalogue.build("forecaster", "hermite:abscissa=sigma")


@given(
    st.integers(1, 4),
    st.lists(st.integers(1, 5), min_size=4, max_size=4),
    st.integers(1, 8),
    st.lists(st.floats(-2, 2), min_size=5, max_size=5),
)
def test_adams_integrates_the_extrapolated_slopes(order: int, gaps: list[int], ahead: int, z: list[float]) -> None:
    """numpy's parabolas, their slopes, the polynomial through the slopes, and its integral."""
    places = np.cumsum([0, *gaps])[-order - 1 :].astype(float)
    values = np.array(z[-order - 1 :])
    slopes = []
    for i in range(1, order + 1):
        three = slice(max(0, min(i - 1, order - 2)), None)
        near = places[three][:3], values[three][:3]
        slopes.append(np.polyval(np.polyder(np.polyfit(near[0] - places[i], near[1], len(near[0]) - 1)), 0.0))
    curve = np.polyint(np.polyfit(places[1:] - places[-1], slopes, order - 1))
    expected = values[-1] + np.polyval(curve, float(ahead))
    weights = Adams(order=order).weights(list(places), places[-1] + ahead)
    assert np.dot(weights, values) == pytest.approx(expected, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize(
    ("order", "textbook"),
    [(2, [3 / 2, -1 / 2]), (3, [23 / 12, -16 / 12, 5 / 12]), (4, [55 / 24, -59 / 24, 37 / 24, -9 / 24])],
)
def test_adams_has_the_coefficients_of_textbooks_at_equal_steps(order: int, textbook: list[float]) -> None:
    values = np.random.default_rng(0).normal(size=order + 1)
    newest = (3 * values[-1] - 4 * values[-2] + values[-3]) / 2
    inner = [(values[i + 1] - values[i - 1]) / 2 for i in range(order - 1, 0, -1)]
    weights = Adams(order=order).weights([float(i) for i in range(order + 1)], float(order + 1))
    assert np.dot(weights, values) == pytest.approx(values[-1] + np.dot(textbook, [newest, *inner]))


@pytest.mark.parametrize("abscissa", ["step", "sigma"])
def test_taylor_goes_on_as_a_line_beyond_its_reach(abscissa: str) -> None:
    """On a square, nodes 2 apart: exact up to half an interval ahead, the line's error (t - b)(t - c) beyond."""
    forecaster = catalogue.build("forecaster", f"taylor:order=2,reach=0.5,abscissa={abscissa}")
    squares = {s: torch.tensor([float(s * s)], dtype=torch.float64) for s in (0, 2, 4)}
    history = [Entry(z=(square,), point=at(s, sigma=1.0 - s / 16)) for s, square in squares.items()]
    errors = [t * t - forecaster.forecast(history, at(t, sigma=1.0 - t / 16), {})[0].item() for t in (5, 6, 7)]
    assert errors == pytest.approx([0.0, 2 * 4, 3 * 5])


def test_adams_and_taylor_differ_from_order_3_on() -> None:
    nodes = [0.0, 1.0, 3.0, 4.0, 6.0]
    for order in (1, 2):
        assert Adams(order=order).weights(nodes[-order - 1 :], 8.0) == pytest.approx(lagrange(nodes[-order - 1 :], 8.0))
    for order in (3, 4):
        ours, taylor = Adams(order=order).weights(nodes[-order - 1 :], 8.0), lagrange(nodes[-order - 1 :], 8.0)
        assert sum(map(abs, ours)) < sum(map(abs, taylor))
        cubes = [n**3 for n in nodes[-order - 1 :]]
        assert abs(np.dot(ours, cubes) - 512.0) > 1.0
    third = Adams(order=3).weights([0.0, 1.0, 2.0, 3.0], 4.0)
    assert third[0] == pytest.approx(-5 / 24)


@pytest.mark.parametrize("spec", ["taylor:order=3", "adams:order=4", "hermite:order=3"])
def test_with_a_short_history_the_order_is_lower(spec: str) -> None:
    forecaster: Any = catalogue.build("forecaster", spec)
    history = [entry(torch.randn(3), at(s)) for s in (0, 2, 3)]
    for count in (2, 3):
        lower = evolve(forecaster, order=count - 1).forecast(history[:count], at(7), {})
        assert torch.equal(forecaster.forecast(history[:count], at(7), {})[0], lower[0])


@pytest.mark.parametrize("spec", ["adams:order=0", "adams:order=5", "hermite:order=-1", "hermite:scale=0"])
def test_orders_and_scales_are_checked(spec: str) -> None:
    with pytest.raises(mixcache.ConfigurationError, match="must be"):
        catalogue.build("forecaster", spec)


# scaled: MagCache's ratios


def test_scaled_multiplies_the_ratios_since_the_last_visit() -> None:
    history = [entry(torch.tensor([2.0]), at(s, num_steps=5)) for s in (0, 1)]
    for branch, growth in (("cond", 1.25 * 0.75 * 0.5), ("uncond", 3.0 * 4.0 * 5.0), ("image", 1.25 * 0.75 * 0.5)):
        z = Scaled(ratios=RATIOS).forecast(history, at(4, num_steps=5, branch=branch), {})
        assert [stream.item() for stream in z] == pytest.approx([2.0 * growth, -2.0 * growth])
    alone = Scaled(ratios=(1.0, 2.0, 3.0)).forecast(history, at(2, num_steps=3, branch="uncond"), {})
    assert alone[0].item() == 6.0


def test_scaled_takes_the_nearest_ratio_for_another_number_of_steps() -> None:
    scaled = Scaled(ratios=RATIOS)
    for steps in (3, 4, 7, 9):
        nearest = np.round(np.arange(steps) * (4 / (steps - 1))).astype(int)
        expected = np.prod(np.array(RATIOS["cond"])[nearest][1:])
        point = at(steps - 1, num_steps=steps)
        assert scaled.growth(point, 0) == pytest.approx(expected)
    assert scaled.growth(at(2, num_steps=9), 2) == 1.0


def test_scaled_reads_a_table_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    content = {"schema": 1, "policy": "magcache", "values": {"ratios": RATIOS}, "source": "a test", "match": {}}
    file.write_text(json.dumps(content))
    scaled = catalogue.build("forecaster", f"scaled:table={file}")
    assert scaled.calibrated(mixcache.Calibrations()) == Scaled(ratios=RATIOS, table=str(file))
    file.write_text(json.dumps({**content, "values": {}}))
    with pytest.raises(mixcache.ConfigurationError, match="the magcache table of a test holds no `ratios`"):
        scaled.calibrated(mixcache.Calibrations())
    file.write_text(json.dumps({**content, "policy": "teacache"}))
    with pytest.raises(mixcache.ConfigurationError, match=r"table\.json is for policy 'teacache'"):
        scaled.calibrated(mixcache.Calibrations())
    with pytest.raises(mixcache.ConfigurationError, match=r"elsewhere\.json"):
        Scaled(table=str(tmp_path / "elsewhere.json")).calibrated(mixcache.Calibrations())


def test_scaled_takes_the_table_of_the_model() -> None:
    table = mixcache.Calibration(policy="magcache", values={"ratios": RATIOS})
    adapter = mixcache.ModelAdapter(model="Scripted", calibrations=(table,))
    model, x = Scripted(), torch.ones(1, 1)
    with mixcache.enable(model, "schedule:10010", forecast="scaled", adapter=adapter) as session:
        outputs = [[torch.full((1, 1), 3.0), torch.full((1, 1), 5.0)]] * 5
        results = follow(session, model, [x] * 5, outputs, branches=("cond", "uncond"))
    assert [r[0].item() for r in results] == pytest.approx([3, 1 + 2 * 1.5, 1 + 2 * 1.5 * 1.25, 3, 1 + 2 * 0.5])
    assert [r[1].item() for r in results] == pytest.approx([5, 1 + 4 * 2, 1 + 4 * 2 * 3, 5, 1 + 4 * 5])
    assert Scaled(ratios=[1.0, 9.0]).calibrated(mixcache.Calibrations({"magcache": table})) == Scaled(ratios=[1.0, 9.0])


def test_scaled_without_ratios_says_how_to_get_them() -> None:
    remedy = pytest.raises(
        mixcache.ConfigurationError, match=r"`mixcache calibrate magcache .*scaled:table=TABLE.json'"
    )
    with remedy:
        mixcache.enable(Scripted(), "schedule:10", forecast="scaled")
    with remedy:
        Scaled().forecast([entry(torch.ones(1), at(0))], at(1), {})


@pytest.mark.parametrize("ratios", [[1.0, 0.0], [1.0, math.nan], "ab", 3, {"cond": None}, {"uncond": [1.0]}])
def test_ratios_are_checked(ratios: Any) -> None:
    with pytest.raises(mixcache.ConfigurationError, match=r"`Scaled\(ratios=...\)` must"):
        Scaled(ratios=ratios)


def test_scaled_hashes_and_compares_by_its_ratios() -> None:
    assert hash(Scaled(ratios=RATIOS)) == hash(Scaled(ratios=RATIOS))
    assert Scaled(ratios=RATIOS) != Scaled(ratios=[1.0])


# split: FasterCache's bands


def banded(z: np.ndarray, low: float, high: float) -> np.ndarray:
    """The published formula: shift, mask, weigh, shift back."""
    height, width = z.shape[-2:]
    shifted = np.fft.fftshift(np.fft.fft2(z.astype(np.float64)), axes=(-2, -1))
    y, x = np.ogrid[:height, :width]
    disc = (y - height // 2) ** 2 + (x - width // 2) ** 2 <= (min(height, width) // 5) ** 2
    return np.fft.ifft2(np.fft.ifftshift(np.where(disc, low, high) * shifted, axes=(-2, -1))).real


@pytest.mark.parametrize("shape", [(1, 2, 9, 8), (2, 3, 5, 7), (1, 1, 2, 11, 16), (1, 1, 3, 4), (1, 1, 1, 1)])
@pytest.mark.parametrize(("low", "high"), [(1.1, 1.0), (1.0, 1.25), (0.5, 2.0), (1.5, 1.5), (0.0, 1.0)])
def test_split_weighs_the_bands(shape: tuple[int, ...], low: float, high: float) -> None:
    z = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    split = Split(low=low, high=high, low_until=1.0, high_from=0.0)
    expected = banded(z.numpy(), low, high)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
        history = [Entry(z=(z.to(dtype), -z.to(dtype)), point=at(0))]
        for _ in range(2):  # the weights do not compound
            made = split.forecast(history, at(1), {})
            np.testing.assert_allclose(made[0].double().numpy(), expected, rtol=tolerance, atol=tolerance)
            assert torch.equal(made[1], -made[0])


def test_split_weighs_by_the_part_of_the_run() -> None:
    """CogVideoX, 50 steps counted from 1: low until 40, high from 30."""
    weights = [Split().weights_at(at(step, num_steps=50)) for step in range(50)]
    assert weights == [(1.1 if c <= 40 else 1.0, 1.1 if c >= 30 else 1.0) for c in range(1, 51)]
    between = Split(low_until=0.3, high_from=0.7)
    z = torch.randn(1, 1, 6, 6)
    made = between.forecast([Entry(z=(z,), point=at(1, num_steps=10))], at(4, num_steps=10), {})
    assert torch.equal(made[0], z)


def test_split_rebuilds_the_unconditional_branch() -> None:
    """At CFG the stored z is u - c, and the rebuilt branch is this step's c plus the weighed z."""
    model, steps = Scripted(), 4
    outputs = [[torch.randn(1, 2, 10, 10), torch.randn(1, 2, 10, 10)] for _ in range(steps)]
    x = [torch.zeros(1, 2, 10, 10)] * steps
    spec = "split:low=1.5,high=2,low_until=0.5,high_from=1"
    with mixcache.enable(model, "schedule:1000,at=cfg", forecast=spec) as session:
        results = follow(session, model, x, outputs, branches=("cond", "uncond"))
    residual = (outputs[0][1] - outputs[0][0]).numpy()
    assert torch.equal(results[0][1], outputs[0][1])
    for step, (low, high) in enumerate([(1.5, 1.0), (1.0, 1.0), (1.0, 2.0)], start=1):
        expected = outputs[step][0].numpy() + banded(residual, low, high)
        np.testing.assert_allclose(results[step][1].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_split_refuses_packed_tokens() -> None:
    packed = [Entry(z=(torch.randn(1, 64, 16),), point=at(0))]
    with pytest.raises(
        mixcache.ConfigurationError, match=r"step .* shape \(1, 64, 16\).*use forecast='hold' or 'linear'"
    ):
        Split().forecast(packed, at(1), {})


@pytest.mark.parametrize("spec", ["split:low=-1", "split:high_from=nan", "aligned:limit=0.5", "aligned:limit=inf"])
def test_weights_and_limits_are_checked(spec: str) -> None:
    with pytest.raises(mixcache.ConfigurationError, match="must be >="):
        catalogue.build("forecaster", spec)


# aligned: DiCache's trajectory


def followed(*q: Any, limit: float = 1.5) -> float:
    """The published gain from q at the last two computed visits and now."""
    first, second, now = (np.asarray(value, dtype=np.float64) for value in q)
    return float(np.clip(np.abs(now - first).mean() / np.abs(second - first).mean(), 1.0, limit))


def two_visits(q: Sequence[torch.Tensor], dtype: torch.dtype = torch.float64) -> list[Entry]:
    draw = torch.Generator().manual_seed(1)
    z = torch.randn(4, 2, 3, 4, dtype=torch.float64, generator=draw).to(dtype)
    return [Entry(z=(z[i], z[2 + i]), point=at(3 * i), beside=prefix(q[i])) for i in range(2)]


@given(st.lists(st.floats(-3, 3), min_size=3, max_size=3), st.sampled_from([1.0, 1.5, 2.0]))
def test_aligned_goes_as_far_as_the_first_blocks_did(shifts: list[float], limit: float) -> None:
    """One gain for all samples and streams: 1 at least, `limit` at most."""
    base = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q = [base * 0.1 * i + shift for i, shift in enumerate(shifts)]
    history = two_visits(q)
    gain = followed(*q, limit=limit)
    made = Aligned(limit=limit).forecast(history, at(7), prefix(q[2]))
    for i in range(2):
        a, b = history[0].z[i], history[1].z[i]
        torch.testing.assert_close(made[i], a + gain * (b - a))


def test_aligned_never_goes_back_nor_too_far() -> None:
    q = [torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0])]
    history = two_visits(q)
    (a, _), (b, _) = history[0].z, history[1].z
    for now, gain in (([0.2, 0.2], 1.0), ([1.0, 1.4], 1.2), ([9.0, 9.0], 1.5)):
        made = Aligned().forecast(history, at(7), prefix(torch.tensor(now)))[0]
        torch.testing.assert_close(made, a + gain * (b - a), rtol=1e-6, atol=1e-6)


def test_aligned_holds_where_it_knows_too_little() -> None:
    still = torch.ones(2, 2)
    history = two_visits([still, still])
    last = history[1].z[0]
    assert torch.equal(Aligned().forecast(history, at(7), prefix(still))[0], last)  # 0/0
    moved = two_visits([still, 2 * still])
    assert torch.equal(Aligned().forecast(moved, at(7), prefix(None))[0], last)
    assert torch.equal(Aligned().forecast(moved[1:], at(7), prefix(3 * still))[0], last)
    unknown = [evolve(moved[0], beside={}), moved[1]]
    assert torch.equal(Aligned().forecast(unknown, at(7), prefix(3 * still))[0], last)
    twice = [evolve(moved[0], point=at(3)), moved[1]]  # two visits at one place are one
    assert torch.equal(Aligned().forecast(twice, at(7), prefix(3 * still))[0], last)


def test_the_loop_hands_aligned_what_the_first_blocks_added() -> None:
    plan = Recipe.of("schedule:1110,at=block", forecast="aligned").plan()
    loop = Loop(plan, mixcache.RunInfo(index=0, num_steps=4), lambda record: None)
    q = [torch.full((1, 3), value) for value in (7.0, 0.0, 1.0, 1.25)]
    outputs = [torch.full((1, 3), value) for value in (9.0, 1.0, 3.0, 0.0)]
    entering = (torch.zeros(1, 3),)
    for step in range(4):
        point = Point(granularity=Granularity.BLOCK, step=step, num_steps=4, span=(1, 4), blocks=4)
        ticket = loop.open(point, Input(entering), prefix(q[step]))
        made = ticket.output or loop.close(ticket, Value((outputs[step],)))
    torch.testing.assert_close(made.streams[0], torch.full((1, 3), 1.0 + 1.25 * 2.0))


# in the loop


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

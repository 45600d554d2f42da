"""DMD: exact on exponentials, and equal to the eigenvectors' forecast written out in numpy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import mixcache
from mixcache import Entry, catalogue
from mixcache_policies import DMD
from mixcache_policies.dmd import exponential
from tests.policies.forecasting import at, check_constants, check_laws, forecast, noise, told


def test_laws() -> None:
    check_laws(DMD())
    check_constants(DMD(), 1e-6)


def test_the_defaults_are_the_published_ones() -> None:
    assert catalogue.build("forecaster", "dmd:snapshots=6") == DMD()
    assert DMD().depth == 6


@given(
    st.lists(st.floats(0.5, 1.02), min_size=1, max_size=3),
    st.sampled_from([1, 2, 3, 4]),
    st.integers(4, 6),
    st.integers(1, 6),
)
def test_exact_on_exponentials(rates: list[float], gap: int, count: int, ahead: int) -> None:
    """Damped and growing ones, at every fraction of the interval and beyond."""
    rates = sorted(rates)
    powers = [rate**gap for rate in rates]
    assume(all(b - a > 0.1 for a, b in pairwise(powers)))
    assume(powers[0] > 0.1)
    shapes = torch.linalg.qr(noise(5, 40, len(rates)))[0].T.reshape(len(rates), 2, 20)

    def f(step: int) -> torch.Tensor:
        return sum((rate**step * shape for rate, shape in zip(rates, shapes)), torch.zeros(2, 20).double())

    steps = [gap * i for i in range(count)]
    made = forecast(DMD(ridge=1e-14), told(f, steps), steps[-1] + ahead)
    scale = float(f(0).abs().max())
    torch.testing.assert_close(made, f(steps[-1] + ahead), rtol=1e-3, atol=1e-4 * scale)


def test_exact_on_oscillations() -> None:
    """A pair of complex modes, turning by less than half a turn between snapshots."""

    def f(step: int) -> torch.Tensor:
        turn = torch.tensor(0.35 * step, dtype=torch.float64)
        return 0.97**step * (turn.cos() * noise(1, 1, 30) + turn.sin() * noise(2, 1, 30)) + noise(3, 1, 30)

    steps = [0, 3, 6, 9, 12, 15]
    for step in (16, 17, 18, 20):
        torch.testing.assert_close(forecast(DMD(ridge=1e-13), told(f, steps), step), f(step), rtol=1e-4, atol=1e-4)


@given(st.integers(0, 1000), st.integers(4, 6), st.sampled_from([1 / 3, 2 / 3, 1.0, 1.5]))
def test_weights_are_those_of_the_modes(seed: int, count: int, ahead: float) -> None:
    """The companion matrix, numpy's eigenvectors and their powers: independent snapshots, so no two roots meet."""
    snapshots = [noise(seed + i, 1, 60) for i in range(count)]
    X = torch.cat(snapshots).numpy()
    past = X[:-1] @ X[:-1].T
    c = np.linalg.solve(past + 1e-8 * np.trace(past) / (count - 1) * np.eye(count - 1), X[:-1] @ X[-1])
    companion = np.eye(count - 1, k=1)
    companion[-1] = c
    values, modes = np.linalg.eig(companion)
    amplitudes = np.linalg.solve(modes, X[1:].astype(complex))
    expected = (modes[-1] * values.astype(complex) ** ahead @ amplitudes).real
    made = exponential(snapshots, ahead, 1e-8)[0].numpy() @ X[1:]
    np.testing.assert_allclose(made, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_only_the_evenly_spaced_end_is_fitted() -> None:
    """A visit at another distance does not count; with fewer than four it is the straight line."""
    line = catalogue.build("forecaster", "linear")
    history = told(lambda step: noise(step, 2, 9), [0, 1, 2, 5, 8, 11])
    even = forecast(DMD(), history[2:], 13)
    assert torch.equal(forecast(DMD(), history, 13), even)
    assert not torch.allclose(even, forecast(line, history, 13))
    torch.testing.assert_close(forecast(DMD(), history[:5], 10), forecast(line, history[:5], 10))


def test_samples_without_a_fit_are_held_and_the_others_are_not() -> None:
    def f(step: int) -> torch.Tensor:
        return torch.stack([torch.zeros(8).double(), 0.9**step * noise(1, 8)])

    made = forecast(DMD(), told(f, [0, 2, 4, 6]), 7)
    assert torch.equal(made[0], torch.zeros(8).double())
    torch.testing.assert_close(made[1], f(7)[1], rtol=1e-5, atol=1e-6)


def test_streams_and_numbers_without_a_batch() -> None:
    history = [
        Entry(z=(torch.tensor(0.8**s, dtype=torch.float64), 0.9**s * noise(2, 1, 3, 4)), point=at(s))
        for s in (0, 2, 4, 6)
    ]
    number, image = DMD().forecast(history, at(7), {})
    assert number.item() == pytest.approx(0.8**7, rel=1e-4)
    torch.testing.assert_close(image, 0.9**7 * noise(2, 1, 3, 4), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bad", ["snapshots=3", "ridge=0", "abscissa=sigma"])
def test_parameters_are_checked(bad: str) -> None:
    with pytest.raises(mixcache.ConfigurationError, match=r"DMD\(.*must be"):
        catalogue.build("forecaster", f"dmd:{bad}")

"""What the tests of single forecasters share: points, histories, and the laws that hold for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from mixcache import Address, Entry, Forecaster, Granularity, NoiseLevel, Point
from tests.core.test_transfers import transfers


def at(step: int, num_steps: int = 50, branch: str = "cond", sigma: float | None = None) -> Point:
    """A step of a run."""
    level = None if sigma is None else NoiseLevel.flow(sigma)
    address = Address(branch=branch)
    return Point(granularity=Granularity.STEP, step=step, num_steps=num_steps, address=address, level=level)


def told(f: Callable[[int], Tensor], steps: Sequence[int], num_steps: int = 50) -> list[Entry]:
    """The visits at these steps of a place where z is f(step)."""
    return [Entry(z=(f(step),), point=at(step, num_steps)) for step in steps]


def forecast(forecaster: Forecaster, history: Sequence[Entry], step: int, num_steps: int = 50) -> Tensor:
    """z of the only stream at a step, from as much of the history as the forecaster keeps."""
    return forecaster.forecast(list(history)[-forecaster.depth :], at(step, num_steps), {})[0]


def noise(seed: int, *shape: int) -> Tensor:
    """Random numbers, float64."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def check_laws(forecaster: Forecaster, *, holds: bool = True) -> None:
    """Fixed point, short histories, scale, samples apart, dtypes; without a look at the device, and alike twice.

    holds: whether one visit alone is held.
    """
    steps = [0, 3, 4, 6, 9, 12, 15, 18]
    history = told(lambda step: noise(step, 3, 2, 4), steps)
    for count in range(1, len(steps) + 1):
        known, last = history[:count], steps[count - 1]
        assert torch.equal(forecast(forecaster, known, last), known[-1].z[0]), "not a fixed point"
        made = forecast(forecaster, known, last + 2)
        assert made.isfinite().all()
        assert torch.equal(made, forecast(forecaster, known, last + 2)), "not alike twice"
        scaled = [Entry(z=(-3.0 * entry.z[0],), point=entry.point) for entry in known]
        torch.testing.assert_close(forecast(forecaster, scaled, last + 2), -3.0 * made, rtol=1e-6, atol=1e-6)
        for sample in range(3):
            alone = [Entry(z=(entry.z[0][sample : sample + 1],), point=entry.point) for entry in known]
            torch.testing.assert_close(forecast(forecaster, alone, last + 2)[0], made[sample], rtol=1e-6, atol=1e-6)
    assert not holds or torch.equal(forecast(forecaster, history[:1], 5), history[0].z[0]), "one visit is held"
    twice = [*history[:3], Entry(z=(noise(99, 3, 2, 4),), point=history[2].point)]
    assert torch.equal(forecast(forecaster, twice, 4), twice[-1].z[0]), "of two visits at one place the later counts"
    with transfers() as seen:
        forecast(forecaster, history, 20)
    assert seen == []
    for dtype in (torch.float16, torch.bfloat16):
        rough = [Entry(z=(entry.z[0].to(dtype),), point=entry.point) for entry in history]
        wide = [Entry(z=(entry.z[0].float(),), point=entry.point) for entry in rough]
        made = forecast(forecaster, rough, 20)
        assert made.dtype == dtype
        torch.testing.assert_close(made, forecast(forecaster, wide, 20).to(dtype), rtol=1e-2, atol=1e-2)


def check_constants(forecaster: Forecaster, tolerance: float = 1e-9) -> None:
    """A constant stays what it is, from any history, at any distance."""
    steps = [0, 1, 3, 6, 9, 12, 15]
    value = noise(1, 2, 5)
    for count in range(1, len(steps) + 1):
        history = told(lambda step: value, steps[:count])
        for ahead in (1, 2, 7):
            made = forecast(forecaster, history, steps[count - 1] + ahead)
            torch.testing.assert_close(made, value, rtol=tolerance, atol=tolerance)


def order_of(forecaster: Forecaster, steps: Sequence[int], ahead: int) -> float:
    """The measured order of convergence, minus 1: the error on a smooth function falls as h^(order + 1)."""

    def error(h: float) -> float:
        history = told(lambda step: torch.tensor([[math.exp(h * step)]], dtype=torch.float64), steps)
        made = forecast(forecaster, history, steps[-1] + ahead)
        return abs(made.item() - math.exp(h * (steps[-1] + ahead)))

    return math.log2(error(0.004) / error(0.002)) - 1.0


@pytest.fixture
def line() -> Callable[[int], Tensor]:
    """A straight line in the step."""
    return lambda step: noise(7, 2, 3) + 0.3 * step * noise(8, 2, 3)

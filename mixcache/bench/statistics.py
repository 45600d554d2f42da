"""What several clips say together: means with 95 % intervals, and the worst clip.

Intervals are percentile bootstraps over clips (Efron, "Bootstrap methods: another look at the jackknife", 1979). They
are seeded, so that the same cases always give the same numbers. Differences between two runs of the same clips are
taken clip by clip first, which makes them paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

RESAMPLES = 4000
LEVEL = 0.95
_SEED = 0
_MEAN: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda drawn: drawn.mean(axis=1)  # noqa: E731


def interval(
    values: Sequence[float], statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]] = _MEAN
) -> tuple[float, float] | None:
    """The 95 % interval of a statistic of `values`, by resampling them; `None` for fewer than two, or not finite ones.

    statistic: [resamples, values] -> [resamples], the mean if none is given.
    """
    known = np.asarray(values, dtype=np.float64)
    if len(known) < 2 or not np.isfinite(known).all():
        return None
    drawn = np.random.default_rng(_SEED).integers(len(known), size=(RESAMPLES, len(known)))
    low, high = np.quantile(statistic(known[drawn]), ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


@frozen(kw_only=True)
class Spread:
    """A measure over the clips: its mean, the 95 % interval of the mean (`None` for one clip), and its worst clip."""

    mean: float
    low: float | None = None
    high: float | None = None
    worst: float

    @classmethod
    def of(cls, values: Sequence[float], worst: Callable[[Iterable[float]], float]) -> Spread:
        """Of at least one clip; NaN in any clip stays NaN."""
        if any(math.isnan(value) for value in values):
            return cls(mean=math.nan, worst=math.nan)
        low, high = interval(values) or (None, None)
        return cls(mean=math.fsum(values) / len(values), low=low, high=high, worst=worst(values))

    @property
    def half_width(self) -> float | None:
        """Half of the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def spread(measured: Spread | None, digits: int, sign: str = "") -> str:
    """The cell of a measure: "56.1 ±1.2 (44.4)"; "-" where it is not known."""
    if measured is None or math.isnan(measured.mean):
        return "-"
    half = "" if measured.half_width is None else f" ±{measured.half_width:.{digits}f}"
    return f"{measured.mean:{sign}.{digits}f}{half} ({measured.worst:{sign}.{digits}f})"

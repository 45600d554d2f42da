"""What a search is asked for: a quality at the least cost, or a speed at the best quality."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping

from attrs import frozen

from mixcache.bench.statistics import Spread
from mixcache.core.metrics import Metric
from mixcache.errors import ConfigurationError, UnknownNameError

SPEEDUP = "speedup"
"""The target that is no metric: evaluations of the uncached run over those made (the ideal speed-up)."""

_TARGET = re.compile(r"\s*(\w+)\s*(>=|<=)\s*([-+.\d]+(?:[eE][-+]?\d+)?)\s*")
_FAR = 1e9


@frozen(kw_only=True)
class Clip:
    """One clip by one recipe: the metric's value, and evaluations made of those without a cache."""

    prompt: str
    seed: int
    value: float
    evaluations: float
    evaluations_uncached: int


@frozen
class Measured:
    """Some clips by one recipe."""

    clips: tuple[Clip, ...]

    @property
    def mean(self) -> float:
        """Of the metric."""
        return statistics.fmean(clip.value for clip in self.clips)

    @property
    def saved(self) -> float:
        """The share of the evaluations that was saved, from 0 to 1."""
        made, all_ = self._sums
        return 1.0 - made / all_

    @property
    def speedup(self) -> float:
        """Evaluations without a cache over those made, both summed."""
        made, all_ = self._sums
        return all_ / made if made else 1.0

    @property
    def _sums(self) -> tuple[float, float]:
        return sum(clip.evaluations for clip in self.clips), sum(clip.evaluations_uncached for clip in self.clips)


@frozen(kw_only=True)
class Target:
    """A bound, and what is wanted within it. `Target.parse` reads it.

    bound: of the metric, or of the speed-up. metric: what is measured of every clip. speed: whether the bound is on the
    speed-up, and the metric is what is wanted. sure: whether the worse end of the 95 % interval of the metric's mean
    over the clips has to keep the bound, so that other clips keep it too; else the mean has to.
    """

    bound: float
    metric: Metric
    speed: bool
    sure: bool = True

    @classmethod
    def parse(cls, text: str, metrics: Mapping[str, Metric], quality: str = "psnr", sure: bool = True) -> Target:
        """Read "psnr>=40", "score>=0.97" (any metric, "<=" where lower is better), or "speedup>=2.5".

        quality: the metric that is wanted at a speed. Raises `ConfigurationError` for what is no target.
        """
        found = _TARGET.fullmatch(text)
        try:
            name, sign, bound = ("", "", math.nan) if found is None else (found[1], found[2], float(found[3]))
        except ValueError:
            bound = math.nan
        if not math.isfinite(bound):
            raise ConfigurationError(
                f"`target` must be a measure and a bound, such as 'psnr>=40' or 'speedup>=2.5', got {text!r}."
            )
        wanted = quality if name == SPEEDUP else name
        if wanted not in metrics:
            raise UnknownNameError("target" if wanted == name else "metric", wanted, [*metrics, SPEEDUP])
        metric = metrics[wanted]
        higher = name == SPEEDUP or metric.higher_is_better
        if (sign == ">=") != higher:
            raise ConfigurationError(
                f"`target` {text!r}: of {name} {'more' if higher else 'less'} is better, so write "
                f"{name}{'>=' if higher else '<='}{bound:g}."
            )
        if name == SPEEDUP and bound <= 1:
            raise ConfigurationError(f"`target` {text!r}: a speed-up must be above 1, such as speedup>=2.5.")
        return cls(bound=bound, metric=metric, speed=name == SPEEDUP, sure=sure)

    def __str__(self) -> str:
        name = SPEEDUP if self.speed else self.metric.name
        return f"{name}{'>=' if self.speed or self.metric.higher_is_better else '<='}{self.bound:g}"

    def beyond(self, measured: Measured) -> float:
        """How far the mean of the clips is on the good side of the bound, in its unit; below 0 where it misses it."""
        return self.margin(measured.speedup if self.speed else measured.mean)

    def margin(self, value: float) -> float:
        """The same, of a number."""
        return value - self.bound if self.speed or self.metric.higher_is_better else self.bound - value

    def met(self, measured: Measured) -> bool:
        """Whether the clips keep the bound."""
        return self._margin(measured) >= -1e-9

    def _margin(self, measured: Measured) -> float:
        """How far what has to keep the bound is on its good side."""
        if self.speed or not self.sure:
            return self.beyond(measured)
        spread = self.spread(measured)
        end = spread.low if self.metric.higher_is_better else spread.high
        return self.beyond(measured) if end is None else self.margin(end)

    def gain(self, measured: Measured) -> float:
        """What is wanted, more is better: the share of the evaluations saved, or the metric."""
        if not self.speed:
            return measured.saved
        return max(-_FAR, min(_FAR, measured.mean if self.metric.higher_is_better else -measured.mean))

    def value(self, measured: Measured) -> float:
        """What a search maximises: the gain of what meets the target, and below all of these, how near the rest is."""
        if self.met(measured):
            return self.gain(measured)
        miss = min(-self._margin(measured) / max(abs(self.bound), 1e-9), _FAR)
        return -miss if not self.speed else -2.0 * _FAR - miss

    def spread(self, measured: Measured) -> Spread:
        """The metric over the clips."""
        return Spread.of([clip.value for clip in measured.clips], self.metric.worst)

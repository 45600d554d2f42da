"""From finished cases to numbers per variant."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from attrs import frozen

from mixcache.bench.cases import Case
from mixcache.bench.rival import Rival
from mixcache.bench.statistics import Spread, interval
from mixcache.core.metrics import Metric


@frozen(kw_only=True)
class Summary:
    """One variant over all its cases: a recipe, "steps=18" (fewer steps), or "none" (the uncached run itself).

    speedup: wall-clock of the denoising loop, median over the cases; speedup_interval: its 95 % interval.
    ideal_speedup: model evaluations uncached over evaluations made, both summed. seconds, uncached_seconds: of one
    loop, medians. All times are `None` if nothing was timed. evaluations: per case. scores: by metric, `psnr` and
    `ssim` among them. above_fewer_steps: how many dB of PSNR above the plain pipeline with as many evaluations, clip by
    clip, and the worst clip less the worst of the plain pipeline; `None` if that was not measured around these
    evaluations. truth_psnr, truth_error: against the run with many steps. cache_bytes: the largest size of the cache.
    """

    variant: str
    cases: int
    speedup: float | None
    speedup_interval: tuple[float, float] | None
    ideal_speedup: float
    seconds: float | None
    uncached_seconds: float | None
    evaluations: Spread
    evaluations_uncached: float
    scores: Mapping[str, Spread]
    above_fewer_steps: Spread | None
    latents_error: Spread | None
    truth_psnr: Spread | None
    truth_error: Spread | None
    cache_bytes: int

    @property
    def psnr(self) -> Spread:
        """Against the uncached clip, in dB."""
        return self.scores["psnr"]

    @property
    def speed(self) -> float:
        """The measured speed-up, or the ideal one if nothing was timed."""
        return self.ideal_speedup if self.speedup is None else self.speedup

    @classmethod
    def of(cls, cases: Sequence[Case], metrics: Mapping[str, Metric], rival: Rival) -> Summary:
        """The summary of the cases of one variant; each of its cases has a score by every one of `metrics`."""
        made = [case.evaluations for case in cases]
        uncached = [case.evaluations_uncached for case in cases]
        speedups = [case.speedup for case in cases if case.speedup is not None]
        timed = len(speedups) == len(cases)
        return cls(
            variant=cases[0].variant,
            cases=len(cases),
            speedup=statistics.median(speedups) if timed else None,
            speedup_interval=interval(speedups, lambda drawn: np.median(drawn, axis=1)) if timed else None,
            ideal_speedup=sum(uncached) / sum(made) if sum(made) else 1.0,
            seconds=statistics.median(statistics.median(case.cached_seconds) for case in cases) if timed else None,
            uncached_seconds=(
                statistics.median(statistics.median(case.uncached_seconds) for case in cases) if timed else None
            ),
            evaluations=Spread.of(made, max),
            evaluations_uncached=statistics.fmean(uncached),
            scores={
                name: Spread.of([case.scores[name] for case in cases], metric.worst) for name, metric in metrics.items()
            },
            above_fewer_steps=rival.below(cases) if cases[0].report is not None else None,
            latents_error=_spread([case.latents_error for case in cases], max),
            truth_psnr=_spread([case.truth_psnr for case in cases], min),
            truth_error=_spread([case.truth_error for case in cases], max),
            cache_bytes=max(0 if case.report is None else case.report.peak_bytes for case in cases),
        )


def _spread(values: Sequence[float | None], worst: Callable[[Iterable[float]], float]) -> Spread | None:
    known = [value for value in values if value is not None]
    return Spread.of(known, worst) if len(known) == len(values) else None

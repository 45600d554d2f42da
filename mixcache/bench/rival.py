"""The rival of every cache: the plain pipeline with fewer steps, at equal evaluations.

A cache that makes as many evaluations as the plain pipeline with fewer steps, and a worse clip, is of no use. So the
plain pipeline is measured at step counts around what the variants made, and read between two of them by a line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from attrs import frozen

from mixcache.bench.cases import Case
from mixcache.bench.statistics import Spread
from mixcache.bench.steps import Steps

RATIO = 1.2
"""Between neighbouring step counts. PSNR grows by at most some 60 dB per decade of steps, so that the line between two
of them is within 0.1 dB of the curve."""


def grid(steps: int) -> list[int]:
    """The step counts that may be measured beside a run of `steps`: from one fewer downwards, rising."""
    counts, count = set(), float(steps - 1)
    while count >= 1:
        counts.add(round(count))
        count /= RATIO
    return sorted(counts)


def step_counts(steps: int, cases: Iterable[Case]) -> list[int]:
    """Those of the grid that stand next to the evaluations of each cached case, rising."""
    counts = grid(steps)
    chosen: set[int] = set()
    for case in cases:
        if case.report is None:
            continue
        as_steps = steps * case.evaluations / case.evaluations_uncached
        below = [count for count in counts if count <= as_steps]
        beyond = [count for count in counts if count >= as_steps]
        if below and beyond:
            chosen |= {below[-1], beyond[0]}
    return sorted(chosen)


def is_plain(case: Case) -> bool:
    """Whether it is the plain pipeline with fewer steps."""
    return Steps.parse(case.variant) is not None


@frozen
class Rival:
    """The plain pipeline with fewer steps, by prompt and seed: (evaluations, PSNR in dB), rising."""

    points: dict[tuple[str, int], list[tuple[float, float]]]

    @classmethod
    def of(cls, cases: Iterable[Case]) -> Rival:
        """From all cases of a comparison; those of other variants are passed over."""
        points: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for case in cases:
            if is_plain(case):
                points.setdefault((case.prompt, case.seed), []).append((case.evaluations, case.psnr))
        return cls({pair: sorted(found) for pair, found in points.items()})

    def psnr(self, case: Case) -> float | None:
        """What fewer steps give on the clip of `case` with its evaluations, in dB; `None` outside what was measured."""
        points = self.points.get((case.prompt, case.seed), [])
        if not points or not points[0][0] <= case.evaluations <= points[-1][0]:
            return None
        evaluations, decibels = zip(*points)
        return float(np.interp(case.evaluations, evaluations, decibels))

    def below(self, cases: Sequence[Case]) -> Spread | None:
        """How far the clips of a variant are above the rival, in dB; `None` if one of them is outside.

        The mean is over the differences of each clip, and so is its interval. `worst` is another difference: of the
        variant's worst clip and the rival's.
        """
        own = [case.psnr for case in cases]
        rivals = [self.psnr(case) for case in cases]
        known = [rival for rival in rivals if rival is not None]
        if len(known) < len(cases) or not all(map(math.isfinite, own)):
            return None
        return Spread.of([mine - other for mine, other in zip(own, known)], lambda _: min(own) - min(known))

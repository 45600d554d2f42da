"""AdaCache (arXiv 2411.02397): the change of the residual at the last compute decides when to compute next."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, ClassVar

from attrs import field, frozen

from mixcache import ConfigurationError, Point, Policy, Reading, Vote, ge

FAST = "0.08:6 0.16:5 0.24:4 0.32:3 0.4:2 1:1"


def _parse(codebook: Any) -> tuple[tuple[float, int], ...]:
    """ "0.08:6 1:1" -> ((0.08, 6), (1.0, 1)), distances rising."""
    try:
        pairs = [part.partition(":") for part in codebook.split()]
        entries = tuple((float(bound), int(steps)) for bound, _, steps in pairs)
    except (AttributeError, ValueError):
        entries = ()
    rising = all(a < b for (a, _), (b, _) in pairwise(entries))
    if not entries or not rising or any(not math.isfinite(bound) or steps < 1 for bound, steps in entries):
        raise ConfigurationError(
            "`AdaCache(codebook=...)` must be 'distance:steps ...' with rising distances and whole numbers of steps "
            f">= 1, such as {FAST!r}, got {codebook!r}."
        )
    return entries


@frozen(kw_only=True)
class AdaCache(Policy):
    """After each compute, look up in a codebook how many steps the next one can wait.

    With r = output - anchor, c the last computed evaluation and b the one before (section 3 of the paper):

        d = mean|r_c - r_b| / mean|r_b| / (c - b);   next compute = c + steps of the first entry with d < distance

    A larger d takes the last entry. The first evaluation and the last two are computed. The decision is made on the
    first guidance branch of a step (cond) and holds for the others.

    codebook: "distance:steps" by rising distance (relative L1 per step). The default is the authors' fast codebook for
    30 steps, as video models make 30 to 50. Their others are "0.08:3 0.16:2 0.24:1" (30 steps, slow) and
    "0.03:12 0.05:10 0.07:8 0.09:6 0.11:4 1:3" (100 steps).

    Deviations: the paper measures and reuses the attention and MLP residuals of every block. Here r is the residual of
    the whole model, so the published distances are a scale to start from, not a setting. Motion regularisation is left
    out.
    """

    name: ClassVar[str] = "adacache"
    signals = ("increment_change",)
    branches = "leader"

    last_steps: int = field(default=2, validator=ge(0, whole=True))
    codebook: str = FAST
    entries: tuple[tuple[float, int], ...] = field(init=False, repr=False, eq=False)

    @entries.default
    def _entries(self) -> tuple[tuple[float, int], ...]:
        return _parse(self.codebook)

    def wait(self, distance: float) -> int:
        """Steps from a compute to the next one, given the distance per step that it measured."""
        return next((steps for bound, steps in self.entries if distance < bound), self.entries[-1][1])

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Reuse until the steps that the codebook allows are over."""
        change = reading["increment_change"]
        if change is None or point.gap is None or point.age is None:
            return Vote.compute("no distance yet")
        distance = change / point.gap
        steps = self.wait(distance)
        if point.age < steps:
            return Vote.reuse(f"compute every {steps} steps for now", error=distance * point.age)
        return Vote.compute(f"{steps} steps since the last compute", error=distance * point.age)

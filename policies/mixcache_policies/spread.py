"""So many evaluations, spaced like the nodes of Chebyshev: close together at both ends of a run, wide in the middle."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, ClassVar

from attrs import Attribute, define, field, frozen

from mixcache import ConfigurationError, Granularity, Outcome, Point, Policy, Reading, RunInfo, Vote, ge, none_or


def _share(u: float, edge: float) -> float:
    """The integral from 0 to u of the density ((v + edge) (1 - v + edge))^(-1/2), without its constant."""
    return math.asin((2 * u - 1) / (1 + 2 * edge))


@lru_cache(maxsize=256)
def nodes(steps: int, count: int) -> tuple[int, ...]:
    """The `count` of `steps` evaluations that are computed, rising: the first, the last, and those between by density.

    Let u run from 0 to 1 over the run. Evaluations stand at equal shares of the density

        p(u) ~ 1 / sqrt((u + 1 / count) (1 - u + 1 / count))

    which is that of Chebyshev's nodes, flattened at the ends to the width of one node, so that the gaps grow slowly.
    """
    if count >= steps:
        return tuple(range(steps))
    if count == 1:
        return (0,)
    edge = 1 / count
    low, high = _share(0, edge), _share(1, edge)
    places = []
    for index in range(count):
        share = low + (high - low) * index / (count - 1)
        u = (math.sin(share) * (1 + 2 * edge) + 1) / 2
        places.append(math.floor(u * (steps - 1) + 0.5))
    for index in range(1, count):  # no two on one evaluation
        places[index] = max(places[index], places[index - 1] + 1)
    places[-1] = min(places[-1], steps - 1)
    for index in range(count - 2, -1, -1):
        places[index] = min(places[index], places[index + 1] - 1)
    return tuple(places)


@frozen(kw_only=True)
class Chebyshev(Policy):
    """Compute exactly as many evaluations as are ordered, close together at both ends of a run.

    A forecast errs by how much the output bends between two computed evaluations. Over a run it bends most at the
    ends: the logarithm of a flow's signal-to-noise ratio is log(u / (1 - u)) less a constant, where u runs from 0 to 1
    in equal steps, so its rate 1 / (u (1 - u)) grows towards both ends, whatever the shift. Evaluations by the density
    of Chebyshev's nodes (`nodes`), where an interpolation wants them, even that out.

    No signal is read: it costs no transfer, and two runs of one length decide alike. An evaluation that had to be
    computed though it was not planned (there is nothing to reuse after a change of experts, or a guard vetoes) takes
    the place of the next one planned, so the count is kept.

    evaluations: how many are computed; the first always is. speedup: as a ratio instead, evaluations of the run over
    those computed, at least that much (the ideal speed-up; 2 if neither is given). Give one of them.

    Raises `ConfigurationError` if a run has fewer evaluations than are to be computed.
    """

    one_state: ClassVar[bool] = True

    evaluations: int | None = field(default=None, validator=none_or(ge(1, whole=True)))
    speedup: float | None = field(default=None, validator=none_or(ge(1)))

    @define
    class State:
        """How many evaluations of this run were computed, and which was counted last."""

        computed: int = 0
        step: int = -1

    @speedup.validator
    def _check_one(self, _attribute: Attribute[Any], value: float | None) -> None:
        if value is not None and self.evaluations is not None:
            raise ConfigurationError(
                f"`Chebyshev(evaluations={self.evaluations}, speedup={value:g})` orders twice; give one of them."
            )

    def count(self, steps: int) -> int:
        """How many of `steps` evaluations are computed."""
        if self.evaluations is not None:
            return self.evaluations
        return max(1, math.floor(steps / (2.0 if self.speedup is None else self.speedup) + 1e-9))

    def rebuilt(self, granularity: Granularity, span: tuple[int, int] | None = None) -> tuple[str | None, str | None]:
        """What was computed is continued by a line over the steps."""
        return "residual", "linear"

    def started(self, run: RunInfo) -> None:
        """Refuse a run that is shorter than what was ordered."""
        if self.count(run.num_steps) > run.num_steps:
            raise ConfigurationError(
                f"`Chebyshev(evaluations={self.evaluations})` is more than the {run.num_steps} evaluations of the run; "
                "give fewer, or a speedup."
            )

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Compute while fewer are computed than are planned up to here."""
        count = self.count(point.num_steps)
        planned = sum(node <= point.step for node in nodes(point.num_steps, count))
        computed = state.computed - (state.step == point.step)
        if computed < planned:
            return Vote.compute(f"one of the {count} evaluations ordered")
        return Vote.reuse(f"between the {count} evaluations ordered")

    def observe(self, point: Point, outcome: Outcome, state: Any) -> None:
        """Count a computed evaluation, once for all its branches and spans."""
        if not outcome.reused and state.step != point.step:
            state.computed, state.step = state.computed + 1, point.step

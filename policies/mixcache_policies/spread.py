"""So many evaluations, spread over a run by what an error does there and by how well forecasts do."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from attrs import Attribute, define, field, frozen

from mixcache import (
    ConfigurationError,
    Granularity,
    NoiseLevel,
    Outcome,
    Point,
    Policy,
    Reading,
    RunInfo,
    Vote,
    ge,
    none_or,
)

FAINTEST = 1 / 32  # of alpha: below, an error of the clean part is not what is left of the noise
MEMORY = 0.7  # how much of the usual error is remembered from one computed evaluation to the next
FEW = 10  # steps below which nothing is reused unless it is ordered
FARTHEST = 2.0  # an error above or below the usual moves a gap by this factor at most


def influences(levels: tuple[NoiseLevel, ...]) -> list[float]:
    """What one and the same error of the output does to the result, for every evaluation; up to a factor.

    A step from x = alpha clean + sigma noise to alpha' and sigma' moves x by (alpha sigma' - alpha' sigma) times the
    velocity; the noise is alpha velocities and the clean latent sigma of them, so an error of a model that predicts
    these counts for 1 / alpha and 1 / sigma as much. And what is off in the clean part of x grows until the end of the
    run as alpha does, so by 1 / alpha.
    """
    ends = [*((after.alpha, after.sigma) for after in levels[1:]), (1.0, 0.0)]
    units = {"epsilon": "alpha", "sample": "sigma"}
    return [
        abs(level.alpha * sigma - alpha * level.sigma)
        / max(getattr(level, units.get(level.prediction, ""), 1.0), FAINTEST)
        / max(level.alpha, FAINTEST)
        for level, (alpha, sigma) in zip(levels, ends)
    ]


def density(steps: int, count: int, levels: tuple[NoiseLevel, ...] | None = None) -> list[float]:
    """How densely each of `steps` evaluations is computed before anything is measured, if `count` are; up to a factor.

    Let u run from 0 to 1 over the run, and w be the influence of an evaluation (1 where noise levels are not known):

        p = w^(1/5) / sqrt((u + 3 / count) (1 - u + 3 / count))

    The second factor is the density of Chebyshev's nodes, where a polynomial is best known, flattened at the ends to
    the width of three evaluations: with few of them it is nearly even, since intervals that are all alike make up for
    their own errors. The exponent is that of evaluations that share out an error of w g^4 over gaps g.
    """
    edge = 3 / count
    places = [step / max(steps - 1, 1) for step in range(steps)]
    shape = [1 / math.sqrt((u + edge) * (1 - u + edge)) for u in places]
    if levels is None:
        return shape
    found = influences(levels)
    least = max(found) * 1e-6 or 1.0
    return [p * max(w, least) ** 0.2 for p, w in zip(shape, found)]


@frozen(kw_only=True)
class Spread(Policy):
    """Compute exactly as many evaluations as are ordered, where they matter most.

    After every computed evaluation the next one is chosen: at it, the evaluations in between make up their share of
    what is left, by the density `density(steps, count)` that is known before the run. So what an evaluation more or
    less costs is shared by all that are left, and the count is kept exactly: what a guard or the first call of a second
    expert computes is one of those ordered. Only what they compute when none is left comes on top.

    The share is then divided by how much worse forecasts do here than they usually do:

        (e / its geometric mean so far)^adapt,    e = error / (a (a + b) / 2) / density^2

    error: the measured relative L1 error of the forecast at the computed evaluation (`forecast_error`); a: the gap
    that it bridged, b: the gap before. A line is off by a (a + b) / 2 where the output bends by 1.

    evaluations: how many are computed; the first always is. speedup: as a ratio instead, evaluations of the run over
    those computed, at least that much (the ideal speed-up). Give one of them; if neither is given, half of the
    evaluations are computed, and all of a run of fewer than 10: on tiny_flux, which is made for so few, a plain run of
    half the steps was as good. adapt: 0 goes by the density alone.

    Raises `ConfigurationError` if a run has fewer evaluations than are to be computed.
    """

    signals = ("forecast_error",)
    branches = "leader"
    one_state: ClassVar[bool] = True

    evaluations: int | None = field(default=None, validator=none_or(ge(1, whole=True)))
    speedup: float | None = field(default=None, validator=none_or(ge(1)))
    adapt: float = field(default=0.2, validator=ge(0))

    @define
    class State:
        """The density of the run; how many evaluations are left to compute, and which is the next.

        last: the evaluation counted last. told: the one whose error was taken last. usual: the mean logarithm of what
        forecasts are off by, beside what is expected.
        """

        density: list[float] = field(factory=list)
        left: int = 0
        next: int = 0
        last: int = -1
        told: int = -1
        usual: float | None = None

    @speedup.validator
    def _check_one(self, _attribute: Attribute[Any], value: float | None) -> None:
        if value is not None and self.evaluations is not None:
            raise ConfigurationError(
                f"`Spread(evaluations={self.evaluations}, speedup={value:g})` orders twice; give one of them."
            )

    def _too_few(self, steps: int) -> bool:
        """Whether nothing is reused in a run of `steps`, as nothing was ordered."""
        return self.evaluations is None and self.speedup is None and steps < FEW

    def count(self, steps: int) -> int:
        """How many of `steps` evaluations are computed."""
        if self.evaluations is not None:
            return self.evaluations
        if self._too_few(steps):
            return steps
        return max(1, math.floor(steps / (2.0 if self.speedup is None else self.speedup) + 1e-9))

    def rebuilt(self, granularity: Granularity, span: tuple[int, int] | None = None) -> tuple[str | None, str | None]:
        """What was computed is continued by a line over the steps."""
        return "residual", "linear"

    def started(self, run: RunInfo) -> None:
        """Refuse a run that is shorter than what was ordered."""
        if self.count(run.num_steps) > run.num_steps:
            raise ConfigurationError(
                f"`Spread(evaluations={self.evaluations})` is more than the {run.num_steps} evaluations of the run; "
                "give fewer, or a speedup."
            )

    def begin(self, run: RunInfo) -> State:
        """All evaluations that were ordered are left."""
        count = self.count(run.num_steps)
        return self.State(density=density(run.num_steps, count, run.levels), left=count)

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Compute what is planned, and all branches and spans of what was begun."""
        count = self.count(point.num_steps)
        if self._too_few(point.num_steps):
            return Vote.compute(f"a run of {count} steps gains nothing over fewer steps; order a speedup to reuse")
        if point.step >= state.next or point.step == state.last:
            return Vote.compute(f"one of the {count} evaluations ordered")
        return Vote.reuse(f"between the {count} evaluations ordered")

    def observe(self, point: Point, outcome: Outcome, state: Any) -> None:
        """Count a computed evaluation, once for all its branches and spans, and plan the next."""
        if not outcome.reused and state.last != point.step:
            state.last = point.step
            state.left -= 1
            state.next = self._planned(point, 1.0, state)

    def learn(self, point: Point, reading: Reading, state: Any) -> None:
        """Plan anew, now that it is known how far off the forecast was at the evaluation computed last."""
        error = reading.get("forecast_error")
        if point.step != state.last or point.step == state.told or point.age is None or point.gap is None or not error:
            return
        bend = error / (point.age * (point.age + point.gap) / 2)
        now = math.log(bend / state.density[point.step] ** 2)
        usual = now if state.usual is None else state.usual
        state.told, state.usual = point.step, MEMORY * usual + (1 - MEMORY) * now
        worse = math.exp(self.adapt * (now - usual))
        state.next = self._planned(point, min(FARTHEST, max(1 / FARTHEST, worse)), state)

    def _planned(self, point: Point, worse: float, state: State) -> int:
        """The evaluation after `point` that is computed next; beyond the run if none is left."""
        if state.left <= 0:
            return point.num_steps
        share = sum(state.density[point.step :]) / (state.left + 1) / worse
        at, passed = point.step, 0.0
        while passed < share * (1 - 1e-9) and at < point.num_steps:
            passed += state.density[at]
            at += 1
        return max(point.step + 1, min(at, point.num_steps - state.left))

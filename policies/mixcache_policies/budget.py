"""An error budget: no reuse may take the estimated deviation of the final latent past a total."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from attrs import define, field, frozen

from mixcache import Granularity, Outcome, Point, Policy, Reading, Vote, ge, parse_granularity


def _granularities(value: str | None) -> str | None:
    return None if value is None else "/".join(str(parse_granularity(name)) for name in value.split("/"))


@frozen(kw_only=True)
class ErrorBudget(Policy):
    """A guard beside other policies: it vetoes a reuse that would take the run past `total`.

    Let eps_t be the relative change of the output that EasyCache predicts for step t (arXiv 2507.02860), and c the last
    computed step. The predicted error of a reuse is the sum of the changes since c. It moves the latent by the size of
    the step, |h_t|:

        error_t = eps_(c+1) + ... + eps_t        spent = sum over the reuses of |h_t| * error_t * exp(L sigma_(t+1))

    With h_t = sigma_(t+1) - sigma_t, all steps of a flow-matching run together have size 1. `spent` is the bound of
    `Session.bound` for Euler's method, as (1 + |h| L) <= exp(|h| L) for every later step; its unit is the model's
    output, not the latent. It is an estimate: eps is one, and L = 0 (the default) leaves out how a deviation grows.

    Where nothing can be predicted yet, it vetoes. Where the size of a step is not known, all that is left of the way
    counts; without sigmas, a step counts as 1 / num_steps.

    total: relative L1 of the model's output, averaged over the way from noise to clean. lipschitz: L. among: where it
    guards, such as "step/cfg/block"; by default wherever another policy decides.
    """

    name: ClassVar[str] = "budget"
    signals = ("sum(predicted_change)",)
    branches = "leader"
    one_state = True
    guard = True

    at: Granularity = field(default=Granularity.STEP, init=False, repr=False)  # no choice: `among` says where
    total: float = field(default=0.05, validator=ge(0))
    lipschitz: float = field(default=0.0, validator=ge(0))
    among: str | None = field(default=None, converter=_granularities)

    @define
    class State:
        """What has been spent in this run."""

        spent: float = 0.0

    @property
    def granularities(self) -> frozenset[Granularity]:
        """Those of `among`, else all."""
        if self.among is None:
            return frozenset(Granularity)
        return frozenset(map(parse_granularity, self.among.split("/")))

    def charge(self, point: Point, error: float) -> float:
        """What a reuse that is off by `error` adds to the deviation at the end."""
        level = point.level
        if level is None or level.prediction != "flow":
            return error / point.num_steps * math.exp(self.lipschitz)
        until = 0.0 if level.until is None else level.until
        grown = level.sigma if level.until is None else until
        return abs(level.sigma - until) * error * math.exp(min(self.lipschitz * grown, 700.0))

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Veto what the budget does not cover; abstain otherwise."""
        error = reading["sum(predicted_change)"]
        if error is None:
            return Vote.compute("nothing to predict the error from yet", veto=True)
        after = state.spent + self.charge(point, error)
        if not after <= self.total:
            return Vote.compute(f"would spend {after:.3g} of an error budget of {self.total:g}", veto=True)
        return Vote.abstain(f"would spend {after:.3g} of an error budget of {self.total:g}")

    def observe(self, point: Point, outcome: Outcome, state: Any) -> None:
        """Charge a reuse."""
        if outcome.reused:
            state.spent += self.charge(point, outcome.reading.get("sum(predicted_change)") or 0.0)

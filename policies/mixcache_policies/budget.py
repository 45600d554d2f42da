"""An error budget: reuse ends for good once the predicted errors of a run add up to it."""

from __future__ import annotations

from typing import Any

from attrs import define, field, frozen

from mixcache import Outcome, Point, Policy, Reading, Vote, ge


@frozen(kw_only=True)
class Budget(Policy):
    """A guard beside other policies: vetoes a reuse that would take the run over `total` predicted error.

    With eps_t EasyCache's predicted relative change of the output at step t (arXiv 2507.02860), a reuse at step t is
    charged what accumulated since the last computed evaluation c, and the charges of a run add up:

        error_t = eps_(c+1) + ... + eps_t        spent = sum of error_t over the reused evaluations <= total

    total: relative L1, dimensionless, summed over evaluations. Where nothing can be predicted yet, it vetoes.
    """

    signals = ("predicted_change",)
    branches = "leader"

    total: float = field(default=1.0, validator=ge(0))

    @define
    class State:
        """Predicted error spent in this run, and accumulated since the last computed evaluation."""

        spent: float = 0.0
        accumulated: float = 0.0

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Veto what the budget does not cover; abstain otherwise."""
        change = reading["predicted_change"]
        if change is None:
            return Vote.compute("nothing to predict the error from yet", veto=True)
        if state.spent + state.accumulated + change > self.total:
            return Vote.compute(f"error budget of {self.total:g} spent", veto=True)
        return Vote.abstain("within the error budget")

    def observe(self, point: Point, outcome: Outcome, state: Any) -> None:
        """Charge a reuse; a compute ends the accumulation."""
        if not outcome.reused:
            state.accumulated = 0.0
            return
        state.accumulated += outcome.reading.get("predicted_change") or 0.0
        state.spent += state.accumulated

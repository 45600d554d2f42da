"""BWCache (arXiv 2509.13789): once the blocks' outputs hardly change, reuse them for a tenth of the run at a time."""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import define, field, frozen

from mixcache import Granularity, Outcome, Point, Policy, Reading, Vote, ge, parse_granularity, tunable


@frozen(kw_only=True)
class BWCache(Policy):
    """After a computed evaluation that changed the blocks' output by less than `threshold`, reuse it R times.

    With o_c the hidden states leaving the blocks at the computed evaluation c, and b the one computed before it:

        d_c = mean|o_c - o_b| / mean|o_b|;   if d_c < threshold: reuse at c+1 ... c+R, then compute again

    Let k be the first such c. Reuse is allowed in the first half of the evaluations after k. The rest is computed, as d
    rises again there. Each guidance branch decides on its own.

    threshold: relative L1, published 0.15. run_share: R as a share of the run, published 0.1. open_share: the share of
    the evaluations after k in which reuse is allowed, published 0.5.

    Deviations: the paper's d is the mean of the relative changes of all block outputs. Here d is the change of the last
    block's output, which takes one comparison instead of one per block. The paper leaves open: R is rounded to the
    nearest whole number, at least 1; of an odd number of evaluations after k the middle one is computed; after R reuses
    d_c compares with the evaluation before them.
    """

    name: ClassVar[str] = "bwcache"
    signals = ("output_change",)
    branches = "independent"

    at: Granularity = field(default=Granularity.BLOCK, converter=parse_granularity)
    threshold: float = field(default=0.15, validator=ge(0), metadata=tunable(0.02, 0.6, log=True))
    run_share: float = field(default=0.1, validator=ge(0))
    open_share: float = field(default=0.5, validator=ge(0))

    @define
    class State:
        """k, the computed evaluation before the first reuse."""

        first: int | None = None

    def rebuilt(self, granularity: Granularity, span: tuple[int, int] | None = None) -> tuple[str | None, str | None]:
        """The outputs themselves, held."""
        return "output", "hold"

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Reuse up to R times after a small change, in the open part of the run."""
        change = reading["output_change"]
        if change is None:
            return Vote.compute("no two computed outputs yet")
        if not change < self.threshold:
            return Vote.compute(f"outputs changed by {self.threshold:g} or more", error=change)
        first = point.step - 1 if state.first is None else state.first
        if point.step > first + int(self.open_share * (point.num_steps - 1 - first)):
            return Vote.compute("the last part of the run is computed")
        if point.run_length >= max(round(self.run_share * point.num_steps), 1):
            return Vote.compute(f"{point.run_length} reuses in a row")
        return Vote.reuse(f"outputs changed by less than {self.threshold:g}", error=change)

    def observe(self, point: Point, outcome: Outcome, state: Any) -> None:
        """Note the first reuse."""
        if outcome.reused and state.first is None:
            state.first = point.step - 1

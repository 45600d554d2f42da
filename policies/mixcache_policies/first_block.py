"""First-Block-Cache: if the first block adds nearly what it added at the last full step, the others are reused."""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import field, frozen

from mixcache import Granularity, Point, Policy, Reading, Vote, ge, parse_granularity, tunable


@frozen(kw_only=True)
class FirstBlock(Policy):
    """Run the first block; reuse what all others added if its own increment changed by at most `threshold`.

    With r = h_1 - h_0 the increment of block 0 and c the last computed evaluation (ParaAttention; no paper):

        reuse while mean|r_t - r_c| / mean|r_c| <= threshold

    The comparison is with the last computed evaluation, so nothing accumulates. Each guidance branch decides on its
    own.

    threshold: relative L1; 0.05 in diffusers, 0.06 to 0.12 in the author's examples.
    """

    name: ClassVar[str] = "firstblock"
    signals = ("prefix_change_since_compute",)
    branches = "independent"

    at: Granularity = field(default=Granularity.BLOCK, converter=parse_granularity)
    threshold: float = field(default=0.05, validator=ge(0), metadata=tunable(0.01, 0.5, log=True))

    def spans(self, blocks: int) -> tuple[tuple[int, int], ...]:
        """All blocks but the first."""
        return ((1, blocks),)

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Reuse while the first block's increment stays close."""
        change = reading["prefix_change_since_compute"]
        if change is None:
            return Vote.compute("no earlier increment of the first block")
        if change <= self.threshold:
            return Vote.reuse(f"first block changed by at most {self.threshold:g}", error=change)
        return Vote.compute(f"first block changed by more than {self.threshold:g}", error=change)

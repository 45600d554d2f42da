"""FasterCache (arXiv 2410.19355), its guidance part: late in a run, rebuild the unconditional branch from the other."""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import field, frozen

from mixcache import Granularity, Point, Reading, Vote, ge, parse_granularity, tunable
from mixcache_policies.first_share import FirstShare


@frozen(kw_only=True)
class FasterCache(FirstShare):
    """After the first `first_share` of a run, compute the unconditional branch only every `every`-th evaluation.

    With evaluations counted from 1 (section 3.3 of the paper, as in the authors' code):

        reuse while counter > first_share * N and counter mod every != 0

    At the others, the branch is this step's conditional output plus the stored difference of the two. That difference
    has its low frequencies weighted up in the first phase, and its high ones later: forecast "split", unless another is
    chosen.

    first_share: share of the run computed at the start; 0.34 in the authors' code for CogVideoX and Latte (17 of 50),
    0.37 for Open-Sora (11 of 30). every: 5 in the authors' code.

    Deviation: the paper's other part, extrapolated attention outputs, is left out: it skips single attentions.
    """

    name: ClassVar[str] = "fastercache"

    at: Granularity = field(default=Granularity.CFG, converter=parse_granularity)
    first_share: float = field(default=0.34, validator=ge(0))
    every: int = field(default=5, validator=ge(1, whole=True), metadata=tunable(2, 8))

    def rebuilt(self, granularity: Granularity, span: tuple[int, int] | None = None) -> tuple[str | None, str | None]:
        """At CFG, the difference of the branches with its frequencies weighted."""
        return ("residual", "split") if granularity is Granularity.CFG else (None, None)

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Reuse unless the evaluation, counted from 1, is a multiple of `every`."""
        if (point.step + 1) % self.every == 0:
            return Vote.compute(f"every {self.every} steps")
        return Vote.reuse(f"between computed branches, every {self.every}")

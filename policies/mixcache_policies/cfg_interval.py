"""CFG reuse at a fixed interval: the unconditional branch is computed at some steps and rebuilt at the others."""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import field, frozen

from mixcache import Granularity, Point, Policy, Reading, Vote, ge, parse_granularity, tunable


@frozen(kw_only=True)
class CFGInterval(Policy):
    """Compute the guidance branches other than the conditional one every `every`-th evaluation.

    At the others, the branch is rebuilt: this step's conditional output plus the stored difference of the two, which
    changes slowly (FasterCache, arXiv 2410.19355, section 3.3; FasterCache itself weights its frequencies). A reuse
    saves one call of two, or half of a doubled batch. The first evaluations and the last are computed.

    every: a computed branch at every so many evaluations.
    """

    name: ClassVar[str] = "cfg"

    at: Granularity = field(default=Granularity.CFG, converter=parse_granularity)
    every: int = field(default=2, validator=ge(1, whole=True), metadata=tunable(2, 8))
    first_steps: int = field(default=2, validator=ge(0, whole=True))
    last_steps: int = field(default=1, validator=ge(0, whole=True))

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Reuse unless the evaluation is a multiple of `every` past the last of the first steps."""
        if (point.step - max(self.first_steps - 1, 0)) % self.every == 0:
            return Vote.compute(f"every {self.every} steps")
        return Vote.reuse(f"between computed branches, every {self.every}")

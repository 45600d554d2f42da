"""DiCache (arXiv 2508.17356): run the first blocks as a probe, reuse the others while the probe changes little."""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import field, frozen

from mixcache import ConfigurationError, Granularity, Point, Reading, Vote, ge, parse_granularity, tunable
from mixcache_policies.first_share import FirstShare


@frozen(kw_only=True)
class DiCache(FirstShare):
    """Run the first `probe_blocks` blocks; reuse the others while the probe's accumulated change is below `threshold`.

    With p_t the hidden states after the first m blocks, at every evaluation, computed or not:

        e_t = mean|p_t - p_(t-1)| / mean|p_(t-1)|
        E  += e_t;   reuse while E < threshold, otherwise compute and set E = 0

    What is reused follows the probe (forecaster "aligned"). R_1 and R_2 are what the skipped blocks added at the last
    two computed evaluations; q, q_1 and q_2 are what the first m blocks add now and added then:

        R = R_2 + g (R_1 - R_2)     g = mean|q - q_2| / mean|q_1 - q_2|, clipped

    Each guidance branch decides on its own. Raises `ConfigurationError` where m leaves no block to skip.

    probe_blocks: m, published 1. threshold: relative L1; published 0.08 for Wan 2.1, 0.1 for HunyuanVideo, 0.4 for
    FLUX. first_share: share of the run computed at the start, rounded down, 0.2. For FLUX the authors compute one more
    evaluation there, and the last (last_steps=1).

    Deviations: the paper's R is what all blocks added, the first m included. Here the first m are computed anyway, so
    what they add now is used. The worst sample of a batch decides (`samples="mean"` pools them, as published).
    """

    name: ClassVar[str] = "dicache"
    signals = ("sum(anchor_change)",)
    branches = "independent"

    at: Granularity = field(default=Granularity.BLOCK, converter=parse_granularity)
    probe_blocks: int = field(default=1, validator=ge(1, whole=True))
    threshold: float = field(default=0.08, validator=ge(0), metadata=tunable(0.01, 0.5, log=True))

    def spans(self, blocks: int) -> tuple[tuple[int, int], ...]:
        """All blocks after the probe."""
        if self.probe_blocks >= blocks:
            raise ConfigurationError(
                f"`DiCache(probe_blocks={self.probe_blocks})` leaves nothing to skip: the model has {blocks} blocks."
            )
        return ((self.probe_blocks, blocks),)

    def rebuilt(self, granularity: Granularity, span: tuple[int, int] | None = None) -> tuple[str | None, str | None]:
        """The increment, aligned with the probe; elsewhere than at BLOCK there is no probe."""
        return ("residual", "aligned") if granularity is Granularity.BLOCK else (None, None)

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Reuse while E + e_t stays below the threshold."""
        total = reading["sum(anchor_change)"]
        if total is None:
            return Vote.compute("no earlier probe")
        if total < self.threshold:
            return Vote.reuse(f"accumulated change below {self.threshold:g}", error=total)
        return Vote.compute(f"accumulated change reached {self.threshold:g}", error=total)

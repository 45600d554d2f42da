"""Delta-DiT (arXiv 2406.01125): skip the back blocks while the outline forms, the front blocks while details do."""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import field, frozen

from mixcache import (
    ConfigurationError,
    Granularity,
    Point,
    Policy,
    Reading,
    Vote,
    ge,
    none_or,
    parse_granularity,
    tunable,
)


@frozen(kw_only=True)
class DeltaDiT(Policy):
    """Compute every `every`-th evaluation in full; at the others, one end of the model adds what it added before.

    With h_i the hidden states entering block i of n, N_c the number of skipped blocks, c the last full evaluation:

        t < boundary:   h_n = h_(n-N_c) + (h_n - h_(n-N_c))_c     front blocks run, back blocks are skipped
        t >= boundary:  h_(N_c) = h_0 + (h_(N_c) - h_0)_c         front blocks are skipped, back blocks run

    Front blocks shape the outline, which forms early. Back blocks shape the details, which form late. The increment
    (Delta-Cache) is added to the current input; a cached output would ignore that input. No signal is read, so it costs
    no transfer. Raises `ConfigurationError` where the model has fewer blocks than `blocks`.

    every: interval of full evaluations. blocks: N_c, `None` for three quarters of them. boundary: share of the run
    after which the stage changes.

    The paper tunes all three for each model. The defaults here follow its 20 steps of PixArt-alpha: boundary 12, and
    every second evaluation without three quarters of the blocks, which gives the 1.6x that it reports.

    Deviation: after the boundary, the front is first rebuilt from its last computed evaluation, whether that was a full
    one or not.
    """

    name: ClassVar[str] = "deltadit"

    at: Granularity = field(default=Granularity.BLOCK, converter=parse_granularity)
    every: int = field(default=2, validator=ge(1, whole=True), metadata=tunable(2, 8))
    blocks: int | None = field(default=None, validator=none_or(ge(1, whole=True)))
    boundary: float = field(default=0.6, validator=ge(0))

    def spans(self, blocks: int) -> tuple[tuple[int, int], ...]:
        """The front blocks and the back blocks; they may overlap."""
        count = max(round(0.75 * blocks), 1) if self.blocks is None else self.blocks
        if count > blocks:
            raise ConfigurationError(f"`DeltaDiT(blocks={self.blocks})` is too many: the model has {blocks} blocks.")
        return (0, count), (blocks - count, blocks)

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Compute at every `every`-th evaluation, and at the end that this stage needs."""
        if point.step % self.every == 0:
            return Vote.compute(f"every {self.every} steps")
        outline = point.step < round(self.boundary * point.num_steps)
        if point.span is not None:
            first, last = self.spans(point.blocks)[outline]
            if not (first <= point.span[0] and point.span[1] <= last):
                return Vote.compute("front blocks run early" if outline else "back blocks run late")
        return Vote.reuse("back blocks skipped early" if outline else "front blocks skipped late")

"""A fixed interval (as in FORA, arXiv 2407.01425): the baseline that every adaptive policy has to beat."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen

from mixcache import ConfigurationError, Point, Policy, Reading, Vote, ge, none_or, tunable


@frozen(kw_only=True)
class Static(Policy):
    """Compute every `every`-th evaluation and reuse at the others, counted from the end of the first steps.

    With `every=1` nothing is ever reused. The first two evaluations and the last are always computed, since the
    output changes most there; set `first_steps` and `last_steps` to change that. No signal is read, so it costs no
    transfer.

    every: interval of computed evaluations. blocks: at BLOCK, how many blocks are skipped or computed together; `None`
    for all of them.
    """

    every: int = field(default=2, validator=ge(1, whole=True), metadata=tunable(2, 8))
    first_steps: int = field(default=2, validator=ge(0, whole=True))
    last_steps: int = field(default=1, validator=ge(0, whole=True))
    blocks: int | None = field(default=None, validator=none_or(ge(1, whole=True)))

    def spans(self, blocks: int) -> tuple[tuple[int, int], ...]:
        """Spans of `self.blocks` blocks each; the last one may be shorter."""
        if self.blocks is not None and self.blocks > blocks:
            raise ConfigurationError(
                f"`Static(blocks={self.blocks})` is more than there are: the model has {blocks} blocks; leave `blocks` "
                "out to skip all of them together."
            )
        size = blocks if self.blocks is None else self.blocks
        return tuple((first, min(first + size, blocks)) for first in range(0, blocks, size))

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Reuse unless the evaluation is a multiple of `every` past the last of the first steps."""
        since = point.step - max(self.first_steps - 1, 0)
        if since % self.every == 0:
            return Vote.compute(f"every {self.every} steps")
        return Vote.reuse(f"between computed steps, every {self.every}")

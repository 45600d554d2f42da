"""DBCache (cache-dit): run the first F and the last B blocks, reuse what the middle added while the first F agree."""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import define, field, frozen

from mixcache import (
    ConfigurationError,
    Granularity,
    Outcome,
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
class DBCache(Policy):
    """First-Block-Cache with F probing blocks, and B blocks at the end that smooth over what was reused.

    With F_t = h_F - h_0 what the first F blocks added, and c the last computed evaluation (cache-dit, no paper):

        reuse blocks F to N - B while mean|F_t - F_c| / mean|F_c| < threshold

    Each guidance branch decides on its own. Raises `ConfigurationError` where F + B leaves no block to skip.

    first_blocks, last_blocks: F and B, in blocks. F = 1, B = 0 is First-Block-Cache, but for a change of exactly
    `threshold`. threshold: relative L1. first_steps: warm-up, 8 evaluations in cache-dit. most: the most reuses in a
    run; `None` for no limit.

    Deviation: the count of reuses in a row (`longest_run`) begins anew at every compute.
    """

    name: ClassVar[str] = "dbcache"
    signals = ("prefix_change_since_compute",)
    branches = "independent"

    at: Granularity = field(default=Granularity.BLOCK, converter=parse_granularity)
    first_blocks: int = field(default=8, validator=ge(1, whole=True))
    last_blocks: int = field(default=0, validator=ge(0, whole=True))
    threshold: float = field(default=0.08, validator=ge(0), metadata=tunable(0.01, 0.5, log=True))
    first_steps: int = field(default=8, validator=ge(0, whole=True))
    most: int | None = field(default=None, validator=none_or(ge(0, whole=True)))

    @define
    class State:
        """Reuses so far in this run."""

        reused: int = 0

    def spans(self, blocks: int) -> tuple[tuple[int, int], ...]:
        """The blocks between the first F and the last B."""
        if self.first_blocks + self.last_blocks >= blocks:
            raise ConfigurationError(
                f"`DBCache(first_blocks={self.first_blocks}, last_blocks={self.last_blocks})` leaves nothing to skip: "
                f"the model has {blocks} blocks, so their sum must be below {blocks}."
            )
        return ((self.first_blocks, blocks - self.last_blocks),)

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Reuse while the first blocks' increment stays close to that of the last computed evaluation."""
        change = reading["prefix_change_since_compute"]
        if change is None:
            return Vote.compute("no earlier increment of the first blocks")
        if self.most is not None and state.reused >= self.most:
            return Vote.compute(f"{self.most} reuses made")
        if change < self.threshold:
            return Vote.reuse(f"first {self.first_blocks} blocks changed by less than {self.threshold:g}", error=change)
        return Vote.compute(f"first {self.first_blocks} blocks changed by {self.threshold:g} or more", error=change)

    def observe(self, point: Point, outcome: Outcome, state: Any) -> None:
        """Count the reuses."""
        state.reused += outcome.reused

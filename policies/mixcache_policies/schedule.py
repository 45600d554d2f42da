"""An explicit mask, one character per evaluation, as a search, a paper's table or an ablation prescribes it."""

from __future__ import annotations

from typing import Any

from attrs import Attribute, field, frozen

from mixcache import ConfigurationError, Point, Policy, Reading, RunInfo, Vote


@frozen
class Schedule(Policy):
    """`Schedule("1101001")`: 1 computes, 0 reuses.

    mask: one character per evaluation of the run; the first is 1.
    """

    mask: str = field(kw_only=False)

    @mask.validator
    def _check(self, _attribute: Attribute[str], value: object) -> None:
        if not isinstance(value, str) or not value or set(value) - {"0", "1"} or value[0] != "1":
            raise ConfigurationError(
                f"`Schedule(mask=...)` must be a string of 1 (compute) and 0 (reuse) that begins with 1, got {value!r}."
            )

    def started(self, run: RunInfo) -> None:
        """Refuse a run of another length: a mask that does not fit would silently mean something else."""
        if len(self.mask) != run.num_steps:
            raise ConfigurationError(
                f"`Schedule(mask=...)` has {len(self.mask)} steps, but the run makes {run.num_steps} evaluations; give "
                "one character for each (a second-order noise scheduler such as Heun makes 2 * steps - 1)."
            )

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """What the mask says for this evaluation."""
        return Vote.compute("mask says 1") if self.mask[point.step] == "1" else Vote.reuse("mask says 0")

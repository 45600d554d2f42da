"""Windows alone: which evaluations always compute, whatever other policies want."""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import field, frozen

from mixcache import Granularity, Point, Policy, Reading, Vote


@frozen(kw_only=True)
class Window(Policy):
    """A guard beside other policies: vetoes reuse in `first_steps`, `last_steps` and beyond `longest_run`.

    It has no opinion elsewhere. Every policy has these windows of its own; this one sets them for all at once, wherever
    they decide: `[EasyCache(), Static(every=3), Window(first_steps=10)]`.
    """

    guard: ClassVar[bool] = True

    at: Granularity = field(default=Granularity.STEP, init=False, repr=False)  # no choice: it stands everywhere

    @property
    def granularities(self) -> frozenset[Granularity]:
        """Everywhere."""
        return frozenset(Granularity)

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Nothing to say: the windows are enforced by the base class."""
        return Vote.abstain("inside the window")

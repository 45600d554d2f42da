"""Windows for several policies at once: which evaluations compute, whatever the policies want."""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import field, frozen

from mixcache import Granularity, Point, Policy, Reading, Vote


@frozen(kw_only=True)
class Window(Policy):
    """A guard beside other policies: it vetoes reuse in `first_steps`, in `last_steps` and beyond `longest_run`.

    It abstains elsewhere. Every policy has these windows of its own. This one sets them for all, wherever they decide:
    `[EasyCache(), Static(every=3), Window(first_steps=10)]`.
    """

    guard: ClassVar[bool] = True

    at: Granularity = field(default=Granularity.STEP, init=False, repr=False)  # no choice: it stands everywhere

    @property
    def granularities(self) -> frozenset[Granularity]:
        """Everywhere."""
        return frozenset(Granularity)

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Abstain: the base class enforces the windows."""
        return Vote.abstain("inside the window")

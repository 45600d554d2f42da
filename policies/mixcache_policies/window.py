"""Windows alone: which evaluations always compute, whatever other policies want."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from mixcache import Point, Policy, Reading, Vote


@frozen(kw_only=True)
class Window(Policy):
    """A guard beside other policies: vetoes reuse in `first_steps`, `last_steps` and beyond `longest_run`.

    It has no opinion elsewhere. Every policy has these windows of its own; this one sets them for all at once:
    `[EasyCache(), Static(every=3), Window(first_steps=10)]`.
    """

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Nothing to say: the windows are enforced by the base class."""
        return Vote.abstain("inside the window")

"""The policy by which runs are watched: everything is computed, and a signal sees all of it."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from mixcache.core.points import Granularity, Point, Reading, Vote
from mixcache.core.policy import Policy
from mixcache.core.signals import Signal


def observer(signal: Signal, granularity: Granularity = Granularity.STEP) -> Policy:
    """A policy that has `signal` measured on every branch there, and computes.

    No vote reads what was measured after the last compute, so a signal that is to be kept leaves what it measures
    somewhere itself, in the order of the visits.
    """

    @frozen(kw_only=True)
    class Observer(Policy):
        """Has one signal measured on every branch, and computes."""

        signals = (signal,)
        branches = "independent"

        def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
            return Vote.compute("observed")

    return Observer(at=granularity)

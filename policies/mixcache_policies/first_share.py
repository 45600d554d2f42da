"""What MagCache, FasterCache and DiCache have in common: the first part of a run is computed."""

from __future__ import annotations

from attrs import field, frozen

from mixcache import Policy, ge


@frozen(kw_only=True)
class FirstShare(Policy):
    """Base of the policies that compute the first part of a run.

    first_share: share of the run that is computed at the start, rounded down. first_steps: at least so many evaluations
    are computed there.
    """

    first_share: float = field(default=0.2, validator=ge(0))

    def warm_up(self, num_steps: int) -> int:
        """The first share of the run."""
        return max(self.first_steps, int(self.first_share * num_steps))

"""A plugin package for mixcache: `pip install ./examples/plugin` makes "slowdown" and "halfway" specs everywhere."""

from attrs import field, frozen

import mixcache
from mixcache import Forecaster, Policy, Signal, Vote, gt


def curvature(tensors):
    """How far the latent strays from going on in a straight line since the previous step: relative L1, [samples]."""
    if tensors.previous("anchor") is None or tensors.computed("anchor") is None:
        return None
    straight = 2 * tensors.previous("anchor") - tensors.computed("anchor")
    return tensors.norm(tensors.anchor - straight) / tensors.norm(tensors.anchor)


CURVATURE = Signal(
    name="curvature",
    measure=curvature,
    reads=frozenset({"previous:anchor", "computed:anchor"}),
    summary="mean|a - (2 a_prev - a_last)| / mean|a|",
)


@frozen(kw_only=True)
class Slowdown(Policy):
    """Reuse while the latent goes straight on: the trajectory's curvature is below a threshold."""

    signals = ("curvature",)
    branches = "leader"

    threshold: float = field(default=0.05, validator=gt(0))

    def vote(self, point, reading, state):
        """Compute where nothing is known yet."""
        change = reading["curvature"]
        if change is None:
            return Vote.compute("no curvature yet")
        return Vote.reuse(error=change) if change < self.threshold else Vote.compute(error=change)


@frozen
class Halfway(Forecaster):
    """Half of the straight line's way: the mean of `hold` and `linear`."""

    name = "halfway"

    @property
    def depth(self):
        return 2

    def weights(self, nodes, target):
        """Weights of the stored z, oldest first."""
        if len(nodes) == 1:
            return [1.0]
        reach = (target - nodes[1]) / (nodes[1] - nodes[0]) / 2
        return [-reach, 1 + reach]


@mixcache.hookimpl
def mixcache_policies():
    return [Slowdown]


@mixcache.hookimpl
def mixcache_forecasters():
    return [Halfway]


@mixcache.hookimpl
def mixcache_signals():
    return [CURVATURE]

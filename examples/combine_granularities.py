"""Steps, guidance branches and blocks reused in one run, each its own way: python examples/combine_granularities.py"""

import mixcache
from mixcache_models import tiny_wan

POLICIES = [
    "static:every=3",  # whole steps: computed every third time
    "cfg:every=2",  # of the steps that are computed, every other one computes the conditional branch alone
    "dbcache:first_blocks=2,threshold=0.3",  # and the blocks behind the second rest while the first two change little
    "window:first_steps=5,last_steps=1",  # a guard: it vetoes whatever the others want
]
REBUILD = {
    "basis": {"step": "noise"},  # what is not named is as its algorithm was published: residual and hold
    "forecast": {"step": "linear:abscissa=sigma", "cfg": "linear"},
}

if __name__ == "__main__":
    pipe = tiny_wan.load()
    with mixcache.enable(pipe, POLICIES, **REBUILD) as session:
        pipe("a red circle moving left", **tiny_wan.CALL)
        print(session.recipe)  # the same choices as one line of text: --policy takes it too
        print(session.report())

"""A caching policy of one's own, complete, and used on a pipeline: python examples/write_a_policy.py"""

from attrs import field, frozen

import mixcache
from mixcache import Vote, ge
from mixcache_models import tiny_wan


@frozen
class EveryOther(mixcache.Policy):
    """Recompute every `every`-th step."""

    every: int = field(default=2, validator=ge(1, whole=True))

    def vote(self, point, reading, state):
        return Vote.compute() if point.step % self.every == 0 else Vote.reuse()


mixcache.register(EveryOther)  # from now on "everyother:every=3" is a spec, here and in text and TOML

if __name__ == "__main__":
    pipe = tiny_wan.load()
    recipe = "everyother:every=3,first_steps=5,last_steps=1 @ basis=noise forecast=linear"
    with mixcache.enable(pipe, recipe) as session:
        pipe("a red circle moving left", **tiny_wan.CALL)
        print(session.report())

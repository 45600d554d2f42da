"""A caching policy of one's own, complete, and used on a pipeline: python examples/write_a_policy.py"""

from attrs import field, frozen
from diffusers import WanPipeline

import mixcache
from mixcache import Vote, ge
from mixcache.plugins import pipelines


@frozen
class EveryOther(mixcache.Policy):
    """Recompute every `every`-th step."""

    every: int = field(default=2, validator=ge(1))

    def vote(self, point, reading, state):
        return Vote.compute() if point.step % self.every == 0 else Vote.reuse()


mixcache.register(EveryOther)  # from now on "everyother:every=3" is a spec, here and on the command line

if __name__ == "__main__":
    pipe = WanPipeline.from_pretrained(pipelines()["tiny_wan"].path)
    with mixcache.enable(
        pipe, "everyother:every=3,first_steps=5,last_steps=1", basis="noise", forecast="linear"
    ) as session:
        pipe("a red circle moving left", num_frames=17, height=64, width=64, guidance_scale=4.0)
        print(session.report())

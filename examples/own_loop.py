"""mixcache in a denoising loop of one's own, without a pipeline: python examples/own_loop.py"""

import torch

import mixcache
from mixcache_models import tiny_wan

pipe = tiny_wan.load()  # for its parts: the transformer, and a prompt as the transformer wants it
cond, uncond = pipe.encode_prompt("a blue square moving up", "")
steps = 50
sigmas = torch.linspace(1, 0, steps + 1)
sigmas = 3 * sigmas / (1 + 2 * sigmas)  # spend more steps where the clip takes shape
x = torch.randn(1, 8, 5, 8, 8, generator=torch.Generator().manual_seed(0))  # 17 frames of 64x64

policy = "easycache:threshold=0.05"
with torch.no_grad(), mixcache.enable(pipe.transformer, policy) as session, session.run(num_steps=steps) as run:
    for i in range(steps):
        sigma, t = sigmas[i].item(), (1000 * sigmas[i]).expand(1)
        with run.step(i, sigma=sigma):
            with run.branch("cond"):
                v_cond = pipe.transformer(x, t, cond, return_dict=False)[0]
            with run.branch("uncond"):
                v_uncond = pipe.transformer(x, t, uncond, return_dict=False)[0]
        x = x + (sigmas[i + 1] - sigmas[i]) * (v_uncond + 4 * (v_cond - v_uncond))
    print(session.report())

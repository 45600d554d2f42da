"""Several denoisings at once on one transformer, in tasks and in threads: python examples/requests_in_tasks.py

`session.request(key)` says whose the calls inside are. Each request has a memory of its own, so whatever the order of
the calls, it gets the result that it gets alone, to the bit.
"""

import asyncio

import torch

import mixcache
from mixcache_models import tiny_wan

STEPS = 25
PROMPTS = {
    "red": "a red circle moving left",
    "blue": "a blue square moving up",
    "green": "a green triangle moving right",
    "yellow": "a yellow cross moving down",
}
RECIPE = "easycache:threshold=0.1,first_steps=4 @ basis=noise forecast=linear"

pipe = tiny_wan.load()
sigmas = torch.linspace(1, 0, STEPS + 1)
texts = {key: pipe.encode_prompt(prompt, "")[0].detach() for key, prompt in PROMPTS.items()}


async def denoise(session: mixcache.Session, key: str) -> torch.Tensor:
    """One request: Euler's method without guidance. It lets the others go on after every step."""
    seed = list(PROMPTS).index(key)
    x = torch.randn(1, 8, 5, 8, 8, generator=torch.Generator().manual_seed(seed))
    with session.request(key), session.run(num_steps=STEPS) as run:
        for i in range(STEPS):
            with torch.no_grad(), run.step(i, sigma=sigmas[i].item()), run.branch("cond"):
                v = pipe.transformer(x, (1000 * sigmas[i]).expand(1), texts[key], return_dict=False)[0]
            x = x + (sigmas[i + 1] - sigmas[i]) * v
            await asyncio.sleep(0)
    return x


async def together(session: mixcache.Session) -> dict[str, torch.Tensor]:
    """Two requests in tasks of this thread, two in threads of their own, all under way at once."""
    in_tasks = [denoise(session, key) for key in ("red", "blue")]
    in_threads = [asyncio.to_thread(asyncio.run, denoise(session, key)) for key in ("green", "yellow")]
    return dict(zip(PROMPTS, await asyncio.gather(*in_tasks, *in_threads)))


if __name__ == "__main__":
    with mixcache.enable(pipe.transformer, RECIPE) as session:
        found = asyncio.run(together(session))
        print(session.report())
    for key in PROMPTS:
        with mixcache.enable(pipe.transformer, RECIPE) as session:
            alone = asyncio.run(denoise(session, key))
        print(f"{key}: {'as alone, to the bit' if torch.equal(found[key], alone) else 'NOT as alone'}")

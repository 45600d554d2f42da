"""`mixcache inspect`."""

from __future__ import annotations

from typing import Annotated

import typer

from mixcache.bench.flags import check_seed
from mixcache.cli import options as has

FEWEST = 3
"""So many steps are made if --steps does not say: a model whose first evaluation shows nothing is watched again."""


def inspect(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="NAME|FOLDER|HUB_ID", help="The diffusers pipeline.")],
    prompt: Annotated[str, typer.Option("--prompt", help="What to show.")] = "a red circle moving left",
    negative_prompt: has.Negative = None,
    seed: has.Seed = 0,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Denoising steps.")] = FEWEST,
    guidance: has.Guidance = None,
    frames: has.Frames = None,
    height: has.Height = None,
    width: has.Width = None,
    device: has.Device = "auto",
    dtype: has.Dtype = None,
) -> None:
    """Run a pipeline briefly and print what watching shows of its denoisers: latent, prediction, branches, noise
    levels, blocks, what was not found and why, and a record to be pasted into a plugin.

    - `mixcache inspect tiny_wan --frames 5 --height 32 --width 32`

    - `mixcache inspect ./my-pipeline --guidance 1`
    """
    from mixcache.bench import inspecting
    from mixcache.bench.loading import load
    from mixcache.cli import console

    check_seed(seed)
    with console.loading(model):
        loaded = load(model, device, dtype)
    arguments = loaded.arguments(**has.call_options(ctx))
    found = inspecting.inspect_pipeline(loaded, prompt, seed, **arguments)
    print("\n\n".join(map(str, found)))

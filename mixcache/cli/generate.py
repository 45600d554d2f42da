"""`mixcache generate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixcache.bench.flags import check_seed
from mixcache.cli import options as has
from mixcache.errors import ConfigurationError

if TYPE_CHECKING:
    from mixcache.bench.generation import Generation


def generate(
    ctx: typer.Context,
    prompt: Annotated[str, typer.Option("--prompt", help="What to show.")],
    out: Annotated[Path, typer.Option("--out", help="A .mp4, .gif or (images) .png file, or a folder.")],
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            metavar="POLICY",
            help=f"{has.POLICY}  [default: none; where a speed is ordered, the recommended recipe]",
        ),
    ] = None,
    evaluations: has.Evaluations = None,
    speedup: has.Speedup = None,
    basis: has.Basis = None,
    forecast: has.Forecast = None,
    anchor: has.Anchor = None,
    rule: has.Rule = None,
    samples: has.Samples = None,
    max_cache_bytes: has.MaxCacheBytes = None,
    offload: has.Offload = None,
    on_error: has.OnError = None,
    model: has.Model = "tiny_wan",
    negative_prompt: has.Negative = None,
    seed: has.Seed = 0,
    steps: has.Steps = None,
    guidance: has.Guidance = None,
    frames: has.Frames = None,
    height: has.Height = None,
    width: has.Width = None,
    fps: has.Fps = 16,
    device: has.Device = "auto",
    dtype: has.Dtype = None,
    trace: has.Trace = None,
) -> None:
    """Make one clip (or image), cached or not, and print what caching did.

    - `mixcache generate --prompt "a red circle moving left" --speedup 2.5 --out clip.mp4`

    - `mixcache generate --prompt "a red circle moving left" --policy easycache:threshold=0.05 --out clip.mp4`

    - `mixcache generate --prompt "a cat" --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --policy static:every=2 --basis
      noise --forecast linear:abscissa=sigma --out clips`
    """
    from mixcache.bench import generation
    from mixcache.bench.loading import load
    from mixcache.bench.media import as_uint8, check_output, find_target, write_clip
    from mixcache.cli import console

    if not prompt.strip():
        raise ConfigurationError("--prompt is empty; say what to show.")
    check_seed(seed)
    recipe = has.recipe_of(policy, ctx)
    has.check_trace(trace, recipe)
    check_output(out)
    with console.loading(model):
        loaded = load(model, device, dtype)
    arguments = loaded.arguments(**has.call_options(ctx))
    target = find_target(out, prompt, seed, loaded.makes_video)
    with console.progress_bar() as bar:
        bar.start(1, loaded.steps(arguments))
        made = generation.generate(loaded, prompt, seed, arguments, recipe, on_step=bar.step, trace=trace)
    write_clip(target, as_uint8(made.frames_FHWC), fps)
    print(made.report if made.report is not None else "uncached: every step was computed")
    for note in _changed(made, arguments):
        print(f"note: {note}")
    print(f"denoising loop: {made.seconds:.2f} s")
    print(f"wrote {target}")


def _changed(made: Generation, asked: Mapping[str, Any]) -> Iterator[str]:
    """Where the pipeline made another size than it was asked for."""
    frames, height, width, _ = made.frames_FHWC.shape
    for name, size in (("num_frames", frames), ("height", height), ("width", width)):
        if asked.get(name, size) != size:
            yield f"{name}={asked[name]} was asked for, and the pipeline made {size}"

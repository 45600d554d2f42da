"""`mixcache tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixcache.cli import options as has
from mixcache.errors import ConfigurationError

Target = Annotated[
    str,
    typer.Option("--target", help="'psnr>=40' (any metric) at the least cost, or 'speedup>=2.5' at the best quality."),
]
Out = Annotated[Path, typer.Option("--out", help="The .toml file to write.")]
Quality = Annotated[str, typer.Option("--quality", help="The metric that is wanted at a speed.")]
InTheMean = Annotated[
    bool,
    typer.Option(
        "--in-the-mean", help="The mean has to keep the target, not the worse end of its 95 % interval: less sure."
    ),
]
Among = Annotated[
    list[str] | None,
    typer.Option("--policy", metavar="NAME", help="Choose among these and masks alone.  [default: all]"),
]
HeldOut = Annotated[
    Path | None,
    typer.Option(
        "--held-out",
        help="Prompts that the search never sees.  [default: every other one of --prompts, or the model's]",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option("--limit", min=1, help="How many prompts of each kind, from the first.  [default: 16]"),
]
Trials = Annotated[int, typer.Option("--trials", min=1, help="Of the whole search, whoever makes them.")]
Minutes = Annotated[float | None, typer.Option("--minutes", min=0.01, help="Begin no trial after that time.")]
GuessSeed = Annotated[int, typer.Option("--seed", min=0, help="Of the search's guesses.")]
Folder = Annotated[
    Path, typer.Option("--folder", help="Keeps the search and its uncached clips; processes may share it.")
]
Storage = Annotated[
    str | None,
    typer.Option("--storage", metavar="URL", help="Keep the search there: sqlite:///tune.db, postgresql://..."),
]
TrialsOnly = Annotated[
    bool, typer.Option("--trials-only", help="Add trials to a search that another process ends, and write nothing.")
]


def tune(
    ctx: typer.Context,
    target: Target,
    out: Out = Path("tuned.toml"),
    quality: Quality = "psnr",
    in_the_mean: InTheMean = False,
    policy: Among = None,
    prompts: has.TuningPrompts = None,
    held_out: HeldOut = None,
    limit: Limit = None,
    seeds: has.Seeds = 1,
    trials: Trials = 16,
    minutes: Minutes = None,
    seed: GuessSeed = 0,
    folder: Folder = Path("mixcache-tune"),
    storage: Storage = None,
    trials_only: TrialsOnly = False,
    model: has.Model = "tiny_wan",
    negative_prompt: has.Negative = None,
    steps: has.Steps = None,
    guidance: has.Guidance = None,
    frames: has.Frames = None,
    height: has.Height = None,
    width: has.Width = None,
    device: has.Device = "auto",
    dtype: has.Dtype = None,
) -> None:
    """Search for the recipe that keeps a target on a model, and write it as a settings file.

    Policies, bases, forecasters, thresholds and masks are searched on tuning prompts; what is found is tried on
    held-out ones, and said to keep the target or to miss it. Interrupt it whenever you like: the same command goes on
    from there.

    - `mixcache tune --target "psnr>=40" --out tuned.toml`

    - `mixcache tune --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --prompts prompts.txt --target "speedup>=2.5"`

    - Then: `mixcache generate --policy tuned.toml ...`

    - A second process or machine that helps: the same command with `--trials-only`.
    """
    _run(ctx)


def _run(ctx: typer.Context) -> None:
    """What the command does; its options are the context's."""
    from mixcache.bench.extras import check_extras
    from mixcache.bench.loading import load
    from mixcache.cli import console
    from mixcache.study.tuning import PROMPTS
    from mixcache.study.tuning import tune as search

    check_extras("mixcache tune", "skimage", "transformers", "accelerate", "ftfy")
    given = ctx.params
    out, limit = given["out"], given["limit"]
    if out.suffix != ".toml" or not out.parent.is_dir():
        raise ConfigurationError(f"--out must name a .toml file in a folder that is there, got {str(out)!r}.")
    ours, theirs = _prompts(given["prompts"], given["held_out"], limit)
    with console.loading(given["model"]):
        loaded = load(given["model"], given["device"], given["dtype"])
    with console.progress_bar() as bar:
        found = search(
            loaded,
            given["target"],
            prompts=ours or loaded.tuning[: limit or PROMPTS],
            held_out=theirs or loaded.held_out[: limit or PROMPTS],
            seeds=range(given["seeds"]),
            arguments=loaded.arguments(**has.call_options(ctx)),
            policies=given["policy"] or None,
            command=has.as_typed(ctx),
            sure=not given["in_the_mean"],
            confirm=not given["trials_only"],
            tell=bar.say,
            watch=bar.watch,
            **{name: given[name] for name in ("quality", "trials", "minutes", "seed", "folder", "storage")},
        )
    for line in found.lines():
        print(line)
    if not given["trials_only"]:
        found.save(out)
        print(f'wrote {out}: mixcache.enable(pipe, "{out}"), or --policy {out}')


def _prompts(tuning: Path | None, held_out: Path | None, limit: int | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Prompts to tune on and prompts to hold out; empty where the model's own are taken.

    A single file is for both: every other line is held out. Raises `ConfigurationError` for held-out prompts alone.
    """
    from mixcache.bench.loading import read_prompts

    if tuning is None:
        if held_out is not None:
            raise ConfigurationError(f"--held-out {held_out} needs --prompts FILE: those to tune on.")
        return (), ()
    listed = read_prompts(tuning)
    if held_out is not None:
        return listed[:limit], read_prompts(held_out)[:limit]
    if len(listed) < 2:
        raise ConfigurationError(f"--prompts {tuning} holds one prompt; give --held-out FILE, or more prompts.")
    return listed[::2][:limit], listed[1::2][:limit]

"""What the commands of the command line share: options, and errors that are one line."""

from __future__ import annotations

import functools
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mixcache.errors import ConfigurationError, MixcacheError
from mixcache.loading import FLAGS
from mixcache.loading import Model as Loaded

PROMPTS = 8
"""How many of a model's own prompts are taken, if not told."""


class Commands(TyperGroup):
    """The commands; `--debug` counts wherever it stands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Move `--debug` to the front."""
        rest = [argument for argument in args if argument != "--debug"]
        return super().parse_args(ctx, ["--debug"] * (len(rest) < len(args)) + rest)


def guarded(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose error is one line and exit code 2; an interruption one line and 130.

    A failure that mixcache did not foresee (a bug, no memory left) is one line and exit code 1.
    """

    @functools.wraps(function)
    def run(ctx: typer.Context, **options: Any) -> None:
        debug = bool(ctx.find_root().params.get("debug"))
        try:
            with warnings.catch_warnings():
                if not debug:  # those of the libraries say nothing to a user of the command line
                    warnings.simplefilter("ignore")
                function(ctx, **options)
        except KeyboardInterrupt as stop:
            _end(130, f"interrupted: {stop}" if str(stop) else "interrupted: nothing was written.")
        except (MixcacheError, OSError) as error:
            _end(2, f"error: {error}", debug)
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            _end(1, f"error: {type(error).__name__}: {error} (--debug shows where)", debug)

    return run


def _end(code: int, message: str, debug: bool = False) -> None:
    if debug:
        traceback.print_exc()
    print(f"mixcache: {' '.join(message.split())}", file=sys.stderr)
    raise typer.Exit(code)


def as_typed(ctx: typer.Context) -> str:
    """The command that makes the same results again: the options that were given, without --restart."""
    words = ["mixcache", str(ctx.info_name)]
    for option in ctx.command.params:
        source = ctx.get_parameter_source(str(option.name))
        if source is None or source.name != "COMMANDLINE" or option.name == "restart":
            continue
        values = ctx.params[str(option.name)]
        for value in values if isinstance(values, (list, tuple)) else [values]:
            words += [option.opts[0]] if value is True else [option.opts[0], str(value)]
    return shlex.join(words)


def call_options(ctx: typer.Context) -> dict[str, Any]:
    """The arguments of the pipeline's call, by its own names; `None` where the option was not given."""
    return {name: ctx.params.get(flag.strip("-").replace("-", "_")) for name, flag in FLAGS.items()}


def prompts_of(
    model: Loaded, given: tuple[str, ...] | None, own: tuple[str, ...], limit: int | None
) -> tuple[str, ...]:
    """The prompts of a file, or the model's `own`; the first `limit` of them.

    Raises `ConfigurationError` where there are neither.
    """
    if given is not None:
        return given[:limit]
    if not own:
        raise ConfigurationError(f"model {model.name!r} comes with no prompts; give --prompts FILE, one prompt a line.")
    return own[: limit or PROMPTS]


def rebuild_options(ctx: typer.Context) -> dict[str, str]:
    """What --policy falls back on where it says nothing after its @."""
    return {name: ctx.params[name] for name in ("basis", "forecast", "rule", "samples")}


POLICY = (
    "Policies with their parameters, 'easycache:threshold=0.05', joined by ' + '; after ' @ ' how to rebuild: "
    "'static:every=3 @ basis=noise forecast=linear:abscissa=sigma'. `mixcache plugins` lists them all."
)
Model = Annotated[str, typer.Option("--model", metavar="NAME|FOLDER|HUB_ID", help="The diffusers pipeline.")]
Basis = Annotated[
    str, typer.Option("--basis", help="What is kept of an output, where --policy does not say.", show_default=False)
]
Forecast = Annotated[
    str,
    typer.Option(
        "--forecast",
        help="How it is carried forward, where --policy does not say: 'linear', or 'step=linear cfg=hold'.",
        show_default=False,
    ),
]
Rule = Annotated[str, typer.Option("--rule", help="How several policies agree, where --policy does not say.")]
Samples = Annotated[str, typer.Option("--samples", help="Which sample of a batch decides: worst or mean.")]
Negative = Annotated[str | None, typer.Option("--negative-prompt", help="What not to show.")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Denoising steps.  [default: the model's]")]
Guidance = Annotated[float | None, typer.Option("--guidance", help="Guidance scale.  [default: the model's]")]
Frames = Annotated[int | None, typer.Option("--frames", min=1, help="Frames.  [default: the model's]")]
Height = Annotated[int | None, typer.Option("--height", min=1, help="Pixels.  [default: the model's]")]
Width = Annotated[int | None, typer.Option("--width", min=1, help="Pixels.  [default: the model's]")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...; auto takes CUDA if there is one.")]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="float32, bfloat16 or float16.  [default: float32 on a CPU, else bfloat16]"),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the noise.")]
Prompts = Annotated[
    Path | None, typer.Option("--prompts", help="A file, one prompt a line.  [default: the model's held-out ones]")
]
TuningPrompts = Annotated[
    Path | None, typer.Option("--prompts", help="A file, one prompt a line.  [default: the model's tuning ones]")
]
Limit = Annotated[
    int | None,
    typer.Option("--limit", min=1, help="Take the first so many.  [default: 8 of the model's, all of a file]"),
]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Seeds 0, 1, ... for each prompt.")]
Repeats = Annotated[int, typer.Option("--repeats", min=1, help="Pairs of runs a case; the median counts.")]
Audit = Annotated[
    bool,
    typer.Option("--audit", help="One more run a case, with the true error of every reuse beside the predicted one."),
]
Restart = Annotated[bool, typer.Option("--restart", help="Forget what --out holds, and measure anew.")]
Fps = Annotated[float, typer.Option("--fps", min=1, help="Frames a second of the file.")]
Trace = Annotated[Path | None, typer.Option("--trace", help="Write every decision to this JSON-lines file.")]

"""The options that commands share, and what becomes of them. Nothing here loads torch before a command runs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixcache.bench.flags import FLAGS, UNCACHED
from mixcache.errors import ConfigurationError

if TYPE_CHECKING:
    from mixcache.recipe import Recipe

CHOICES = {
    "rule": "How several votes become a verdict: unanimous, any, majority, weighted or least_error.",
    "basis": "In which variable the past is kept: residual, output, noise, clean, ...",
    "forecast": "How the past is continued: hold, linear, taylor, ...; by level: 'step=linear cfg=hold'.",
    "anchor": "What an output is rebuilt around: input, zero, ...",
    "samples": "Which sample of a batch decides: worst, or mean.",
    "max_cache_bytes": "The most that the cache may hold; places without room are computed.",
    "offload": "cpu keeps the cache in main memory.",
    "audit": "Compute beside every reuse, to record its true error.",
    "on_error": "Where a plugin fails: raise, or compute and say so in the report.",
}
"""The choices of a `Recipe` beside its policies, and what their options say. A test holds the names to its fields."""

POLICY = (
    "Policies with their parameters, 'easycache:threshold=0.05', joined by ' + '; after ' @ ' the other choices: "
    "'static:every=3 @ basis=noise forecast=linear:abscissa=sigma'. Or a settings file, fast.toml. "
    "`mixcache plugins` lists them all."
)

VARIANT = f"{POLICY} Or steps=18: the plain pipeline with fewer steps."


def _choice(name: str) -> Any:
    """The option of a choice."""
    panel = "Choices, where --policy does not say"
    flag = f"--{name.replace('_', '-')}"
    return typer.Option(flag, help=CHOICES[name], show_default=False, rich_help_panel=panel)


Rule = Annotated[str | None, _choice("rule")]
Basis = Annotated[str | None, _choice("basis")]
Forecast = Annotated[str | None, _choice("forecast")]
Anchor = Annotated[str | None, _choice("anchor")]
Samples = Annotated[str | None, _choice("samples")]
MaxCacheBytes = Annotated[int | None, _choice("max_cache_bytes")]
Offload = Annotated[str | None, _choice("offload")]
OnError = Annotated[str | None, _choice("on_error")]
Evaluations = Annotated[
    int | None, typer.Option("--evaluations", min=1, help="Compute exactly so many evaluations of the run.")
]
Speedup = Annotated[
    float | None, typer.Option("--speedup", min=1, help="Evaluations of the run over those computed, at least.")
]
Model = Annotated[str, typer.Option("--model", metavar="NAME|FOLDER|HUB_ID", help="The diffusers pipeline.")]
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
Seed = Annotated[int, typer.Option("--seed", help="Seed of the noise, from 0 to 2**64 - 1.")]
Prompts = Annotated[
    Path | None, typer.Option("--prompts", help="A file, one prompt per line.  [default: the model's held-out ones]")
]
TuningPrompts = Annotated[
    Path | None, typer.Option("--prompts", help="A file, one prompt per line.  [default: the model's tuning ones]")
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit", min=1, help="How many prompts, from the first.  [default: 8 of the model's, all of a file]"
    ),
]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="How many seeds per prompt: 0, 1, ...")]
Repeats = Annotated[int, typer.Option("--repeats", min=1, help="Pairs of runs per case; the median counts.")]
QualityOnly = Annotated[
    bool,
    typer.Option("--quality-only", help="Time nothing: one run per case, one uncached run per prompt and seed."),
]
Rival = Annotated[
    bool,
    typer.Option(
        "--rival/--no-rival", help="Measure the plain pipeline with fewer steps, at about as many evaluations."
    ),
]
Truth = Annotated[
    int | None,
    typer.Option("--truth", min=2, help="Compare also with a plain run of so many steps: the solver's own error."),
]
Regret = Annotated[
    int | None,
    typer.Option(
        "--regret",
        min=1,
        metavar="RUNS",
        help="Look for the best mask of every clip, with so many real runs at each budget: how far is every policy "
        "behind?",
    ),
]
Audit = Annotated[
    bool,
    typer.Option("--audit", help="One more run per case, with the true error of every reuse beside the predicted one."),
]
Restart = Annotated[bool, typer.Option("--restart", help="Forget what --out holds, and measure anew.")]
Fps = Annotated[float, typer.Option("--fps", min=1, help="Frames per second of the file.")]
Trace = Annotated[Path | None, typer.Option("--trace", help="Write every decision to this JSON-lines file.")]


def as_typed(ctx: typer.Context) -> str:
    """The command that makes the same results again: the options that were given, without --restart."""
    words = ["mixcache", str(ctx.info_name)]
    for option in ctx.command.params:
        source = ctx.get_parameter_source(str(option.name))
        if source is None or source.name != "COMMANDLINE" or option.name == "restart":
            continue
        values = ctx.params[str(option.name)]
        for value in values if isinstance(values, (list, tuple)) else [values]:
            flag = option.secondary_opts[0] if value is False else option.opts[0]
            words += [flag] if isinstance(value, bool) else [flag, str(value)]
    return shlex.join(words)


def call_options(ctx: typer.Context) -> dict[str, Any]:
    """The arguments of the pipeline's call, by its own names; `None` where the option was not given."""
    return {name: ctx.params.get(flag.strip("-").replace("-", "_")) for name, flag in FLAGS.items()}


def prompts_of(given: tuple[str, ...] | None, own: tuple[str, ...], limit: int | None) -> tuple[str, ...]:
    """The first `limit` of the prompts of a file, or of the model's own; empty if there are neither."""
    from mixcache.bench.comparison import PROMPTS

    return given[:limit] if given is not None else own[: limit or PROMPTS]


def recipe_of(text: str | None, ctx: typer.Context) -> Recipe | None:
    """What --policy says, and the choices' options where it says nothing; `None` for "none".

    Without --policy it is the recommended recipe if a speed is ordered, else none.

    Raises `ConfigurationError` for a name or a value that cannot be, and for choices that "none" has no use for.
    """
    given = {name: ctx.params[name] for name in CHOICES if ctx.params.get(name) is not None}
    given.pop("audit", None)  # of `compare`, where it means one more run
    orders = {name: ctx.params[name] for name in ("evaluations", "speedup") if ctx.params.get(name) is not None}
    choices = {name: _by_level(value) for name, value in given.items()}
    if text is None and orders:
        from mixcache.recipe import Recipe

        return Recipe.of(None, **choices).ordered(**orders)
    if text is None or text.strip() == UNCACHED:
        given |= orders
        if given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ConfigurationError(f"{flags}: with --policy none nothing is cached; name a policy, or leave it out.")
        return None
    return read_recipe(text, **choices).ordered(**orders)


def read_recipe(text: str, **choices: Any) -> Recipe:
    """A recipe from text, from the name of a settings file, or from "fast.toml @ ..." with choices of its own."""
    from attrs import asdict

    from mixcache.core.catalogue import spec_of
    from mixcache.recipe import Recipe
    from mixcache.spec import parse_recipe

    if text.strip().endswith(".toml"):
        return Recipe.from_toml(text, **choices)
    tree = parse_recipe(text)
    if len(tree.parts) > 1 or not tree.parts[0].name.endswith(".toml"):
        return Recipe.parse(text, **choices)
    file = Recipe.from_toml(tree.parts[0].name, **choices)
    policies = " + ".join(map(spec_of, file.policies))
    own = {name: value for name, value in asdict(file, recurse=False).items() if name != "policies"}
    return Recipe.parse(text.replace(tree.parts[0].name, policies, 1), **own)


def _by_level(value: Any) -> Any:
    """ "step=linear cfg=hold" -> a mapping; a spec for all levels, or what is no text, as it is."""
    from mixcache.core.points import Granularity
    from mixcache.spec import parse_choices

    levels = {granularity.value for granularity in Granularity}
    if not isinstance(value, str) or value.partition("=")[0] not in levels:
        return value
    return {choice.key: choice.text for choice in parse_choices(value)}


def check_trace(trace: Path | None, recipe: Recipe | None) -> None:
    """Raises `ConfigurationError` for a trace of nothing, and for one that cannot be written."""
    if trace is None:
        return
    if recipe is None:
        raise ConfigurationError(f"--trace {trace}: with --policy none nothing is decided; name a policy.")
    if trace.is_dir():
        raise ConfigurationError(f"--trace {trace} is a folder; give the name of a file.")
    if not trace.parent.is_dir():
        raise ConfigurationError(f"--trace {trace}: there is no folder {trace.parent}; make it first.")

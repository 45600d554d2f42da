"""The command line: `mixcache demo`, `generate`, `compare`, `calibrate` and `plugins`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from attrs import evolve
from rich.markup import escape

import mixcache
from mixcache import commands as has
from mixcache.calibration import save_calibration
from mixcache.generation import Variant
from mixcache.generation import generate as generate_one
from mixcache.loading import load, read_prompts
from mixcache.media import as_uint8, check_output, find_target, writable, write_clip

DEMO_POLICIES = (
    "easycache:threshold=0.05",
    "static:every=3 @ basis=noise forecast=linear:abscissa=sigma",
)
"""What `mixcache demo` shows beside the uncached clips."""

DEMO_PROMPTS = ("a red circle moving left", "a blue square moving up")
"""What `mixcache demo` asks of a model that comes with no prompts of its own."""

app = typer.Typer(
    cls=has.Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Caching for diffusion-transformer inference: what it gains, and what it costs.",
    epilog="Start with `mixcache demo`. Every command has examples: `mixcache generate --help`.",
)


def main() -> None:
    """The console entry point."""
    app(prog_name="mixcache")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mixcache {mixcache.__version__}")
        raise typer.Exit


@app.callback()
def _global(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Nothing to do before a command: its options are read where they matter."""


@app.command()
@has.guarded
def demo(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")] = Path("mixcache-demo"),
    model: has.Model = "tiny_wan",
    steps: has.Steps = None,
    seed: has.Seed = 0,
    device: has.Device = "auto",
    dtype: has.Dtype = None,
) -> None:
    """See it work: two prompts, uncached and cached two ways, as clips, a table and a report page.

    - `mixcache demo`

    - `mixcache demo --steps 30 --out mixcache-quick`
    """
    from mixcache import console
    from mixcache.compare import Comparison, check_variants

    variants = check_variants([Variant.parse(text) for text in DEMO_POLICIES])
    writable(out)
    with console.loading(model):
        loaded = load(model, device, dtype)
    comparison = Comparison(
        model=loaded,
        arguments=loaded.arguments(**has.call_options(ctx)),
        prompts=(loaded.held_out or DEMO_PROMPTS)[:2],
        seeds=(seed,),
        variants=variants,
        pictured=2,
    )
    try:
        _run(has.as_typed(ctx), comparison, out, restart=True)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("run it again; the demo always begins anew.") from None


@app.command()
@has.guarded
def generate(
    ctx: typer.Context,
    prompt: Annotated[str, typer.Option("--prompt", help="What to show.")],
    out: Annotated[Path, typer.Option("--out", help="A .mp4, .gif or (images) .png file, or a folder.")],
    policy: Annotated[str, typer.Option("--policy", metavar="POLICY", help=has.POLICY)] = "none",
    basis: has.Basis = "",
    forecast: has.Forecast = "",
    rule: has.Rule = "unanimous",
    samples: has.Samples = "worst",
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

    - `mixcache generate --prompt "a red circle moving left" --policy easycache:threshold=0.05 --out clip.mp4`

    - `mixcache generate --prompt "a cat" --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --policy static:every=2 --basis
      noise --forecast linear:abscissa=sigma --out clips`
    """
    from mixcache import console

    variant = Variant.parse(policy, **has.rebuild_options(ctx))
    check_output(out)
    if trace is not None:
        writable(trace.parent)
    with console.loading(model):
        loaded = load(model, device, dtype)
    arguments = loaded.arguments(**has.call_options(ctx))
    target = find_target(out, prompt, seed, loaded.makes_video)
    with console.progress_bar() as bar:
        bar.start(1, loaded.steps(arguments))
        made = generate_one(loaded, prompt, seed, arguments, variant, on_step=bar.step, trace=trace)
    write_clip(target, as_uint8(made.frames_FHWC), fps)
    print(made.report if made.report is not None else "uncached: every step was computed")
    print(f"denoising loop: {made.seconds:.2f} s")
    print(f"wrote {target}")


@app.command()
@has.guarded
def compare(
    ctx: typer.Context,
    policy: Annotated[
        list[str], typer.Option("--policy", metavar="POLICY", help=f"Once for each variant. {has.POLICY}")
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder for results, pictures and finished cases.")],
    basis: has.Basis = "",
    forecast: has.Forecast = "",
    rule: has.Rule = "unanimous",
    samples: has.Samples = "worst",
    prompts: has.Prompts = None,
    limit: has.Limit = None,
    seeds: has.Seeds = 2,
    repeats: has.Repeats = 1,
    audit: has.Audit = False,
    restart: has.Restart = False,
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
    """Measure policies against no caching: speed-up, evaluations, PSNR, SSIM, latents, cache size.

    Every case (prompt, seed, policy) is a cached run beside an uncached one. Interrupt it whenever you like: the same
    command goes on where it stopped. Writes results.md, results.json, speed_quality.png, contact_sheet.png, index.html.

    - `mixcache compare --policy easycache:threshold=0.05 --policy "static:every=3 @ basis=noise
      forecast=linear:abscissa=sigma" --out mixcache-compare`

    - What mixcache itself costs: `mixcache compare --policy static:every=1 --limit 2 --repeats 5 --out
      mixcache-overhead`
    """
    from mixcache import console
    from mixcache.compare import Comparison, check_variants

    variants = check_variants([Variant.parse(text, **has.rebuild_options(ctx)) for text in policy])
    listed = None if prompts is None else read_prompts(prompts)
    writable(out)
    with console.loading(model):
        loaded = load(model, device, dtype)
    listed = has.prompts_of(loaded, listed, loaded.held_out, limit)
    comparison = Comparison(
        model=loaded,
        arguments=loaded.arguments(**has.call_options(ctx)),
        prompts=listed,
        seeds=tuple(range(seeds)),
        variants=variants,
        repeats=repeats,
        audit=audit,
    )
    _run(has.as_typed(ctx), comparison, out, restart)


@app.command()
@has.guarded
def calibrate(
    ctx: typer.Context,
    policy: Annotated[str, typer.Argument(metavar="POLICY", help="Whose table: magcache, teacache or mixcache.")],
    out: Annotated[Path, typer.Option("--out", help="The .json file to write.")],
    prompts: has.TuningPrompts = None,
    limit: has.Limit = None,
    seeds: has.Seeds = 1,
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
    """Measure the table that a policy needs of a model; it is written at the end.

    - `mixcache calibrate magcache --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --prompts prompts.txt --out magcache.json`

    - Then: `mixcache generate --policy magcache:table=magcache.json ...`
    """
    from mixcache import console
    from mixcache.calibrate import Job, check_table, method_of
    from mixcache.calibrate import calibrate as measure

    method_of(policy)
    check_table(out)
    listed = None if prompts is None else read_prompts(prompts)
    with console.loading(model):
        loaded = load(model, device, dtype)
    listed = has.prompts_of(loaded, listed, loaded.tuning, limit)
    arguments = loaded.arguments(**has.call_options(ctx))
    job = Job(policy=policy, model=loaded, arguments=arguments, prompts=listed, seeds=tuple(range(seeds)))
    with console.progress_bar() as bar:
        table, summary = measure(job, evolve(bar.watch, call=bar.observed))
    save_calibration(out, table)
    print(f"{summary}\nwrote {out}: use it with --policy {policy}:table={out}")


@app.command()
@has.guarded
def plugins(
    ctx: typer.Context,
    kind: Annotated[
        str | None,
        typer.Option("--kind", help="Only policies, bases, forecasters, rules, signals or models."),
    ] = None,
) -> None:
    """List what is installed: policies, bases, forecasters, rules, signals and models, with their parameters.

    - `mixcache plugins --kind policies`
    """
    from mixcache import console

    for table in console.plugin_tables(kind):
        console.screen().print(table)


def _run(command: str, comparison: Any, out: Path, restart: bool) -> None:
    """Measure, print the table, write results and pictures."""
    from mixcache import console
    from mixcache.cases import CaseStore
    from mixcache.compare import compare as measure
    from mixcache.gallery import write_gallery
    from mixcache.results import caption, summarize, write_results

    store = CaseStore(out)
    store.open(comparison.settings, restart)
    with console.progress_bar() as bar:
        cases = measure(comparison, store, bar.watch)
    summaries = summarize(comparison, cases)
    write_results(out, command, comparison, cases, summaries)
    write_gallery(out, command, comparison, store, cases, summaries)
    screen = console.screen()
    screen.print(console.results_table(summaries))
    screen.print(escape(caption(comparison, summaries)))
    screen.print(f"wrote {escape(str(out))}: open {escape(str(out / 'index.html'))}")


if __name__ == "__main__":
    main()

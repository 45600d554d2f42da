"""`mixcache compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixcache.cli import options as has


def compare(
    ctx: typer.Context,
    policy: Annotated[
        list[str], typer.Option("--policy", metavar="POLICY", help=f"Once for each variant. {has.VARIANT}")
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder for results, pictures and finished cases.")],
    basis: has.Basis = None,
    forecast: has.Forecast = None,
    anchor: has.Anchor = None,
    rule: has.Rule = None,
    samples: has.Samples = None,
    max_cache_bytes: has.MaxCacheBytes = None,
    offload: has.Offload = None,
    on_error: has.OnError = None,
    prompts: has.Prompts = None,
    limit: has.Limit = None,
    seeds: has.Seeds = 2,
    repeats: has.Repeats = 1,
    quality_only: has.QualityOnly = False,
    rival: has.Rival = True,
    truth: has.Truth = None,
    audit: has.Audit = False,
    regret: has.Regret = None,
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
    """Measure policies against no caching and against fewer steps: speed-up, evaluations, quality, cache size.

    Every case (prompt, seed, policy) is a cached run beside an uncached one; plain runs with fewer steps are added, as
    a cache is worth what it gives above them. Interrupt it whenever you like: the same command goes on from there.
    Writes results.md, results.json, speed_quality.png, contact_sheet.png, index.html.

    - `mixcache compare --policy easycache:threshold=0.05 --policy "static:every=3 @ basis=noise
      forecast=linear:abscissa=sigma" --out mixcache-compare`

    - Many policies, without timing them: `mixcache compare --policy mixcache --policy steps=18 --quality-only --truth
      200 --out mixcache-quality`

    - How far from the best mask of each clip: `mixcache compare --policy mixcache --limit 2 --seeds 1 --quality-only
      --regret 40 --out mixcache-regret`

    - What mixcache itself costs: `mixcache compare --policy static:every=1 --limit 2 --repeats 5 --no-rival
      --out mixcache-overhead`
    """
    _run(ctx)


def _run(ctx: typer.Context) -> None:
    """What the command does; its options are the context's."""
    from mixcache.bench import comparing, gallery
    from mixcache.bench.cases import CaseStore
    from mixcache.bench.comparison import Comparison, as_variant, check_variants
    from mixcache.bench.extras import check_extras
    from mixcache.bench.loading import load, read_prompts
    from mixcache.bench.media import writable
    from mixcache.cli import console
    from mixcache.cli.results import show

    check_extras("mixcache compare")
    given = ctx.params
    variants = check_variants([as_variant(text, lambda text: has.recipe_of(text, ctx)) for text in given["policy"]])
    listed = None if given["prompts"] is None else read_prompts(given["prompts"])
    out = given["out"]
    writable(out)
    with console.loading(given["model"]):
        loaded = load(given["model"], given["device"], given["dtype"])
    comparison = Comparison(
        model=loaded,
        arguments=loaded.arguments(**has.call_options(ctx)),
        prompts=has.prompts_of(listed, loaded.held_out, given["limit"]),
        seeds=tuple(range(given["seeds"])),
        variants=variants,
        repeats=given["repeats"],
        quality_only=given["quality_only"],
        rival=given["rival"],
        truth=given["truth"],
        audit=given["audit"],
    )
    store = CaseStore(out).open(comparison.settings, given["restart"])
    with console.progress_bar() as bar:
        cases = comparing.compare(comparison, store, bar.watch)
    show(comparison, cases, gallery.write_report(out, has.as_typed(ctx), comparison, store), out)
    if given["regret"] is not None:
        from mixcache.cli.regret import show as show_regret
        from mixcache.study.running import oracle

        show_regret(comparison, cases, given["regret"], out, oracle)

"""`mixcache compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixcache.cli import options as has


def compare(
    ctx: typer.Context,
    policy: Annotated[
        list[str], typer.Option("--policy", metavar="POLICY", help=f"Once for each variant. {has.POLICY}")
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
    from mixcache.bench import comparing, gallery
    from mixcache.bench.cases import CaseStore
    from mixcache.bench.comparison import Comparison, check_recipes
    from mixcache.bench.extras import check_extras
    from mixcache.bench.loading import load, read_prompts
    from mixcache.bench.media import writable
    from mixcache.cli import console
    from mixcache.cli.results import show

    check_extras("mixcache compare")
    recipes = check_recipes([has.recipe_of(text, ctx) for text in policy])
    listed = None if prompts is None else read_prompts(prompts)
    writable(out)
    with console.loading(model):
        loaded = load(model, device, dtype)
    comparison = Comparison(
        model=loaded,
        arguments=loaded.arguments(**has.call_options(ctx)),
        prompts=has.prompts_of(listed, loaded.held_out, limit),
        seeds=tuple(range(seeds)),
        recipes=recipes,
        repeats=repeats,
        audit=audit,
    )
    store = CaseStore(out).open(comparison.settings, restart)
    with console.progress_bar() as bar:
        cases = comparing.compare(comparison, store, bar.watch)
    show(comparison, cases, gallery.write_report(out, has.as_typed(ctx), comparison, store), out)

"""`mixcache demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixcache.bench.flags import check_seed
from mixcache.cli import options as has

PROMPTS = ("a red circle moving left", "a blue square moving up")
"""What is asked of a model that comes with no prompts of its own."""


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
    from mixcache.bench import comparing, gallery
    from mixcache.bench.cases import CaseStore
    from mixcache.bench.comparison import Comparison
    from mixcache.bench.extras import check_extras
    from mixcache.bench.loading import load
    from mixcache.bench.media import writable
    from mixcache.cli import console
    from mixcache.cli.results import show
    from mixcache.core import catalogue

    check_seed(seed)
    check_extras("mixcache demo")
    writable(out)
    with console.loading(model):
        loaded = load(model, device, dtype)
    shown = next((folder.demo for folder in catalogue.pipelines().values() if folder.demo), ())
    comparison = Comparison(
        model=loaded,
        arguments=loaded.arguments(**has.call_options(ctx)),
        prompts=(loaded.held_out or PROMPTS)[:2],
        seeds=(seed,),
        variants=loaded.demo or shown,
        rival=False,
        pictured=2,
    )
    store = CaseStore(out).open(comparison.settings, restart=True)
    try:
        with console.progress_bar() as bar:
            cases = comparing.compare(comparison, store, bar.watch)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("run it again; the demo always begins anew.") from None
    show(comparison, cases, gallery.write_report(out, has.as_typed(ctx), comparison, store), out)

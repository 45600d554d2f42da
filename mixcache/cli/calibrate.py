"""`mixcache calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixcache.cli import options as has


def calibrate(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose table; `mixcache plugins --kind calibrators`.")],
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
    from attrs import evolve

    from mixcache.bench.loading import load, read_prompts
    from mixcache.cli import console
    from mixcache.core import catalogue
    from mixcache.study import calibration
    from mixcache.study.tables import save_calibration

    calibrator = calibration.find_calibrator(name)
    calibration.check_table(out)
    listed = None if prompts is None else read_prompts(prompts)
    with console.loading(model):
        loaded = load(model, device, dtype)
    job = calibration.Job(
        calibrator=calibrator,
        model=loaded,
        arguments=loaded.arguments(**has.call_options(ctx)),
        prompts=has.prompts_of(listed, loaded.tuning, limit),
        seeds=tuple(range(seeds)),
    )
    with console.progress_bar() as bar:
        table, summary = calibration.calibrate(job, evolve(bar.watch, call=bar.observed))
    save_calibration(out, table)
    flag = "--policy" if name in catalogue.policies() else "--forecast" if name in catalogue.forecasters() else None
    print(f"{summary}\nwrote {out}" + (f": use it with {flag} {name}:table={out}" if flag else ""))

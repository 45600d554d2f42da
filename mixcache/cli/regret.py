"""`mixcache compare --regret`: how far every case stays behind the best mask of its clip at as many evaluations."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import cattrs
from attrs import evolve
from rich import box
from rich.markup import escape
from rich.table import Table

from mixcache.bench.cases import Case
from mixcache.bench.comparison import Comparison
from mixcache.cli import console
from mixcache.core.files import write_whole
from mixcache.study.oracles import Best, Regret, budgets, regret


def show(comparison: Comparison, cases: Sequence[Case], runs: int, out: Path, oracle: Callable[..., Best]) -> None:
    """Find the best masks, with at most `runs` real runs for each clip and budget; print the regret, write regret.json.

    oracle: `mixcache.study.oracle`. Its runs are kept in the folder "oracle" of `out`: interrupted, or asked for more
    runs, it goes on from there.
    """
    cases = [case for case in cases if case.variant in comparison.labels]
    wanted = budgets(cases)
    best: list[Best] = []
    with console.progress_bar() as bar:
        watch = evolve(bar.watch, started=lambda *_: None)
        bar.start(len(wanted) * runs, comparison.steps)
        for prompt, seed, evaluations in wanted:
            best.append(
                oracle(
                    comparison.model,
                    prompt,
                    seed,
                    evaluations=evaluations,
                    runs=runs,
                    arguments=comparison.arguments,
                    folder=out / "oracle",
                    watch=watch,
                )
            )
            for _ in range(runs - best[-1].runs):  # it ended before its time
                bar.call()
            bar.tell(f"oracle at {evaluations} evaluations: {best[-1].trial.psnr:.1f} dB")
    found = regret(cases, best)
    told = {"runs": runs, "best": cattrs.unstructure(best), "regret": cattrs.unstructure(found)}
    write_whole(out / "regret.json", json.dumps(told, indent=2, default=str) + "\n")
    console.screen().print(_table(comparison, found, best))


def _table(comparison: Comparison, found: Sequence[Regret], best: Sequence[Best]) -> Table:
    """One row per variant: the regret's mean and its worst, on the latents and on the clip."""
    unfinished = sum(not one.finished for one in best)
    note = f"; {unfinished} of {len(best)} oracles ended by the number of runs" if unfinished else ""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1), title=f"regret against the best mask of each clip{note}")
    shown.add_column("variant", overflow="fold")
    for name in ("clips", "evaluations", "latents mean, dB", "worst", "PSNR mean, dB", "worst"):
        shown.add_column(name, justify="right")
    for label in dict.fromkeys(one.variant for one in found):
        rows = [one for one in found if one.variant == label]
        latents, psnr = [one.latents for one in rows], [one.psnr for one in rows]
        numbers = [statistics.fmean(latents), max(latents), statistics.fmean(psnr), max(psnr)]
        evaluations = statistics.fmean(one.evaluations for one in rows)
        shown.add_row(escape(label), str(len(rows)), f"{evaluations:.1f}", *(f"{number:+.1f}" for number in numbers))
    return shown

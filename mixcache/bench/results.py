"""From finished cases to numbers per variant: the table, results.md and results.json."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from mixcache.bench.cases import SCHEMA, Case, converter
from mixcache.bench.comparison import Comparison
from mixcache.core.files import write_whole


@frozen(kw_only=True)
class Spread:
    """A measure over the cases: its mean and its worst."""

    mean: float
    worst: float

    @classmethod
    def of(cls, values: Sequence[float], worst: Callable[[Iterable[float]], float]) -> Spread:
        """Mean and worst; NaN in any case stays NaN."""
        if any(math.isnan(value) for value in values):
            return cls(mean=math.nan, worst=math.nan)
        return cls(mean=statistics.fmean(values), worst=worst(values))


@frozen(kw_only=True)
class Summary:
    """One variant (a recipe, as text) over all its cases.

    speedup: wall-clock of the denoising loop, median over the cases. ideal_speedup: model evaluations uncached over
    evaluations made, both summed. seconds, uncached_seconds: of one loop, medians. evaluations: mean per case.
    """

    variant: str
    cases: int
    speedup: float
    ideal_speedup: float
    seconds: float
    uncached_seconds: float
    evaluations: float
    evaluations_uncached: float
    psnr: Spread
    ssim: Spread
    latents_error: Spread | None
    cache_bytes: int

    @classmethod
    def of(cls, cases: Sequence[Case]) -> Summary:
        """The summary of the cases of one variant."""
        made = [case.report.evaluations for case in cases]
        uncached = [case.report.evaluations_uncached for case in cases]
        errors = [case.latents_error for case in cases if case.latents_error is not None]
        return cls(
            variant=cases[0].variant,
            cases=len(cases),
            speedup=statistics.median(case.speedup for case in cases),
            ideal_speedup=sum(uncached) / sum(made) if sum(made) else 1.0,
            seconds=statistics.median(statistics.median(case.cached_seconds) for case in cases),
            uncached_seconds=statistics.median(statistics.median(case.uncached_seconds) for case in cases),
            evaluations=statistics.fmean(made),
            evaluations_uncached=statistics.fmean(uncached),
            psnr=Spread.of([case.psnr for case in cases], min),
            ssim=Spread.of([case.ssim for case in cases], min),
            latents_error=Spread.of(errors, max) if len(errors) == len(cases) else None,
            cache_bytes=max(case.report.peak_bytes for case in cases),
        )


def summarize(comparison: Comparison, cases: Sequence[Case]) -> list[Summary]:
    """One summary per variant, in the order in which they were asked for."""
    return [Summary.of([case for case in cases if case.variant == label]) for label in comparison.labels]


HEADER = (
    "variant",
    "speed-up",
    "ideal",
    "of ideal",
    "evaluations",
    "PSNR dB (worst)",
    "SSIM (worst)",
    "latents rel. L2 (worst)",
    "cache bytes",
)


def rows(summaries: Sequence[Summary]) -> list[tuple[str, ...]]:
    """The table, one row per variant, the uncached first, as text under `HEADER`."""
    whole = _short(statistics.fmean(s.evaluations_uncached for s in summaries))
    table: list[tuple[str, ...]] = []
    table.append(("uncached", "1.000x", "1.000x", "1.000", f"{whole} of {whole}", "-", "-", "-", "0"))
    for s in summaries:
        table.append(
            (
                s.variant,
                f"{s.speedup:.3f}x",
                f"{s.ideal_speedup:.3f}x",
                f"{s.speedup / s.ideal_speedup:.3f}",
                f"{_short(s.evaluations)} of {_short(s.evaluations_uncached)}",
                f"{s.psnr.mean:.1f} ({s.psnr.worst:.1f})",
                f"{s.ssim.mean:.4f} ({s.ssim.worst:.4f})",
                "-" if s.latents_error is None else f"{s.latents_error.mean:.4f} ({s.latents_error.worst:.4f})",
                f"{s.cache_bytes:,}",
            )
        )
    return table


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def caption(comparison: Comparison, summaries: Sequence[Summary]) -> str:
    """One line under the table: what the numbers were measured on."""
    e = comparison.settings["environment"]
    seconds = statistics.median(s.uncached_seconds for s in summaries)
    runs = "" if comparison.repeats == 1 else f", {comparison.repeats} pairs of runs each"
    return (
        f"{comparison.model.name}, {comparison.model.steps(comparison.arguments)} steps: "
        f"{len(comparison.prompts)} prompts x {len(comparison.seeds)} seeds{runs}; "
        f"uncached loop {seconds:.2f} s on {e['device']} ({e['cpu']}, {e['threads']} threads), "
        f"torch {e['torch']}, diffusers {e['diffusers']}, mixcache {e['mixcache']}"
    )


AUDITED = ("audited", "reuses", "predicted error, mean", "true error, mean", "worst", "at", "bound", "deviation")


def audited(comparison: Comparison, cases: Sequence[Case]) -> list[tuple[str, ...]]:
    """The ledger, one row per variant, under `AUDITED`: relative L1 of outputs; bound, deviation: L2 of the latent."""
    table: list[tuple[str, ...]] = []
    for label in comparison.labels:
        own = [case for case in cases if case.variant == label]
        ledgers = [case.audit for case in own if case.audit is not None]
        reuses = [reuse for ledger in ledgers for reuse in ledger.reuses]
        if not reuses:
            continue
        predicted = [reuse.predicted for reuse in reuses if reuse.predicted is not None]
        worst = max(reuses, key=lambda reuse: reuse.true)
        bounds = [ledger.bound for ledger in ledgers if ledger.bound is not None]
        off = [case.latents_error for case in own if case.latents_error is not None]
        table.append(
            (
                label,
                f"{len(reuses) / len(ledgers):.1f}",
                f"{statistics.fmean(predicted):.4f}" if predicted else "-",
                f"{statistics.fmean(reuse.true for reuse in reuses):.4f}",
                f"{worst.true:.4f}",
                f"{worst.granularity} {worst.step}, {worst.branch}",
                f"{statistics.median(bounds):.3g} ({ledgers[0].kind})" if bounds else ledgers[0].why,
                f"{statistics.fmean(off):.4f}" if off else "-",
            )
        )
    return table


def _lines(header: Sequence[str], table: Sequence[Sequence[str]]) -> str:
    ruler = tuple("---" if column == 0 else "---:" for column in range(len(header)))
    lines = [header, ruler, *table]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def markdown(command: str, comparison: Comparison, cases: Sequence[Case], summaries: Sequence[Summary]) -> str:
    """The tables as markdown; the first line is the command that prints them."""
    ledger = audited(comparison, cases)
    parts = [f"`{command}`", _lines(HEADER, rows(summaries)), caption(comparison, summaries)]
    return "\n\n".join([*parts, *([_lines(AUDITED, ledger)] if ledger else [])]) + "\n"


def write_results(
    folder: Path, command: str, comparison: Comparison, cases: Sequence[Case], summaries: Sequence[Summary]
) -> None:
    """Write results.md and results.json (everything: command, settings, versions, summaries, all cases)."""
    write_whole(folder / "results.md", markdown(command, comparison, cases, summaries))
    everything: Mapping[str, Any] = {
        "schema": SCHEMA,
        "command": command,
        "model": comparison.model.name,
        "settings": comparison.settings,
        "prompts": comparison.prompts,
        "seeds": comparison.seeds,
        "variants": [{"label": label} for label in comparison.labels],
        "summaries": converter.unstructure(list(summaries)),
        "cases": converter.unstructure(list(cases)),
    }
    write_whole(folder / "results.json", json.dumps(everything, indent=2, default=str, allow_nan=False) + "\n")

"""The tables of a comparison: on the terminal, in results.md and results.json, and on the page."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixcache.bench.cases import SCHEMA, Case, CaseStore, converter
from mixcache.bench.comparison import Comparison
from mixcache.bench.flags import UNCACHED
from mixcache.bench.rival import Rival, is_plain
from mixcache.bench.statistics import spread
from mixcache.bench.summaries import Summary
from mixcache.core.files import write_whole

Column = tuple[str, Callable[[Summary], str]]
_HEADINGS = {"psnr": "PSNR dB", "ssim": "SSIM"}


def kept(comparison: Comparison, store: CaseStore) -> list[Case]:
    """The cases of a comparison that a folder holds.

    By prompt and seed the uncached run and the variants, in order; then, if the rival is wanted, every plain pipeline
    with fewer steps of which all prompts and seeds are there.
    """
    labels = [UNCACHED, *comparison.labels]
    keys = [(prompt, seed, label) for prompt, seed in comparison.pairs for label in labels]
    found = [store.cases[key] for key in keys if key in store.cases]
    plain = {case.variant: case.evaluations for case in store.cases.values() if is_plain(case)}
    for label in sorted(plain, key=lambda label: plain[label]) if comparison.has_rival else ():
        own = [store.cases.get((prompt, seed, label)) for prompt, seed in comparison.pairs]
        if label not in labels and all(own):
            found += [case for case in own if case is not None]
    return found


def summarize(comparison: Comparison, cases: Sequence[Case]) -> list[Summary]:
    """One summary for each variant with cases: the uncached run, the variants as they were asked for, the rival."""
    rival = Rival.of(cases)
    by_label: dict[str, list[Case]] = {label: [] for label in (UNCACHED, *comparison.labels)}
    for case in cases:
        if case.variant in by_label or is_plain(case):
            by_label.setdefault(case.variant, []).append(case)
    return [Summary.of(own, comparison.metrics, rival) for own in by_label.values() if own]


def table(comparison: Comparison, summaries: Sequence[Summary]) -> list[tuple[str, ...]]:
    """The table as text: the header, and a row for each summary. Columns that would be empty are left out.

    A measure is its mean, with half the width of the 95 % interval of the mean, and the worst clip in brackets.
    """
    columns = _columns(comparison, summaries)
    header = tuple(name for name, _ in columns)
    return [header, *(tuple(cell(summary) for _, cell in columns) for summary in summaries)]


def _columns(comparison: Comparison, summaries: Sequence[Summary]) -> list[Column]:
    columns: list[Column] = [("variant", _name)]
    if any(s.speedup is not None for s in summaries):
        columns += [("speed-up", _speedup), ("ideal", _ideal), ("of ideal", _of_ideal)]
    else:
        columns += [("ideal speed-up", _ideal)]
    columns += [("evaluations", lambda s: f"{_short(s.evaluations.mean)} of {_short(s.evaluations_uncached)}")]
    for name, metric in comparison.metrics.items():
        heading = _HEADINGS.get(name, f"{name} {metric.unit}".strip())
        columns += [(f"{heading} (worst)", _score(name, metric.digits))]
        if name == "psnr" and (comparison.has_rival or any(s.above_fewer_steps for s in summaries)):
            columns += [("above fewer steps dB (worst)", _above)]
    columns += [("latents rel. L2 (worst)", lambda s: "-" if s.variant == UNCACHED else spread(s.latents_error, 4))]
    if comparison.truth is not None:
        columns += [
            (f"to {comparison.truth} steps: latents (worst)", lambda s: spread(s.truth_error, 4)),
            ("PSNR dB (worst)", lambda s: spread(s.truth_psnr, 1)),
        ]
    return [*columns, ("cache bytes", lambda s: f"{s.cache_bytes:,}")]


def _name(summary: Summary) -> str:
    return "uncached" if summary.variant == UNCACHED else summary.variant


def _speedup(summary: Summary) -> str:
    if summary.variant == UNCACHED:
        return "1.000x"
    return "-" if summary.speedup is None else f"{summary.speedup:.3f}x"


def _ideal(summary: Summary) -> str:
    return f"{summary.ideal_speedup:.3f}x"


def _of_ideal(summary: Summary) -> str:
    return "-" if summary.speedup is None else f"{summary.speedup / summary.ideal_speedup:.3f}"


def _score(name: str, digits: int) -> Callable[[Summary], str]:
    """The cell of a metric. Of the uncached clip against itself there is nothing to say."""
    return lambda s: "-" if s.variant == UNCACHED and name in _HEADINGS else spread(s.scores[name], digits)


def _above(summary: Summary) -> str:
    if summary.variant == UNCACHED or summary.variant.startswith("steps="):
        return "-"
    return "outside" if summary.above_fewer_steps is None else spread(summary.above_fewer_steps, 1, "+")


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def caption(comparison: Comparison, summaries: Sequence[Summary]) -> str:
    """One line under the table: what the numbers were measured on."""
    e = comparison.settings["environment"]
    timed = [s.uncached_seconds for s in summaries if s.uncached_seconds is not None]
    runs = "" if comparison.repeats == 1 or not timed else f", {comparison.repeats} pairs of runs each"
    loop = f"uncached loop {statistics.median(timed):.2f} s" if timed else "not timed"
    return (
        f"{comparison.model.name}, {comparison.steps} steps: "
        f"{len(comparison.prompts)} prompts x {len(comparison.seeds)} seeds{runs}; "
        f"{loop} on {e['device']} ({e['cpu']}, {e['threads']} threads), "
        f"torch {e['torch']}, diffusers {e['diffusers']}, mixcache {e['mixcache']}"
    )


AUDITED = ("audited", "reuses", "predicted error, mean", "true error, mean", "worst", "at", "bound", "deviation")


def audited(comparison: Comparison, cases: Sequence[Case]) -> list[tuple[str, ...]]:
    """The ledger, one row per variant, under `AUDITED`: relative L1 of outputs; bound, deviation: L2 of the latent."""
    rows: list[tuple[str, ...]] = []
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
        rows.append(
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
    return rows


def _lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruler = tuple("---" if column == 0 else "---:" for column in range(len(header)))
    lines = [header, ruler, *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def markdown(command: str, comparison: Comparison, cases: Sequence[Case], summaries: Sequence[Summary]) -> str:
    """The tables as markdown; the first line is the command that prints them."""
    ledger = audited(comparison, cases)
    header, *rows = table(comparison, summaries)
    parts = [f"`{command}`", _lines(header, rows), caption(comparison, summaries)]
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

"""What `demo` and `compare` print at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from mixcache.bench.cases import Case
from mixcache.bench.comparison import Comparison
from mixcache.bench.results import caption, table
from mixcache.bench.summaries import Summary
from mixcache.cli.console import screen


def show(comparison: Comparison, cases: Sequence[Case], summaries: Sequence[Summary], out: Path) -> None:
    """The table, what it was measured on, recipes that reused nothing, and where the pictures are."""
    printed = screen()
    printed.print(results_table(comparison, summaries))
    printed.print(escape(caption(comparison, summaries)))
    for line in idle(cases):
        printed.print(escape(line))
    printed.print(f"wrote {escape(str(out))}: open {escape(str(out / 'index.html'))}")


def results_table(comparison: Comparison, summaries: Sequence[Summary]) -> Table:
    """Speed-up and quality, one row per variant."""
    header, *rows = table(comparison, summaries)
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for index, name in enumerate(header):
        shown.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        shown.add_row(*map(escape, row))
    return shown


def idle(cases: Sequence[Case]) -> Iterator[str]:
    """A line for each recipe that reused nothing in any case, with the reason that its report gives."""
    reports = [(case.variant, case.report) for case in cases if case.report is not None]
    reusing = {variant for variant, report in reports if any(visit.reused for visit in report.visits.values())}
    first = {variant: report for variant, report in reversed(reports) if variant not in reusing}
    for variant, report in reversed(first.items()):
        yield f"{variant} reused nothing: {'; '.join(report.notes) or 'its report says why'}"

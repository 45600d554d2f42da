"""What `demo` and `compare` print at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from mixcache.bench.cases import Case
from mixcache.bench.comparison import Comparison
from mixcache.bench.results import HEADER, Summary, caption, rows
from mixcache.cli.console import screen


def show(comparison: Comparison, cases: Sequence[Case], summaries: Sequence[Summary], out: Path) -> None:
    """The table, what it was measured on, recipes that reused nothing, and where the pictures are."""
    printed = screen()
    printed.print(results_table(summaries))
    printed.print(escape(caption(comparison, summaries)))
    for line in idle(cases):
        printed.print(escape(line))
    printed.print(f"wrote {escape(str(out))}: open {escape(str(out / 'index.html'))}")


def results_table(summaries: Sequence[Summary]) -> Table:
    """Speed-up and quality, one row per variant."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for index, name in enumerate(HEADER):
        table.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows(summaries):
        table.add_row(*row)
    return table


def idle(cases: Sequence[Case]) -> Iterator[str]:
    """A line for each recipe that reused nothing in any case, with the reason that its report gives."""
    reusing = {case.variant for case in cases if any(visit.reused for visit in case.report.visits.values())}
    first = {case.variant: case for case in reversed(cases) if case.variant not in reusing}
    for variant, case in reversed(first.items()):
        yield f"{variant} reused nothing: {'; '.join(case.report.notes) or 'its report says why'}"

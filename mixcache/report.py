"""The report: what a session's runs did, counted from their records."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from attrs import asdict, frozen
from rich.console import Console
from rich.table import Table

from mixcache.points import Granularity
from mixcache.trace import Record


@frozen(kw_only=True)
class GranularityReport:
    """One granularity: visits that computed or reused, the reasons, and the largest relative errors of a reuse.

    worst_true_error is known under `audit=True` alone.
    """

    computed: int
    reused: int
    reasons: dict[str, int]
    worst_predicted_error: float | None
    worst_true_error: float | None = None

    @property
    def ideal_speedup(self) -> float:
        """Visits over computed visits: the speed-up if reusing cost nothing."""
        return (self.computed + self.reused) / max(self.computed, 1)


@frozen(kw_only=True)
class Report:
    """A session's runs. `str(report)` is a table.

    runs: how many. visits: by granularity. evaluations: model evaluations made, of `evaluations_uncached`; one of which
    a guidance branch or a span of blocks was reused counts as the part of it that was computed.
    compute_seconds: time in the model (CPU only, else `None`). peak_bytes: the largest size of the cache.
    foreign_calls: model calls that belonged to no run that could be followed, and were computed. notes: what a user who
    expected more reuse should know.
    """

    runs: int
    visits: dict[str, GranularityReport]
    evaluations: float
    evaluations_uncached: int
    compute_seconds: float | None
    peak_bytes: int
    foreign_calls: int
    notes: tuple[str, ...] = ()

    @property
    def ideal_speedup(self) -> float:
        """Evaluations without the cache over evaluations made."""
        return self.evaluations_uncached / self.evaluations if self.evaluations else 1.0

    @classmethod
    def of(
        cls, records: Sequence[Record], *, calls: int, peak_bytes: int, foreign_calls: int, notes: tuple[str, ...] = ()
    ) -> Report:
        """Count the records of a session whose runs made `calls` model calls."""
        visits = {}
        for granularity in Granularity:
            here = [record for record in records if record.point.granularity is granularity]
            if here:
                errors = [r.outcome.predicted_error for r in here if r.outcome.predicted_error is not None]
                true = [r.outcome.true_error for r in here if r.outcome.true_error is not None]
                visits[granularity.value] = GranularityReport(
                    computed=sum(not record.outcome.reused for record in here),
                    reused=sum(record.outcome.reused for record in here),
                    reasons=dict(Counter(_reason(record) for record in here).most_common()),
                    worst_predicted_error=max(errors, default=None),
                    worst_true_error=max(true, default=None),
                )
        steps = [record for record in records if record.point.granularity is Granularity.STEP]
        seconds = [record.seconds for record in steps if not record.outcome.reused]
        return cls(
            runs=len({record.run for record in records}),
            visits=visits,
            evaluations=calls - math.fsum(record.point.share for record in records if record.outcome.reused),
            evaluations_uncached=calls,
            compute_seconds=sum(s for s in seconds if s is not None) if None not in seconds else None,
            peak_bytes=peak_bytes,
            foreign_calls=foreign_calls,
            notes=tuple(notes),
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {**asdict(self), "ideal_speedup": self.ideal_speedup}

    def __str__(self) -> str:
        text = io.StringIO()
        console = Console(file=text, width=110, force_terminal=False)
        table = Table(title="mixcache report", title_justify="left")
        for column in ("granularity", "computed", "reused", "ideal speed-up", "worst predicted error", "true"):
            table.add_column(column)
        for name, visit in self.visits.items():
            errors = [
                "-" if error is None else f"{error:.4f}"
                for error in (visit.worst_predicted_error, visit.worst_true_error)
            ]
            table.add_row(name, str(visit.computed), str(visit.reused), f"{visit.ideal_speedup:.2f}x", *errors)
        console.print(table)
        calls = f"{self.evaluations:g} of {self.evaluations_uncached} evaluations made in {self.runs} run(s)"
        console.print(f"{calls}: {self.ideal_speedup:.2f}x; cache at most {self.peak_bytes:,} bytes")
        for name, visit in self.visits.items():
            for reason, count in visit.reasons.items():
                console.print(f"  {name}: {count:4d}  {reason}", highlight=False)
        if self.foreign_calls:
            console.print(f"  {self.foreign_calls} calls belonged to no run of this pipeline and were computed")
        for note in self.notes:
            console.print(f"  note: {note}", highlight=False)
        if not self.visits:
            console.print("  nothing was visited: no policy decides here, or the model has not run yet")
        return text.getvalue().rstrip()


def _reason(record: Record) -> str:
    return f"{'reused' if record.outcome.reused else 'computed'}: {record.outcome.reason}"

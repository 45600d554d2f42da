"""The report: what a session's runs did, counted from their records."""

from __future__ import annotations

import io
import math
from collections import Counter
from typing import Any

from attrs import asdict, define, field, frozen
from rich.console import Console
from rich.table import Table

from mixcache.core.points import Granularity
from mixcache.core.trace import Record


@frozen(kw_only=True)
class Errors:
    """Relative errors (L1, dimensionless) of reuses: how many, their sum, the largest, and where that was."""

    count: int
    total: float
    worst: float
    at: str

    def joined(self, error: float, at: str) -> Errors:
        """With one more."""
        worst, where = (error, at) if not error <= self.worst else (self.worst, self.at)
        return Errors(count=self.count + 1, total=self.total + error, worst=worst, at=where)


@frozen(kw_only=True)
class StreamReport:
    """One of several streams of a granularity (video, sound).

    worst: by signal, at how many visits this stream had the worst value, the one that policies saw. true: its own
    errors, known under `audit=True` alone.
    """

    worst: dict[str, int]
    true: Errors | None = None


@frozen(kw_only=True)
class GranularityReport:
    """One granularity: visits that computed or reused, the reasons, and the errors of the reuses.

    predicted: by the policies, before the reuse. true: measured beside it, known under `audit=True` alone; the worst
    stream's. streams: each stream by itself, where there are several.
    """

    computed: int
    reused: int
    reasons: dict[str, int]
    predicted: Errors | None = None
    true: Errors | None = None
    streams: tuple[StreamReport, ...] = ()

    @property
    def ideal_speedup(self) -> float:
        """Visits over computed visits: the speed-up if reusing cost nothing."""
        return (self.computed + self.reused) / max(self.computed, 1)


REASONS_SHOWN = 12
REASONS_KEPT = 200
"""Different reasons that are counted by granularity; the others are counted together."""


@define
class _Stream:
    """The running count of one of several streams."""

    worst: Counter[str] = field(factory=Counter)
    true: Errors | None = None


@define
class _Count:
    """The running count of one granularity. reasons: by whether the visit was reused, and why."""

    computed: int = 0
    reused: int = 0
    reasons: dict[tuple[bool, str], int] = field(factory=dict)
    predicted: Errors | None = None
    true: Errors | None = None
    streams: list[_Stream] = field(factory=list)

    def by_stream(self, record: Record) -> None:
        """Count the streams of a record apart."""
        while len(self.streams) < len(record.streams):
            self.streams.append(_Stream())
        for count, one in zip(self.streams, record.streams):
            if one.true_error is not None:
                count.true = _with(count.true, one.true_error, record)
            else:
                told = [(name, value) for name, value in one.reading.items() if value is not None]
                count.worst.update(name for name, value in told if value == record.reading.get(name))

    def report(self) -> GranularityReport:
        """As it stands now, the commonest reasons first."""
        done = {True: "reused", False: "computed"}
        told = Counter({f"{done[reused]}: {reason}": n for (reused, reason), n in self.reasons.items()})
        return GranularityReport(
            computed=self.computed,
            reused=self.reused,
            reasons=dict(told.most_common()),
            predicted=self.predicted,
            true=self.true,
            streams=tuple(StreamReport(worst=dict(s.worst.most_common()), true=s.true) for s in self.streams),
        )


@define
class Tally:
    """The running count of a session's records, of constant size however many there are."""

    counts: dict[Granularity, _Count] = field(factory=dict)
    saved: Counter[float] = field(factory=Counter)
    estimated: int = 0
    seconds: float | None = 0.0

    def add(self, record: Record) -> None:
        """Count a record; one that only adds the true error of a reuse counts as that."""
        point, outcome = record.point, record.outcome
        count = self.counts.get(point.granularity)
        if count is None:
            count = self.counts[point.granularity] = _Count()
        if record.streams:
            count.by_stream(record)
        if outcome.true_error is not None:
            count.true = _with(count.true, outcome.true_error, record)
            return
        if outcome.saved:
            self.saved[outcome.saved] += 1
        reason = (outcome.reused, outcome.reason)
        if reason not in count.reasons and len(count.reasons) >= REASONS_KEPT:
            reason = (outcome.reused, "for other reasons")
        count.reasons[reason] = count.reasons.get(reason, 0) + 1
        if outcome.predicted_error is not None:
            count.predicted = _with(count.predicted, outcome.predicted_error, record)
        if outcome.reused:
            count.reused += 1
            self.estimated += record.exact
            return
        count.computed += 1
        if point.granularity is Granularity.STEP and self.seconds is not None:
            self.seconds = None if record.seconds is None else self.seconds + record.seconds


def _with(errors: Errors | None, error: float, record: Record) -> Errors:
    point = record.point
    where = "" if point.path == "step" else f", {point.path}"
    model = "" if point.component == "transformer" else f", {point.component}"
    at = f"run {record.run}, step {point.step}, {point.branch}{model}{where}"
    return Errors(count=1, total=error, worst=error, at=at) if errors is None else errors.joined(error, at)


@frozen(kw_only=True)
class Report:
    """A session's runs. `str(report)` is a table.

    runs: how many. visits: by granularity. evaluations: model evaluations made, of `evaluations_uncached`; one of which
    a guidance branch or a span of blocks was reused counts as the part that was computed, and what anchors cost is
    added. estimated: reuses that no history went into (their anchor alone).
    compute_seconds: time in the model (CPU only, else `None`). peak_bytes: the largest size of the cache.
    foreign_calls: model calls that belonged to no run that could be followed, and were computed. notes: what a user who
    expected more reuse should know.
    """

    runs: int
    visits: dict[str, GranularityReport]
    evaluations: float
    evaluations_uncached: int
    estimated: int
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
        cls, tally: Tally, *, runs: int, calls: int, peak_bytes: int, foreign_calls: int, notes: tuple[str, ...] = ()
    ) -> Report:
        """The report of a session whose `runs` runs made `calls` model calls."""
        return cls(
            runs=runs,
            visits={g.value: tally.counts[g].report() for g in Granularity if g in tally.counts},
            evaluations=calls - math.fsum(saved * count for saved, count in tally.saved.items()),
            evaluations_uncached=calls,
            estimated=tally.estimated,
            compute_seconds=tally.seconds,
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
        for column in ("granularity", "computed", "reused", "ideal speed-up", "predicted error: sum", "worst"):
            table.add_column(column)
        audited = any(visit.true for visit in self.visits.values())
        for column in ("true error: sum", "worst") if audited else ():
            table.add_column(column)
        for name, visit in self.visits.items():
            cells = [
                name,
                str(visit.computed),
                str(visit.reused),
                f"{visit.ideal_speedup:.2f}x",
                *_cells(visit.predicted),
            ]
            if audited:
                cells += _cells(visit.true)
            table.add_row(*cells)
        console.print(table)
        calls = f"{self.evaluations:g} of {self.evaluations_uncached} evaluations made in {self.runs} run(s)"
        console.print(f"{calls}: {self.ideal_speedup:.2f}x; cache at most {self.peak_bytes:,} bytes")
        for name, visit in self.visits.items():
            if visit.true is not None:
                console.print(
                    f"  {name}: largest true error {visit.true.worst:.4f} at {visit.true.at}", highlight=False
                )
            for i, stream in enumerate(visit.streams):
                console.print(f"  {name}, stream {i} of {len(visit.streams)}: {_told(stream)}", highlight=False)
            shown = list(visit.reasons.items())[:REASONS_SHOWN]
            for reason, count in shown:
                console.print(f"  {name}: {count:4d}  {reason}", highlight=False)
            if len(visit.reasons) > len(shown):
                rest = len(visit.reasons) - len(shown)
                console.print(f"  {name}:       and {rest} rarer reasons: to_dict() has all, the trace each visit's")
        if self.foreign_calls:
            console.print(f"  {self.foreign_calls} calls belonged to no run of this pipeline and were computed")
        for note in self.notes:
            console.print(f"  note: {note}", highlight=False)
        if not self.visits:
            console.print("  nothing was visited: no policy decides here, or the model has not run yet")
        return text.getvalue().rstrip()


def _told(stream: StreamReport) -> str:
    """One stream in words."""
    worst = ", ".join(f"{name} ({count})" for name, count in stream.worst.items())
    parts = [f"the worst (at so many visits) in {worst}"] if worst else []
    if stream.true is not None:
        parts.append(f"largest true error {stream.true.worst:.4f} at {stream.true.at}")
    return "; ".join(parts) or "never the worst"


def _cells(errors: Errors | None) -> tuple[str, str]:
    return ("-", "-") if errors is None else (f"{errors.total:.4f}", f"{errors.worst:.4f}")

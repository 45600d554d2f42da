"""The trace: a header, then one JSON line for every visit.

The header names the recipe as it was calibrated, so that a trace can be replayed by itself (`mixcache.study.replay`).
An audited reuse is written twice, the second time with its true error; `read` joins the two.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

import cattrs
from attrs import field, frozen
from cattrs.gen import make_dict_structure_fn

from mixcache.core.points import Address, Granularity, NoiseLevel, Outcome, Point, Reading, RunInfo, Verdict, Vote
from mixcache.errors import ConfigurationError, TraceError

SCHEMA = 3


@frozen(kw_only=True)
class Learned:
    """What was measured after the compute at `point`, and became known before a later vote."""

    point: Point
    reading: Reading


@frozen(kw_only=True)
class StreamRecord:
    """One of several streams of a visit: what was measured of it alone, and of an audited reuse its true error."""

    reading: Reading = field(factory=dict)
    true_error: float | None = None


@frozen(kw_only=True)
class Record:
    """What happened at one visit.

    exact: no history went into the value. dense: nothing was left out of it either. seconds: time spent computing
    (`None` if reused, or on an accelerator). learned: what earlier computes told, known from this visit on. streams:
    each stream by itself, where signals or an audit looked at several (video and sound); reading and true error of the
    visit are the worst of theirs. levels: on the first visit of a run, the noise levels of its evaluations as they were
    known when it began.
    """

    run: int
    point: Point
    reading: Reading
    votes: tuple[Vote, ...]
    verdict: Verdict
    outcome: Outcome
    exact: bool = True
    dense: bool = True
    seconds: float | None = None
    learned: tuple[Learned, ...] = ()
    streams: tuple[StreamRecord, ...] = ()
    levels: tuple[NoiseLevel, ...] = ()

    @property
    def visit(self) -> tuple[int, int, Address]:
        """Which visit this is: run, step and address."""
        return self.run, self.point.step, self.point.address

    @property
    def run_info(self) -> RunInfo:
        """The run that it is the first record of."""
        point = self.point
        return RunInfo(index=self.run, num_steps=point.num_steps, levels=self.levels or None, request=point.request)

    def to_json(self) -> str:
        """One line of JSON; numbers that are not finite are written as the strings "nan", "inf" and "-inf"."""
        return json.dumps(converter.unstructure(self), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Record:
        """The record of one line. Raises `TraceError` for any other line. Nothing in it is ever executed."""
        record: Record = _structured(line, cls)
        return record


@frozen(kw_only=True)
class Header:
    """What a trace is of: the recipe as it was asked for and as it was calibrated, the models by component (class and
    fingerprint of the weights), prompt and seed where they are known, and the versions of the libraries."""

    recipe: str
    calibrated: str
    models: Mapping[str, str] = field(factory=dict)
    prompt: str | None = None
    seed: int | None = None
    versions: Mapping[str, str] = field(factory=dict)
    schema: int = SCHEMA

    def to_json(self) -> str:
        """The first line of a trace."""
        return json.dumps({"header": converter.unstructure(self)}, allow_nan=False)


@frozen
class Trace:
    """A trace that was read: its header (`None` for one without), and its records in the order of the visits."""

    header: Header | None
    records: tuple[Record, ...]


def _strict(kind: type[Any]) -> Any:
    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ValueError(f"{value!r} is no {kind.__name__}")
        return value

    return structure


def _number(value: Any, _: Any = None) -> float:
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return float(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise ValueError(f"{value!r} is no number")


def _request(value: Any, _: Any) -> Hashable:
    if isinstance(value, (str, int)):
        return value
    raise ValueError(f"{value!r} is no key of a request")


def _finite(kind: type[Any], name: str, made: cattrs.Converter) -> Any:
    """Structures `kind`, of which the field `name` must be a finite number."""
    whole = make_dict_structure_fn(kind, made, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=False)

    def structure(value: Any, _: Any) -> Any:
        found = whole(value, kind)
        if not math.isfinite(getattr(found, name)):
            raise ValueError(f"{name} is {getattr(found, name)!r}")
        return found

    return structure


def _made_converter() -> cattrs.Converter:
    made = cattrs.Converter(forbid_extra_keys=True, detailed_validation=False)
    made.register_unstructure_hook(float, lambda v: v if math.isfinite(v) else str(v))
    made.register_structure_hook(float, _number)
    for kind in (int, str, bool):
        made.register_structure_hook(kind, _strict(kind))
    made.register_structure_hook(Granularity, lambda value, _: Granularity(value))
    made.register_structure_hook_func(lambda kind: kind is Hashable, _request)
    for record, name in ((Point, "share"), (Outcome, "saved")):
        made.register_structure_hook(record, _finite(record, name, made))
    made.register_unstructure_hook(
        Address,
        lambda a: {
            "request": a.request if isinstance(a.request, (str, int)) else str(a.request),
            "component": a.component,
            "branch": a.branch,
            "path": a.path,
        },
    )
    return made


converter = _made_converter()


def _structured(line: str, kind: Any) -> Any:
    try:
        return converter.structure(json.loads(line, parse_constant=_refuse), kind)
    except Exception as error:  # whatever a broken file makes of the reader
        raise TraceError(f"not a trace record ({type(error).__name__}: {error}): {line[:80]!r}") from error


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON number")


class Writer:
    """A trace file that is written while the model runs, line by line: what was recorded survives the process."""

    def __init__(self, path: str | Path, header: Header) -> None:
        try:
            self._file: TextIO = open(path, "w", 1, encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise ConfigurationError(
                f"cannot write the trace {str(path)!r}: {error.strerror}; give a file in a folder that is there."
            ) from error
        self._file.write(header.to_json() + "\n")

    def add(self, record: Record) -> None:
        """Write one record."""
        self._file.write(record.to_json() + "\n")

    def close(self) -> None:
        """Close the file; doing so twice is harmless."""
        self._file.close()


def write(path: str | Path, header: Header, records: Iterable[Record]) -> None:
    """Write a trace file, replacing what was there."""
    writer = Writer(path, header)
    try:
        for record in records:
            writer.add(record)
    finally:
        writer.close()


def read(path: str | Path) -> Trace:
    """A trace file. A last line that was cut short is left out; any other bad line is a `TraceError`."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise TraceError(f"cannot read the trace {str(path)!r}: {error.strerror}.") from error
    lines = [line for line in text.split("\n")[:-1] if line.strip()]  # a file cut short ends in part of a record
    header = None
    if lines and '"header"' in lines[0][:12]:
        header = _header(lines.pop(0))
    records: list[Record] = []
    for line in lines:
        amend(records, Record.from_json(line))
    return Trace(header, tuple(records))


def _header(line: str) -> Header:
    told = _structured(line, dict[str, Any])["header"]
    schema = told.get("schema") if isinstance(told, dict) else None
    if schema != SCHEMA:
        raise TraceError(f"trace has schema {schema!r}, this mixcache reads {SCHEMA}.")
    header: Header = _structured(json.dumps(told), Header)
    return header


def amend(records: list[Record], record: Record) -> None:
    """Put a record into a list; one with a true error takes the place of the same visit's earlier record."""
    if record.outcome.true_error is not None:
        for i in range(len(records) - 1, -1, -1):
            if records[i].visit == record.visit:
                records[i] = record
                return
    records.append(record)

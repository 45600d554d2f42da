"""The trace: one JSON line for every visited point, and its replay through policies without the model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

from mixcache.errors import TraceError
from mixcache.points import Granularity, NoiseLevel, Outcome, Point, Reading, RunInfo, Verdict, Vote, parse_granularity
from mixcache.policy import Policy
from mixcache.voting import Rule, decide, unanimous, voters

SCHEMA = 1


@frozen(kw_only=True)
class Record:
    """What happened at one visited point. `seconds`: time spent computing (`None` if reused, or on an accelerator)."""

    run: int
    point: Point
    reading: Reading
    votes: tuple[Vote, ...]
    verdict: Verdict
    outcome: Outcome
    exact: bool = True
    seconds: float | None = None

    def to_json(self) -> str:
        """One line of JSON; numbers that are not finite are written as the strings "nan", "inf" and "-inf"."""
        fields = asdict(self, recurse=True)
        fields["outcome"].pop("reading")
        return json.dumps(_plain({"schema": SCHEMA, **fields}), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Record:
        """The record of one line; raises `TraceError` for a line that is none. Nothing in it is ever executed."""
        try:
            fields = json.loads(line)
            if fields["schema"] != SCHEMA:
                raise TraceError(f"trace has schema {fields['schema']!r}, this mixcache reads {SCHEMA}.")
            reading = {str(k): _number(v) for k, v in fields["reading"].items()}
            point = dict(fields["point"], granularity=parse_granularity(fields["point"]["granularity"]))
            if point["span"] is not None:
                point["span"] = (int(point["span"][0]), int(point["span"][1]))
            if point["level"] is not None:
                level = point["level"]
                numbers = {name: _number(level[name]) for name in ("sigma", "alpha", "until")}
                if numbers["sigma"] is None or numbers["alpha"] is None or not isinstance(level["prediction"], str):
                    raise ValueError(f"level is {level!r}")
                point["level"] = NoiseLevel(**{**level, **numbers})
            numbers = {name: _number(fields["outcome"][name]) for name in ("predicted_error", "true_error")}
            outcome = fields["outcome"] | numbers
            votes = tuple(Vote(**{**vote, "error": _number(vote["error"])}) for vote in fields["votes"])
            verdict = fields["verdict"] | {"error": _number(fields["verdict"]["error"])}
            _check(fields, point, verdict, outcome, *fields["votes"])
            return cls(
                run=int(fields["run"]),
                point=Point(**point),
                reading=reading,
                votes=votes,
                verdict=Verdict(**verdict),
                outcome=Outcome(reading=reading, **outcome),
                exact=bool(fields["exact"]),
                seconds=_number(fields["seconds"]),
            )
        except TraceError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise TraceError(f"not a trace record ({error}): {line[:80]!r}") from error


TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("run", "step", "num_steps", "blocks"), int),
    **dict.fromkeys(("branch", "site", "reason", "policy"), str),
    **dict.fromkeys(("leads", "veto", "reuse", "reused", "exact"), bool),
    **dict.fromkeys(("share", "weight"), (int, float)),
    "age": (int, type(None)),
    "choice": (str, type(None)),
}
"""What the fields of a record hold, wherever they stand in it."""


def _check(*parts: dict[str, Any]) -> None:
    """Raise `ValueError` for a field that holds another type than it should, or a number that is not finite."""
    for part in parts:
        for name in TYPES.keys() & part.keys():
            value, wanted = part[name], TYPES[name]
            good = isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))
            if not good or (isinstance(value, float) and not math.isfinite(value)):
                raise ValueError(f"{name} is {value!r}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Granularity):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _number(value: Any) -> float | None:
    if value in ("nan", "inf", "-inf"):
        return float(value)
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    raise ValueError(f"{value!r} is not a number")


def write(path: str | Path, records: Iterable[Record]) -> None:
    """Write a trace file, replacing what was there."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(record.to_json() + "\n" for record in records)


def read(path: str | Path) -> list[Record]:
    """The records of a trace file. A last line that was cut short is left out; any other bad line is a `TraceError`."""
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    lines = text.split("\n")
    whole, rest = lines[:-1], lines[-1]
    del rest  # a file that ends in a newline leaves "", one cut short leaves part of a record
    return [Record.from_json(line) for line in whole if line.strip()]


def replay(records: Sequence[Record], policies: Sequence[Policy], rule: Rule = unanimous) -> Iterator[Verdict]:
    """The verdicts that `policies` reach on the recorded readings, one a record, without the model.

    The recorded outcomes are what the policies observe, so the policies that made the trace reach the recorded
    verdicts (law 8); others are judged on the path that the trace took. Raises `TraceError` for a signal it lacks.
    """
    current, panel = None, voters(policies)
    for record in records:
        if record.run != current:
            current, panel = record.run, voters(policies)
            for voter in panel:
                voter.mixcache_run_started(RunInfo(index=record.run, num_steps=record.point.num_steps))
        for voter in panel:
            lacking = [signal for signal in voter.policy.signals if signal not in record.reading]
            if lacking and voter.seat(record.point).covers and (record.point.leads or not voter.follows):
                raise TraceError(f"the trace lacks signals that {voter.label!r} reads: {', '.join(lacking)}.")
        votes = [voter.mixcache_vote(record.point, record.reading) for voter in panel]
        yield decide([vote for vote in votes if vote is not None], rule)
        for voter in panel:
            voter.mixcache_observe(record.point, record.outcome)

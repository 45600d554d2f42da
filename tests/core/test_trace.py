"""The trace: every record survives writing, a torn file is read as far as it goes, a bad line is a clear error."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mixcache
from mixcache import Granularity, NoiseLevel, Outcome, Point, TraceError, Verdict, Vote, trace
from mixcache.errors import ConfigurationError
from mixcache.settings import CHOICES, read_settings
from mixcache.trace import Record
from tests.helpers import Scripted, state_of

NUMBERS = st.none() | st.floats(allow_nan=False) | st.sampled_from([math.inf, -math.inf])
TEXT = st.text(max_size=8)


@st.composite
def a_record(draw: st.DrawFn) -> Record:
    level = st.builds(
        NoiseLevel,
        sigma=st.floats(0, 1),
        alpha=st.floats(0, 1),
        prediction=st.sampled_from(["flow", "epsilon", "v_prediction", "sample"]),
    )
    point = Point(
        granularity=draw(st.sampled_from(Granularity)),
        step=draw(st.integers(0, 99)),
        num_steps=100,
        branch=draw(TEXT),
        site=draw(TEXT),
        leads=draw(st.booleans()),
        span=draw(st.none() | st.tuples(st.integers(0, 9), st.integers(10, 20))),
        blocks=draw(st.integers(0, 20)),
        level=draw(st.none() | level),
    )
    reading = draw(st.dictionaries(TEXT, NUMBERS, max_size=3))
    votes = st.lists(
        st.builds(Vote.compute, TEXT, error=NUMBERS, weight=st.floats(0, 9), veto=st.booleans()), max_size=3
    )
    reused = draw(st.booleans())
    return Record(
        run=draw(st.integers(0, 9)),
        point=point,
        reading=reading,
        votes=tuple(vote.signed(draw(TEXT)) for vote in draw(votes)),
        verdict=Verdict(reuse=draw(st.booleans()), reason=draw(TEXT), error=draw(st.none() | st.floats(0, 1))),
        outcome=Outcome(
            reused=reused,
            reason=draw(TEXT),
            reading=reading,
            predicted_error=draw(NUMBERS),
            true_error=draw(NUMBERS),
            age=draw(st.none() | st.integers(0, 9)),
        ),
        exact=draw(st.booleans()),
        seconds=draw(st.none() | st.floats(0, 9)),
    )


@given(a_record())
def test_a_record_survives_writing(record: Record) -> None:
    line = record.to_json()
    assert "\n" not in line
    json.loads(line, parse_constant=pytest.fail)  # what JSON has no numbers for is written as text
    assert Record.from_json(line) == record


def test_nan_survives_writing() -> None:
    record = Record.from_json(json.dumps(fields(reading={"a": "nan", "b": "-inf"})))
    assert math.isnan(record.reading["a"])
    assert record.reading["b"] == -math.inf
    assert json.loads(record.to_json())["reading"] == {"a": "nan", "b": "-inf"}


def fields(**changes: Any) -> dict[str, Any]:
    record = Record(
        run=0,
        point=Point(granularity=Granularity.STEP, step=3, num_steps=9),
        reading={"a": 0.5},
        votes=(Vote.reuse("near", error=0.1).signed("p"),),
        verdict=Verdict(reuse=True, reason="p: near"),
        outcome=Outcome(reused=True, reason="p: near", reading={"a": 0.5}),
    )
    return {**json.loads(record.to_json()), **changes}


BAD = {
    "not JSON": "{",
    "an array": "[]",
    "a number": "7",
    "null": "null",
    "empty object": "{}",
    "another schema": json.dumps(fields(schema=2)),
    "unknown granularity": json.dumps(fields(point={**fields()["point"], "granularity": "modules"})),
    "unknown field of a point": json.dumps(fields(point={**fields()["point"], "import os": 1})),
    "a span of one": json.dumps(fields(point={**fields()["point"], "span": [1]})),
    "a reading that is text": json.dumps(fields(reading={"a": "__import__('os')"})),
    "a reading that is true": json.dumps(fields(reading={"a": True})),
    "a veto to reuse": json.dumps(fields(votes=[{**fields()["votes"][0], "veto": True}])),
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("line", BAD.values(), ids=BAD)
def test_a_bad_line_is_a_trace_error(line: str, tmp_path: Path) -> None:
    good = json.dumps(fields())
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(TraceError, match="trace") as info:
        trace.read(path)
    assert len(str(info.value)) < 500


@given(st.integers(0, 10_000))
def test_a_torn_file_is_read_as_far_as_it_goes(cut: int) -> None:
    lines = [json.dumps(fields(run=i)) + "\n" for i in range(3)]
    text = "".join(lines)[:cut]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.jsonl")
        path.write_text(text)
        assert [record.run for record in trace.read(path)] == list(range(text.count("\n")))


def test_bytes_that_are_no_text_are_a_trace_error(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(b"\xff\xfe\x00\n")
    with pytest.raises(TraceError):
        trace.read(path)


def test_the_trace_is_on_disk_while_the_run_goes_on(tmp_path: Path) -> None:
    """Line by line: what was recorded survives whatever happens to the process."""
    path, model = tmp_path / "trace.jsonl", Scripted()
    with mixcache.enable(model, "static", trace=path) as session, session.run(5) as run:
        for step in range(5):
            with run.step(step), run.branch("cond"):
                model(torch.zeros(1))
            assert trace.read(path) == session.records
            assert len(session.records) == step + 1
    session.save_trace(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_text() == path.read_text()


def test_a_trace_file_that_cannot_be_written_attaches_nothing(tmp_path: Path) -> None:
    model = Scripted()
    before = state_of(model)
    with pytest.raises(OSError, match="nowhere"):
        mixcache.enable(model, "static", trace=tmp_path / "nowhere" / "trace.jsonl")
    assert state_of(model) == before


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything in a record that could be replaced."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [found for key, item in inner for found in places(item, (*path, key))]


@given(st.data(), JSON)
def test_whatever_stands_in_a_record_it_is_read_or_refused(data: st.DataObject, junk: Any) -> None:
    """Nothing but a `TraceError` comes out of a line, and what is read is a record that can be written again."""
    whole = fields()
    *way, last = data.draw(st.sampled_from(places(whole)))
    inside = whole
    for key in way:
        inside = inside[key]
    inside[last] = junk
    try:
        record = Record.from_json(json.dumps(whole))
    except TraceError:
        return
    assert Record.from_json(record.to_json()).to_json() == record.to_json()
    with contextlib.suppress(TraceError):
        list(trace.replay([record], mixcache.plugins.build_policies("easycache + static")))


@pytest.mark.parametrize("number", ["Infinity", "NaN", "1e999", '"inf"'])
@pytest.mark.parametrize("name", ["share", "weight"])
def test_shares_and_weights_are_finite(name: str, number: str) -> None:
    line = json.dumps(fields()).replace(f'"{name}": 1.0', f'"{name}": {number}')
    assert line != json.dumps(fields())
    with pytest.raises(mixcache.TraceError):
        Record.from_json(line)


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_file_is_a_trace_or_a_trace_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.jsonl")
        path.write_bytes(content)
        with contextlib.suppress(TraceError):
            assert isinstance(trace.read(path), list)


@given(st.text(max_size=200), st.dictionaries(st.sampled_from([*CHOICES, "import"]), JSON, max_size=3))
def test_any_settings_file_is_settings_or_refused(text: str, values: dict[str, Any]) -> None:
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    with tempfile.TemporaryDirectory() as folder:
        for content in (text, "\n".join(lines), "policies = 'static'\n" + "\n".join(lines)):
            path = Path(folder, "some.toml")
            path.write_text(content, encoding="utf-8", errors="replace")
            try:
                settings = read_settings(path)
            except ConfigurationError:
                continue
            assert set(settings) <= set(CHOICES)

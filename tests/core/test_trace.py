"""The trace: header and records survive writing, a torn file is read as far as it goes, a bad line is a clear error."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

import mixcache
from mixcache import (
    Address,
    ConfigurationError,
    Granularity,
    NoiseLevel,
    Outcome,
    Point,
    TraceError,
    Verdict,
    Vote,
    study,
)
from mixcache.core import trace
from mixcache.core.trace import Header, Learned, Record, Trace
from tests.helpers import Scripted, state_of

NUMBERS = st.none() | st.floats(allow_nan=False) | st.sampled_from([math.inf, -math.inf])
TEXT = st.text(max_size=8)
COUNT = st.integers(0, 99)
READING = st.dictionaries(TEXT, NUMBERS, max_size=3)
SPEC = st.none() | TEXT

LEVEL = st.builds(
    NoiseLevel,
    sigma=st.floats(0, 1),
    alpha=st.floats(0, 1),
    prediction=st.sampled_from(["flow", "epsilon", "v_prediction", "sample"]),
    until=st.none() | st.floats(0, 1),
)
POINT = st.builds(
    Point,
    granularity=st.sampled_from(Granularity),
    step=COUNT,
    num_steps=st.just(100),
    address=st.builds(Address, request=TEXT | st.integers(), component=TEXT, branch=TEXT, path=TEXT),
    leads=st.booleans(),
    span=st.none() | st.tuples(st.integers(0, 9), st.integers(10, 20)),
    blocks=COUNT,
    share=st.floats(0, 1),
    level=st.none() | LEVEL,
    age=st.none() | COUNT,
    gap=st.none() | COUNT,
    run_length=COUNT,
)
VOTE = st.builds(Vote.compute, TEXT, error=NUMBERS, weight=st.floats(0, 9), veto=st.booleans()) | st.builds(
    Vote.reuse, TEXT, error=NUMBERS, weight=st.floats(0, 9), forecast=SPEC, anchor=SPEC
)
RECORD = st.builds(
    Record,
    run=COUNT,
    point=POINT,
    reading=READING,
    votes=st.lists(st.builds(Vote.signed, VOTE, TEXT), max_size=3).map(tuple),
    verdict=st.builds(
        Verdict, reuse=st.booleans(), reason=TEXT, error=st.none() | st.floats(0, 1), forecast=SPEC, anchor=SPEC
    ),
    outcome=st.builds(
        Outcome,
        reused=st.booleans(),
        reason=TEXT,
        reading=READING,
        predicted_error=NUMBERS,
        true_error=NUMBERS,
        saved=st.floats(-1, 1),
    ),
    exact=st.booleans(),
    dense=st.booleans(),
    seconds=st.none() | st.floats(0, 9),
    learned=st.lists(st.builds(Learned, point=POINT, reading=READING), max_size=2).map(tuple),
)
HEADER = st.builds(
    Header,
    recipe=TEXT,
    calibrated=TEXT,
    models=st.dictionaries(TEXT, TEXT, max_size=2),
    prompt=st.none() | TEXT,
    seed=st.none() | st.integers(),
    versions=st.dictionaries(TEXT, TEXT, max_size=2),
)


@given(RECORD)
def test_a_record_survives_writing(record: Record) -> None:
    line = record.to_json()
    assert "\n" not in line
    json.loads(line, parse_constant=pytest.fail)  # what JSON has no numbers for is written as text
    assert Record.from_json(line) == record


@given(HEADER, st.lists(RECORD, max_size=3, unique_by=lambda record: record.visit))
def test_a_trace_survives_writing(header: Header, records: list[Record]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.jsonl")
        trace.write(path, header, records)
        assert trace.read(path) == Trace(header, tuple(records))


@given(st.lists(RECORD, min_size=1, max_size=4, unique_by=lambda record: record.visit), st.data())
def test_an_audited_visit_is_one_record_with_its_error(records: list[Record], data: st.DataObject) -> None:
    """It is written twice, as it is only known afterwards how far off it was, and read as one, in its place."""
    plain = [evolve(record, outcome=evolve(record.outcome, true_error=None)) for record in records]
    index = data.draw(st.integers(0, len(plain) - 1))
    audited = evolve(plain[index], outcome=evolve(plain[index].outcome, true_error=0.5))
    kept: list[Record] = []
    for record in [*plain, audited]:
        trace.amend(kept, record)
    assert kept == [*plain[:index], audited, *plain[index + 1 :]]


def test_a_request_of_any_key_is_written_as_text() -> None:
    """A trace is data: a key that is no text or whole number is told by how it prints."""
    record = Record.from_json(json.dumps(fields()))
    for key, told in (("a", "a"), (7, 7), (("a", 1), "('a', 1)"), (None, "None"), (0.5, "0.5")):
        point = evolve(record.point, address=Address(request=key))
        assert Record.from_json(evolve(record, point=point).to_json()).point.request == told


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
    "a schema of its own": json.dumps(fields(schema=2)),
    "unknown granularity": json.dumps(fields(point={**fields()["point"], "granularity": "modules"})),
    "unknown field of a point": json.dumps(fields(point={**fields()["point"], "import os": 1})),
    "a place that is none": json.dumps(fields(point={**fields()["point"], "address": "step"})),
    "a request that is a list": json.dumps(fields(point={**fields()["point"], "address": {"request": []}})),
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


HEAD = Header(recipe="static", calibrated="static")
BAD_HEADERS = {
    "another schema": json.dumps({"header": {**json.loads(HEAD.to_json())["header"], "schema": 1}}),
    "no schema": json.dumps({"header": {"recipe": "static", "calibrated": "static"}}),
    "no recipe": json.dumps({"header": {"schema": 2, "calibrated": "static"}}),
    "an unknown field": json.dumps({"header": {**json.loads(HEAD.to_json())["header"], "import os": 1}}),
    "a number": json.dumps({"header": 7}),
    "half": '{"header": {"recipe"',
}


@pytest.mark.parametrize("line", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_a_bad_header_is_a_trace_error(line: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{line}\n{json.dumps(fields())}\n")
    with pytest.raises(TraceError, match="trace") as info:
        trace.read(path)
    assert len(str(info.value)) < 500


def test_a_header_says_what_the_trace_is_of(tmp_path: Path) -> None:
    """The recipe with the tables of the model, which the recipe that was asked for lacks, and what was run."""
    table = mixcache.Calibration(policy="magcache", values={"ratios": {"cond": [1.0, 0.5, 0.5]}})
    adapter = mixcache.ModelAdapter(model="Scripted", calibrations=(table,))
    model, path = Scripted(), tmp_path / "trace.jsonl"
    with mixcache.enable(model, "magcache:at=step @ basis=output", adapter=adapter) as session:
        session.save_trace(path, prompt="a cat", seed=3)
    header = trace.read(path).header
    assert header == session.header("a cat", 3)
    assert header is not None
    assert header.recipe == "magcache:at=step @ basis=output"
    assert mixcache.parse(header.calibrated) == session.calibrated
    assert session.calibrated.policies[0].ratios == (("cond", (1.0, 0.5, 0.5)),)
    assert (header.prompt, header.seed, header.schema) == ("a cat", 3, trace.SCHEMA)
    assert header.models.keys() == {"transformer"}
    assert header.models["transformer"].startswith("Scripted ")
    assert header.versions["torch"] == torch.__version__
    assert header.versions.keys() == {"mixcache", "torch", "diffusers"}


def test_a_file_without_a_header_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(json.dumps(fields()) + "\n")
    read = trace.read(path)
    assert read.header is None
    assert len(read.records) == 1


@given(st.integers(0, 10_000))
def test_a_torn_file_is_read_as_far_as_it_goes(cut: int) -> None:
    lines = [HEAD.to_json() + "\n", *(json.dumps(fields(run=i)) + "\n" for i in range(3))]
    text = "".join(lines)[:cut]
    whole = text.count("\n")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.jsonl")
        path.write_text(text)
        read = trace.read(path)
    assert read.header == (HEAD if whole else None)
    assert [record.run for record in read.records] == list(range(whole - 1))


def test_bytes_that_are_no_text_are_a_trace_error(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(b"\xff\xfe\x00\n")
    with pytest.raises(TraceError):
        trace.read(path)


def test_the_trace_is_on_disk_while_the_run_goes_on(tmp_path: Path) -> None:
    """Line by line: what was recorded survives whatever happens to the process.

    The first step is recorded with the second: what it showed is known only then.
    """
    path, model = tmp_path / "trace.jsonl", Scripted()
    with mixcache.enable(model, "static", trace=path) as session, session.run(5) as run:
        for step in range(5):
            with run.step(step), run.branch("cond"):
                model(torch.zeros(1))
            assert trace.read(path) == Trace(session.header(), tuple(session.records))
            assert len(session.records) == (step + 1 if step else 0)
    session.save_trace(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_text() == path.read_text()


@pytest.mark.parametrize("where", ["nowhere/trace.jsonl", "."])
def test_a_trace_file_that_cannot_be_written_attaches_nothing(where: str, tmp_path: Path) -> None:
    model = Scripted()
    before = state_of(model)
    with pytest.raises(ConfigurationError, match=r"cannot write the trace '.*': .*; give a file in a folder that is"):
        mixcache.enable(model, "static", trace=tmp_path / where)
    assert state_of(model) == before


def test_a_trace_that_is_no_file_name_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="`trace` must be the name of a file to write, got True"):
        mixcache.enable(Scripted(), "static", trace=True)


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
        list(study.replay(Trace(None, (record,)), "easycache + static"))


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
            assert isinstance(trace.read(path), Trace)

"""A place with several streams (video and sound): each is measured by itself, and the worst decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from attrs import define, evolve, field, frozen
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixcache import Granularity, Input, Point, Policy, Reading, Recipe, RunInfo, Signal, Tensors, Value, Vote
from mixcache.core.loop import Loop
from mixcache.core.report import Report, Tally
from mixcache.core.trace import Record, amend

STEPS = 8
FAST, SLOW = 0.5, 0.01
"""How far a stream moves from step to step, beside its own size of about one."""

Stream = tuple[list[Tensor], list[Tensor]]
"""What enters at every step, and what the model gives there."""


def stream(pace: float, seed: int = 0, shape: tuple[int, ...] = (2, 3), scale: float = 1.0) -> Stream:
    """A stream that moves at this pace."""
    generator = torch.Generator().manual_seed(seed)
    start, moves = torch.randn(shape, generator=generator), torch.randn(STEPS, *shape, generator=generator)
    entering = [scale * (start + pace * move) for move in moves.cumsum(0)]
    return entering, [x.flip(0) + 0.3 * x for x in entering]


def smoothed(t: Tensors) -> Tensor | None:
    """How far what enters is from its running mean, which the signal keeps."""
    mean = t.own.get("mean")
    t.own["mean"] = t.anchor.clone() if mean is None else (mean + t.anchor) / 2
    return None if mean is None else t.norm(t.anchor - mean) / t.norm(mean)


def likeness(t: Tensors) -> Tensor | None:
    """Near one where little has changed: a smaller one is worse."""
    before = t.previous("anchor")
    return None if before is None else t.norm(before) / (t.norm(before) + t.norm(t.anchor - before))


def twofold(reading: Reading) -> float | None:
    like = reading["likeness"]
    return None if like is None else 2 * like


OWN = (
    Signal(name="smoothed", measure=smoothed, keeps=True),
    Signal(name="likeness", measure=likeness, worst="min", reads=frozenset({"previous:anchor"})),
    Signal(name="twofold", derive=twofold, requires=("likeness",), worst="min"),
)


@frozen(kw_only=True)
class Reads(Policy):
    """Reads signals of every sort, and learns those that come late. It reuses while `smoothed` is small."""

    signals = (*OWN, "predicted_change", "output_change", "increment_change", "forecast_error", "sum(anchor_change)")
    granularities = frozenset(Granularity)
    threshold: float = 0.0
    learned: list[tuple[int, Reading]] = field(factory=list, eq=False)

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        value = reading["smoothed"]
        return Vote.reuse(error=value) if value is not None and value < self.threshold else Vote.compute()

    def learn(self, point: Point, reading: Reading, state: Any) -> None:
        self.learned.append((point.step, dict(reading)))


@define
class Ran:
    """A run: its records, and the values that it went on with."""

    records: list[Record]
    values: list[Value]
    tally: Tally

    @property
    def reused(self) -> list[int]:
        return [r.point.step for r in self.records if r.outcome.reused]


def ran(
    streams: Sequence[Stream],
    policy: Any,
    granularity: Granularity = Granularity.STEP,
    *,
    audit: bool = False,
    measured: int | None = None,
    **choices: Any,
) -> Ran:
    """A run of a place that these streams enter and leave."""
    records: list[Record] = []
    tally = Tally()

    def keep(record: Record) -> None:
        amend(records, record)
        tally.add(record)

    loop = Loop(Recipe.of(policy, **choices).plan(), RunInfo(index=0, num_steps=STEPS), keep)
    values = []
    for i in range(STEPS):
        entering, truth = (tuple(one[what][i] for one in streams) for what in (0, 1))
        point = Point(granularity=granularity, step=i, num_steps=STEPS, span=(0, 2), blocks=2)
        ticket = loop.open(point, Input(entering, measured=len(streams) if measured is None else measured))
        if ticket.output is None:
            values.append(loop.close(ticket, Value(truth)))
            continue
        values.append(ticket.output)
        if audit:
            loop.audit(ticket, truth)
    loop.end()
    assert loop.store.held_bytes == 0
    return Ran(records, values, tally)


EASY = "easycache:threshold=0.2,first_steps=2"


@pytest.mark.parametrize("place", [Granularity.STEP, Granularity.CFG])
@pytest.mark.parametrize("fast", [0, 1])
def test_the_stream_that_changes_fast_decides(fast: int, place: Granularity) -> None:
    """Alone the slow one would be reused; beside a fast one nothing is, whichever comes first."""
    policy = f"{EASY},at={place}"
    slow, quick = stream(SLOW), stream(FAST, seed=1, shape=(2, 5, 7), scale=20.0)
    assert ran([slow], policy, place).reused
    assert not ran([quick], policy, place).reused
    both = [quick, slow] if fast == 0 else [slow, quick]
    assert not ran(both, policy, place).reused


def test_where_nothing_else_is_declared_the_first_stream_decides() -> None:
    """At a span of blocks hidden states and those of the prompt have scales of their own."""
    slow, quick = stream(SLOW), stream(FAST, seed=1)
    found = ran([slow, quick], f"{EASY},at=block", Granularity.BLOCK, measured=1)
    assert found.reused == ran([slow], f"{EASY},at=block", Granularity.BLOCK).reused != []
    assert not any(record.streams for record in found.records)


def told(record: Record) -> str:
    """A record, but for its time and for its streams; as text, in which what is no number equals itself."""
    return evolve(record, seconds=None, streams=()).to_json()


@given(
    paces=st.lists(st.floats(0.0, 0.6), min_size=2, max_size=4),
    threshold=st.floats(0.01, 1.0),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_permuting_streams_changes_no_verdict(
    paces: list[float], threshold: float, seed: int, data: st.DataObject
) -> None:
    """Nor a reading, a vote, or an audited error; and what is known of each stream goes with it."""
    streams = [stream(pace, seed + i, (2, 3 + i), 10.0**i) for i, pace in enumerate(paces)]
    order = data.draw(st.permutations(range(len(streams))))
    policies = [Reads(threshold=threshold), f"easycache:threshold={threshold},first_steps=2"]
    one, other = (ran(found, policies, rule="any", audit=True) for found in (streams, [streams[i] for i in order]))
    assert list(map(told, other.records)) == list(map(told, one.records))
    for a, b in zip(one.records, other.records):
        assert repr(b.streams) == repr(tuple(a.streams[i] for i in order) if a.streams else ())
    for x, y in zip(one.values, other.values):
        assert all(torch.equal(x.streams[i], y.streams[place]) for place, i in enumerate(order))


def test_what_policies_see_is_the_worst_of_what_each_stream_alone_gives() -> None:
    """Of every sort of signal: the largest, or the smallest where a smaller one is worse. Nothing leaks between."""
    streams = [stream(0.1), stream(0.3, seed=1, shape=(2, 5)), stream(0.02, seed=2, scale=50.0)]
    together = Reads()
    found = ran(streams, together)
    each = []
    for one in streams:
        alone = Reads()
        each.append((ran([one], alone).records, alone.learned))
    seen = set()
    for i, record in enumerate(found.records):
        for name, value in record.reading.items():
            others = [records[i].reading[name] for records, _ in each]
            if name.startswith("sum("):
                continue
            worst = min if name in ("likeness", "twofold", "output_norm") else max
            assert value == (None if None in others else worst(others))
            assert [one.reading[name] for one in record.streams] == (others if record.streams else [])
            seen |= {name} if value is not None else set()
        if i:
            changes = [records[i].reading["anchor_change"] for records, _ in each]
            assert record.reading["sum(anchor_change)"] == max(changes)
    assert {"smoothed", "likeness", "twofold", "predicted_change", "forecast_error", "increment_change"} <= seen
    assert [step for step, _ in together.learned] == [step for step, _ in each[0][1]] != []
    for place, (_, reading) in enumerate(together.learned):
        for name, value in reading.items():
            others = [learned[place][1][name] for _, learned in each]
            assert value == (min(others) if name == "output_norm" else max(others))


def test_a_stream_that_is_not_finite_is_the_worst_in_any_order() -> None:
    for values in ([1.0, float("nan")], [float("nan"), 1.0], [float("inf"), float("nan")]):
        for worst in ("max", "min"):
            signal = evolve(OWN[0], worst=worst)
            assert signal.worst_of(values) != signal.worst_of(values)
    assert OWN[0].worst_of([1.0, 2.0]) == 2.0
    assert OWN[1].worst_of([1.0, 2.0]) == 1.0


# the audit


@pytest.mark.parametrize("samples", ["worst", "mean"])
def test_the_true_error_is_the_worst_stream_s_and_all_are_told_apart(samples: str) -> None:
    """Worked out beside it: what is held is the last residual of each stream."""
    streams = [stream(0.1), stream(0.3, seed=1, shape=(2, 5)), stream(0.02, seed=2, scale=50.0)]
    found = ran(streams, "schedule:10100111", audit=True, samples=samples)
    assert found.reused == [1, 3, 4]
    for record in found.records:
        if not record.outcome.reused:
            assert (record.outcome.true_error, record.streams) == (None, ())
            continue
        i, c = record.point.step, 0 if record.point.step < 2 else 2
        wanted = []
        for entering, truth in streams:
            away = truth[i] - (entering[i] + truth[c] - entering[c])
            rows = [(away[k].abs().mean() / truth[i][k].abs().mean()) for k in range(2)]
            wanted.append(float(max(rows) if samples == "worst" else away.abs().mean() / truth[i].abs().mean()))
        assert [one.true_error for one in record.streams] == pytest.approx(wanted, rel=1e-5)
        assert record.outcome.true_error == max(one.true_error or 0.0 for one in record.streams)
    assert [Record.from_json(record.to_json()) for record in found.records] == found.records


def test_the_report_tells_every_stream_apart() -> None:
    """Its own errors, and how often it had the worst value; of one stream alone nothing is told twice."""
    streams = [stream(SLOW), stream(FAST, seed=1)]
    found = ran(streams, [Reads(), "schedule:10101111"], rule="any", audit=True)
    report = Report.of(found.tally, runs=1, calls=STEPS, peak_bytes=0, foreign_calls=0, notes=())
    visit = report.visits["step"]
    for i, one in enumerate(visit.streams):
        errors = [r.streams[i].true_error or 0.0 for r in found.records if r.outcome.reused]
        assert one.true is not None
        assert (one.true.count, one.true.worst) == (len(errors), max(errors))
        assert one.true.total == pytest.approx(sum(errors))
        assert f"step, stream {i} of 2" in str(report)
        assert f"largest true error {max(errors):.4f} at {one.true.at}" in " ".join(str(report).split())
    measured = sum(r.reading["smoothed"] is not None for r in found.records)
    assert visit.streams[1].worst["smoothed"] == measured > 0
    assert "smoothed" not in visit.streams[0].worst
    assert report.to_dict()["visits"]["step"]["streams"][1]["worst"]["smoothed"] == measured
    alone = ran(streams[:1], [Reads(), "schedule:10101111"], rule="any", audit=True)
    alone_report = Report.of(alone.tally, runs=1, calls=STEPS, peak_bytes=0, foreign_calls=0, notes=())
    assert alone_report.visits["step"].streams == ()
    assert "stream" not in str(alone_report)

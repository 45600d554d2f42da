"""Replay: the recipe that made a trace reaches its verdicts again, and any other is judged or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

import mixcache
from mixcache import ConfigurationError, Recipe, TraceError, Vote
from mixcache.core import trace
from mixcache.study import replay
from tests.conftest import built
from tests.helpers import runs_of
from tests.zoo.tiny import Tiny


def recorded(tiny: Tiny, path: Path, policies: Any, steps: int = 12, **how: Any) -> trace.Trace:
    """The trace of one run."""
    with mixcache.enable(tiny.pipe, policies, trace=path, **how):
        tiny.run(steps)
    return trace.read(path)


def verdicts(read: trace.Trace) -> list[mixcache.Verdict]:
    return [record.verdict for record in read.records]


@pytest.mark.parametrize(
    "policies",
    [
        "teacache:threshold=0.2",
        "magcache:threshold=0.3",
        "mixcache:threshold=0.5",
        "mixcache:threshold=0.5,among=step/cfg/block",
        "mixcache:choice=paper,settle=9",
        "easycache:threshold=0.3,first_steps=3 + budget:total=0.1",
        "static:every=3 + cfg:every=2 + firstblock:threshold=0.3",
        "easycache:threshold=1,first_steps=3 + static:every=4 + window:longest_run=2 @ rule=majority basis=noise",
    ],
)
def test_a_trace_replays_by_its_own_header(policies: str, tmp_path: Path) -> None:
    """As it was calibrated: built from the same text without the model's tables, some of these decide otherwise."""
    path = tmp_path / "trace.jsonl"
    read = recorded(built("embedded"), path, policies)
    assert any(verdict.reuse for verdict in verdicts(read))
    assert list(replay(path)) == verdicts(read)
    assert list(replay(read)) == verdicts(read)
    assert list(replay(read, policies)) == verdicts(read)  # the text that the header names
    assert list(replay(read, Recipe.parse(policies))) == verdicts(read)


def test_several_runs_replay_each_by_itself(tmp_path: Path) -> None:
    tiny, path = built("wan"), tmp_path / "trace.jsonl"
    with mixcache.enable(tiny.pipe, "easycache:threshold=0.5,first_steps=2", trace=path):
        tiny.run(5)
        tiny.run(7, seed=2)
    assert set(runs_of(path)) == {0, 1}
    read = trace.read(path)
    whole = list(replay(read))
    assert whole == verdicts(read)
    one, two = ([r for r in read.records if r.run == run] for run in (0, 1))
    mixed = [record for pair in zip(one, two) for record in pair] + two[len(one) :]
    assert list(replay(evolve(read, records=tuple(mixed)))) == [record.verdict for record in mixed]


def test_what_a_plugin_voted_stands_when_its_trace_is_replayed(tmp_path: Path) -> None:
    class Plugin:
        @mixcache.hookimpl
        def mixcache_vote(self, point: mixcache.Point, reading: mixcache.Reading) -> Vote | None:
            return Vote.compute("not now", veto=True) if point.step == 3 else None

    plugin = mixcache.register(Plugin(), "cautious")
    try:
        read = recorded(built("wan"), tmp_path / "trace.jsonl", "static:every=4", steps=6)
    finally:
        mixcache.catalogue.manager().unregister(plugin)
    assert any("not now" in verdict.reason for verdict in verdicts(read))
    assert list(replay(read)) == verdicts(read)
    others = list(replay(read, "static:every=5"))
    assert not any("not now" in verdict.reason for verdict in others)


def test_another_rule_decides_the_same_votes(tmp_path: Path) -> None:
    read = recorded(built("wan"), tmp_path / "trace.jsonl", "static:every=2 + static:every=3", steps=7)
    assert read.header is not None
    any_of = list(replay(read, rule="any"))
    assert sum(verdict.reuse for verdict in any_of) > sum(verdict.reuse for verdict in verdicts(read)) > 0
    assert list(replay(read, "static:every=2 + static:every=3 @ rule=any")) == any_of


# what cannot be replayed


@pytest.mark.parametrize(
    ("policies", "says"),
    [
        ("cfg:every=2", r"policy 'cfg' decides at cfg; the trace holds visits at step alone"),
        ("firstblock", r"policy 'firstblock' decides at block; the trace holds visits at step alone"),
        ("static:every=2 + static:at=block", "decides at block"),
        ("mixcache:among=step/cfg/block", "'mixcache' decides at cfg, block"),
    ],
)
def test_a_policy_at_another_granularity_is_refused(policies: str, says: str, tmp_path: Path) -> None:
    """It would find no visit there, and "compute all" would be no answer."""
    read = recorded(built("wan"), tmp_path / "trace.jsonl", "static:every=3", steps=6)
    with pytest.raises(TraceError, match=says):
        replay(read, policies)


def test_a_policy_with_other_spans_is_refused(tmp_path: Path) -> None:
    read = recorded(built("wan"), tmp_path / "trace.jsonl", "static:at=block", steps=6)
    assert list(replay(read, "static:at=block,every=3"))
    with pytest.raises(TraceError, match=r"'static' decides about none of the places in the trace: blocks\[0:3\]"):
        replay(read, "static:at=block,blocks=1")


def test_a_guard_may_stand_anywhere(tmp_path: Path) -> None:
    read = recorded(built("wan"), tmp_path / "trace.jsonl", "static:every=2", steps=6)
    guarded = list(replay(read, "static:every=2 + window:first_steps=4"))
    assert not any(verdict.reuse for verdict, record in zip(guarded, read.records) if record.point.step < 4)
    assert any(verdict.reuse for verdict in verdicts(read))


def test_a_signal_that_the_trace_lacks_is_named(tmp_path: Path) -> None:
    read = recorded(built("wan"), tmp_path / "trace.jsonl", "static:every=2", steps=6)
    with pytest.raises(TraceError, match=r"lacks signals that 'easycache' reads: .*predicted_change"):
        list(replay(read, "easycache"))


def test_a_table_that_nobody_gave_is_asked_for(tmp_path: Path) -> None:
    read = recorded(built("embedded"), tmp_path / "trace.jsonl", "magcache:threshold=0.3")
    assert list(replay(read, "magcache:threshold=0.3")) == verdicts(read)
    with pytest.raises(ConfigurationError, match="table"):
        list(replay(read, "magcache:threshold=0.2"))
    (table,) = [path for path in built_tables() if path.stem == "magcache"]
    stricter = list(replay(read, f"magcache:threshold=0.01,table={table}"))
    assert sum(verdict.reuse for verdict in stricter) < sum(verdict.reuse for verdict in verdicts(read))


def built_tables() -> tuple[Path, ...]:
    from mixcache_models import tiny_wan

    return tiny_wan.CALIBRATIONS


def test_a_trace_without_a_header_needs_policies(tmp_path: Path) -> None:
    read = recorded(built("wan"), tmp_path / "trace.jsonl", "static:every=2", steps=6)
    bare = evolve(read, header=None)
    with pytest.raises(TraceError, match="no header"):
        replay(bare)
    assert list(replay(bare, "static:every=2")) == verdicts(read)
    with pytest.raises(TraceError, match="cannot read the trace"):
        replay(tmp_path / "nowhere.jsonl")


def test_an_empty_trace_has_no_verdicts() -> None:
    assert list(replay(trace.Trace(None, ()), "static")) == []

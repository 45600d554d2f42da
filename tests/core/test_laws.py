"""Laws 1, 2, 8 and 9 for whole-step caching, on every pipeline; the others have files of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mixcache
from mixcache import study
from mixcache.core import trace
from tests.helpers import POLICIES, Scripted, follow, guidance_after, recorded_calls
from tests.zoo.pipelines import Tiny

# 1. exact when it computes


@pytest.mark.parametrize("policy", ["static:every=1", "easycache:threshold=0", "static:every=2,first_steps=99"])
def test_a_policy_that_never_reuses_changes_no_bit(tiny: Tiny, policy: str) -> None:
    bare = tiny.run()
    with mixcache.enable(tiny.pipe, policy) as session:
        assert torch.equal(tiny.run(), bare)
        assert torch.equal(tiny.run(batch=2), tiny.run(batch=2))
        report = session.report()
    assert report.evaluations == report.evaluations_uncached > 0
    assert torch.equal(tiny.run(), bare)


def test_a_policy_that_reuses_does_change_the_output(tiny: Tiny) -> None:
    bare = tiny.run()
    with mixcache.enable(tiny.pipe, "static:every=2") as session:
        cached = tiny.run()
        assert 0 < session.report().evaluations < session.report().evaluations_uncached
    assert not torch.equal(cached, bare)
    assert cached.isfinite().all()


# 2. fixed point


@pytest.mark.parametrize("basis", ["residual", "output", "noise", "clean"])
def test_reusing_at_the_same_anchor_gives_the_computed_output(tiny: Tiny, basis: str) -> None:
    """The calls that the pipeline makes, each made again and rebuilt: with a history of one, of two and of three."""
    with recorded_calls(tiny.pipe.transformer) as calls:
        tiny.run(3)
    arguments, computed = calls[2]
    model, mask = tiny.pipe.transformer, "1011001110"
    for forecast in ("hold", "linear", "taylor:order=2"):
        with mixcache.enable(tiny.pipe, f"schedule:{mask}", basis=basis, forecast=forecast) as session, torch.no_grad():
            prediction = "v_prediction" if "CogVideoX" in type(model).__name__ else "flow"
            with session.run(len(mask), prediction=prediction) as run:
                for step in range(len(mask)):
                    with run.step(step, sigma=0.6), run.branch("cond"):
                        (output,) = model(**arguments)
                    torch.testing.assert_close(output, computed, rtol=1e-4, atol=1e-5)
            assert session.report().evaluations == mask.count("1")


# 8. replay


@pytest.mark.parametrize(("policy", "how"), POLICIES)
def test_a_recorded_trace_replays_to_the_same_verdicts(
    tiny: Tiny, policy: str, how: dict[str, Any], tmp_path: Path
) -> None:
    """By the recipe that its header names, or by that of the session."""
    path = tmp_path / "trace.jsonl"
    with mixcache.enable(tiny.pipe, policy, trace=path, **how) as session:
        tiny.run()
        first = list(session.records)
        tiny.run(steps=5, batch=2)
    read = trace.read(path)
    assert list(read.records) == [*first, *session.records]
    assert {record.run for record in read.records} == {0, 1}
    for recipe in (None, session.calibrated, session.recipe):
        assert list(study.replay(path, recipe)) == [record.verdict for record in read.records]
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def recorded(tiny: Tiny, policy: str) -> trace.Trace:
    """The trace of one run."""
    with mixcache.enable(tiny.pipe, policy) as session:
        tiny.run()
    return trace.Trace(session.header(), tuple(session.records))


def test_a_trace_can_be_replayed_through_another_policy(tiny_wan_random: Tiny) -> None:
    known = recorded(tiny_wan_random, "easycache:threshold=0")
    (always,) = {v.reuse for v in study.replay(known, "static:every=1")}
    assert always is False
    assert sum(v.reuse for v in study.replay(known, "easycache:threshold=1000,first_steps=2")) > 0


def test_a_trace_without_the_signals_that_a_policy_reads_is_an_error(tiny_wan_random: Tiny) -> None:
    known = recorded(tiny_wan_random, "static:every=2")
    lacks = pytest.raises(mixcache.TraceError, match=r"lacks signals that 'easycache' reads: .*predicted_change")
    with lacks:
        list(study.replay(known, "easycache"))


# 9. an honest report


def test_the_report_says_how_often_and_why(tiny_wan_random: Tiny) -> None:
    with mixcache.enable(tiny_wan_random.pipe, "static:every=3,first_steps=2,last_steps=1") as session:
        tiny_wan_random.run(9)
    report = session.report()
    step = report.visits["step"]
    assert (step.computed, step.reused) == (10, 8)
    assert step.reasons == {
        "computed: static: follows this step's first branch": 5,
        "reused: static: between computed steps, every 3": 4,
        "reused: static: follows this step's first branch": 4,
        "computed: static: first 2 steps": 2,
        "computed: static: every 3 steps": 2,
        "computed: static: last 1 steps": 1,
    }
    assert (report.runs, report.evaluations, report.evaluations_uncached) == (1, 10, 18)
    assert report.ideal_speedup == 18 / 10
    assert report.peak_bytes > 0
    for line in ("4  reused: static: between computed steps", "10 of 18 evaluations made in 1 run(s): 1.80x"):
        assert line in str(report)
    json.dumps(report.to_dict(), allow_nan=False)


def test_the_report_says_when_there_was_no_history(tiny_wan_random: Tiny) -> None:
    with mixcache.enable(tiny_wan_random.pipe, "static:every=2,first_steps=0") as session:
        tiny_wan_random.run(1, guidance_scale=1.0)
        (first,) = session.records
    assert first.verdict.reuse is False  # the last step
    with mixcache.enable(tiny_wan_random.pipe, "static:every=2,first_steps=0,last_steps=0") as session:
        tiny_wan_random.run(4, guidance_scale=1.0, callback_on_step_end=guidance_after({0: 5.0}))
    (record,) = [r for r in session.records if r.verdict.reuse and not r.outcome.reused]
    assert record.outcome.reason == "no history to reuse; static: follows this step's first branch"
    assert (record.point.step, record.point.branch) == (1, "uncond")


def test_the_report_says_who_vetoed(tiny_wan_random: Tiny) -> None:
    policies = ["static:every=2,first_steps=0,last_steps=0", "static:every=2,first_steps=4,last_steps=0"]
    with mixcache.enable(tiny_wan_random.pipe, policies, rule="any") as session:
        tiny_wan_random.run(8)
    reasons = {r.point.step: r.outcome.reason for r in session.records if r.point.branch == "cond"}
    assert reasons[1] == "static#2: first 4 steps"
    assert reasons[4] == "static#2: between computed steps, every 2"
    assert reasons[5] == "static: between computed steps, every 2"


def test_the_report_says_when_the_shape_changed() -> None:
    model = Scripted()
    with mixcache.enable(model, "static:every=9,first_steps=1,last_steps=0") as session:
        anchors = [torch.ones(1, 4), torch.ones(1, 4), torch.ones(2, 4), torch.ones(2, 4)]
        results = follow(session, model, anchors, [[a * 2] for a in anchors])
    assert [r.outcome.reused for r in session.records] == [False, True, False, True]
    changed = session.records[2].outcome.reason
    assert changed.startswith(
        "shape changed from (1, 4) torch.float32 on cpu to (2, 4) torch.float32 on cpu; no history"
    )
    assert [r[0].shape for r in results] == [a.shape for a in anchors]

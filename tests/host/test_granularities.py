"""Guidance branches and spans of blocks: the same laws, the nesting of points, and what cannot be skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import frozen

import mixcache
from mixcache import Granularity, Outcome, Point, Policy, Reading, Vote, study
from tests.conftest import built
from tests.helpers import Scripted, guidance_after, recorded_calls, reused_steps, runs_of, verdicts
from tests.zoo.pipelines import Tiny

NEVER = ["static:every=1", "cfg:every=1", "firstblock:first_steps=99"]
OFTEN = ["static:every=3", "cfg:every=2,first_steps=1", "static:every=2,at=block"]
GUIDED = ("wan", "ltx", "cogvideox", "qwen", "sd3")


@pytest.mark.parametrize("policies", [NEVER, NEVER[1:2], NEVER[2:], NEVER[::2]], ids=" ".join)
def test_points_that_never_reuse_change_no_bit(random_tiny: Tiny, policies: list[str]) -> None:
    bare = random_tiny.run()
    with mixcache.enable(random_tiny.pipe, policies) as session:
        for _ in range(2):
            assert torch.equal(random_tiny.run(), bare)
            assert session.records or policies == NEVER[1:2]
            assert not any(r.outcome.reused for r in session.records)


@pytest.mark.parametrize(
    "policies",
    [OFTEN, OFTEN[:2], OFTEN[::2], OFTEN[1:], OFTEN[1:2], OFTEN[2:], ["mixcache:choice=paper,settle=9"]],
    ids=" ".join,
)
def test_every_run_is_like_a_first_and_replays(random_tiny: Tiny, policies: list[str], tmp_path: Path) -> None:
    bare, file = random_tiny.run(), tmp_path / "trace"
    with mixcache.enable(random_tiny.pipe, policies, trace=file):
        first = random_tiny.run()
        random_tiny.run(5, batch=2)
        assert torch.equal(random_tiny.run(), first)
    runs = runs_of(file)
    assert verdicts(runs.get(0, [])) == verdicts(runs.get(2, []))
    assert first.isfinite().all()
    records = [record for run in runs.values() for record in run]
    assert torch.equal(first, bare) is not any(record.outcome.reused for record in records)
    assert list(study.replay(file)) == [record.verdict for record in records]


@pytest.mark.parametrize("name", GUIDED)
def test_a_reused_step_leaves_no_finer_visit(name: str) -> None:
    tiny = built(name)
    with mixcache.enable(tiny.pipe, OFTEN) as session:
        tiny.run(12)
    step = {(r.point.step, r.point.branch): r.outcome.reused for r in session.records if r.point.granularity == "step"}
    finer = [r for r in session.records if r.point.granularity != "step"]
    assert {r.point.granularity for r in finer} == {Granularity.CFG, Granularity.BLOCK}
    skipped = {s for (s, _), reused in step.items() if reused}
    assert skipped
    assert not skipped & {r.point.step for r in finer}
    seen = {r.point.step for r in finer if r.point.granularity is Granularity.CFG}
    assert seen == {s for (s, _), reused in step.items() if not reused}


def test_a_reused_branch_leaves_no_visit_of_its_blocks(tiny_wan_random: Tiny) -> None:
    with mixcache.enable(tiny_wan_random.pipe, OFTEN[1:]) as session:
        tiny_wan_random.run(9)
    skipped = set(reused_steps(session, "cfg"))
    assert skipped == {1, 3, 5, 7}
    uncond = {r.point.step for r in session.records if r.point.granularity == "block" and r.point.branch == "uncond"}
    assert uncond == set(range(9)) - skipped


@pytest.mark.parametrize(
    "policy", ["cfg:first_steps=1,last_steps=0", "static:every=9,first_steps=1,last_steps=0,at=block"]
)
@pytest.mark.parametrize("name", ["flux", "hunyuan", *GUIDED])
def test_the_fixed_point_of_branches_and_spans(name: str, policy: str) -> None:
    """The pipeline's calls of one step, made twice: computed, then rebuilt."""
    tiny = built(name)
    with recorded_calls(tiny.pipe.transformer) as calls:
        tiny.run(2)
    branches = ("cond", "uncond") if name in ("wan", "qwen") else ("cond_uncond",) if name in GUIDED else ("cond",)
    with mixcache.enable(tiny.pipe.transformer, policy) as session, torch.no_grad(), session.run(2) as run:
        for step in range(2):
            for branch, (arguments, computed) in zip(branches, calls):
                with run.step(step), run.branch(branch):
                    (output,) = tiny.pipe.transformer(**arguments)
                torch.testing.assert_close(output, computed, rtol=1e-4, atol=1e-5)
    wanted = {"at=block": True}.get(policy.split(",")[-1], name in GUIDED)
    assert bool(reused_steps(session, "block") or reused_steps(session, "cfg")) is wanted


# notes: why nothing was reused


@pytest.mark.parametrize("name", ["flux", "hunyuan"])
def test_embedded_guidance_is_noted(name: str) -> None:
    tiny = built(name)
    bare = tiny.run()
    with mixcache.enable(tiny.pipe, "cfg") as session:
        assert torch.equal(tiny.run(), bare)
    (note,) = session.report().notes
    assert note.startswith("'cfg' decided nothing at 'cfg': the model's guidance is embedded, off")
    assert note in str(session.report()).replace("\n", " ")


@pytest.mark.parametrize("name", GUIDED)
def test_guidance_that_is_off_is_noted(name: str) -> None:
    tiny = built(name)
    bare, two = tiny.run(**tiny.unguided), tiny.run(**tiny.unguided, batch=2)
    with mixcache.enable(tiny.pipe, "cfg:first_steps=1") as session:
        assert torch.equal(tiny.run(**tiny.unguided), bare)
        assert torch.equal(tiny.run(**tiny.unguided, batch=2), two)
    assert not session.records
    assert "'cfg' decided nothing at 'cfg'" in session.report().notes[0]


def test_a_span_ends_where_residuals_are_added() -> None:
    """Flux with a ControlNet: no reuse reaches over a residual, and the report says where they enter."""
    model = built("flux").pipe.transformer
    with recorded_calls(model) as calls:
        built("flux").run(1)
    arguments = calls[0][0]
    hidden = arguments["hidden_states"]
    extra = torch.randn(1, hidden.shape[1], 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        bare = model(**arguments, controlnet_block_samples=[extra, extra])[0]
    assert not torch.equal(bare, calls[0][1])
    policy = "static:first_steps=1,last_steps=0,at=block"
    with mixcache.enable(model, policy) as session, torch.no_grad(), session.run(6) as run:
        for step in range(6):
            scale = 1.0 + step  # a rebuilt span that held the residual would hold the wrong one
            scaled = [scale * extra, scale * extra]
            with run.step(step), run.branch("cond"):
                found = model(**arguments, controlnet_block_samples=scaled)[0]
            if step == 0:
                assert torch.equal(found, bare)
    spans = {r.point.span for r in session.records if r.outcome.reused}
    assert spans
    assert all(last - first == 1 or first >= 2 for first, last in spans)
    assert any("something enters FluxTransformer2DModel before block 1, 2" in n for n in session.report().notes)


def test_a_residual_that_begins_in_mid_run_is_not_lost() -> None:
    """A ControlNet that sets in while a span is passed over: the call is computed instead."""
    model = built("flux").pipe.transformer
    with recorded_calls(model) as calls:
        built("flux").run(1)
    arguments = calls[0][0]
    extra = torch.randn(1, arguments["hidden_states"].shape[1], 32, generator=torch.Generator().manual_seed(1))
    more = {"controlnet_block_samples": [extra, extra]}
    with torch.no_grad():
        wanted = model(**arguments, **more)[0]
    with mixcache.enable(model, "schedule:1000,at=block") as session, torch.no_grad(), session.run(4) as run:
        for step in range(4):
            with run.step(step), run.branch("cond"):
                found = model(**arguments, **(more if step == 2 else {}))[0]
            assert torch.equal(found, wanted) is (step == 2)


def test_a_model_whose_blocks_nobody_described_refuses_spans() -> None:
    with pytest.raises(mixcache.AttachError, match="Scripted has no spans of blocks to skip"):
        mixcache.enable(Scripted(), "firstblock")


# guidance that begins or ends within a run


@pytest.mark.parametrize("policies", [OFTEN[:1], OFTEN[1:2], OFTEN], ids=" ".join)
@pytest.mark.parametrize("scales", [{4: 1.0}, {0: 1.0, 5: 4.0}, {1: 1.0, 3: 4.0, 5: 1.0}], ids=str)
def test_guidance_may_stop_and_start(tiny_wan_random: Tiny, policies: list[str], scales: dict[int, float]) -> None:
    callback = guidance_after(scales)
    with mixcache.enable(tiny_wan_random.pipe, policies) as session:
        first = tiny_wan_random.run()
        changed = tiny_wan_random.run(callback_on_step_end=callback)
        visits = {(str(r.point.granularity), r.point.step, r.point.branch) for r in session.records}
        assert torch.equal(tiny_wan_random.run(), first)
        assert torch.equal(tiny_wan_random.run(callback_on_step_end=callback), changed)
    guided, scale = [], 5.0
    for step in range(8):
        guided += [step] if scale > 1 else []
        scale = scales.get(step, scale)
    assert {s for _, s, b in visits if b == "uncond"} <= set(guided)
    if "static:every=3" in policies:
        assert {s for g, s, b in visits if g == "step" and b == "uncond"} == set(guided)
        assert {s for g, s, b in visits if g == "step" and b == "cond"} == set(range(8))
    assert session.report().foreign_calls == 0


def test_guidance_that_stops_leaves_the_conditional_branch_alone(tiny_wan_random: Tiny) -> None:
    """The cond outputs of a run whose guidance ends are rebuilt from cond history, never from uncond's."""
    model = tiny_wan_random.pipe.transformer
    with mixcache.enable(tiny_wan_random.pipe, "static:every=3,first_steps=1"), recorded_calls(model) as calls:
        tiny_wan_random.run(callback_on_step_end=guidance_after({2: 1.0}))
    names = ["cond", "uncond"] * 3 + ["cond"] * 5
    stored: dict[str, torch.Tensor] = {}
    steps = [0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7]
    for name, step, (arguments, output) in zip(names, steps, calls, strict=True):
        x = arguments["hidden_states"]
        if step in (0, 3, 6, 7):
            with torch.no_grad():
                assert torch.equal(model(**arguments)[0], output)
            stored[name] = output - x
        else:
            torch.testing.assert_close(output, x + stored[name])


# what is downstream of a reuse


@frozen(kw_only=True)
class Halves(Policy):
    """The first block and the others are two spans, each with a mask of its own."""

    exact_history = True
    first: str
    rest: str

    def spans(self, blocks: int) -> tuple[tuple[int, int], ...]:
        return ((0, 1), (1, blocks))

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        mask = self.first if point.span == (0, 1) else self.rest
        return Vote.compute() if mask[point.step] == "1" else Vote.reuse()

    def observe(self, point: Point, outcome: Outcome, state: Any) -> None:
        assert point.age is None or point.age > 0


def test_what_is_downstream_of_a_reuse_is_marked_and_not_stored_where_that_is_asked(tiny_wan_random: Tiny) -> None:
    policy = Halves(at="block", first="110111", rest="111011")
    with mixcache.enable(tiny_wan_random.pipe, policy) as session:
        tiny_wan_random.run(6, guidance_scale=1.0)
    exact = {(r.point.step, r.point.span): r.exact for r in session.records}
    assert [s for (s, span), e in exact.items() if span == (0, 1) and not e] == [2]
    assert [s for (s, span), e in exact.items() if span == (1, 3) and not e] == [2, 3]
    ages = {r.point.step: r.point.age for r in session.records if r.point.span == (1, 3)}
    assert ages == {0: None, 1: 1, 2: 1, 3: 2, 4: 3, 5: 1}  # step 2 was not stored

"""A pipeline is watched, not described: its model and its names are made up, and everything is found by looking."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import mixcache
from tests.helpers import reused_steps
from tests.zoo.every import PIPELINES
from tests.zoo.held import held, held_branch, noises, off, sigmas, spanned, traces, worked_out
from tests.zoo.zorp import Duet, Forced, Guide, Heard, Pipe, Split, Tupled, Twice, Twins, Zorp, ddim, euler, plain

REUSED = [2, 4, 6]
"""What `static` reuses of eight evaluations."""

UNLEVELED = "nothing was reused in a basis that needs noise levels"


def cached(pipe: Pipe, policy: str = "static", images: int = 1, **choices: Any) -> tuple[Tensor, Any, list[str]]:
    """A run with mixcache: its latents, the session, and the report's notes."""
    with mixcache.enable(pipe, policy, **choices) as session:
        found = pipe(images=images)
    return found, session, list(session.report().notes)


# a pipeline that nobody described


@pytest.mark.parametrize("zorp", [Zorp, Tupled])
def test_a_pipeline_that_nobody_described_works(zorp: type[Zorp]) -> None:
    """Bit-exact where nothing is reused; a step's residual is that of its latent, behind the condition."""
    pipe = Pipe(zorp=zorp())
    wanted = pipe(images=2)
    for policy in ("static:every=1", "static:every=1,at=cfg", "static:every=1,at=block"):
        assert torch.equal(cached(pipe, policy, images=2)[0], wanted)
    found, session, notes = cached(pipe, images=2)
    assert reused_steps(session) == REUSED
    assert pipe.zorp.rows == [4] * 5
    assert not notes
    torch.testing.assert_close(found, worked_out(pipe, held(pipe, REUSED), images=2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("predicts", ["flow", "minus"])
def test_the_noise_of_a_velocity_is_held_with_the_right_sign(predicts: str) -> None:
    """z = x + (1 - sigma) v, with v the model's output or its negative: worked out beside it."""
    pipe = Pipe(predicts=predicts)
    found, session, notes = cached(pipe, basis="noise")
    assert reused_steps(session) == REUSED
    assert not notes
    sign = 1.0 if predicts == "flow" else -1.0
    by = held(pipe, REUSED, lambda i: (1.0, sign * (1 - float(pipe.scheduler.sigmas[i]))))
    torch.testing.assert_close(found, worked_out(pipe, by), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("first", ["cond", "uncond"])
@pytest.mark.parametrize("images", [1, 2])
def test_of_two_branches_in_one_batch_the_conditional_one_alone_is_computed(first: str, images: int) -> None:
    """In either order; one more call of its rows proves that they can be."""
    pipe = Pipe(first=first)
    found, session, notes = cached(pipe, "static:at=cfg", images)
    assert reused_steps(session, "cfg", "uncond") == REUSED
    assert not notes
    assert pipe.zorp.rows == [images * n for n in (2, 1, 2, 1, 2, 1, 2, 1, 2)]
    by = held_branch(pipe, REUSED, cond=0 if first == "cond" else 1)
    torch.testing.assert_close(found, worked_out(pipe, by, images), rtol=1e-4, atol=1e-4)


def test_blocks_are_found_in_a_list_of_any_name() -> None:
    """All of the four slabs are one span, and what it adds is held."""
    pipe = Pipe()
    found, session, notes = cached(pipe, "static:at=block")
    assert reused_steps(session, "block") == REUSED
    assert not notes
    assert {(r.point.span, r.point.blocks) for r in session.records} == {((0, 4), 4)}
    torch.testing.assert_close(found, spanned(pipe, {i: [(0, 4)] for i in REUSED}), rtol=1e-4, atol=1e-4)


# what the model predicts


FLOW = ("flow", "minus", "clean")
VARIANCE = ("epsilon", "v_prediction", "sample")


@given(
    kind=st.sampled_from(FLOW + VARIANCE),
    scale=st.floats(0.0, 6.0),
    first=st.sampled_from(["cond", "uncond"]),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.bfloat16]),
    images=st.integers(1, 3),
    count=st.sampled_from([5, 8, 20]),
)
def test_the_noise_that_is_held_is_the_one_implied(
    kind: str, scale: float, first: str, dtype: torch.dtype, images: int, count: int
) -> None:
    """Whatever the model predicts: what the noise scheduler goes on with is that noise, or a note refuses it."""
    assume(kind != "clean" or (dtype is torch.float32 and count < 20))
    solver = euler() if kind in FLOW else ddim(kind)
    pipe = Pipe(solver, plain(scale), predicts=kind if kind in FLOW else "flow", first=first, dtype=dtype)
    with mixcache.enable(pipe, "static", basis="noise") as session:
        pipe(count, images)
    steps = reused_steps(session)
    if not steps:
        assert dtype is torch.bfloat16, "float32 is exact enough for all of these"
        assert any(note.startswith(UNLEVELED) for note in session.report().notes)
        return
    wanted = list(range(2, count - 1, 2))
    assert steps == [i for i in wanted if i >= steps[0]]
    assert steps[0] == 2 or dtype is torch.bfloat16, "in bfloat16 a velocity says too little of the first latents"
    found = noises(pipe)
    limit = 1e-5 if dtype is torch.float32 else 0.05
    assert max(off(found[i], found[i - 1]) for i in steps) < limit


def test_fifty_steps_of_ddim_are_explained() -> None:
    """The first step is 1.22 latents less 0.22 outputs, and rounds more than one number does."""
    pipe = Pipe(ddim("epsilon"))
    with mixcache.enable(pipe, "static", basis="noise") as session:
        pipe(50)
    assert reused_steps(session) == list(range(2, 49, 2))


@pytest.mark.parametrize(("steps", "dtype"), [(20, torch.float32), (8, torch.bfloat16)])
def test_a_clean_image_is_not_taken_for_a_velocity(steps: int, dtype: torch.dtype) -> None:
    """At sigma = 1 a small step towards the clean image is nearly one along the negative velocity."""
    pipe = Pipe(predicts="clean", dtype=dtype)
    with mixcache.enable(pipe, "static", basis="noise") as session:
        pipe(steps)
    found, reused = noises(pipe), reused_steps(session)
    assert reused or any(note.startswith(UNLEVELED) for note in session.report().notes)
    assert max([off(found[i], found[i - 1]) for i in reused], default=0.0) < (1e-5 if dtype is torch.float32 else 0.05)


FRESH: dict[str, Callable[[], Any]] = {
    "flow, stochastic": lambda: euler(stochastic_sampling=True),
    "euler, ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "ddpm": lambda: diffusers.DDPMScheduler(clip_sample=False),
    "lcm": lambda: diffusers.LCMScheduler(clip_sample=False),
}


@pytest.mark.parametrize("name", FRESH)
def test_where_fresh_noise_is_drawn_the_noise_basis_is_refused(name: str) -> None:
    """Its first step is not the one that the noise levels imply; a residual needs none of them."""
    pipe = Pipe(FRESH[name]())
    wanted = pipe()
    found, session, notes = cached(pipe, basis="noise")
    assert torch.equal(found, wanted)
    assert reused_steps(session) == []
    assert any(note.startswith(UNLEVELED) for note in notes)
    found, session, notes = cached(pipe)
    assert reused_steps(session) == REUSED
    assert not notes
    torch.testing.assert_close(found, worked_out(pipe, held(pipe, REUSED)), rtol=1e-3, atol=1e-3)


# the noise scheduler


def test_a_noise_scheduler_is_left_as_it_was_found(tmp_path: Path) -> None:
    """While it is watched, its signature, configuration, pickle and shallow copy are those of a plain one."""
    pipe = Pipe()
    pipe()
    solver, before = pipe.scheduler, dict(vars(pipe.scheduler))
    signature = inspect.signature(solver.step)
    with mixcache.enable(pipe, "static"):
        assert vars(solver).keys() != before.keys(), "it is not watched"
        assert inspect.signature(solver.step) == signature
        solver.save_config(tmp_path)
        for plain_one in (
            pickle.loads(pickle.dumps(solver)),
            copy.copy(solver),
            type(solver).from_config(solver.config),
            type(solver).from_pretrained(tmp_path),
        ):
            assert type(plain_one) is type(solver)
            assert not traces(plain_one)
            assert {**plain_one.config, "_use_default_values": 0} == {**solver.config, "_use_default_values": 0}
        assert torch.equal(copy.copy(solver).sigmas, solver.sigmas)
    assert type(pipe.scheduler) is type(solver)
    assert vars(solver).keys() == before.keys()
    assert all(vars(solver)[name] is value for name, value in before.items())


def test_deep_copies_of_a_noise_scheduler_are_followed() -> None:
    """The rounds that they make are the steps of the run."""
    pipe = Forced()
    wanted = pipe()
    assert torch.equal(cached(pipe, "static:every=1")[0], wanted)
    found, session, _ = cached(pipe, basis="output")
    assert reused_steps(session) == REUSED
    assert pipe.zorp.rows == [2] * 5
    torch.testing.assert_close(found, worked_out(pipe, held(pipe, REUSED, lambda i: (0.0, 1.0))), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "runs"), [("flow", 1), ("v_prediction", 2)])
def test_another_noise_scheduler_between_two_runs_is_followed(kind: str, runs: int) -> None:
    """Its steps are watched, and the one before is as it was. One that counts no steps is followed from its second run
    on: what it did before it was watched is not known."""
    pipe = Pipe()
    first, second = pipe.scheduler, euler(shift_terminal=0.1) if kind == "flow" else ddim(kind)
    with mixcache.enable(pipe, "static", basis="noise") as session:
        pipe()
        pipe.scheduler = second
        for _ in range(runs):
            pipe()
        assert session.report().runs == 2
        assert session.report().foreign_calls == 8 * (runs - 1)
        assert reused_steps(session) == REUSED
        assert {r.point.level.prediction for r in session.records} == {kind}
        assert session.records[-1].point.level.sigma == pytest.approx(sigmas(second)[-1], abs=1e-4)
        found = noises(pipe)
        assert max(off(found[i], found[i - 1]) for i in REUSED) < 1e-5
        assert not traces(first)
        assert traces(second)
    assert not traces(second)


def test_two_pipelines_may_share_a_noise_scheduler() -> None:
    """Both sessions watch it, and each leaves without the other."""
    one, two = Pipe(), Pipe(predicts="minus")
    two.scheduler = one.scheduler
    wanted = [cached(pipe, basis="noise")[0] for pipe in (one, two)]
    sessions = [mixcache.enable(pipe, "static", basis="noise") for pipe in (one, two)]
    for pipe, session, right in zip((one, two), sessions, wanted):
        assert torch.equal(pipe(), right)
        assert reused_steps(session) == REUSED
    sessions[0].disable()
    assert torch.equal(two(), wanted[1])
    assert reused_steps(sessions[1]) == REUSED
    sessions[1].disable()
    assert not traces(one.scheduler)


# guidance


def rescaled(dims: tuple[int, ...]) -> Guide:
    def guide(cond: Tensor, uncond: Tensor) -> Tensor:
        both = plain(4.0)(cond, uncond)
        return both * (cond.norm(dim=dims, keepdim=True) / both.norm(dim=dims, keepdim=True))

    return guide


def projected(kept: float) -> Guide:
    """As adaptive projected guidance: of what is parallel to the conditional prediction, that share is kept."""

    def guide(cond: Tensor, uncond: Tensor) -> Tensor:
        apart = cond - uncond
        parallel = (apart * cond).sum((1, 2), keepdim=True) / (cond * cond).sum((1, 2), keepdim=True) * cond
        return cond + 3.0 * (apart - (1.0 - kept) * parallel)

    return guide


GUIDES = {"per sample": rescaled((1, 2)), "per token": rescaled((1,)), "projected": projected(0.6), "plain": plain(1.5)}


@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.parametrize("images", [1, 2])
def test_the_conditional_branch_is_found_however_guidance_is_rescaled(name: str, images: int) -> None:
    """Where weights differ by sample or token, they still say where guidance goes."""
    pipe = Pipe(guide=GUIDES[name], first="uncond")
    found, session, notes = cached(pipe, "static:at=cfg", images)
    assert reused_steps(session, "cfg") == REUSED
    assert not notes
    by = held_branch(pipe, REUSED, cond=1)
    torch.testing.assert_close(found, worked_out(pipe, by, images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", ["cfg", "step"])
def test_strong_projection_is_not_taken_for_a_negative_velocity(level: str) -> None:
    """Here guidance is 2.25 cond - 3 uncond: right, or refused with a note."""
    pipe = Pipe(guide=projected(0.0))
    found, session, notes = cached(pipe, f"static:at={level}", basis={"step": "noise"})
    by = held_branch(pipe, REUSED, cond=0)
    if level == "step":
        by = held(pipe, REUSED, lambda i: (1.0, 1 - float(pipe.scheduler.sigmas[i])))
    if not reused_steps(session, level):
        assert any(note.startswith((UNLEVELED, "guidance branches were not skipped")) for note in notes)
        return
    torch.testing.assert_close(found, worked_out(pipe, by), rtol=1e-4, atol=1e-4)


def test_a_combination_that_is_not_known_is_not_guessed() -> None:
    """Nothing tells which branch is the conditional one: all of it is computed, and a note says why."""
    pipe = Pipe(guide=lambda cond, uncond: cond + torch.sin(3.0 * (cond - uncond)) * cond.abs())
    wanted = pipe()
    found, _, notes = cached(pipe, "static:at=cfg")
    assert torch.equal(found, wanted)
    assert any("no combination of them that is known" in note for note in notes)


def test_conditional_rows_that_give_something_else_alone_are_not_computed_alone() -> None:
    """The proof: the rows of one branch are what the whole batch gives, or the level is refused."""
    pipe = Pipe(zorp=Split())
    wanted = pipe()
    found, _, notes = cached(pipe, "static:at=cfg")
    assert torch.equal(found, wanted)
    assert any("computed alone are not what the whole batch gives" in note for note in notes)


def test_guidance_may_begin_in_the_middle_of_a_run() -> None:
    """The first guided step shows how branches are combined, the next proves it, and from then on one is held."""
    pipe = Pipe(guided_from=3)
    found, session, _ = cached(pipe, "static:at=cfg")
    assert reused_steps(session, "cfg") == [6]
    assert pipe.zorp.rows == [1, 1, 1, 2, 2, 1, 2, 1, 2]
    torch.testing.assert_close(found, worked_out(pipe, held_branch(pipe, [6], cond=0)), rtol=1e-4, atol=1e-4)


# what enters between blocks


def entering(time: float, inplace: bool) -> Callable[[int, Tensor, float], Tensor]:
    """A residual before block 2 that is another one at every step, from a time on."""

    def enter(index: int, gloop: Tensor, now: float) -> Tensor:
        if index != 2 or now > time:
            return gloop
        more = torch.sin(50.0 * now + torch.arange(gloop.shape[-1]))
        return gloop.add_(more) if inplace else gloop + more

    return enter


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("since", [0, 4])
def test_no_reuse_reaches_over_what_enters_between_blocks(since: int, inplace: bool) -> None:
    """Both halves are held on their own, from when it is noticed; a step in which it is noticed is computed."""
    pipe = Pipe()
    pipe()
    pipe.zorp.enter = entering(float(pipe.scheduler.timesteps[since]) / 1000 + 1e-4, inplace)
    wanted = pipe()
    assert torch.equal(cached(pipe, "static:every=1,at=block")[0], wanted)
    watched = Pipe()  # nothing is known of it from a session before
    watched.zorp.enter = pipe.zorp.enter
    found, _, notes = cached(watched, "static:at=block")
    halves, whole = [(0, 2), (2, 4)], [(0, 4)]
    if since:
        policy = {2: whole, 6: halves}
        assert any("before block 2" in note for note in notes)
    else:
        policy = {4: halves, 6: halves} if inplace else dict.fromkeys(REUSED, halves)
    torch.testing.assert_close(found, spanned(pipe, policy), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("zorp", "why"), [(Heard, "goes nowhere"), (Twice, "run more than once in a call")])
def test_blocks_that_cannot_be_rebuilt_are_refused(zorp: type[Zorp], why: str) -> None:
    """With what was seen of them; the run is as it would be without."""
    model = zorp()
    pipe = Pipe(zorp=model)
    wanted = pipe()
    found, session, notes = cached(pipe, "static:at=block")
    assert torch.equal(found, wanted)
    assert not session.records
    assert any(note.startswith("spans of blocks were not skipped") and why in note for note in notes)


# several outputs


def test_two_outputs_with_a_noise_scheduler_each_are_both_held_right() -> None:
    """Each around its own latent: what is held is the output less that latent, of both."""
    pipe = Duet(Twins())
    wanted = pipe(images=4)
    assert torch.equal(cached(pipe, "static:every=1", images=4)[0], wanted)
    _, session, notes = cached(pipe, images=4)
    assert reused_steps(session) == REUSED
    assert not notes
    assert len(pipe.zorp.rows) == 5
    for passed in (pipe.steps, pipe.heard):
        z = [m - x for x, m in passed]
        assert max(off(z[i], z[i - 1]) for i in REUSED) < 1e-5
        assert min(off(z[i], z[i - 1]) for i in (1, 3, 5, 7)) > 1e-3
    assert not traces(pipe.drum)


def test_the_sound_decides_where_it_changes_more() -> None:
    """LTX-2: EasyCache's prediction for video and for sound, each worked out beside it; the larger one decides."""
    tiny = PIPELINES["LTX2Pipeline"]()
    seen: list[tuple[Tensor, ...]] = []

    def note(model: Any, args: Any, kwargs: dict[str, Any], result: tuple[Tensor, Tensor]) -> None:
        latents = kwargs["hidden_states"], kwargs["audio_hidden_states"]
        seen.append(tuple(t.double().clone() for t in (*latents, *result)))

    with mixcache.enable(tiny.pipe, "easycache:threshold=0,first_steps=2") as session:
        handle = tiny.pipe.transformer.register_forward_hook(note, with_kwargs=True)
        tiny.run()
        handle.remove()
    leading = [r for r in session.records if r.point.leads]
    calls = seen[:: len(seen) // tiny.steps]  # the first call of each step, over both branches

    def predicted(i: int, stream: int) -> float:
        (x2, y2), (x1, y1), x0 = (*((calls[i - k][stream], calls[i - k][2 + stream]) for k in (2, 1)), calls[i][stream])
        rows = range(x0.shape[0])
        rates = [(y1[r] - y2[r]).abs().mean() / (x1[r] - x2[r]).abs().mean() for r in rows]
        return max(float(rates[r] * (x0[r] - x1[r]).abs().mean() / y1[r].abs().mean()) for r in rows)

    assert len(leading) == tiny.steps == len(calls)
    for i in range(2, tiny.steps):
        wanted = [predicted(i, 0), predicted(i, 1)]
        assert [s.reading["predicted_change"] for s in leading[i].streams] == pytest.approx(wanted, rel=1e-4)
        assert leading[i].reading["predicted_change"] == pytest.approx(max(wanted), rel=1e-4)
    video, sound = predicted(2, 0), predicted(2, 1)
    assert sound > 1.1 * video
    for threshold, reused in (((video + sound) / 2, False), (1.01 * sound, True)):
        with mixcache.enable(tiny.pipe, f"easycache:threshold={threshold},first_steps=2") as session:
            tiny.run()
        assert [r.outcome.reused for r in session.records if r.point.step == 2] == [reused] * 3
        assert "step, stream 1 of 2: the worst" in str(session.report())


def test_the_audit_tells_video_and_sound_apart() -> None:
    """LTX-2: each error is that of its own output beside the model's; the worst is the visit's."""
    tiny = PIPELINES["LTX2Pipeline"]()
    seen: list[Any] = []
    with mixcache.enable(tiny.pipe, "static:every=2,first_steps=1", audit=True) as session:
        handle = tiny.pipe.transformer.register_forward_hook(lambda *call: seen.append(call), with_kwargs=True)
        tiny.run()
        handle.remove()
    assert len(seen) == len(session.records)
    checked = 0
    for (model, args, kwargs, found), record in zip(seen, session.records):
        if record.outcome.reused:
            with torch.no_grad():
                truth = model(*args, **kwargs)
            ratios = [((a - b).abs().mean((1, 2)) / a.abs().mean((1, 2))).max() for a, b in zip(truth, found)]
            assert [s.true_error for s in record.streams] == pytest.approx([float(one) for one in ratios], rel=1e-4)
            assert record.outcome.true_error == max(s.true_error or 0.0 for s in record.streams)
            checked += 1
    assert checked >= 9


def test_an_output_that_nothing_shows_is_refused() -> None:
    """The third output enters no noise scheduler: the calls are computed, and a note says so."""
    pipe = Duet(Twins(extra=True))
    wanted = pipe(images=4)
    found, session, notes = cached(pipe, images=4)
    assert torch.equal(found, wanted)
    assert not session.records
    assert any("nothing showed what output 2 is" in note for note in notes)

"""Kinds of fault that users of caching tools have met, on pipelines that each of them was met on, or of that kind.

What is reused is right, or it is refused, computed or noted: never silently something else.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import accelerate
import diffusers
import pytest
import torch
from torch import Tensor, nn

import mixcache
from mixcache import ConfigurationError, MixcacheError, NothingReusedWarning, Session
from mixcache_policies import MagCache, Schedule, TeaCache
from tests.conftest import built
from tests.helpers import recorded_calls, reused_steps, verdicts
from tests.zoo import pipelines, unusual
from tests.zoo.denoisings import held_by
from tests.zoo.pipelines import WAN_14B, Tiny

README = {"basis": "noise", "forecast": "linear:abscissa=sigma"}

pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast")


@contextmanager
def beside_the_truth(model: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """(what the caller got, what the model gives) of every call, as the model is at that moment."""
    seen: list[tuple[Tensor, Tensor]] = []

    def note(_module: Any, _args: Any, kwargs: dict[str, Any], result: Any) -> None:
        seen.append((result[0].clone(), type(model).forward(model, **kwargs)[0].clone()))

    handle = model.register_forward_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def true_errors(session: Session) -> list[float]:
    """Of everything reused in the last run of an audited session."""
    return [float(r.outcome.true_error) for r in session.records if r.outcome.reused]  # type: ignore[arg-type]


def said(session: Session) -> str:
    """The notes as one text."""
    return " ".join(session.report().notes)


# a run that begins late


@pytest.mark.parametrize("name", unusual.AGAIN)
def test_a_second_pass_counts_from_its_own_start(name: str) -> None:
    """The pipeline may slice the timesteps and tell its noise scheduler nothing: half of 12 evaluations are made."""
    tiny = unusual.AGAIN[name]()
    model = tiny.pipe.transformer
    bare = tiny.run(12)
    with mixcache.enable(tiny.pipe, "static:every=1"):
        assert torch.equal(tiny.run(12), bare)
    policy = "static:every=2,first_steps=3,last_steps=0"
    with mixcache.enable(tiny.pipe, policy) as session, beside_the_truth(model) as calls:
        tiny.run(12)
    points = [r.point for r in session.records if r.point.leads]
    branches = len(session.records) // len(points)
    assert [p.step for p in points] == list(range(6))
    assert {p.num_steps for p in points} == {6}
    assert reused_steps(session) == [3, 5]
    same = [torch.equal(got, want) for got, want in calls]
    assert same == [step not in (3, 5) for step in range(6) for _ in range(branches)]
    noise_scheduler = tiny.pipe.scheduler
    if name == "cogvideox":
        steps = noise_scheduler.timesteps[6:]
        sigmas = (1 - noise_scheduler.alphas_cumprod[steps]).sqrt().tolist()
    else:
        sigmas = noise_scheduler.sigmas[6:12].tolist()
    assert [p.sigma for p in points] == pytest.approx(sigmas, abs=1e-4)
    assert session.report().foreign_calls == 0


@pytest.mark.parametrize("name", unusual.AGAIN)
def test_a_mask_is_as_long_as_the_second_pass(name: str) -> None:
    tiny = unusual.AGAIN[name]()
    with mixcache.enable(tiny.pipe, Schedule("110101")) as session:
        tiny.run(12)
    assert reused_steps(session) == [2, 4]
    refused = pytest.raises(ConfigurationError, match="has 12 steps, but the run makes 6 evaluations")
    with mixcache.enable(tiny.pipe, Schedule("1" * 11 + "0")), refused:
        tiny.run(12)


# batches that are not two branches


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("policy", ["cfg:every=2", "fastercache"])
def test_three_branches_in_one_batch(batch: int, policy: str) -> None:
    """Of two images the rows of different images would be taken for branches."""
    tiny = unusual.perturbed()
    bare = tiny.run(batch=batch)
    with mixcache.enable(tiny.pipe, policy) as session, beside_the_truth(tiny.pipe.transformer) as calls:
        result = tiny.run(batch=batch)
    assert len(calls) == 8
    for got, want in calls:
        assert got.shape[0] == 3 * batch
        torch.testing.assert_close(got[batch:], want[batch:])  # nothing may reuse these
    assert any(visit.reused for visit in session.report().visits.values()) or "branches" in said(session)
    assert torch.equal(tiny.run(batch=batch), bare)
    assert result.isfinite().all()


def test_a_second_pipeline_without_guidance_reuses_none() -> None:
    """Two images are no two branches, whatever the pipeline that was enabled does."""
    text = unusual.sd3_with_vae()
    image = unusual.sd3_again(text, strength=1.0)
    unguided = {"batch": 2, "guidance_scale": 1.0}
    bare = image.run(**unguided)
    with mixcache.enable(text.pipe, "cfg:every=2") as session:
        text.run()
        assert reused_steps(session, "cfg")
        assert torch.equal(image.run(**unguided), bare)
        assert session.report().foreign_calls == 0


def test_a_second_pipeline_with_guidance_reuses_its_own() -> None:
    """The pipeline that was enabled ran without."""
    text = unusual.sd3_with_vae()
    image = unusual.sd3_again(text, strength=1.0)
    with mixcache.enable(text.pipe, "cfg:every=2") as session:
        text.run(batch=2, **text.unguided)
        with beside_the_truth(text.pipe.transformer) as calls:
            image.run(batch=2)
    assert reused_steps(session, "cfg")
    for got, want in calls:
        torch.testing.assert_close(got[2:], want[2:])


def test_a_second_pipeline_with_a_scheduler_that_counts_nothing_is_followed() -> None:
    tiny = pipelines.cogvideox()
    pipe = diffusers.CogVideoXVideoToVideoPipeline.from_pipe(tiny.pipe)
    again = unusual.like(tiny, pipe, ("num_frames",), lambda batch: {"video": unusual.clip(9, 16), "strength": 0.5})
    pipe.set_progress_bar_config(disable=True)
    with mixcache.enable(tiny.pipe, "static:every=2") as session:
        tiny.run()
        again.run(12)
    assert reused_steps(session) == [2, 4]
    assert {r.point.num_steps for r in session.records} == {6}
    assert session.report().foreign_calls == 0


@pytest.mark.parametrize("policy", ["cfg:every=2", "fastercache:first_steps=1"])
def test_lists_of_tensors_are_cut_with_the_batch(policy: str) -> None:
    """A ControlNet's residuals have one row per sample, in a list."""
    tiny = unusual.controlled()
    with mixcache.enable(tiny.pipe, policy) as session, beside_the_truth(tiny.pipe.transformer) as calls:
        tiny.run(10, batch=2)
    assert reused_steps(session, "cfg")
    for got, want in calls:
        torch.testing.assert_close(got[2:], want[2:])


# what drives the model


@pytest.mark.parametrize("way", [{}, {"ar_step": 2, "causal_block_size": 1}], ids=["together", "frame by frame"])
def test_diffusion_forcing_is_followed_or_noted(way: dict[str, Any]) -> None:
    """The pipeline's own noise scheduler stands still all the time."""
    tiny = unusual.forced()
    bare = tiny.run(10, **way)
    with mixcache.enable(tiny.pipe, "static:every=1"):
        assert torch.equal(tiny.run(10, **way), bare)
    with mixcache.enable(tiny.pipe, "static:every=2") as session:
        result = tiny.run(10, **way)
    report = session.report()
    assert result.isfinite().all()
    assert report.runs <= 1
    if reused_steps(session):
        assert not {0, 1} & set(reused_steps(session))
        assert report.evaluations_uncached == 2 * (session.records[0].point.num_steps)
    else:
        assert report.foreign_calls
        assert report.notes
        assert torch.equal(result, bare)


def test_a_call_after_a_finished_run_is_computed(random_tiny: Tiny) -> None:
    """A warm-up, a probe, a reference image: the noise scheduler stands past its end."""
    model = random_tiny.pipe.transformer
    with recorded_calls(model) as calls:
        random_tiny.run(4)
    arguments, want = calls[0]
    with mixcache.enable(random_tiny.pipe, "static:every=2") as session:
        cached, first = random_tiny.run(6), verdicts(session)
    random_tiny.run(4)
    with mixcache.enable(random_tiny.pipe, "static:every=2") as session:
        with torch.no_grad():
            for calls_made in (1, 2):
                assert torch.equal(model(**arguments)[0], want)
                assert session.report().foreign_calls == calls_made
        assert torch.equal(random_tiny.run(6), cached)
        assert verdicts(session) == first
        with torch.no_grad():
            assert torch.equal(model(**arguments)[0], want)
        assert session.report().foreign_calls == 3
    assert session.report().runs == 1


# what stays


def tensors() -> tuple[int, int]:
    """How many tensors Python holds, and their bytes."""
    gc.collect()
    found = [thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)]
    return len(found), sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}.values())


@pytest.mark.parametrize("make", [pipelines.wan, unusual.sd3_with_vae], ids=["wan", "sd3"])
@pytest.mark.parametrize(
    "policies",
    [
        "static:every=3",
        "mixcache",
        "easycache:threshold=0.5 + cfg:every=2",
        "taylorseer:every=3",
        pytest.param(
            "static:every=2,first_steps=1,last_steps=0 + taylorseer:every=3",
            id="whole last step reused",
        ),
    ],
)
def test_nothing_is_held_after_the_last_evaluation(make: Callable[[], Tiny], policies: str) -> None:
    """Decoding is the peak of a video run; sd3's model is no `CacheMixin`, so nobody says when the run is over."""
    tiny = make()
    decode, seen = tiny.pipe.vae.decode, []

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append((tensors(), 0 if session is None else len(held_by(session))))
        return decode(*args, **kwargs)

    tiny.pipe.vae.decode = watched
    kept: list[Any] = []

    def keep(pipe: Any, index: int, *_: Any) -> dict[str, Any]:
        if index == 5 and session is not None:
            kept.extend(held_by(session))
        return {}

    session = None
    for _ in range(2):
        tiny.run(callback_on_step_end=keep, output_type="pt")
    ((_, size), _), after = seen[-1], tensors()
    with mixcache.enable(tiny.pipe, policies) as session:  # noqa: F811
        tiny.run(callback_on_step_end=keep, output_type="pt")
        assert len(kept) > 0
        assert not any(reference() is not None for reference in kept)
        assert not held_by(session)
        assert seen[-1][1] == 0
        assert seen[-1][0][1] <= size + 256  # a few numbers
        assert tensors()[1] <= after[1] + 256
        assert session.report().peak_bytes > 0


def by_blocks(model: Any) -> None:
    cpu = torch.device("cpu")
    model.enable_group_offload(
        onload_device=cpu, offload_device=cpu, offload_type="block_level", num_blocks_per_group=1
    )


def by_leaves(model: Any) -> None:
    cpu = torch.device("cpu")
    model.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


def by_accelerate(model: Any) -> None:
    accelerate.cpu_offload_with_hook(model, execution_device=torch.device("cpu"))


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("offload", [by_blocks, by_leaves, by_accelerate])
@pytest.mark.parametrize("name", ["wan", "sd3"])
def test_offloading_changes_nothing(name: str, offload: Callable[[Any], None], before: bool) -> None:
    bare = built(name).run(6)
    for policies in ("static:every=2", "taylorseer:every=2"):
        with mixcache.enable(built(name).pipe, policies):
            want = built(name).run(6)
        assert not torch.equal(want, bare)
        tiny = pipelines.BUILDERS[name]()
        if before:
            offload(tiny.pipe.transformer)
        session = mixcache.enable(tiny.pipe, policies)
        if not before:
            offload(tiny.pipe.transformer)
        for _ in range(2):
            torch.testing.assert_close(tiny.run(6), want)
        session.disable()
        torch.testing.assert_close(tiny.run(6), bare)


# what enters and leaves the model


BESIDE: dict[str, tuple[Callable[[], Tiny], Callable[[Tensor], Tensor]]] = {
    "wan": (unusual.wan_from_image, lambda x: x[:, :4]),
    "flux": (unusual.flux_fill, lambda x: x[..., :16]),
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize(
    "policy", ["mixcache", "easycache:first_steps=2,threshold=0.5", "taylorseer:every=2", "firstblock:threshold=0.3"]
)
def test_channels_beside_the_latent_change_no_shape(name: str, policy: str) -> None:
    tiny = BESIDE[name][0]()
    bare = tiny.run(10)
    with mixcache.enable(tiny.pipe, policy) as session:
        result = tiny.run(10)
    assert any(visit.reused for visit in session.report().visits.values())
    assert result.shape == bare.shape
    assert result.isfinite().all()
    assert not torch.equal(result, bare)


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_reused_stands_on_the_channels_of_the_latent(name: str) -> None:
    """x, and what the last computed output of this branch and model was above its x."""
    make, latent = BESIDE[name]
    tiny = make()
    models = [getattr(tiny.pipe, part) for part in ("transformer", "transformer_2") if hasattr(tiny.pipe, part)]
    bare = tiny.run(10)
    with mixcache.enable(tiny.pipe, "static:every=1"):
        assert torch.equal(tiny.run(10), bare)
    reused = 0
    with (
        mixcache.enable(tiny.pipe, "static:every=3,first_steps=1") as session,
        recorded_calls(models[0]) as first,
        recorded_calls(models[-1]) as second,
    ):
        tiny.run(10)
    for component, calls in zip(("transformer", "transformer_2"), (first, second)[: len(models)]):
        stored: dict[str, Tensor] = {}
        records = [r for r in session.records if r.point.component == component]
        for record, (arguments, output) in zip(records, calls, strict=True):
            x = latent(arguments["hidden_states"])
            if record.outcome.reused:
                torch.testing.assert_close(output, x + stored[record.point.branch])
                reused += 1
            else:
                stored[record.point.branch] = output - x
    assert reused >= 4


@pytest.mark.parametrize("policy", ["mixcache", "easycache:first_steps=2,threshold=0.5", "static:every=2", "cfg"])
def test_learned_variance_is_reused_or_noted(policy: str) -> None:
    """The model returns twice the channels that it takes."""
    tiny = unusual.dit()
    bare = tiny.run(10)
    with mixcache.enable(tiny.pipe, policy) as session:
        result = tiny.run(10)
    assert any(visit.reused for visit in session.report().visits.values()) or session.report().notes
    assert torch.isfinite(torch.as_tensor(result)).all()
    with mixcache.enable(tiny.pipe, "static:every=1"):
        assert (tiny.run(10) == bare).all()


@pytest.mark.parametrize("policy", ["static:every=1", "static:every=2", "taylorseer:every=2"])
def test_a_first_call_that_returns_more_goes_through(policy: str) -> None:
    """Keys and values of a reference image beside the prediction."""
    tiny = unusual.flux2_klein()
    bare = tiny.run()
    try:
        session = mixcache.enable(tiny.pipe, policy)
    except ConfigurationError:
        return
    with session:
        result = tiny.run()
    assert torch.equal(result, bare) is not any(visit.reused for visit in session.report().visits.values())
    assert result.isfinite().all()
    assert torch.equal(tiny.run(), bare)


@pytest.mark.parametrize("always", [False, True], ids=["first call", "every call"])
def test_what_is_returned_beside_the_prediction_reaches_the_caller(always: bool) -> None:
    model = unusual.Talkative(always)
    latents = [torch.full((1, 4, 2), float(i)) for i in range(6)]
    with mixcache.enable(model, "static:every=2,first_steps=1,last_steps=0") as session, session.run(6) as run:
        results = []
        for i, latent in enumerate(latents):
            with run.step(i), run.branch("cond"), torch.no_grad():
                results.append(model(latent))
    for i, (latent, result) in enumerate(zip(latents, results)):
        assert len(result) == 1 + (always or i == 0)
        if len(result) == 2:
            assert torch.equal(result[0], latent.sin())
            assert torch.equal(result[1], latent + 1)
    assert session.report().notes
    assert (model.calls == 6) is always
    assert torch.equal(results[1][0], latents[1].sin())  # there was nothing to reuse


# noise levels

HEADS = {
    "wan": (pipelines.wan, "proj_out", True),
    "sd3": (pipelines.sd3, "proj_out", True),
    "flux": (pipelines.flux, "proj_out", True),
    "ltx": (pipelines.ltx, "proj_out", True),
    "qwen": (pipelines.qwen, "proj_out", True),
    "lumina2": (unusual.lumina2, "norm_out.linear_2", False),
    "mochi": (unusual.mochi, "proj_out", False),
}
"""How a pipeline's model is made constant, and whether its direction must be known."""


@pytest.mark.parametrize("basis", ["noise", "clean"])
@pytest.mark.parametrize("name", HEADS)
def test_a_constant_velocity_is_continued_exactly(name: str, basis: str) -> None:
    """Whichever way it points, and whichever way sigmas are counted; or it is said that nobody knows."""
    make, head, known = HEADS[name]
    tiny = unusual.constant(make(), head)
    try:
        with mixcache.enable(tiny.pipe, "static:every=2", basis=basis, audit=True) as session:
            tiny.run(12)
    except MixcacheError as error:
        assert not known
        assert basis in str(error)  # noqa: PT017
        return
    exact = max(true_errors(session), default=1.0) < 0.01
    assert exact or (not known and re.search(r"basis|noise level|direction", said(session)))


@pytest.mark.parametrize("name", HEADS)
def test_what_mixcache_rebuilds_in_noise_is_not_another_direction(name: str) -> None:
    make, head, _ = HEADS[name]
    tiny = unusual.constant(make(), head)
    with mixcache.enable(tiny.pipe, "mixcache", audit=True) as session:
        tiny.run(20)
    assert max(true_errors(session), default=0.0) < 0.5


@pytest.mark.parametrize("name", HEADS)
def test_pure_noise_has_the_largest_sigma(name: str) -> None:
    tiny = HEADS[name][0]()
    with mixcache.enable(tiny.pipe, "static:every=1") as session:
        tiny.run(6)
    sigmas = [r.point.sigma for r in session.records if r.point.leads]
    if sigmas[0] is not None or HEADS[name][2]:
        assert sigmas[0] == pytest.approx(1.0, abs=0.01)
        assert sigmas == sorted(sigmas, reverse=True)


def errors_by_step(dtype: torch.dtype, shift: float) -> dict[int, float]:
    """The true error of every reused step, of a run that starts near pure noise."""
    tiny = pipelines.wan(noise_scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=shift))
    tiny.pipe.transformer.to(dtype)
    given = {n: v.to(dtype) for n, v in tiny.arguments(1).items() if isinstance(v, Tensor)}
    with mixcache.enable(tiny.pipe, "static:every=2", audit=True, **README) as session:
        tiny.run(50, **given, num_frames=5)
    reused = [r for r in session.records if r.outcome.reused]
    return {r.point.step: e for r, e in zip(reused, true_errors(session)) if r.point.leads}


@pytest.mark.parametrize("shift", [7.0, 12.0])
def test_half_precision_is_no_worse_near_pure_noise(shift: float) -> None:
    """The change of variable divides by 1 - sigma, and so does the rounding: where that would drown the change, the
    step is computed; at the first steps that both reuse, the errors are those of float32."""
    half, full = errors_by_step(torch.bfloat16, shift), errors_by_step(torch.float32, shift)
    assert len(half) > len(full) / 2 > 10
    first = sorted(half.keys() & full.keys())[:4]
    assert sum(half[i] for i in first) < 1.5 * sum(full[i] for i in first)


FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 5.0}
DRAWING: dict[str, Callable[[], Any]] = {
    "euler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0, stochastic_sampling=True),
    "sde": lambda: diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", **FLOW),
}


@pytest.mark.parametrize("name", DRAWING)
@pytest.mark.parametrize(
    ("policy", "choice"), [("static:every=3", README), ("mixcache", {})], ids=["static", "mixcache"]
)
def test_fresh_noise_at_every_step_is_noted(
    name: str, policy: str, choice: dict[str, str], embedded_wan: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise that was drawn since the last evaluation is no change that a basis may divide by 1 - sigma."""
    monkeypatch.setattr(embedded_wan.pipe, "scheduler", DRAWING[name]())
    torch.manual_seed(11)  # some draw from the global generator
    try:
        with mixcache.enable(embedded_wan.pipe, policy, audit=True, **choice) as session:
            embedded_wan.run(20)
    except MixcacheError:
        return
    assert max(true_errors(session), default=0.0) < 2 or session.report().notes
    assert torch.isfinite(torch.tensor(true_errors(session))).all()


def test_a_scheduler_that_draws_nothing_is_not_noted(embedded_wan: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_wan.pipe, "scheduler", diffusers.DPMSolverMultistepScheduler(**FLOW))
    with mixcache.enable(embedded_wan.pipe, "static:every=3", audit=True, **README) as session:
        embedded_wan.run(20)
    assert 0 < max(true_errors(session)) < 2
    assert session.report().notes == ()


# what is promised

BOUNDED: dict[str, Callable[[], Tiny]] = {
    **{name: make for name, make in pipelines.BUILDERS.items() if name != "embedded"},
    "flux, two scales": unusual.flux_truly_guided,
}


@pytest.mark.parametrize("name", BOUNDED)
def test_a_certificate_is_never_exceeded(name: str) -> None:
    """Only the last evaluation is reused, so that no constant of the model enters."""
    tiny = BOUNDED[name]()
    kinds = set()
    for seed in range(3):
        plain = tiny.run(seed=seed)
        with mixcache.enable(tiny.pipe, Schedule("11111110"), audit=True) as session:
            moved = float((tiny.run(seed=seed).double() - plain.double()).norm())
        bound = session.bound(lipschitz=0.0)
        kinds.add(bound.kind)
        assert reused_steps(session) == [7]
        if bound.value is not None:
            assert bound.kind == "certificate"
            assert moved <= bound.value * 1.001 + 1e-5
        else:
            assert bound.why
    assert name not in ("wan", "sd3") or kinds == {"certificate"}


def wan_pipeline(experts: int) -> Any:
    """Wan 2.1 14B, or Wan 2.2 A14B, whose two experts have the same configuration."""
    with torch.device("meta"):
        models = [diffusers.WanTransformer3DModel(**WAN_14B) for _ in range(experts)]
    more = {"transformer_2": models[1], "boundary_ratio": 0.875} if experts == 2 else {}
    return diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=pipelines.unipc(), transformer=models[0], **more
    )


def image_pipeline(kind: Any, model: Any) -> Any:
    """Flux and Kontext, or Qwen-Image and its editor: one configuration of the transformer, other weights."""
    names = ["scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"]
    if "qwen" in kind.__module__:
        names = [*names[:4], "processor"] if "Edit" in kind.__name__ else names[:4]
    with torch.device("meta"):
        transformer = model()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return kind(**{**dict.fromkeys(names), "scheduler": scheduler, "transformer": transformer})


def flux_dev() -> Any:
    return diffusers.FluxTransformer2DModel(guidance_embeds=True)


ALIKE: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "wan": (lambda: wan_pipeline(1), lambda: wan_pipeline(2)),
    "flux": (
        lambda: image_pipeline(diffusers.FluxPipeline, flux_dev),
        lambda: image_pipeline(diffusers.FluxKontextPipeline, flux_dev),
    ),
    "qwen": (
        lambda: image_pipeline(diffusers.QwenImagePipeline, diffusers.QwenImageTransformer2DModel),
        lambda: image_pipeline(diffusers.QwenImageEditPipeline, diffusers.QwenImageTransformer2DModel),
    ),
}


def calibrated(pipe: Any, policy: Any) -> tuple[Any, Session]:
    with mixcache.enable(pipe, policy) as session:
        return session.calibrated.policies, session


@pytest.mark.parametrize("policy", [TeaCache(), MagCache()], ids=["teacache", "magcache"])
@pytest.mark.parametrize("name", ALIKE)
def test_the_table_of_another_checkpoint_is_not_taken_silently(name: str, policy: Any) -> None:
    """Its transformer has the same configuration; the pipeline tells it."""
    measured, other = ALIKE[name]
    try:
        usual = calibrated(measured(), policy)[0]
    except ConfigurationError:
        pytest.skip("no table for the one either")
    try:
        found, session = calibrated(other(), policy)
    except ConfigurationError:
        return
    report = str(session.report()).lower()
    assert found != usual or "table" in report


# compiling after enabling

COMPILE: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "compile": ("static:every=2", lambda pipe: pipe.transformer.compile(backend="eager")),
    "torch.compile": (
        "static:every=2",
        lambda pipe: setattr(pipe, "transformer", torch.compile(pipe.transformer, backend="eager")),
    ),
    "repeated blocks": ("taylorseer:every=2", lambda pipe: pipe.transformer.compile_repeated_blocks(backend="eager")),
}


@pytest.mark.parametrize("name", COMPILE)
def test_compiling_after_enabling_works_or_is_refused(name: str, fresh_wan: Tiny) -> None:
    """Never an error from inside of the compiler."""
    policy, compile_it = COMPILE[name]
    torch.compiler.reset()
    with mixcache.enable(fresh_wan.pipe, policy):
        want = fresh_wan.run(4)
        compile_it(fresh_wan.pipe)
        try:
            torch.testing.assert_close(fresh_wan.run(4), want, atol=1e-4, rtol=1e-4)
        except MixcacheError as error:
            assert "compile" in str(error)  # noqa: PT017


# nothing reused


@pytest.mark.parametrize("policy", ["easycache", "dbcache:first_blocks=1", "adacache:first_steps=99", "cfg:every=1"])
def test_a_run_in_which_nothing_could_be_reused_says_why(policy: str, tiny_wan_random: Tiny) -> None:
    """A distilled model makes fewer steps than the warm-up that a policy has by default."""
    with mixcache.enable(tiny_wan_random.pipe, policy) as session, pytest.warns(NothingReusedWarning) as told:
        tiny_wan_random.run(8)
    assert not any(visit.reused for visit in session.report().visits.values())
    (note,) = session.report().notes
    assert note.startswith("nothing was reused in a run of 8 evaluations: ")
    name = policy.split(":")[0]
    assert name in note
    assert re.search(r"first \d+ steps|every", note)
    assert note in str(told[0].message)

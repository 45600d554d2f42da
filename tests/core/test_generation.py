"""One generation: the same clip as the pipeline's own, cached or not, and a clock on its denoising loop."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mixcache
from mixcache import trace
from mixcache.errors import ConfigurationError
from mixcache.generation import UNCACHED, LoopClock, Variant, generate
from mixcache.loading import Model, load

PROMPT = "a red circle moving left"


@pytest.fixture(scope="module")
def model(wan_folder: Path) -> Model:
    return load(str(wan_folder), device="cpu")


@pytest.fixture(scope="module")
def arguments(model: Model) -> dict[str, Any]:
    return model.arguments(num_inference_steps=6, num_frames=5, height=16, width=16)


# variants


def test_a_variant_says_what_follows_the_at_and_takes_the_rest_from_the_defaults() -> None:
    variant = Variant.parse("static:every=3 +  easycache @ basis=noise rule=any", forecast="linear", basis="clean")
    assert variant == Variant(policies="static:every=3 + easycache", rule="any", basis="noise", forecast="linear")
    assert variant.label == "static:every=3 + easycache @ rule=any basis=noise forecast=linear"


@given(
    policies=st.sampled_from(["static", "static:every=3 + easycache:threshold=0.1", "none"]),
    rule=st.sampled_from(["unanimous", "any"]),
    basis=st.sampled_from(["residual", "noise"]),
    forecast=st.sampled_from(["hold", "taylor:order=2,abscissa=sigma", "step=linear cfg=hold"]),
    samples=st.sampled_from(["worst", "mean"]),
    max_cache_bytes=st.sampled_from(["", "1000"]),
)
def test_a_label_is_a_spec_of_the_same_variant(**parts: str) -> None:
    variant = Variant(**parts)
    assert Variant.parse(variant.label) == variant


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("easycash", "Did you mean 'easycache'"),
        ("static:evry=2", "has no parameter 'evry'"),
        ("static:every=0", "must be a whole number >= 1"),
        ("static:every=two", "every must be int"),
        ("static @ basis=nose", "noise"),
        ("static @ forecast=hold:order=2", "no parameter 'order'"),
        ("static @ rule=king", "unanimous"),
        ("static @ samples=best", "'worst' or 'mean'"),
        ("static @ speed=3", "after the @"),
        ("static @ rule.step=any", "after the @"),
        ("static @ forecast.stop=hold", "granularity must be one of"),
        ("static @ max_cache_bytes=1GB", "max_cache_bytes"),
        ("static @ offload=disk", "offload"),
        ("none @ basis=nose", "noise"),
        ("static @ basis=", "after the @"),
        ("static @", "nothing follows"),
        ("", "must name a policy"),
    ],
)
def test_a_bad_variant_is_refused_with_a_remedy(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Variant.parse(text)


def test_granularities_can_be_rebuilt_differently(model: Model, arguments: dict[str, Any]) -> None:
    variant = Variant.parse(
        "static:every=2 + cfg:every=2 @ forecast.step=linear:abscissa=sigma forecast.cfg=hold basis.step=noise"
    )
    session = variant.enable(model.pipeline)
    assert session is not None
    session.disable()
    names = {g.value: (session.plan.bases[g].name, session.plan.forecasters[g].name) for g in session.plan.bases}
    assert names == {"step": ("noise", "linear"), "cfg": ("residual", "hold"), "block": ("residual", "hold")}


# settings in a file


def test_a_settings_file_says_all_that_enable_takes(tmp_path: Path, model: Model) -> None:
    file = tmp_path / "fast.toml"
    file.write_text(
        'policies = ["static:every=2", "cfg:every=3"]\nrule = "any"\nbasis = "noise"\nmax_cache_bytes = 1000000\n'
        'forecast.step = "linear:abscissa=sigma"\nforecast.cfg = "hold"\n'
    )
    variant = Variant.parse(str(file))
    spec = "static:every=2 + cfg:every=3 @ rule=any basis=noise forecast.step=linear:abscissa=sigma forecast.cfg=hold"
    assert variant == Variant.parse(f"{spec} max_cache_bytes=1000000")
    with mixcache.enable(model.pipeline, **mixcache.read_settings(file)) as session:
        assert [policy.policy_name() for policy in session.plan.policies] == ["static", "cfg"]
        assert session.plan.max_cache_bytes == 1000000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must set `policies`"),
        ("policies = ", "no TOML"),
        ('policies = "static"\nspeed = 3', "sets 'speed'; it can set"),
        ('policies = "easycash"', "Did you mean"),
        ("policies = 3", "no value for it"),
        ('policies = [["static"]]', "no value for it"),
        ('policies = "static"\nforecast.step = 3', "no value for it"),
        ('policies = "static"\nforecast.stop = "hold"', "granularity must be one of"),
        ('policies = "static"\nmax_cache_bytes = -1', "max_cache_bytes"),
        ('policies = "static"\nrule = "king"', "unanimous"),
    ],
)
def test_a_bad_settings_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=says):
        mixcache.read_settings(file)
    with pytest.raises(ConfigurationError, match=says):
        Variant.parse(str(file))


def test_a_settings_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml"):
        mixcache.read_settings(tmp_path / "nowhere.toml")


# generating


def own_call(model: Model, arguments: dict[str, Any], seed: int = 0) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return model.pipeline(prompt=PROMPT, generator=generator, output_type="np", **arguments).frames[0]


def test_uncached_is_the_pipelines_own_clip(model: Model, arguments: dict[str, Any]) -> None:
    made = generate(model, PROMPT, 3, arguments)
    assert np.array_equal(made.frames_FHWC, own_call(model, arguments, seed=3))
    assert made.frames_FHWC.shape == (5, 16, 16, 3)
    assert made.report is None
    assert made.mask == ""
    assert made.latents is not None
    latents = model.pipeline(
        prompt=PROMPT, generator=torch.Generator().manual_seed(3), output_type="latent", **arguments
    ).frames
    assert torch.equal(made.latents, latents)


def test_cached_is_what_enable_gives_and_the_session_ends_with_the_call(
    model: Model, arguments: dict[str, Any]
) -> None:
    variant = Variant.parse("static:every=2 @ basis=noise")
    steps: list[None] = []
    made = generate(model, PROMPT, 0, arguments, variant, on_step=lambda: steps.append(None))
    with mixcache.enable(model.pipeline, "static:every=2", basis="noise"):
        assert np.array_equal(made.frames_FHWC, own_call(model, arguments))
    uncached = own_call(model, arguments)
    assert not np.array_equal(made.frames_FHWC, uncached)
    assert np.array_equal(generate(model, PROMPT, 0, arguments).frames_FHWC, uncached)
    assert len(steps) == 6
    assert made.mask == "110101"
    assert made.report is not None
    assert (made.report.evaluations, made.report.evaluations_uncached) == (8, 12)


def test_the_mask_shows_steps_that_were_computed_in_part(model: Model, arguments: dict[str, Any]) -> None:
    assert generate(model, PROMPT, 0, arguments, Variant.parse("cfg:every=2")).mask == "11+1+1"
    assert generate(model, PROMPT, 0, arguments, Variant.parse("static:every=1")).mask == "111111"


def test_an_interruption_leaves_nothing_behind(model: Model, arguments: dict[str, Any]) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, PROMPT, 0, arguments, Variant.parse("static"), on_step=stop)
    assert gc.isenabled()
    assert not model.pipeline.transformer._forward_hooks
    assert not model.pipeline.transformer._forward_pre_hooks
    with mixcache.enable(model.pipeline, "static"):  # nothing of the first session is still attached
        pass


def test_a_call_that_the_pipeline_refuses_is_a_configuration_error(model: Model, arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"WanPipeline refused the call: .*divisible"):
        generate(model, PROMPT, 0, {**arguments, "height": 17})


def test_the_trace_is_written(model: Model, arguments: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    generate(model, PROMPT, 0, arguments, Variant.parse("static"), trace=file)
    assert len(trace.read(file)) == 12


def test_an_image_is_a_clip_of_one_frame() -> None:
    class Pipeline:
        def __init__(self) -> None:
            self.transformer = torch.nn.Linear(1, 1)
            self.components = {"transformer": self.transformer}
            self.scheduler = None

        def __call__(self, prompt: str, generator: torch.Generator, output_type: str) -> SimpleNamespace:
            self.transformer(torch.zeros(1))
            return SimpleNamespace(images=np.zeros((1, 8, 6, 3), np.float32))

    made = generate(Model(name="image", pipeline=Pipeline()), PROMPT, 0, {}, UNCACHED)
    assert made.frames_FHWC.shape == (1, 8, 6, 3)
    assert made.latents is None
    assert made.seconds > 0


# the clock


def test_the_clock_times_the_denoising_loop_alone(
    model: Model, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    marks: dict[str, list[float]] = {"text": [], "loop": [], "decode": []}

    def slowed(name: str, module: torch.nn.Module, seconds: float) -> None:
        forward = module.forward

        def slow(*args: Any, **kwargs: Any) -> Any:
            marks[name].append(time.perf_counter())
            time.sleep(seconds)
            output = forward(*args, **kwargs)
            marks[name].append(time.perf_counter())
            return output

        monkeypatch.setattr(module, "forward", slow)

    slowed("text", model.pipeline.text_encoder, 0.1)
    slowed("loop", model.pipeline.transformer, 0.02)
    slowed("decode", model.pipeline.vae.decoder, 0.1)
    made = generate(model, PROMPT, 0, arguments)
    assert len(marks["loop"]) == 2 * 12
    assert marks["loop"][-1] - marks["loop"][0] <= made.seconds <= marks["decode"][0] - marks["text"][-1]


def test_a_loop_that_never_ran_took_no_time(model: Model) -> None:
    with LoopClock(model.pipeline).running() as clock:
        pass
    assert clock.seconds == 0

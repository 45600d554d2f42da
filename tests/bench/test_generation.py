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

import mixcache
from mixcache import Recipe
from mixcache.bench import LoopClock, Model, generate, load
from mixcache.core import trace
from mixcache.errors import ConfigurationError
from mixcache.study import replay

PROMPT = "a red circle moving left"


@pytest.fixture(scope="module")
def model(wan_folder: Path) -> Model:
    return load(str(wan_folder), device="cpu")


@pytest.fixture(scope="module")
def arguments(model: Model) -> dict[str, Any]:
    return model.arguments(num_inference_steps=6, num_frames=5, height=16, width=16)


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
    recipe = Recipe.parse("static:every=2 @ basis=noise")
    steps: list[None] = []
    made = generate(model, PROMPT, 0, arguments, recipe, on_step=lambda: steps.append(None))
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
    assert generate(model, PROMPT, 0, arguments, Recipe.parse("cfg:every=2")).mask == "11+1+1"
    assert generate(model, PROMPT, 0, arguments, Recipe.parse("static:every=1")).mask == "111111"


def test_an_interruption_leaves_nothing_behind(model: Model, arguments: dict[str, Any]) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, PROMPT, 0, arguments, Recipe.parse("static"), on_step=stop)
    assert gc.isenabled()
    assert not model.pipeline.transformer._forward_hooks
    assert not model.pipeline.transformer._forward_pre_hooks
    with mixcache.enable(model.pipeline, "static"):  # nothing of the first session is still attached
        pass


def test_a_call_that_the_pipeline_refuses_is_a_configuration_error(model: Model, arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"WanPipeline refused the call: .*divisible"):
        generate(model, PROMPT, 0, {**arguments, "height": 17})


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_no_noise_can_be_drawn_from_is_refused(model: Model, arguments: dict[str, Any], seed: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"--seed must be .* 0 to 2\*\*64 - 1, got {seed}"):
        generate(model, PROMPT, seed, arguments)
    assert generate(model, PROMPT, 2**64 - 1, {**arguments, "num_inference_steps": 1}).seconds > 0


def test_an_audited_recipe_measures_true_errors_and_a_bound(model: Model, arguments: dict[str, Any]) -> None:
    made = generate(model, PROMPT, 0, arguments, Recipe.parse("static:every=2 @ audit=true"))
    plain = generate(model, PROMPT, 0, arguments, Recipe.parse("static:every=2"))
    assert np.array_equal(made.frames_FHWC, plain.frames_FHWC)
    assert made.mask == plain.mask
    assert all(r.outcome.true_error for r in made.records if r.outcome.reused)
    assert made.bound is not None
    assert made.bound.kind == "estimate"
    assert plain.bound is None
    assert not any(r.outcome.true_error for r in plain.records)


def test_the_trace_is_written(model: Model, arguments: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    generate(model, PROMPT, 7, arguments, Recipe.parse("static"), trace=file)
    read = trace.read(file)
    assert len(read.records) == 12
    assert read.header is not None
    assert (read.header.recipe, read.header.prompt, read.header.seed) == ("static", PROMPT, 7)
    assert list(replay(file)) == [record.verdict for record in read.records]
    assert [path.name for path in tmp_path.iterdir()] == ["trace.jsonl"]


def test_an_image_is_a_clip_of_one_frame() -> None:
    class Pipeline:
        def __init__(self) -> None:
            self.transformer = torch.nn.Linear(1, 1)
            self.components = {"transformer": self.transformer}
            self.scheduler = None

        def __call__(self, prompt: str, generator: torch.Generator, output_type: str) -> SimpleNamespace:
            self.transformer(torch.zeros(1))
            return SimpleNamespace(images=np.zeros((1, 8, 6, 3), np.float32))

    made = generate(Model(name="image", pipeline=Pipeline()), PROMPT, 0, {})
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

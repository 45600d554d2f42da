"""The embedded Flux: it loads in one line, draws what is asked in few steps, and its training code still runs."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import mixcache
from examples.train_shared.training import load_parts
from examples.train_tiny_flux import latents, networks, pictures, reflow, train_flux
from mixcache_models import tiny_flux
from mixcache_models.tiny_flux.score import measure, score, wanted

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pipe() -> Any:
    loaded = tiny_flux.load()
    loaded.set_progress_bar_config(disable=True)
    return loaded


def _draw(pipe: Any, prompt: str, seed: int = 0, **changes: Any) -> np.ndarray:
    call = {**tiny_flux.CALL, **changes, "output_type": "np"}
    image: np.ndarray = pipe(prompt, **call, generator=torch.Generator().manual_seed(seed)).images[0]
    return image


def test_it_loads_and_is_called_in_one_line_each(pipe: Any) -> None:
    assert isinstance(pipe, diffusers.FluxPipeline)
    assert {pipe.transformer.dtype, pipe.vae.dtype} == {torch.float32}
    assert pipe.device.type == "cpu"
    image = pipe("a red circle left of a blue square", **tiny_flux.CALL).images[0]
    assert image.size == (64, 64)


def test_four_steps_draw_what_eight_do_and_much_of_it_is_as_asked(pipe: Any) -> None:
    prompts = tiny_flux.HELD_OUT[::2]
    four, eight = ([_draw(pipe, prompt, num_inference_steps=steps) for prompt in prompts] for steps in (4, 8))
    scores = [score(image, prompt) for image, prompt in zip(four, prompts, strict=True)]
    assert np.mean([each["colour"] for each in scores]) >= 0.8
    assert np.mean([each["right"] for each in scores]) >= 0.25  # by chance it is below 1 in 1,000
    assert np.mean([np.square(a - b).mean() for a, b in zip(four, eight, strict=True)]) < 1e-3  # 30 dB


def test_the_embedded_guidance_changes_the_picture(pipe: Any) -> None:
    low, high = (_draw(pipe, tiny_flux.TUNING[0], guidance_scale=scale) for scale in (1.5, 5.0))
    assert np.abs(low - high).max() > 0.02


def test_a_cache_reuses_between_few_steps(pipe: Any) -> None:
    plain = _draw(pipe, tiny_flux.TUNING[0])
    with mixcache.enable(pipe, "static:every=2 @ basis=noise forecast=linear") as session:
        cached = _draw(pipe, tiny_flux.TUNING[0])
        report = session.report()
        assert report.evaluations < report.evaluations_uncached == tiny_flux.CALL["num_inference_steps"]
    assert 0 < np.abs(cached - plain).mean() < 0.1
    assert np.array_equal(_draw(pipe, tiny_flux.TUNING[0]), plain)


def test_the_command_line_calls_it_likewise() -> None:
    folder = mixcache.catalogue.pipelines()["tiny_flux"]
    assert folder.defaults == tiny_flux.CALL
    assert (folder.path, folder.tuning, folder.held_out) == (tiny_flux.PIPELINE, tiny_flux.TUNING, tiny_flux.HELD_OUT)


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys; from mixcache_models import tiny_flux; print({'torch', 'diffusers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in tiny_flux.PIPELINE.rglob("*") if path.is_file()) < 8e6


# the score


def test_a_drawn_picture_scores_as_what_it_was_drawn_of() -> None:
    rng = np.random.default_rng(0)
    every = pictures.held_out_combinations() + pictures.training_combinations()
    for index in range(60):
        spec = pictures.sample_spec(rng, every)
        words, image = pictures.caption(spec, rng), pictures.draw(spec)
        scores = score(image, words)
        assert scores["right"] == 1, (words, measure(image))
        assert scores["overlap"] > 0.8
        if index < 5:
            assert score(image[None] / 255, words) == scores


@pytest.mark.parametrize(
    ("asked", "wrong"),
    [
        ("a blue circle", ["colour"]),
        ("a red square", ["shape"]),
        ("a red circle at the top", ["place"]),
        ("a large red circle", ["size"]),
        ("a red circle on a light background", ["background"]),
        ("a red circle left of a blue square", ["colour", "shape", "place", "size"]),
    ],
)
def test_a_score_says_what_is_wrong(asked: str, wrong: list[str]) -> None:
    thing = pictures.Thing("red", "circle", "", "", 10.0, (31.5, 31.5), (222.0, 40.0, 40.0))
    image = pictures.draw(pictures.PictureSpec((thing,), "dark", 30.0, (0.0, 0.0)))
    assert score(image, "a red circle on a dark background")["right"] == 1
    scores = score(image, asked)
    assert scores["right"] == 0
    named = [name for name in ("colour", "shape", "place", "size", "background") if scores[name] < 1]
    assert set(wrong[:1]) <= set(named) <= {*wrong, "shape", "place", "size"}


def test_noise_and_blank_pictures_score_nothing() -> None:
    noise = np.random.default_rng(0).random((64, 64, 3))
    assert score(noise, "a red circle")["right"] == 0
    assert measure(np.full((64, 64, 3), 30, dtype=np.uint8)).things == ()


def test_the_score_names_what_it_cannot_read() -> None:
    with pytest.raises(ValueError, match="a castle"):
        score(np.zeros((64, 64, 3)), "a castle")
    with pytest.raises(ValueError, match="32"):
        score(np.zeros((32, 32, 3)), "a red circle")


# the training code, which is no part of the package


def test_the_held_out_prompts_are_those_that_training_never_draws() -> None:
    def asked(prompts: tuple[str, ...]) -> list[list[tuple[str, str, str]]]:
        return [[(thing.colour, thing.shape, thing.place) for thing in wanted(prompt)[0]] for prompt in prompts]

    held_out = set(pictures.held_out_combinations())
    assert {things[0] for things in asked(tiny_flux.HELD_OUT)} == held_out
    assert len(tiny_flux.TUNING) == 16
    assert not {thing for things in asked(tiny_flux.TUNING) for thing in things} & held_out
    kept = set(pictures.training_combinations())
    for part in ((0, 1), (0, 2), (1, 2)):  # each pair of words is seen in training
        assert {tuple(c[i] for i in part) for c in held_out} <= {tuple(c[i] for i in part) for c in kept}


def test_the_tokenizers_of_the_package_are_the_one_that_is_built(pipe: Any) -> None:
    built = networks.build_tokenizer()
    for kept in (pipe.tokenizer, pipe.tokenizer_2):
        assert kept.get_vocab() == built.get_vocab()
        for prompt in tiny_flux.HELD_OUT:
            assert kept(prompt).input_ids == built(prompt).input_ids
            assert len(built(prompt).input_ids) <= tiny_flux.CALL["max_sequence_length"]


def test_training_packs_latents_as_the_pipeline_does() -> None:
    latent = torch.randn((2, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    packed = latents.pack(latent)
    assert torch.equal(packed, diffusers.FluxPipeline._pack_latents(latent, 2, 4, 16, 16))
    assert torch.equal(latents.unpack(packed), latent)


def test_the_training_s_velocity_is_the_pipeline_s(pipe: Any) -> None:
    model = train_flux.TextToFlow().eval()
    load_parts(model, tiny_flux.PIPELINE, *train_flux.PARTS)
    prompt, noise = tiny_flux.TUNING[1], torch.randn((1, 64, 16), generator=torch.Generator().manual_seed(0))
    ids, latent = torch.tensor(networks.token_ids([prompt])), noise
    levels = reflow.shifted(torch.linspace(1, 0, 4 + 1))
    with torch.no_grad():
        for level, following in pairwise(levels):
            latent = latent + (following - level) * model(latent, level[None], ids, torch.tensor([3.0]))
    changes = {"num_inference_steps": 4, "guidance_scale": 3.0}
    call = {**tiny_flux.CALL, **changes, "output_type": "latent"}
    torch.testing.assert_close(pipe(prompt, **call, latents=noise).images, latent, rtol=1e-3, atol=1e-3)


def test_normalising_folds_each_channel_s_statistics_into_the_autoencoder() -> None:
    plain, folded = networks.build_vae().eval(), networks.build_vae().eval()
    folded.load_state_dict(plain.state_dict())
    mean, std = torch.tensor([0.5, -1.0, 0.0, 2.0]), torch.tensor([2.0, 0.5, 1.0, 3.0])
    latents.normalise(folded, mean, std)
    image = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = plain.encode(image).latent_dist, folded.encode(image).latent_dist
        torch.testing.assert_close(after.mean, (before.mean - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1))
        torch.testing.assert_close(after.std, before.std / std.view(1, -1, 1, 1))
        torch.testing.assert_close(folded.decode(after.mean).sample, plain.decode(before.mean).sample)


@pytest.mark.slow
def test_the_training_runs_from_nothing_to_a_pipeline(tmp_path: Path) -> None:
    words = ["--vae-iterations", "3", "--iterations", "2", "--pictures", "32", "--pairs", "128", "--threads", "1"]
    words += ["--student-iterations", "2", "--keep-all"]
    command = [sys.executable, "-m", "examples.train_tiny_flux", "--out", str(tmp_path / "out"), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert diffusers.FluxPipeline.from_pretrained(str(tmp_path / "out" / "pipeline"), local_files_only=True).transformer

"""The embedded CogVideoX: it loads in one line, shows what is asked, is cached, and its training code still runs."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0

import mixcache
from examples.train_tiny_cogvideox import classifier, clips, digits, networks, train_transformer
from mixcache_models import tiny_cogvideox
from mixcache_models.tiny_cogvideox.score import measure, score, wanted

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pipe() -> Any:
    loaded = tiny_cogvideox.load()
    loaded.set_progress_bar_config(disable=True)
    return loaded


def _make(pipe: Any, prompt: str, seed: int = 0, **changes: Any) -> np.ndarray:
    call = {**tiny_cogvideox.CALL, "num_inference_steps": 12, **changes, "output_type": "np"}
    frames: np.ndarray = pipe(prompt, **call, generator=torch.Generator().manual_seed(seed)).frames[0]
    return frames


def test_it_loads_and_is_called_in_one_line_each(pipe: Any) -> None:
    assert isinstance(pipe, diffusers.CogVideoXPipeline)
    assert {pipe.transformer.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.float32}
    assert pipe.device.type == "cpu"
    frames = pipe("a red seven moving up", **{**tiny_cogvideox.CALL, "num_inference_steps": 2}).frames[0]
    assert len(frames) == 9
    assert frames[0].size == (48, 48)


def test_it_predicts_a_velocity_down_from_pure_noise(pipe: Any) -> None:
    config = pipe.scheduler.config
    assert (config.prediction_type, config.timestep_spacing) == ("v_prediction", "trailing")
    assert pipe.scheduler.alphas_cumprod[-1] == 0


def test_it_shows_most_of_what_training_never_drew(pipe: Any) -> None:
    prompts = tiny_cogvideox.HELD_OUT[::3]
    scores = [score(_make(pipe, prompt), prompt) for prompt in prompts]
    for part in ("colour", "direction", "speed", "background"):
        assert np.mean([each[part] for each in scores]) >= 0.85, part


@pytest.mark.slow
def test_it_shows_the_digit_asked_for_in_every_second_clip_or_so(pipe: Any) -> None:
    """In pairs with directions that training never drew; by chance it would be one in ten."""
    scores = [score(_make(pipe, p, num_inference_steps=50), p) for p in tiny_cogvideox.HELD_OUT]
    assert np.mean([each["digit"] for each in scores]) >= 0.35


def test_the_other_scheduler_of_its_kind_shows_it_too(pipe: Any) -> None:
    dpm = diffusers.CogVideoXDPMScheduler.from_config(pipe.scheduler.config)
    other = diffusers.CogVideoXPipeline(**{**pipe.components, "scheduler": dpm})
    other.set_progress_bar_config(disable=True)
    prompt = tiny_cogvideox.TUNING[0]
    scores = score(_make(other, prompt), prompt)
    assert scores["colour"] == scores["direction"] == 1


def test_a_cache_reuses_and_leaves_it_as_it_was(pipe: Any) -> None:
    plain = _make(pipe, tiny_cogvideox.TUNING[0])
    with mixcache.enable(pipe, "static:every=2 @ basis=noise forecast=linear") as session:
        cached = _make(pipe, tiny_cogvideox.TUNING[0])
        report = session.report()
        assert report.evaluations < report.evaluations_uncached
    assert 0 < np.abs(cached - plain).mean() < 0.1
    assert np.array_equal(_make(pipe, tiny_cogvideox.TUNING[0]), plain)


def test_the_command_line_calls_it_likewise() -> None:
    folder = mixcache.catalogue.pipelines()["tiny_cogvideox"]
    assert folder.defaults == tiny_cogvideox.CALL
    known = (tiny_cogvideox.PIPELINE, tiny_cogvideox.TUNING, tiny_cogvideox.HELD_OUT)
    assert (folder.path, folder.tuning, folder.held_out) == known


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys; import mixcache_models.tiny_cogvideox; print({'torch', 'diffusers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in tiny_cogvideox.PIPELINE.rglob("*") if path.is_file()) <= 8e6


# the score


def _spec(rng: np.random.Generator, digit: str, direction: str) -> clips.ClipSpec:
    return clips.sample_spec(rng, [(digit, direction)])


def test_drawn_clips_score_as_what_they_were_drawn_of() -> None:
    rng = np.random.default_rng(0)
    known = 0.0
    pairs = clips.held_out_pairs() + clips.training_pairs()
    for digit, direction in pairs:
        spec = _spec(rng, digit, direction)
        words, frames = clips.caption(spec, rng), clips.draw(spec)
        scores = score(frames, words)
        assert min(value for name, value in scores.items() if name not in ("right", "digit")) == 1, (words, scores)
        assert scores["right"] == scores["digit"]
        assert score(frames / 255, words) == scores
        known += scores["digit"]
    assert known >= len(pairs) - 2


def test_the_classifier_knows_digits_that_it_never_saw() -> None:
    assert not {picture.tobytes() for picture in digits.training_digits()[0]} & {
        picture.tobytes() for picture in digits.unseen_digits()[0]
    }
    assert classifier.accuracy() >= 0.95


@pytest.mark.parametrize(
    ("asked", "missed"),
    [
        ("a blue seven moving up", {"colour"}),
        ("a red two moving up", {"digit"}),
        ("a red seven moving down", {"direction"}),
        ("a red seven moving up slowly", {"speed"}),
        ("a red seven moving up on a light background", {"background"}),
        ("a cyan seven moving left quickly", {"colour", "direction"}),
    ],
)
def test_a_score_says_what_is_missed(asked: str, missed: set[str]) -> None:
    rng = np.random.default_rng(3)
    spec = dataclasses.replace(
        _spec(rng, "seven", "up"),
        colour="red",
        rgb=(222.0, 40.0, 40.0),
        level=30.0,
        start_xy=(24.0, 34.0),
        end_xy=(24.0, 14.0),
    )
    frames = clips.draw(spec)
    assert score(frames, "a red seven moving up quickly on a dark background") == dict.fromkeys(
        ("right", "digit", "colour", "direction", "speed", "background"), 1.0
    )
    scores = score(frames, asked)
    assert {name for name, value in scores.items() if value == 0} == {"right", *missed}


def test_a_still_or_an_empty_clip_shows_no_direction_or_nothing() -> None:
    frames = clips.draw(_spec(np.random.default_rng(4), "three", "left"))
    assert measure(np.repeat(frames[:1], 9, axis=0)).direction == "none"
    assert measure(np.full_like(frames, 120)).digit == "none"
    assert measure(np.full_like(frames, 120)).background == "grey"
    with pytest.raises(ValueError, match=r"frames have shape \(48, 48, 3\)"):
        measure(frames[0])
    with pytest.raises(ValueError, match="name a colour, a digit and a direction"):
        score(frames, "a cat moving up")


# the training code, which is no part of the package


def test_the_held_out_prompts_are_those_that_training_never_draws() -> None:
    def pairs(prompts: tuple[str, ...]) -> set[tuple[str, str]]:
        return {(wanted(prompt)["digit"], wanted(prompt)["direction"]) for prompt in prompts}

    assert (len(tiny_cogvideox.HELD_OUT), len(tiny_cogvideox.TUNING)) == (24, 16)
    assert pairs(tiny_cogvideox.HELD_OUT) == set(clips.held_out_pairs())
    assert pairs(tiny_cogvideox.TUNING) <= set(clips.training_pairs())
    for part in (0, 1):
        assert {pair[part] for pair in clips.training_pairs()} == {pair[part] for pair in clips.held_out_pairs()}


def test_the_tokenizer_of_the_package_is_the_one_that_is_built(pipe: Any) -> None:
    built = networks.build_tokenizer()
    assert pipe.tokenizer.get_vocab() == built.get_vocab()
    unknown = built.unk_token_id
    for prompt in (*tiny_cogvideox.HELD_OUT, *tiny_cogvideox.TUNING):
        ids = pipe.tokenizer(prompt).input_ids
        assert ids == built(prompt).input_ids
        assert unknown not in ids
        assert len(ids) <= tiny_cogvideox.CALL["max_sequence_length"]


def test_the_attention_of_the_training_is_that_of_diffusers() -> None:
    torch.manual_seed(0)
    model = train_transformer.TextToVelocity()
    torch.nn.init.normal_(model.transformer.proj_out.weight)
    call = (torch.randn(2, 3, 8, 12, 12), torch.tensor([999, 20]), torch.randint(0, 30, (2, 16)))
    with torch.no_grad():
        trained = model(*call)
        model.transformer.set_attn_processor(CogVideoXAttnProcessor2_0())
        torch.testing.assert_close(model(*call), trained, rtol=1e-4, atol=1e-4)


def test_the_loss_of_the_true_velocity_is_nothing() -> None:
    alphas = networks.build_scheduler().alphas_cumprod.float()
    latents = torch.randn(1, 3, 8, 12, 12)

    def velocity(noisy: torch.Tensor, timestep: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        alpha = alphas[timestep].view(-1, 1, 1, 1, 1)  # noisy = a data + s noise, so v = (a noisy - data) / s
        return (alpha.sqrt() * noisy - latents) / (1 - alpha).sqrt()

    ids = torch.tensor(train_transformer.token_ids(["a red seven moving up"]))
    loss = train_transformer.velocity_loss(velocity, alphas, latents, ids, np.random.default_rng(0))
    assert loss < 1e-6


@pytest.mark.slow
def test_the_training_runs_from_nothing_to_a_pipeline(tmp_path: Path) -> None:
    words = [
        "--vae-iterations",
        "4",
        "--iterations",
        "2",
        "--decoder-iterations",
        "2",
        "--clips",
        "16",
        "--threads",
        "1",
    ]
    command = [sys.executable, "-m", "examples.train_tiny_cogvideox", "--out", str(tmp_path / "out"), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out" / "pipeline"
    assert diffusers.CogVideoXPipeline.from_pretrained(str(folder), local_files_only=True).transformer
    again = [*command, "--start-from", str(folder), "--out", str(tmp_path / "again")]
    done = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr

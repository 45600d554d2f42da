"""The embedded model: it loads in one line, and the code that trained it still runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

import mixcache
from examples.train_tiny_wan import clips, networks, score
from mixcache_models import tiny_wan
from mixcache_models.tiny_wan import score as scores

ROOT = Path(__file__).parents[2]


def test_it_loads_and_is_called_in_one_line_each() -> None:
    pipe = tiny_wan.load()
    assert isinstance(pipe, diffusers.WanPipeline)
    assert {pipe.transformer.dtype, pipe.vae.dtype} == {torch.float32}
    assert pipe.device.type == "cpu"
    pipe.set_progress_bar_config(disable=True)
    call = {**tiny_wan.CALL, "num_inference_steps": 2}
    frames = pipe("a red circle moving left", **call, output_type="np").frames[0]
    assert frames.shape == (17, 64, 64, 3)
    assert np.isfinite(frames).all()


def test_the_command_line_calls_it_likewise() -> None:
    folder = mixcache.catalogue.pipelines()["tiny_wan"]
    assert folder.defaults == tiny_wan.CALL
    assert (folder.path, folder.tuning, folder.held_out) == (tiny_wan.PIPELINE, tiny_wan.TUNING, tiny_wan.HELD_OUT)
    assert folder.score is scores.score


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys; from mixcache_models import tiny_wan; print({'torch', 'diffusers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"


# its score


def test_a_drawn_clip_is_right_for_its_own_prompt_alone() -> None:
    rng = np.random.default_rng(1)
    for colour, shape, direction in clips.held_out_combinations()[::5]:
        frames = clips.draw(clips.sample_spec(rng, [(colour, shape, direction)]))
        told = scores.score(frames / np.float32(255), f"a {colour} {shape} moving {direction} slowly")
        assert told == {**told, "right": 1.0, "colour": 1.0, "shape": 1.0, "direction": 1.0}
        other = "up" if direction != "up" else "down"
        told = scores.score(frames, f"a {colour} {shape} moving {other}")
        assert told == {**told, "right": 0.0, "colour": 1.0, "shape": 1.0, "direction": 0.0}
        assert scores.score(frames[::-1], f"a {colour} {shape} moving {direction}")["right"] == 0.0


def test_other_sizes_and_noise_are_scored_and_other_prompts_refused() -> None:
    spec = clips.sample_spec(np.random.default_rng(2), [("red", "cross", "left")])
    wide = np.pad(clips.draw(spec), ((0, 0), (8, 8), (0, 32), (0, 0)), mode="edge")
    assert scores.score(wide, "a red cross moving left")["right"] == 1.0
    grey = np.full((17, 64, 64, 3), 0.5, np.float32)
    assert scores.score(grey, "a red cross moving left")["right"] == 0.0
    for prompt in ("a cat", "a red moving left", ""):
        with pytest.raises(ValueError, match="name a colour, a shape and a direction"):
            scores.score(wide, prompt)


# the training code, which is no part of the package


def test_a_drawn_clip_scores_as_what_it_was_drawn_of() -> None:
    rng = np.random.default_rng(0)
    for combination in clips.held_out_combinations()[::6]:
        spec = clips.sample_spec(rng, [combination])
        seen = score.measure(clips.draw(spec))
        assert (seen.colour, seen.shape, seen.direction) == combination
        assert score.wanted(clips.caption(spec, rng)) == combination
        assert seen.overlap > 0.9


def test_the_held_out_prompts_are_those_that_training_never_draws() -> None:
    assert {score.wanted(prompt) for prompt in tiny_wan.HELD_OUT} == set(clips.held_out_combinations())
    assert not {score.wanted(prompt) for prompt in tiny_wan.TUNING} & set(clips.held_out_combinations())


def test_the_tokenizer_of_the_package_is_the_one_that_is_built() -> None:
    built = networks.build_tokenizer()
    kept = diffusers.WanPipeline.from_pretrained(
        str(tiny_wan.PIPELINE), transformer=None, vae=None, text_encoder=None, local_files_only=True
    ).tokenizer
    assert kept.get_vocab() == built.get_vocab()
    for prompt in tiny_wan.HELD_OUT:
        assert kept(prompt).input_ids == built(prompt).input_ids


@pytest.mark.slow
def test_the_training_runs_from_nothing_to_a_pipeline(tmp_path: Path) -> None:
    words = ["--vae-iterations", "3", "--iterations", "2", "--clips", "16", "--threads", "1"]
    command = [sys.executable, "-m", "examples.train_tiny_wan", "--out", str(tmp_path / "out"), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert diffusers.WanPipeline.from_pretrained(str(tmp_path / "out" / "pipeline"), local_files_only=True).transformer

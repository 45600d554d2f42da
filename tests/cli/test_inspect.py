"""`mixcache inspect` as a user runs it: what it prints is true of the pipeline, and it says what it could not find."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from attrs import evolve
from typer.testing import CliRunner

from mixcache import BlockList, ModelAdapter, catalogue
from mixcache.cli import app
from mixcache_models import tiny_wan
from tests.helpers import recorded_calls

SIZE = ["--frames", "5", "--height", "32", "--width", "32"]


def run(*words: Any) -> Any:
    return CliRunner().invoke(app, ["inspect", *map(str, words)], prog_name="mixcache")


def printed(*words: Any) -> tuple[dict[str, list[str]], str]:
    """The lines under every heading, and the record."""
    result = run(*words)
    assert result.exit_code == 0, result.stderr
    facts, _, record = result.stdout.partition("\n\n")
    found: dict[str, list[str]] = {}
    for line in facts.splitlines()[1:]:
        label, told = line[2:14].strip(), line[14:]
        found.setdefault(label or list(found)[-1], []).append(told)
    return found, record


def pasted(record: str) -> ModelAdapter:
    """The record as a plugin would hold it."""
    return eval(record, {"ModelAdapter": ModelAdapter, "BlockList": BlockList})  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def wan() -> tuple[dict[str, list[str]], str]:
    return printed("tiny_wan", *SIZE)


def test_what_is_printed_of_tiny_wan_is_true(wan: tuple[dict[str, list[str]], str]) -> None:
    """The latent, the guidance scale, which call is the conditional one, flow matching, and as many blocks as it has.

    The truth is read off the pipeline without mixcache: the calls of its transformer, and its configuration.
    """
    pipe = tiny_wan.load()
    pipe.set_progress_bar_config(disable=True)
    prompt = "a red circle moving left"
    stepped: list[torch.Tensor] = []
    step = pipe.scheduler.step
    pipe.scheduler.step = lambda output, t, sample, **more: stepped.append(sample) or step(output, t, sample, **more)
    call = {**tiny_wan.CALL, "num_frames": 5, "height": 32, "width": 32, "num_inference_steps": 3}
    with recorded_calls(pipe.transformer) as calls:
        pipe(prompt, **call, output_type="latent")
    cond = pipe.encode_prompt(prompt, "", max_sequence_length=512)[0]
    given = {name: value for name, value in calls[0][0].items() if isinstance(value, torch.Tensor)}
    (latent,) = [name for name, value in given.items() if value.shape == stepped[0].shape and value.equal(stepped[0])]
    prompts = [arguments["encoder_hidden_states"] for arguments, _ in calls[:2]]
    (towards,) = [i for i, one in enumerate(prompts) if torch.allclose(one, cond, atol=1e-5)]
    scale = float(tiny_wan.CALL["guidance_scale"])
    blocks = json.loads((tiny_wan.PIPELINE / "transformer" / "config.json").read_text())["num_layers"]
    found, _ = wan
    assert found["latent"] == [f"`{latent}`: all of it"]
    assert found["prediction"] == ["output 0 of 1: all of it"]
    assert found["branches"] == [
        f"2 calls in an evaluation: the noise scheduler is given {scale:g} * call {towards} - {scale - 1:g} * call "
        f"{1 - towards}",
        f"the conditional branch is call {towards}",
    ]
    assert found["noise level"] == ["flow, with the usual sign, from sigma = 1; the first step agrees"]
    assert found["blocks"] == [f"`blocks` 0 to {blocks - 1}: streams hidden_states; returns hidden_states"]
    assert found["not found"] == ["nothing is missing"]


def test_the_record_can_be_pasted_and_is_the_one_that_ships(wan: tuple[dict[str, list[str]], str]) -> None:
    """But for what only somebody who knows the model can say: tables, and what TeaCache measures."""
    shipped = catalogue.models()["WanTransformer3DModel"]
    blocks = tuple(evolve(kind, probe=None) for kind in shipped.blocks)
    assert pasted(wan[1]) == evolve(shipped, calibrations=(), blocks=blocks)


def test_the_weights_are_those_of_the_guidance_that_was_asked_for() -> None:
    found, _ = printed("tiny_wan", *SIZE, "--guidance", 2.5, "--steps", 2)
    assert found["branches"][0].endswith("2.5 * call 0 - 1.5 * call 1")
    found, record = printed("tiny_wan", *SIZE, "--guidance", 1)
    assert found["branches"] == ["1 call in an evaluation: the noise scheduler is given 1 * call 0"]
    assert pasted(record).branches == "sequential"


def test_what_could_not_be_found_is_said(wan_folder: Path, tmp_path: Path) -> None:
    """Fresh noise hides what the output means, and the use of a single block is not to be seen."""
    pipe = diffusers.WanPipeline.from_pretrained(str(wan_folder), local_files_only=True)
    pipe.register_modules(scheduler=diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True))
    pipe.save_pretrained(str(tmp_path / "noisy"))
    found, record = printed(tmp_path / "noisy", "--frames", 5, "--height", 16, "--width", 16)
    told = " ".join(found["not found"])
    assert found["noise level"] == found["blocks"] == ["not known"]
    assert "noise level: not verified, as the first step is not made of the latent and the output alone" in told
    assert "blocks: no list of blocks could be used" in told
    assert re.search(r"blocks: what a block returns is not what the next one takes", told)
    assert found["latent"] == ["`hidden_states`: all of it"]
    assert pasted(record) == ModelAdapter(model="WanTransformer3DModel")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere"], "no model 'nowhere'"),
        (["tiny_wan", "--frames", 6], "WanPipeline makes 4n + 1 frames"),
        (["tiny_wan", "--frames", 5, "--height", 33, "--width", 32], "WanPipeline refused the call: "),
        (["tiny_wan", "--seed", -1], "--seed must be a whole number"),
    ],
)
def test_an_error_is_one_line(words: list[Any], says: str) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert result.stderr.startswith("mixcache: error: ")
    assert result.stderr.count("\n") == 1
    assert says in result.stderr

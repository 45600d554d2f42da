"""Finding and loading a pipeline, and refusing what cannot work before anything is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from mixcache.bench import Model, environment, load, read_prompts
from mixcache.bench.loading import fingerprint
from mixcache.errors import ConfigurationError


@pytest.fixture(scope="module")
def model(wan_folder: Path) -> Model:
    return load(str(wan_folder), device="cpu")


def test_a_folder_loads_as_a_pipeline(model: Model, wan_folder: Path) -> None:
    assert isinstance(model.pipeline, diffusers.WanPipeline)
    assert model.name == str(wan_folder)
    assert model.makes_video
    assert model.held_out == ()
    assert model.fingerprint == fingerprint(wan_folder)
    assert model.pipeline.transformer.dtype == torch.float32


def test_a_plugins_name_loads_its_folder_with_its_defaults_and_prompts() -> None:
    model = load("tiny_wan", device="cpu")
    assert len(model.held_out) == 24
    assert model.arguments()["num_frames"] == 17
    assert model.steps(model.arguments()) == 50
    assert model.steps(model.arguments(num_inference_steps=7)) == 7


def test_loading_writes_nothing_to_the_terminal(wan_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(str(wan_folder), device="cpu")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("name", "dtype"), [("bfloat16", torch.bfloat16), ("fp16", torch.float16)])
def test_dtype(wan_folder: Path, name: str, dtype: torch.dtype) -> None:
    pipeline = load(str(wan_folder), device="cpu", dtype=name).pipeline
    assert pipeline.transformer.patch_embedding.weight.dtype == dtype


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("no/such/folder", {}, "no such folder"),
        ("nosuchname", {}, "tiny_wan"),
        ("{file}", {}, "is a file"),
        ("{empty}", {}, "no model_index.json"),
        ("{folder}", {"device": "cuda:99"}, "cuda:99"),
        ("{folder}", {"device": "abacus"}, "abacus"),
        ("{folder}", {"device": "meta"}, "holds no data"),
        ("{folder}", {"dtype": "float12"}, "bfloat16"),
    ],
)
def test_what_cannot_work_is_refused_before_loading(
    wan_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    options: dict[str, str],
    says: str,
) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded before the arguments were checked")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", loaded)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    name = name.format(file=tmp_path / "file", empty=tmp_path / "empty", folder=wan_folder)
    with pytest.raises(ConfigurationError, match=says):
        load(name, **options)


def test_a_broken_folder_is_one_clear_error(wan_folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(wan_folder, broken)
    (broken / "transformer" / "config.json").unlink()
    with pytest.raises(ConfigurationError, match="cannot load model") as error:
        load(str(broken), device="cpu")
    assert "\n" not in str(error.value)


def test_the_fingerprint_tells_other_weights(wan_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(wan_folder, other)
    assert fingerprint(other) == fingerprint(wan_folder)
    weights = next((other / "transformer").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert fingerprint(other) != fingerprint(wan_folder)


def test_arguments_come_from_the_model_unless_given(model: Model) -> None:
    usual = Model(name="x", pipeline=model.pipeline, defaults={"num_frames": 17, "height": 64, "unheard_of": 1})
    assert usual.arguments(height=32, width=None) == {"num_frames": 17, "height": 32}


@pytest.mark.parametrize(
    ("given", "says"),
    [({"num_frames": 0}, "--frames must be >= 1, got 0"), ({"strength": 0.5}, "takes no strength .*--steps")],
)
def test_bad_arguments_name_the_option(model: Model, given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        model.arguments(**given)


def test_environment_says_what_was_measured_with() -> None:
    found = environment(torch.device("cpu"))
    assert found["torch"] == torch.__version__
    assert found["diffusers"] == diffusers.__version__
    assert found["device"] == "cpu"
    assert found["threads"] == torch.get_num_threads()


def test_prompts_are_lines_each_once(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\n  a dog \na cat\n")
    assert read_prompts(file) == ("a cat", "a dog")
    file.write_text("\n \n")
    with pytest.raises(ConfigurationError, match="holds no prompts"):
        read_prompts(file)
    with pytest.raises(ConfigurationError, match="cannot read"):
        read_prompts(tmp_path / "nowhere.txt")

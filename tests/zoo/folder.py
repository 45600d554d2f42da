"""A pipeline folder on disk, as small as they come, for everything that loads one."""

from __future__ import annotations

import gc
from pathlib import Path

import diffusers
import pytest
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

from tests.zoo.pipelines import wan_transformer, wan_vae

STEPS = 4
FRAMES = 5
SIZE = 16


def build_folder(folder: Path) -> Path:
    """An untrained WanPipeline with a text encoder and a tokenizer; its clips are noise, but deterministic."""
    from mixcache_models import tiny_wan

    transformer = wan_transformer(text_dim=8, num_layers=1)
    config = UMT5Config(
        vocab_size=32, d_model=8, d_kv=8, d_ff=8, num_layers=1, num_heads=1, pad_token_id=0, eos_token_id=1
    )
    pipeline = diffusers.WanPipeline(
        tokenizer=AutoTokenizer.from_pretrained(str(tiny_wan.PIPELINE / "tokenizer")),
        text_encoder=UMT5EncoderModel(config).eval(),
        vae=wan_vae(latents_std=40.0).eval(),
        transformer=transformer,
        scheduler=diffusers.UniPCMultistepScheduler.from_pretrained(str(tiny_wan.PIPELINE / "scheduler")),
    )
    pipeline.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def wan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder; nobody writes to it."""
    folder = build_folder(tmp_path_factory.mktemp("pipeline") / "tiny")
    gc.collect()
    gc.freeze()  # a generation collects garbage first; torch and diffusers are none
    return folder


@pytest.fixture
def small() -> list[str]:
    """Options of a call that takes a blink."""
    return ["--steps", str(STEPS), "--frames", str(FRAMES), "--height", str(SIZE), "--width", str(SIZE)]

"""A pipeline folder on disk, as small as they come, for everything that loads one."""

from __future__ import annotations

import gc
from pathlib import Path

import diffusers
import pytest
import torch
from transformers import UMT5Config, UMT5EncoderModel

STEPS = 4
FRAMES = 5
SIZE = 16


def build_folder(folder: Path) -> Path:
    """An untrained WanPipeline with a text encoder and a tokenizer; its clips are noise, but deterministic."""
    from mixcache_models.tiny_wan import networks

    torch.manual_seed(0)
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
        cross_attn_norm=True,
        rope_max_seq_len=32,
    )
    vae = diffusers.AutoencoderKLWan(
        base_dim=3,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[40.0] * 4,
    )
    config = UMT5Config(
        vocab_size=32, d_model=8, d_kv=8, d_ff=8, num_layers=1, num_heads=1, pad_token_id=0, eos_token_id=1
    )
    pipeline = diffusers.WanPipeline(
        tokenizer=networks.build_tokenizer(),
        text_encoder=UMT5EncoderModel(config).eval(),
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=networks.build_scheduler(),
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

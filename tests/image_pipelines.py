"""Tiny random Qwen-Image and Stable Diffusion 3 pipelines that need no network."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tests.tiny import Tiny, quiet, randn, repeat


def qwen() -> Tiny:
    """Sequential guidance branches, packed tokens of which each holds a patch."""
    torch.manual_seed(0)
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    ).eval()
    pipe = diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )

    def arguments(batch: int) -> dict[str, Any]:
        return {
            "prompt_embeds": repeat(randn(1, 7, 16), batch),
            "prompt_embeds_mask": torch.ones(batch, 7, dtype=torch.int64),
            "negative_prompt_embeds": repeat(randn(1, 7, 16, seed=5), batch),
            "negative_prompt_embeds_mask": torch.ones(batch, 7, dtype=torch.int64),
            "true_cfg_scale": 4.0,
            "height": 48,
            "width": 32,
        }

    return Tiny(quiet(pipe), arguments, {"height": 64}, unguided={"true_cfg_scale": 1.0})


def sd3() -> Tiny:
    """One doubled batch of image latents; the last block drops the text."""
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        out_channels=4,
    ).eval()
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )

    def arguments(batch: int) -> dict[str, Any]:
        return {
            "prompt_embeds": repeat(randn(1, 7, 32), batch),
            "negative_prompt_embeds": torch.zeros(batch, 7, 32),
            "pooled_prompt_embeds": repeat(randn(1, 32, seed=3), batch),
            "negative_pooled_prompt_embeds": torch.zeros(batch, 32),
            "height": 32,
            "width": 32,
        }

    return Tiny(quiet(pipe), arguments, {"height": 48}, unguided={"guidance_scale": 1.0})

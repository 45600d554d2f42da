"""Pipelines around the transformers of `tests.architectures`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch

from tests.architectures import build
from tests.pipelines import unipc, wan_vae
from tests.tiny import Tiny, quiet, randn


def chroma() -> Tiny:
    pipe = diffusers.ChromaPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=build("chroma")[0],
    )
    masks = {f"{name}_attention_mask": torch.ones(1, 6) for name in ("prompt", "negative_prompt")}
    return tiny(pipe, **embeds(6, 16), **masks, height=32, width=32, guidance_scale=4.0)


def flux2() -> Tiny:
    pipe = diffusers.Flux2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=build("flux2")[0],
    )
    return tiny(pipe, prompt_embeds=randn(1, 6, 16), height=32, width=32)


def skyreels() -> Tiny:
    pipe = diffusers.SkyReelsV2Pipeline(
        tokenizer=None, text_encoder=None, vae=wan_vae(), transformer=build("skyreels")[0], scheduler=unipc()
    )
    return tiny(pipe, **embeds(8, 16), height=32, width=32, num_frames=9)


def hunyuan15() -> Tiny:
    """A guider of diffusers calls the branches."""
    pipe = diffusers.HunyuanVideo15Pipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=build("hunyuan15")[0],
        vae=diffusers.AutoencoderKLHunyuanVideo15(
            latent_channels=4, block_out_channels=(8,) * 5, spatial_compression_ratio=16, layers_per_block=1
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        text_encoder_2=None,
        tokenizer_2=None,
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=4.0),
    )
    second = {name + "_2": value for name, value in embeds(4, 8).items()}
    masks = {
        f"{name}_embeds_mask{which}": torch.ones(1, length)
        for name in ("prompt", "negative_prompt")
        for which, length in (("", 5), ("_2", 4))
    }
    return tiny(pipe, **embeds(5, 16), **second, **masks, height=64, width=64, num_frames=9)


def embeds(length: int, size: int) -> dict[str, Any]:
    """A prompt's embeddings and the negative prompt's."""
    return {"prompt_embeds": randn(1, length, size), "negative_prompt_embeds": randn(1, length, size, seed=4)}


def tiny(pipe: Any, **arguments: Any) -> Tiny:
    """The pipeline with its arguments, for a batch of one."""
    return Tiny(quiet(pipe), lambda batch: arguments)


MORE: dict[str, Callable[[], Tiny]] = {"chroma": chroma, "flux2": flux2, "skyreels": skyreels, "hunyuan15": hunyuan15}

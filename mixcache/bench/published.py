"""Transformers that can be called without a pipeline: their families, and published models of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor

GUIDANCE = 5.0


@frozen(kw_only=True)
class Size:
    """What is generated: frames, height and width in pixels; and how many tokens of text there are."""

    frames: int
    height: int
    width: int
    text: int


@frozen(kw_only=True)
class Inputs:
    """What a loop gives a transformer: the first latent in float32, and the other arguments by guidance branch.

    time_scale: the timestep of noise level 1. tokens: how many the blocks see, those of the text apart.
    """

    latent: Tensor
    branches: Mapping[str, Mapping[str, Any]]
    time_scale: float
    tokens: int


Random = Callable[..., Tensor]
"""Shape -> normal numbers in float32, on the device."""


@frozen(kw_only=True)
class Family:
    """A transformer class of diffusers, and how a loop calls it.

    blocks: where its lists of blocks are. layers: the entries of its configuration that count them. temporal, spatial:
    frames and pixels that a latent one stands for, if no pipeline says so. patch: latent pixels in a token, each way.
    inputs: what to call it with, of its configuration and the latent size (frames, height, width, text).
    """

    transformer: str
    blocks: tuple[str, ...]
    layers: tuple[str, ...]
    inputs: Callable[[Any, Size, Random], Inputs]
    temporal: int | None = None
    spatial: int = 8
    patch: int = 2


@frozen(kw_only=True)
class Published:
    """A model whose sizes are known: its configuration (the rest is the default of its class), and what it makes.

    full: on an accelerator. small: on a CPU.
    """

    family: Family
    config: Mapping[str, Any] = field(factory=dict)
    full: Size
    small: Size


def _wan(config: Any, size: Size, random: Random) -> Inputs:
    """Two branches, [1, channels, frames, height, width] each."""
    latent = random(1, config.in_channels, size.frames, size.height, size.width)
    branches = {name: {"encoder_hidden_states": random(1, size.text, config.text_dim)} for name in ("cond", "uncond")}
    tokens = size.frames * size.height * size.width // math.prod(config.patch_size)
    return Inputs(latent=latent, branches=branches, time_scale=1000.0, tokens=tokens)


def _flux(config: Any, size: Size, random: Random) -> Inputs:
    """One branch with embedded guidance; the latent is packed: [1, tokens, channels]."""
    height, width = size.height // 2, size.width // 2
    latent = random(1, height * width, config.in_channels)
    places = torch.cartesian_prod(torch.arange(1.0), torch.arange(float(height)), torch.arange(float(width)))
    arguments = {
        "encoder_hidden_states": random(1, size.text, config.joint_attention_dim),
        "pooled_projections": random(1, config.pooled_projection_dim),
        "img_ids": places.to(latent.device),
        "txt_ids": latent.new_zeros(size.text, 3),
    }
    if config.guidance_embeds:
        arguments["guidance"] = latent.new_full((1,), GUIDANCE)
    return Inputs(latent=latent, branches={"cond": arguments}, time_scale=1.0, tokens=height * width)


WAN = Family(transformer="WanTransformer3DModel", blocks=("blocks",), layers=("num_layers",), inputs=_wan, temporal=4)
FLUX = Family(
    transformer="FluxTransformer2DModel",
    blocks=("transformer_blocks", "single_transformer_blocks"),
    layers=("num_layers", "num_single_layers"),
    inputs=_flux,
)
FAMILIES = {family.transformer: family for family in (WAN, FLUX)}

_VIDEO = {
    "full": Size(frames=81, height=480, width=832, text=512),
    "small": Size(frames=5, height=64, width=64, text=32),
}
MODELS = {
    "wan-1.3b": Published(
        family=WAN,
        config={"num_layers": 30, "num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960},
        **_VIDEO,
    ),
    "wan-14b": Published(
        family=WAN,
        config={"num_layers": 40, "num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824},
        **_VIDEO,
    ),
    "flux": Published(
        family=FLUX,
        config={"num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24, "guidance_embeds": True},
        full=Size(frames=1, height=1024, width=1024, text=512),
        small=Size(frames=1, height=128, width=128, text=32),
    ),
}
"""The models that `mixcache bench --random-weights` knows: Wan 2.1 (arXiv 2503.20314) and FLUX.1-dev."""

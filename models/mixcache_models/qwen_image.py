"""Qwen-Image: packed latents [batch, tokens, channels]; cond and uncond are two calls."""

from mixcache import ModelAdapter
from mixcache_models.magcache_tables import MAGCACHE

ADAPTERS = (
    ModelAdapter(
        model="QwenImageTransformer2DModel",
        branches="sequential",
        prediction="flow",
        channel_dim=-1,
        calibrations=MAGCACHE["QwenImageTransformer2DModel"],
    ),
)

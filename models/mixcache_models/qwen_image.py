"""Qwen-Image: packed latents [batch, tokens, channels]; cond and uncond are two calls."""

from mixcache import ModelAdapter

ADAPTERS = (
    ModelAdapter(model="QwenImageTransformer2DModel", branches="sequential", prediction="flow", channel_dim=-1),
)

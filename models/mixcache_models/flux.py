"""Flux 1 and 2: packed latents [batch, tokens, channels], guidance embedded; true guidance makes a second call."""

from mixcache import ModelAdapter

ADAPTERS = (
    ModelAdapter(model="FluxTransformer2DModel", branches="embedded", prediction="flow", channel_dim=-1),
    ModelAdapter(model="Flux2Transformer2DModel", branches="embedded", prediction="flow", channel_dim=-1),
)

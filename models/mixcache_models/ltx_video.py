"""LTX-Video: packed latents [batch, tokens, channels], one doubled batch, uncond first."""

from mixcache import ModelAdapter

ADAPTERS = (ModelAdapter(model="LTXVideoTransformer3DModel", branches="doubled", prediction="flow", channel_dim=-1),)

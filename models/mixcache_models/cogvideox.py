"""CogVideoX: latents [batch, frames, channels, height, width], one doubled batch, uncond first.

The noise scheduler says what is predicted.
"""

from mixcache import ModelAdapter

ADAPTERS = (ModelAdapter(model="CogVideoXTransformer3DModel", branches="doubled", channel_dim=2),)

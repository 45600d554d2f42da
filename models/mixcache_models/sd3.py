"""Stable Diffusion 3: one doubled batch, uncond first; skip-layer guidance makes a further call."""

from mixcache import ModelAdapter

ADAPTERS = (ModelAdapter(model="SD3Transformer2DModel", branches="doubled", prediction="flow"),)

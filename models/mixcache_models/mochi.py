"""Mochi 1: one doubled batch, uncond first."""

from mixcache import ModelAdapter

ADAPTERS = (ModelAdapter(model="MochiTransformer3DModel", branches="doubled", prediction="flow"),)

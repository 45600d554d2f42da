"""Mochi 1: one doubled batch, uncond first."""

from mixcache import BlockList, ModelAdapter
from mixcache_models.probes import modulated_input
from mixcache_models.teacache_tables import TEACACHE

_BLOCKS = (
    BlockList(
        path="transformer_blocks",
        streams=("hidden_states", "encoder_hidden_states"),
        returns=("hidden_states", "encoder_hidden_states"),
        probe=modulated_input,
    ),
)

ADAPTERS = (
    ModelAdapter(
        model="MochiTransformer3DModel",
        blocks=_BLOCKS,
        branches="doubled",
        prediction="flow",
        calibrations=(*TEACACHE["MochiTransformer3DModel"],),
    ),
)

"""CogVideoX: latents [batch, frames, channels, height, width], one doubled batch, uncond first.

The noise scheduler says what is predicted.
"""

from mixcache import BlockList, ModelAdapter
from mixcache_models.probes import time_embedding
from mixcache_models.teacache_tables import TEACACHE

_BLOCKS = (
    BlockList(
        path="transformer_blocks",
        streams=("hidden_states", "encoder_hidden_states"),
        returns=("hidden_states", "encoder_hidden_states"),
        probe=time_embedding,
    ),
)

ADAPTERS = (
    ModelAdapter(
        model="CogVideoXTransformer3DModel",
        blocks=_BLOCKS,
        branches="doubled",
        calibrations=(*TEACACHE["CogVideoXTransformer3DModel"],),
    ),
)

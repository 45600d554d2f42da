"""Stable Diffusion 3: one doubled batch, uncond first; skip-layer guidance makes a further call.

The last block drops the text stream.
"""

from mixcache import BlockList, ModelAdapter
from mixcache_models.probes import modulated_input

_BLOCKS = (
    BlockList(
        path="transformer_blocks",
        streams=("hidden_states", "encoder_hidden_states"),
        returns=("encoder_hidden_states", "hidden_states"),
        probe=modulated_input,
    ),
)

ADAPTERS = (
    ModelAdapter(
        model="SD3Transformer2DModel",
        blocks=_BLOCKS,
        branches="doubled",
        prediction="flow",
    ),
)

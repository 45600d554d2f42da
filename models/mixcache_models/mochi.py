"""Mochi 1: one doubled batch, uncond first."""

from mixcache import BlockList, ModelAdapter

_BLOCKS = (
    BlockList(
        path="transformer_blocks",
        streams=("hidden_states", "encoder_hidden_states"),
        returns=("hidden_states", "encoder_hidden_states"),
    ),
)

ADAPTERS = (ModelAdapter(model="MochiTransformer3DModel", blocks=_BLOCKS, branches="doubled", prediction="flow"),)

"""Flux 1 and 2: packed latents [batch, tokens, channels], guidance embedded; true guidance makes a second call."""

from mixcache import BlockList, ModelAdapter
from mixcache_models.magcache_tables import MAGCACHE
from mixcache_models.probes import modulated_input
from mixcache_models.teacache_tables import TEACACHE

_BLOCKS = (
    BlockList(
        path="transformer_blocks",
        streams=("hidden_states", "encoder_hidden_states"),
        returns=("encoder_hidden_states", "hidden_states"),
        probe=modulated_input,
    ),
    BlockList(
        path="single_transformer_blocks",
        streams=("hidden_states", "encoder_hidden_states"),
        returns=("encoder_hidden_states", "hidden_states"),
    ),
)

ADAPTERS = (
    ModelAdapter(
        model="FluxTransformer2DModel",
        blocks=_BLOCKS,
        injected=("controlnet_block_samples", "controlnet_single_block_samples"),
        branches="embedded",
        prediction="flow",
        channel_dim=-1,
        calibrations=(*TEACACHE["FluxTransformer2DModel"], *MAGCACHE["FluxTransformer2DModel"]),
    ),
    ModelAdapter(model="Flux2Transformer2DModel", branches="embedded", prediction="flow", channel_dim=-1),
)

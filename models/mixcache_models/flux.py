"""Flux 1 and 2: packed latents [batch, tokens, channels], guidance embedded; true guidance makes a second call."""

from mixcache import BlockList, ModelAdapter

_BLOCKS = (
    BlockList(
        path="transformer_blocks",
        streams=("hidden_states", "encoder_hidden_states"),
        returns=("encoder_hidden_states", "hidden_states"),
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
    ),
    ModelAdapter(model="Flux2Transformer2DModel", branches="embedded", prediction="flow", channel_dim=-1),
)

"""Flux 1 and 2, and Chroma: packed latents [batch, tokens, channels].

Flux embeds its guidance, and true guidance makes a second call, as Chroma's does. The single blocks of Flux 2 and of
Chroma work on one stream, the text before the image.
"""

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

_JOINED = (
    BlockList(
        path="transformer_blocks",
        streams=("hidden_states", "encoder_hidden_states"),
        returns=("encoder_hidden_states", "hidden_states"),
    ),
    BlockList(path="single_transformer_blocks"),
)

ADAPTERS = (
    ModelAdapter(
        model="FluxTransformer2DModel",
        blocks=_BLOCKS,
        injected=("controlnet_block_samples", "controlnet_single_block_samples"),
        branches="embedded",
        prediction="flow",
        calibrations=(*TEACACHE["FluxTransformer2DModel"], *MAGCACHE["FluxTransformer2DModel"]),
    ),
    ModelAdapter(
        model="Flux2Transformer2DModel",
        blocks=_JOINED,
        injected=("kv_cache",),
        branches="embedded",
        prediction="flow",
    ),
    ModelAdapter(
        model="ChromaTransformer2DModel",
        blocks=_JOINED,
        injected=("controlnet_block_samples", "controlnet_single_block_samples"),
        branches="sequential",
        prediction="flow",
    ),
)

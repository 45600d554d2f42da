"""Qwen-Image: packed latents [batch, tokens, channels]; cond and uncond are two calls."""

from mixcache import BlockList, ModelAdapter
from mixcache_models.magcache_tables import MAGCACHE

ADAPTERS = (
    ModelAdapter(
        model="QwenImageTransformer2DModel",
        blocks=(
            BlockList(
                path="transformer_blocks",
                streams=("hidden_states", "encoder_hidden_states"),
                returns=("encoder_hidden_states", "hidden_states"),
            ),
        ),
        injected=("controlnet_block_samples",),
        branches="sequential",
        prediction="flow",
        calibrations=MAGCACHE["QwenImageTransformer2DModel"],
    ),
)

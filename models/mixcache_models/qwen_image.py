"""Qwen-Image: packed latents [batch, tokens, channels]; cond and uncond are two calls."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mixcache import BlockList, ModelAdapter
from mixcache_models.magcache_tables import MAGCACHE


def modulated_input(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """The image tokens as attention gets them, [batch, tokens, dim]: `img_norm1`, modulated by half of `img_mod`."""
    modulation = block.img_mod(arguments["temb"]).chunk(2, dim=-1)[0]
    normed = block.img_norm1(arguments["hidden_states"])
    modulated: Tensor = block._modulate(normed, modulation, arguments.get("modulate_index"))[0]
    return modulated


ADAPTERS = (
    ModelAdapter(
        model="QwenImageTransformer2DModel",
        blocks=(
            BlockList(
                path="transformer_blocks",
                streams=("hidden_states", "encoder_hidden_states"),
                returns=("encoder_hidden_states", "hidden_states"),
                probe=modulated_input,
            ),
        ),
        branches="sequential",
        prediction="flow",
        calibrations=MAGCACHE["QwenImageTransformer2DModel"],
    ),
)

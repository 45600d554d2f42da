"""LTX-Video: packed latents [batch, tokens, channels], one doubled batch, uncond first."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mixcache import BlockList, ModelAdapter
from mixcache_models.teacache_tables import TEACACHE


def modulated_input(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """The video tokens as attention gets them, [batch, tokens, dim]: `norm1`, scaled and shifted by the table."""
    hidden, temb = arguments["hidden_states"], arguments["temb"]
    table = block.scale_shift_table
    shift, scale = (table[None, None] + temb.reshape(*temb.shape[:2], len(table), -1)).unbind(dim=2)[:2]
    modulated: Tensor = block.norm1(hidden) * (1 + scale) + shift
    return modulated


_BLOCKS = (
    BlockList(path="transformer_blocks", streams=("hidden_states",), returns=("hidden_states",), probe=modulated_input),
)

ADAPTERS = (
    ModelAdapter(
        model="LTXVideoTransformer3DModel",
        blocks=_BLOCKS,
        branches="doubled",
        prediction="flow",
        calibrations=(*TEACACHE["LTXVideoTransformer3DModel"],),
    ),
)

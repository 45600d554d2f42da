"""What TeaCache measures at the first block, from the block and its arguments: data, or the block's own modulation."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def time_embedding(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """The time embedding as the blocks get it (Wan: its 6-way projection, [batch, 6, dim] or one for every token)."""
    temb: Tensor = arguments["temb"]
    return temb


def modulated_input(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """The image or video tokens as attention gets them, [batch, tokens, dim], by the block's adaptive `norm1`."""
    modulated: Tensor = block.norm1(arguments["hidden_states"], emb=arguments["temb"])[0]
    return modulated

"""Flux 1 and 2, and Chroma: packed latents [batch, tokens, channels].

Flux embeds its guidance, and true guidance makes a second call, as Chroma's does. The single blocks of Flux 2 and of
Chroma work on one stream, the text before the image.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from mixcache import BlockList, ModelAdapter
from mixcache_models.magcache_tables import MAGCACHE
from mixcache_models.probes import modulated_input
from mixcache_models.teacache_tables import TEACACHE


def _double(probe: Callable[[Any, Mapping[str, Any]], Tensor]) -> BlockList:
    return BlockList(
        path="transformer_blocks",
        streams=("hidden_states", "encoder_hidden_states"),
        returns=("encoder_hidden_states", "hidden_states"),
        probe=probe,
    )


_SINGLE = BlockList(
    path="single_transformer_blocks",
    streams=("hidden_states", "encoder_hidden_states"),
    returns=("encoder_hidden_states", "hidden_states"),
)
_JOINED = BlockList(path="single_transformer_blocks")


def modulated_flux2(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """The image tokens as attention gets them, [batch, tokens, dim]: the model makes the modulation, for all blocks."""
    modulation = arguments["temb_mod_img"]
    shift, scale = (modulation[:, None] if modulation.dim() == 2 else modulation).chunk(6, dim=-1)[:2]
    modulated: Tensor = (1 + scale) * block.norm1(arguments["hidden_states"]) + shift
    return modulated


def modulated_chroma(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """The image tokens as attention gets them, [batch, tokens, dim]: the first six rows of `temb` are the image's."""
    modulated: Tensor = block.norm1(arguments["hidden_states"], emb=arguments["temb"][:, :6])[0]
    return modulated


ADAPTERS = (
    ModelAdapter(
        model="FluxTransformer2DModel",
        blocks=(_double(modulated_input), _SINGLE),
        branches="embedded",
        prediction="flow",
        calibrations=(*TEACACHE["FluxTransformer2DModel"], *MAGCACHE["FluxTransformer2DModel"]),
    ),
    ModelAdapter(
        model="Flux2Transformer2DModel",
        blocks=(_double(modulated_flux2), _JOINED),
        branches="embedded",
        prediction="flow",
    ),
    ModelAdapter(
        model="ChromaTransformer2DModel",
        blocks=(_double(modulated_chroma), _JOINED),
        branches="sequential",
        prediction="flow",
    ),
)

"""HunyuanVideo: guidance is embedded; true guidance, where it is used, makes a second call."""

from mixcache import BlockList, ModelAdapter
from mixcache_models.magcache_tables import MAGCACHE
from mixcache_models.probes import modulated_input
from mixcache_models.teacache_tables import TEACACHE

_BLOCKS = (
    BlockList(
        path="transformer_blocks",
        streams=("hidden_states", "encoder_hidden_states"),
        returns=("hidden_states", "encoder_hidden_states"),
        probe=modulated_input,
    ),
    BlockList(
        path="single_transformer_blocks",
        streams=("hidden_states", "encoder_hidden_states"),
        returns=("hidden_states", "encoder_hidden_states"),
    ),
)

ADAPTERS = (
    ModelAdapter(
        model="HunyuanVideoTransformer3DModel",
        blocks=_BLOCKS,
        branches="embedded",
        prediction="flow",
        calibrations=(*TEACACHE["HunyuanVideoTransformer3DModel"], *MAGCACHE["HunyuanVideoTransformer3DModel"]),
    ),
    ModelAdapter(
        model="HunyuanVideo15Transformer3DModel",
        blocks=_BLOCKS[:1],
        branches="sequential",
        prediction="flow",
    ),
    ModelAdapter(
        model="HunyuanVideoFramepackTransformer3DModel",
        blocks=_BLOCKS,
        branches="embedded",
        prediction="flow",
        calibrations=MAGCACHE["HunyuanVideoFramepackTransformer3DModel"],
    ),
)

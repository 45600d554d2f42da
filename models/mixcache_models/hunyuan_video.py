"""HunyuanVideo: guidance is embedded; true guidance, where it is used, makes a second call."""

from mixcache import BlockList, ModelAdapter

_BLOCKS = (
    BlockList(
        path="transformer_blocks",
        streams=("hidden_states", "encoder_hidden_states"),
        returns=("hidden_states", "encoder_hidden_states"),
    ),
    BlockList(
        path="single_transformer_blocks",
        streams=("hidden_states", "encoder_hidden_states"),
        returns=("hidden_states", "encoder_hidden_states"),
    ),
)

ADAPTERS = (
    ModelAdapter(model="HunyuanVideoTransformer3DModel", blocks=_BLOCKS, branches="embedded", prediction="flow"),
    ModelAdapter(model="HunyuanVideoFramepackTransformer3DModel", branches="embedded", prediction="flow"),
)

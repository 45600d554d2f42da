"""LTX-Video: packed latents [batch, tokens, channels], one doubled batch, uncond first."""

from mixcache import BlockList, ModelAdapter

_BLOCKS = (BlockList(path="transformer_blocks", streams=("hidden_states",), returns=("hidden_states",)),)

ADAPTERS = (
    ModelAdapter(
        model="LTXVideoTransformer3DModel", blocks=_BLOCKS, branches="doubled", prediction="flow", channel_dim=-1
    ),
)

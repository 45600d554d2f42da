"""HunyuanVideo: guidance is embedded; true guidance, where it is used, makes a second call."""

from mixcache import ModelAdapter

ADAPTERS = (
    ModelAdapter(model="HunyuanVideoTransformer3DModel", branches="embedded", prediction="flow"),
    ModelAdapter(model="HunyuanVideoFramepackTransformer3DModel", branches="embedded", prediction="flow"),
)

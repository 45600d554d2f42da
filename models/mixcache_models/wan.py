"""Wan 2.1 and 2.2 (text to video, image to video, VACE, Animate): cond and uncond are two calls."""

from mixcache import BlockList, ModelAdapter

ADAPTERS = (
    ModelAdapter(
        model="WanTransformer3DModel", blocks=(BlockList(path="blocks"),), branches="sequential", prediction="flow"
    ),
    ModelAdapter(model="WanVACETransformer3DModel", branches="sequential", prediction="flow"),
    ModelAdapter(model="WanAnimateTransformer3DModel", branches="sequential", prediction="flow"),
    ModelAdapter(model="SkyReelsV2Transformer3DModel", branches="sequential", prediction="flow"),
    ModelAdapter(model="ChronoEditTransformer3DModel", branches="sequential", prediction="flow"),
)

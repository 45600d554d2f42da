"""Wan 2.1 and 2.2 (text to video, image to video, VACE, Animate): cond and uncond are two calls."""

from mixcache import BlockList, ModelAdapter, load_calibration
from mixcache_models import tiny_wan
from mixcache_models.magcache_tables import MAGCACHE
from mixcache_models.probes import time_embedding
from mixcache_models.teacache_tables import TEACACHE

ADAPTERS = (
    ModelAdapter(
        model="WanTransformer3DModel",
        blocks=(BlockList(path="blocks", probe=time_embedding),),
        branches="sequential",
        prediction="flow",
        calibrations=(
            *TEACACHE["WanTransformer3DModel"],
            *MAGCACHE["WanTransformer3DModel"],
            *map(load_calibration, tiny_wan.CALIBRATIONS),
        ),
    ),
    ModelAdapter(
        model="WanVACETransformer3DModel",
        branches="sequential",
        prediction="flow",
        calibrations=MAGCACHE["WanVACETransformer3DModel"],
    ),
    ModelAdapter(model="WanAnimateTransformer3DModel", branches="sequential", prediction="flow"),
    ModelAdapter(
        model="SkyReelsV2Transformer3DModel",
        blocks=(BlockList(path="blocks", probe=time_embedding),),
        branches="sequential",
        prediction="flow",
    ),
    ModelAdapter(model="ChronoEditTransformer3DModel", branches="sequential", prediction="flow"),
)

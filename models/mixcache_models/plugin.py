"""The plugin that offers these adapters and the embedded pipeline (entry point `models` of the group `mixcache`)."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from mixcache import ModelAdapter, PipelineFolder, hookimpl
from mixcache_models import (
    cogvideox,
    flux,
    hunyuan_video,
    ltx_video,
    mochi,
    qwen_image,
    sd3,
    tiny_cogvideox,
    tiny_flux,
    tiny_wan,
    wan,
)
from mixcache_models.tiny_cogvideox.score import score as tiny_cogvideox_score
from mixcache_models.tiny_flux.score import score as tiny_flux_score
from mixcache_models.tiny_wan.score import score as tiny_wan_score

_Score = Callable[[Any, str], dict[str, float]]
_ARCHITECTURES = (cogvideox, flux, hunyuan_video, ltx_video, mochi, qwen_image, sd3, wan)


@hookimpl
def mixcache_models() -> list[ModelAdapter | PipelineFolder]:
    adapters = [adapter for architecture in _ARCHITECTURES for adapter in architecture.ADAPTERS]
    return [*adapters, *_EMBEDDED]


def _embedded(bed: ModuleType, score: _Score, summary: str, other: str) -> PipelineFolder:
    """A pipeline that comes with the package. other: what `mixcache demo` shows beside EasyCache."""
    return PipelineFolder(
        name=bed.__name__.rpartition(".")[2],
        path=bed.PIPELINE,
        summary=summary,
        defaults=dict(bed.CALL),
        tuning=bed.TUNING,
        held_out=bed.HELD_OUT,
        score=score,
        demo=("easycache:threshold=0.05", other),
    )


_EMBEDDED = (
    _embedded(
        tiny_wan,
        tiny_wan_score,
        "a WanPipeline trained on moving shapes: 'a red circle moving left'; 17 frames of 64x64",
        "static:every=3 @ basis=noise forecast=linear:abscissa=sigma",
    ),
    _embedded(
        tiny_cogvideox,
        tiny_cogvideox_score,
        "a CogVideoXPipeline trained on hand-written digits: 'a red seven moving up'; 9 frames of 48x48",
        "static:every=3 @ basis=residual forecast=linear",
    ),
    _embedded(
        tiny_flux,
        tiny_flux_score,
        "a FluxPipeline distilled to few steps: 'a red circle left of a blue square'; pictures of 64x64",
        "static:every=2 @ basis=noise forecast=linear",
    ),
)

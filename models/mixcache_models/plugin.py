"""The plugin that offers these adapters and the embedded pipeline (entry point `models` of the group `mixcache`)."""

from __future__ import annotations

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

_ARCHITECTURES = (cogvideox, flux, hunyuan_video, ltx_video, mochi, qwen_image, sd3, wan)


@hookimpl
def mixcache_models() -> list[ModelAdapter | PipelineFolder]:
    adapters = [adapter for architecture in _ARCHITECTURES for adapter in architecture.ADAPTERS]
    return [*adapters, TINY_WAN, TINY_COGVIDEOX, TINY_FLUX]


TINY_WAN = PipelineFolder(
    name="tiny_wan",
    path=tiny_wan.PIPELINE,
    summary="a WanPipeline trained on moving shapes: 'a red circle moving left'; 17 frames of 64x64",
    defaults=dict(tiny_wan.CALL),
    tuning=tiny_wan.TUNING,
    held_out=tiny_wan.HELD_OUT,
    score=tiny_wan_score,
    demo=("easycache:threshold=0.05", "static:every=3 @ basis=noise forecast=linear:abscissa=sigma"),
)

TINY_COGVIDEOX = PipelineFolder(
    name="tiny_cogvideox",
    path=tiny_cogvideox.PIPELINE,
    summary="a CogVideoXPipeline trained on hand-written digits: 'a red seven moving up'; 9 frames of 48x48",
    defaults=dict(tiny_cogvideox.CALL),
    tuning=tiny_cogvideox.TUNING,
    held_out=tiny_cogvideox.HELD_OUT,
    score=tiny_cogvideox_score,
    demo=("easycache:threshold=0.05", "static:every=3 @ basis=residual forecast=linear"),
)

TINY_FLUX = PipelineFolder(
    name="tiny_flux",
    path=tiny_flux.PIPELINE,
    summary="a FluxPipeline distilled to few steps: 'a red circle left of a blue square'; pictures of 64x64",
    defaults=dict(tiny_flux.CALL),
    tuning=tiny_flux.TUNING,
    held_out=tiny_flux.HELD_OUT,
    score=tiny_flux_score,
    demo=("easycache:threshold=0.05", "static:every=2 @ basis=noise forecast=linear"),
)

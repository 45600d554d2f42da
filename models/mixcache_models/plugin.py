"""The plugin that offers these adapters and the embedded pipeline (entry point `models` of the group `mixcache`)."""

from __future__ import annotations

from mixcache import ModelAdapter, PipelineFolder, hookimpl
from mixcache_models import cogvideox, flux, hunyuan_video, ltx_video, mochi, qwen_image, sd3, tiny_wan, wan

_ARCHITECTURES = (cogvideox, flux, hunyuan_video, ltx_video, mochi, qwen_image, sd3, wan)


@hookimpl
def mixcache_models() -> list[ModelAdapter | PipelineFolder]:
    adapters = [adapter for architecture in _ARCHITECTURES for adapter in architecture.ADAPTERS]
    return [*adapters, TINY_WAN]


TINY_WAN = PipelineFolder(
    name="tiny_wan",
    path=tiny_wan.PIPELINE,
    summary="a WanPipeline trained on moving shapes: 'a red circle moving left'; 17 frames of 64x64",
    defaults={"num_frames": 17, "height": 64, "width": 64, "num_inference_steps": 50, "guidance_scale": 4.0},
    tuning=tuple(tiny_wan.TUNING),
    held_out=tuple(tiny_wan.HELD_OUT),
)

"""Measuring: what a recipe gains, and what it costs.

    from mixcache import bench

    model = bench.load("tiny_wan")  # or a pipeline folder, or a hub id
    made = bench.generate(model, "a red circle moving left", seed=0, recipe="static:every=3")
    print(made.report, made.seconds, made.frames_FHWC.shape)

    comparison = bench.Comparison(
        model=model,
        variants=["easycache:threshold=0.05", "static:every=3 @ basis=noise forecast=linear", "steps=18"],
        prompts=model.held_out[:2],
        seeds=[0, 1],
    )
    store = bench.CaseStore("results").open(comparison.settings)
    cases = bench.compare(comparison, store)  # every finished case is kept: the same call goes on after an interruption
    for summary in bench.summarize(comparison, cases):
        print(summary.variant, summary.speedup, summary.psnr.mean, summary.above_fewer_steps)
    bench.write_report("results", "what made it", comparison, store)  # results.md, results.json, index.html, pictures

PSNR, SSIM, pictures and clips need the extra `bench`: pip install 'mixcache[bench]'. Importing this room is cheap: a
name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixcache.bench.cases import Audit, Case, CaseStore, Reuse
    from mixcache.bench.comparing import compare
    from mixcache.bench.comparison import Comparison
    from mixcache.bench.found import Found
    from mixcache.bench.gallery import write_gallery, write_report
    from mixcache.bench.generation import Generation, LoopClock, generate
    from mixcache.bench.inspecting import inspect, inspect_pipeline
    from mixcache.bench.loading import Model, environment, load, read_prompts
    from mixcache.bench.media import Clips, as_uint8, write_clip
    from mixcache.bench.metrics.frames import psnr, relative_error, ssim
    from mixcache.bench.results import markdown, summarize, write_results
    from mixcache.bench.statistics import Spread
    from mixcache.bench.steps import Steps
    from mixcache.bench.summaries import Summary
    from mixcache.bench.watch import Watch
    from mixcache.core.metrics import Metric

_FILES = {
    "cases": ("Audit", "Case", "CaseStore", "Reuse"),
    "comparing": ("compare",),
    "comparison": ("Comparison",),
    "found": ("Found",),
    "gallery": ("write_gallery", "write_report"),
    "generation": ("Generation", "LoopClock", "generate"),
    "inspecting": ("inspect", "inspect_pipeline"),
    "loading": ("Model", "environment", "load", "read_prompts"),
    "media": ("Clips", "as_uint8", "write_clip"),
    "metrics.frames": ("psnr", "relative_error", "ssim"),
    "metrics.scored": ("Metric",),
    "results": ("markdown", "summarize", "write_results"),
    "statistics": ("Spread",),
    "summaries": ("Summary",),
    "steps": ("Steps",),
    "watch": ("Watch",),
}
_NAMES = {name: file for file, names in _FILES.items() for name in names}

__all__ = [
    "Audit",
    "Case",
    "CaseStore",
    "Clips",
    "Comparison",
    "Found",
    "Generation",
    "LoopClock",
    "Metric",
    "Model",
    "Reuse",
    "Spread",
    "Steps",
    "Summary",
    "Watch",
    "as_uint8",
    "compare",
    "environment",
    "generate",
    "inspect",
    "inspect_pipeline",
    "load",
    "markdown",
    "psnr",
    "read_prompts",
    "relative_error",
    "ssim",
    "summarize",
    "write_clip",
    "write_gallery",
    "write_report",
    "write_results",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__

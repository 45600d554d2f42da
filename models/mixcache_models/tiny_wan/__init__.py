"""A tiny text-to-video model: a complete Wan pipeline of some 12 MB that draws moving shapes.

    from mixcache_models import tiny_wan

    pipe = tiny_wan.load()
    frames = pipe("a red circle moving left", **tiny_wan.CALL).frames[0]

Nothing is downloaded. Importing this package is cheap: it reads two short text files and imports neither torch nor
diffusers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from mixcache_models.embedded import prompts

_HERE: Final = Path(__file__).resolve().parent

PIPELINE: Final = _HERE / "pipeline"
"""The folder that ``WanPipeline.from_pretrained`` loads."""

CALL: Final[dict[str, Any]] = {
    "num_frames": 17,
    "height": 64,
    "width": 64,
    "guidance_scale": 4.0,
    "num_inference_steps": 50,
}
"""The arguments of a call that the model was trained for. Without them ``WanPipeline`` makes 81 frames of 480x832."""

CALIBRATIONS: Final = tuple(sorted((_HERE / "calibrations").glob("*.json")))
"""The tables that ``mixcache calibrate`` measured on it, one per policy."""

HELD_OUT: Final = prompts(_HERE, "held_out")
"""24 prompts of combinations of colour, shape and direction that training never drew: for scores."""

TUNING: Final = prompts(_HERE, "tuning")
"""Prompts of other combinations: for choosing thresholds, never for scores."""


def load() -> Any:
    """The ``diffusers.WanPipeline``, in float32 on the CPU; ``pipe.to("cuda")`` moves it. Takes about a second."""
    import torch
    from diffusers import WanPipeline

    return WanPipeline.from_pretrained(str(PIPELINE), dtype=torch.float32, local_files_only=True)


__all__ = ["CALIBRATIONS", "CALL", "HELD_OUT", "PIPELINE", "TUNING", "load"]

"""A tiny text-to-image model: a complete Flux pipeline of some 7 MB that draws one or two coloured shapes.

    from mixcache_models import tiny_flux

    pipe = tiny_flux.load()
    image = pipe("a red circle left of a blue square", **tiny_flux.CALL).images[0]

Its guidance is embedded and it needs few steps: one evaluation of the transformer a step, 4 to 12 steps. Nothing is
downloaded. Importing this package is cheap: it reads two short text files and imports neither torch nor diffusers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from mixcache_models.embedded import prompts

_HERE: Final = Path(__file__).resolve().parent

PIPELINE: Final = _HERE / "pipeline"
"""The folder that ``FluxPipeline.from_pretrained`` loads."""

CALL: Final[dict[str, Any]] = {
    "height": 64,
    "width": 64,
    "guidance_scale": 3.5,
    "num_inference_steps": 8,
    "max_sequence_length": 16,
}
"""The arguments of a call that the model was trained for. Without them ``FluxPipeline`` makes 512 pixels of 512."""

CALIBRATIONS: Final = tuple(sorted((_HERE / "calibrations").glob("*.json")))
"""The tables that ``mixcache calibrate`` measured on it, one per policy."""

HELD_OUT: Final = prompts(_HERE, "held_out")
"""24 prompts of combinations of colour, shape and place that training never drew: for scores."""

TUNING: Final = prompts(_HERE, "tuning")
"""16 prompts of other combinations: for choosing thresholds, never for scores."""


def load() -> Any:
    """The ``diffusers.FluxPipeline``, in float32 on the CPU; ``pipe.to("cuda")`` moves it. Takes about a second."""
    import torch
    from diffusers import FluxPipeline

    return FluxPipeline.from_pretrained(str(PIPELINE), dtype=torch.float32, local_files_only=True)


__all__ = ["CALIBRATIONS", "CALL", "HELD_OUT", "PIPELINE", "TUNING", "load"]

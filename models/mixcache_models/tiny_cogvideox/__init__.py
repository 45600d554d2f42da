"""A tiny text-to-video model: a complete CogVideoX pipeline of some 8 MB that draws moving hand-written digits.

    from mixcache_models import tiny_cogvideox

    pipe = tiny_cogvideox.load()
    frames = pipe("a red seven moving up", **tiny_cogvideox.CALL).frames[0]

Nothing is downloaded. Importing this package is cheap: it reads two short text files and imports neither torch nor
diffusers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from mixcache_models.embedded import prompts

_HERE: Final = Path(__file__).resolve().parent

PIPELINE: Final = _HERE / "pipeline"
"""The folder that ``CogVideoXPipeline.from_pretrained`` loads."""

CALL: Final[dict[str, Any]] = {
    "num_frames": 9,
    "height": 48,
    "width": 48,
    "guidance_scale": 4.0,
    "num_inference_steps": 50,
    "max_sequence_length": 16,
    "use_dynamic_cfg": False,
}
"""The arguments of a call that the model was trained for. Without them prompts are padded to 226 tokens."""

CALIBRATIONS: Final = tuple(sorted((_HERE / "calibrations").glob("*.json")))
"""The tables that ``mixcache calibrate`` measured on it, one per policy."""

HELD_OUT: Final = prompts(_HERE, "held_out")
"""24 prompts of pairs of digit and direction that training never drew: for scores."""

TUNING: Final = prompts(_HERE, "tuning")
"""16 prompts of other pairs: for choosing thresholds, never for scores."""


def load() -> Any:
    """The ``diffusers.CogVideoXPipeline``, in float32 on the CPU; ``pipe.to("cuda")`` moves it. Takes a second."""
    import torch
    from diffusers import CogVideoXPipeline

    return CogVideoXPipeline.from_pretrained(str(PIPELINE), dtype=torch.float32, local_files_only=True)


__all__ = ["CALIBRATIONS", "CALL", "HELD_OUT", "PIPELINE", "TUNING", "load"]

"""A tiny text-to-video model: a complete Wan pipeline of some 12 MB that draws moving shapes.

``diffusers.WanPipeline.from_pretrained(PIPELINE)`` loads it without a network; it answers prompts such as
"a small red circle moving left on a dark background" with 17 frames of 64x64 pixels. Importing this package is
cheap: it reads two short text files and imports neither torch nor diffusers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_HERE: Final = Path(__file__).resolve().parent

PIPELINE: Final = _HERE / "pipeline"
"""The folder that ``WanPipeline.from_pretrained`` loads."""


CALIBRATIONS: Final = tuple(sorted((_HERE / "calibrations").glob("*.json")))
"""The tables that ``mixcache calibrate`` measured of it, one a policy."""


def _prompts(name: str) -> tuple[str, ...]:
    """The non-empty lines of ``prompts/<name>.txt``."""
    lines = (_HERE / "prompts" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip())


HELD_OUT: Final = _prompts("held_out")
"""24 prompts of combinations of colour, shape and direction that training never drew: for scores."""

TUNING: Final = _prompts("tuning")
"""Prompts of other combinations: for choosing thresholds, never for scores."""

__all__ = ["CALIBRATIONS", "HELD_OUT", "PIPELINE", "TUNING"]

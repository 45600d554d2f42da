"""Score clips from their pixels alone: which colour, which shape, which way did it move, and how crisp is it.

    from mixcache_models.tiny_wan.score import score

    score(frames, "a red circle moving left")  # {"right": 1.0, "colour": 1.0, "shape": 1.0, "direction": 1.0, ...}

It needs numpy only and knows nothing of how a clip was made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mixcache_models.drawn import COLOURS, DIRECTIONS, SHAPES, colour_of, direction_of, masks, overlap, travel

HEIGHT: Final = 64
WIDTH: Final = 64

Combination = tuple[str, str, str]
Levels = NDArray[np.uint8]

_MOVED: Final = 5.0  # pixels from the first to the last frame


def held_out_combinations() -> list[Combination]:
    """The 24 (colour, shape, direction) that training never draws: one direction for each colour and shape."""
    directions = list(DIRECTIONS)
    return [
        (colour, shape, directions[(i + j) % len(directions)])
        for i, colour in enumerate(COLOURS)
        for j, shape in enumerate(SHAPES)
    ]


@dataclass(frozen=True)
class Measurement:
    """What a clip shows. ``colour``, ``shape`` and ``direction`` are words, or "none" where nothing clear is seen.

    ``overlap`` (0 to 1) is the mean intersection over union, over the frames, of the coloured pixels with the best
    fitting ideal shape: above 0.9 is crisp. ``travel_xy`` is in pixels from the first to the last frame.
    """

    colour: str
    shape: str
    direction: str
    overlap: float
    travel_xy: tuple[float, float]


def wanted(prompt: str) -> tuple[str, str, str]:
    """The colour, shape and direction that ``prompt`` names."""
    words = prompt.lower().split()
    found = [next((w for w in words if w in table), None) for table in (COLOURS, SHAPES, DIRECTIONS)]
    colour, shape, direction = found
    if colour is None or shape is None or direction is None:
        raise ValueError(
            f"prompt is {prompt!r}; name a colour, a shape and a direction, as in 'a red circle moving left'"
        )
    return colour, shape, direction


def as_uint8(frames: NDArray[Any]) -> Levels:
    """Levels ``[F, H, W, 3]`` as uint8; floats are taken to run from 0 to 1."""
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames have shape {frames.shape}; give [frames, height, width, 3]")
    if frames.dtype == np.uint8:
        return frames
    return np.clip(np.rint(frames.astype(np.float64) * 255), 0, 255).astype(np.uint8)


def measure(frames: NDArray[Any]) -> Measurement:
    """Measure a clip ``[F, H, W, 3]`` (uint8, or float from 0 to 1)."""
    levels = as_uint8(frames)
    alpha = masks(levels)
    inside = alpha > 0.9
    if not inside.any():
        return Measurement("none", "none", "none", 0.0, (0.0, 0.0))
    colour = colour_of(levels[inside])
    overlaps = {shape: float(np.mean([overlap(mask, shape) for mask in alpha])) for shape in SHAPES}
    shape = max(overlaps, key=lambda name: overlaps[name])
    seen = np.flatnonzero(alpha.sum(axis=(1, 2)) > 4)
    travel_xy = travel(alpha, seen) if len(seen) >= len(alpha) // 2 else (0.0, 0.0)
    return Measurement(colour, shape, direction_of(travel_xy, _MOVED), overlaps[shape], travel_xy)


def score(frames: NDArray[Any], prompt: str) -> dict[str, float]:
    """Whether a clip ``[F, H, W, 3]`` (uint8, or float from 0 to 1) shows what ``prompt`` asks for.

    ``right`` is 1 if ``colour``, ``shape`` and ``direction`` all are, and 0 otherwise; ``overlap`` is that of
    `measure`. Raises ``ValueError`` for a prompt that does not name all three, and for frames of another form.
    """
    seen = measure(frames)
    found = (seen.colour, seen.shape, seen.direction)
    right = [float(a == b) for a, b in zip(found, wanted(prompt))]
    colour, shape, direction = right
    return {"right": min(right), "colour": colour, "shape": shape, "direction": direction, "overlap": seen.overlap}

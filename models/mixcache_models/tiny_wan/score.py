"""Score clips from their pixels alone: which colour, which shape, which way did it move, and how crisp is it.

    from mixcache_models.tiny_wan.score import score

    score(frames, "a red circle moving left")  # {"right": 1.0, "colour": 1.0, "shape": 1.0, "direction": 1.0, ...}

It needs numpy only and knows nothing of how a clip was made. The vocabulary of the model and the shapes that it draws
are here too: the training code draws its clips with them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

HEIGHT: Final = 64
WIDTH: Final = 64

COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (222, 40, 40),
    "green": (40, 180, 60),
    "blue": (40, 80, 230),
    "yellow": (240, 215, 40),
    "purple": (165, 50, 205),
    "cyan": (50, 210, 220),
}
SHAPES: Final = ("circle", "square", "triangle", "cross")
DIRECTIONS: Final[dict[str, tuple[int, int]]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

Combination = tuple[str, str, str]
Levels = NDArray[np.uint8]
Plane = NDArray[np.float32]

# Area of each shape in units of radius squared, to find the radius that a mask's area asks for.
_AREA: Final = {"circle": math.pi, "square": (2 * 0.89) ** 2, "triangle": 2.367, "cross": 2.944}
_VISIBLE: Final = 50.0  # levels of saturation that a shape must reach in a frame
_MOVED: Final = 5.0  # pixels from the first to the last frame
_STRAIGHT: Final = 2.0  # how much further along the one axis than along the other


def held_out_combinations() -> list[Combination]:
    """The 24 (colour, shape, direction) that training never draws: one direction for each colour and shape."""
    directions = list(DIRECTIONS)
    return [
        (colour, shape, directions[(i + j) % len(directions)])
        for i, colour in enumerate(COLOURS)
        for j, shape in enumerate(SHAPES)
    ]


def half_extent(shape: str, radius: float) -> tuple[float, float]:
    """Half the width and half the height, in pixels, of ``shape`` drawn with ``radius``."""
    if shape == "circle":
        return radius, radius
    if shape == "square":
        return 0.89 * radius, 0.89 * radius
    if shape == "triangle":
        return 1.35 * radius * 0.866, 1.35 * radius * 0.75
    if shape == "cross":
        return 1.12 * radius, 1.12 * radius
    raise ValueError(f"shape is {shape!r}; use one of {', '.join(SHAPES)}")


def signed_distance(shape: str, x: Plane, y: Plane, radius: float) -> Plane:
    """Distance in pixels from the outline of ``shape`` centred on (0, 0), negative inside; same shape as ``x``."""
    half_w, half_h = half_extent(shape, radius)
    distance: Plane
    if shape == "circle":
        distance = np.hypot(x, y) - np.float32(radius)
    elif shape == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - np.float32(half_w)
    elif shape == "triangle":
        # Point up; the slanted sides are 30 degrees off the vertical and meet at (0, -half_h).
        sides = np.abs(x) * np.float32(0.866) - (y + np.float32(half_h)) * np.float32(0.5)
        distance = np.maximum(sides, y - np.float32(half_h))
    else:
        arm = np.float32(0.40 * radius)
        wide = np.maximum(np.abs(x) - np.float32(half_w), np.abs(y) - arm)
        tall = np.maximum(np.abs(x) - arm, np.abs(y) - np.float32(half_h))
        distance = np.minimum(wide, tall)
    return distance


def coverage(
    shape: str, centre_xy: tuple[float, float], radius: float, height: int = HEIGHT, width: int = WIDTH
) -> Plane:
    """How much of each pixel ``shape`` covers, 0 to 1, float32 ``[height, width]``."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    distance = signed_distance(shape, x - np.float32(centre_xy[0]), y - np.float32(centre_xy[1]), radius)
    covered: Plane = np.clip(np.float32(0.5) - distance, 0.0, 1.0).astype(np.float32)
    return covered


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


def masks(frames: Levels) -> NDArray[np.float32]:
    """How much of each pixel is coloured, 0 to 1, ``[F, H, W]``; all zero in frames that show no colour.

    Backgrounds are grey, so a pixel's saturation is in proportion to how much of it the shape covers.
    """
    values = frames.astype(np.float32)
    saturation = values.max(axis=-1) - values.min(axis=-1)
    result = np.zeros(saturation.shape, dtype=np.float32)
    for index, plane in enumerate(saturation):
        if plane.max() >= _VISIBLE:
            full = float(np.median(plane[plane > 0.6 * plane.max()]))
            result[index] = np.clip((plane / full - 0.1) / 0.85, 0, 1)
    return result


def _overlap(mask: NDArray[np.float32], shape: str) -> float:
    """Intersection over union of ``mask`` with ``shape`` of the same area and centred on the same box."""
    rows, columns = np.nonzero(mask > 0.5)
    if not len(rows):
        return 0.0
    radius = math.sqrt(float(mask.sum()) / _AREA[shape])
    middle = (float(columns.min() + columns.max()) / 2, float(rows.min() + rows.max()) / 2)
    ideal = coverage(shape, middle, radius, *mask.shape)
    return float(np.minimum(mask, ideal).sum() / np.maximum(mask, ideal).sum())


def _travel(alpha: NDArray[np.float32]) -> tuple[float, float]:
    """Pixels right and down from the first to the last frame, by a line through the centres of all frames."""
    seen = np.flatnonzero(alpha.sum(axis=(1, 2)) > 4)
    if len(seen) < len(alpha) // 2:
        return 0.0, 0.0
    weight = alpha[seen].sum(axis=(1, 2))
    centre_x = (alpha[seen].sum(axis=1) * np.arange(alpha.shape[2])).sum(axis=1) / weight
    centre_y = (alpha[seen].sum(axis=2) * np.arange(alpha.shape[1])).sum(axis=1) / weight
    steps = len(alpha) - 1
    return float(np.polyfit(seen, centre_x, 1)[0] * steps), float(np.polyfit(seen, centre_y, 1)[0] * steps)


def _direction(travel_xy: tuple[float, float]) -> str:
    """The direction whose axis holds most of ``travel_xy``, or "none"."""
    for name, (step_x, step_y) in DIRECTIONS.items():
        along = travel_xy[0] * step_x + travel_xy[1] * step_y
        across = abs(travel_xy[0] * step_y) + abs(travel_xy[1] * step_x)
        if along >= _MOVED and along >= _STRAIGHT * across:
            return name
    return "none"


def measure(frames: NDArray[Any]) -> Measurement:
    """Measure a clip ``[F, H, W, 3]`` (uint8, or float from 0 to 1)."""
    levels = as_uint8(frames)
    alpha = masks(levels)
    inside = alpha > 0.9
    if not inside.any():
        return Measurement("none", "none", "none", 0.0, (0.0, 0.0))
    mean_rgb = levels[inside].mean(axis=0)
    colour = min(COLOURS, key=lambda name: float(np.abs(mean_rgb - COLOURS[name]).sum()))
    overlaps = {shape: float(np.mean([_overlap(mask, shape) for mask in alpha])) for shape in SHAPES}
    shape = max(overlaps, key=lambda name: overlaps[name])
    travel_xy = _travel(alpha)
    return Measurement(colour, shape, _direction(travel_xy), overlaps[shape], travel_xy)


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

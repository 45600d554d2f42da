"""What the embedded models draw, and how it is seen again in pixels: colours, backgrounds, shapes and their paths.

Everything drawn is coloured, over a grey background. Letters in shapes: F frames, H height, W width. numpy only.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

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
BACKGROUNDS: Final[dict[str, tuple[float, float]]] = {
    "dark": (20.0, 45.0),
    "grey": (110.0, 135.0),
    "light": (200.0, 225.0),
}
"""Levels, of 255. The ranges do not touch, so that a word decides what is seen."""

AREA: Final = {"circle": math.pi, "square": (2 * 0.89) ** 2, "triangle": 2.367, "cross": 2.944}
"""Of each shape in units of radius squared, to find the radius that a mask's area asks for."""

_VISIBLE: Final = 50.0  # levels of saturation that something must reach in a frame
_STRAIGHT: Final = 2.0  # how much further along the one axis than along the other

Plane = NDArray[np.float32]


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


def coverage(shape: str, centre_xy: tuple[float, float], radius: float, height: int, width: int) -> Plane:
    """How much of each pixel ``shape`` covers, 0 to 1, float32 ``[height, width]``."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    distance = signed_distance(shape, x - np.float32(centre_xy[0]), y - np.float32(centre_xy[1]), radius)
    covered: Plane = np.clip(np.float32(0.5) - distance, 0.0, 1.0).astype(np.float32)
    return covered


def covered(saturation: Plane) -> Plane:
    """How much of each pixel is covered, 0 to 1, by the saturation ``[H, W]`` of something of one colour."""
    full = float(np.median(saturation[saturation > 0.6 * saturation.max()]))
    share: Plane = np.clip((saturation / full - 0.1) / 0.85, 0, 1).astype(np.float32)
    return share


def masks(levels: NDArray[Any]) -> Plane:
    """How much of each pixel is coloured, 0 to 1, ``[F, H, W]``; all zero in frames that show no colour.

    levels: ``[F, H, W, 3]``, 0 to 255. Backgrounds are grey, so a pixel's saturation is in proportion to how much of it
    is covered.
    """
    values = levels.astype(np.float32)
    saturation = values.max(axis=-1) - values.min(axis=-1)
    result = np.zeros(saturation.shape, dtype=np.float32)
    for index, plane in enumerate(saturation):
        if plane.max() >= _VISIBLE:
            result[index] = covered(plane)
    return result


def middle(mask: Plane) -> tuple[float, float]:
    """The middle of the box, right and down in pixels, that holds what ``mask`` shows."""
    rows, columns = np.nonzero(mask > 0.5)
    return float(columns.min() + columns.max()) / 2, float(rows.min() + rows.max()) / 2


def overlap(mask: Plane, shape: str) -> float:
    """Intersection over union of ``mask`` with ``shape`` of the same area, centred on the same box; 0 for nothing."""
    if not (mask > 0.5).any():
        return 0.0
    ideal = coverage(shape, middle(mask), math.sqrt(float(mask.sum()) / AREA[shape]), *mask.shape)
    return float(np.minimum(mask, ideal).sum() / np.maximum(mask, ideal).sum())


def colour_of(levels: NDArray[Any]) -> str:
    """The name of the colour that is nearest to the mean of ``levels`` ``[count, 3]``."""
    mean_rgb = levels.mean(axis=0)
    return min(COLOURS, key=lambda name: float(np.abs(mean_rgb - COLOURS[name]).sum()))


def travel(alpha: Plane, seen: NDArray[np.intp]) -> tuple[float, float]:
    """Pixels right and down from the first to the last frame, by a line through the centres of the ``seen`` frames."""
    weight = alpha[seen].sum(axis=(1, 2))
    centre_x = (alpha[seen].sum(axis=1) * np.arange(alpha.shape[2])).sum(axis=1) / weight
    centre_y = (alpha[seen].sum(axis=2) * np.arange(alpha.shape[1])).sum(axis=1) / weight
    steps = len(alpha) - 1
    return float(np.polyfit(seen, centre_x, 1)[0] * steps), float(np.polyfit(seen, centre_y, 1)[0] * steps)


def direction_of(travel_xy: tuple[float, float], moved: float) -> str:
    """The direction whose axis holds most of ``travel_xy``; "none" for less than ``moved`` pixels."""
    for name, (step_x, step_y) in DIRECTIONS.items():
        along = travel_xy[0] * step_x + travel_xy[1] * step_y
        across = abs(travel_xy[0] * step_y) + abs(travel_xy[1] * step_x)
        if along >= moved and along >= _STRAIGHT * across:
            return name
    return "none"

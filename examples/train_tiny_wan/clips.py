"""Procedural clips with captions: one coloured shape that moves in one direction over a plain background.

Everything is drawn with numpy from signed distances, antialiased over one pixel, and is a pure function of a
:class:`ClipSpec`, which in turn is a pure function of a seeded generator. A clip is uint8 RGB of shape
``[frames, height, width, 3]``; lengths are in pixels and speeds in pixels per clip.

Of the 96 combinations of colour, shape and direction, 24 are held out: training never draws them, although it
sees each of their pairs (colour with shape, colour with direction, shape with direction).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from examples.train_shared.drawing import pick, tint
from mixcache_models.drawn import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES, coverage, half_extent
from mixcache_models.tiny_wan.score import HEIGHT, WIDTH, Combination, held_out_combinations

FRAMES: Final = 17

# Word -> range of values. The ranges do not touch, so that a word decides what is seen.
SIZES: Final[dict[str, tuple[float, float]]] = {"small": (8.0, 9.0), "": (10.0, 11.0), "large": (12.5, 13.5)}
SPEEDS: Final[dict[str, tuple[float, float]]] = {"slowly": (14.0, 17.0), "": (20.0, 24.0), "quickly": (28.0, 32.0)}

_GRADIENT: Final = 8.0  # levels, from the middle of the background to its edge, at most
_WANDER: Final = 4.0  # pixels from the middle of the frame to the middle of the path, along it, at most
_MARGIN: Final = 1.0  # pixels that stay free between the shape and the edge of the frame

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class ClipSpec:
    """All there is to know about one clip: words for its caption and numbers for its pixels.

    ``start_xy`` and ``end_xy`` are the shape's centre in the first and the last frame, in pixels; ``radius`` is the
    circle's radius in pixels (other shapes are drawn with about the same area); ``gradient_xy`` is the change of
    the background's level from the centre to the right and the lower edge.
    """

    colour: str
    shape: str
    direction: str
    size: str
    speed: str
    background: str
    radius: float
    start_xy: tuple[float, float]
    end_xy: tuple[float, float]
    rgb: tuple[float, float, float]
    level: float
    gradient_xy: tuple[float, float]


def training_combinations() -> list[Combination]:
    """The 72 combinations that training draws, in a fixed order."""
    held_out = set(held_out_combinations())
    every = [(colour, shape, direction) for colour in COLOURS for shape in SHAPES for direction in DIRECTIONS]
    return [combination for combination in every if combination not in held_out]


def draw(spec: ClipSpec, first: int = 0, count: int = FRAMES) -> Frames:
    """Draw ``count`` frames of the clip of ``spec`` from ``first`` on: uint8 ``[count, height, width, 3]``."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    slope_x = np.float32(spec.gradient_xy[0]) * (x / (WIDTH - 1) * 2 - 1)
    slope_y = np.float32(spec.gradient_xy[1]) * (y / (HEIGHT - 1) * 2 - 1)
    background_HW1 = (np.float32(spec.level) + slope_x + slope_y)[..., None]
    rgb = np.asarray(spec.rgb, dtype=np.float32)
    frames = np.empty((count, HEIGHT, WIDTH, 3), dtype=np.uint8)
    for index in range(count):
        part = (first + index) / (FRAMES - 1)
        centre_x = spec.start_xy[0] + part * (spec.end_xy[0] - spec.start_xy[0])
        centre_y = spec.start_xy[1] + part * (spec.end_xy[1] - spec.start_xy[1])
        alpha_HW1 = coverage(spec.shape, (centre_x, centre_y), spec.radius, HEIGHT, WIDTH)[..., None]
        image = background_HW1 * (1 - alpha_HW1) + rgb * alpha_HW1
        frames[index] = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return frames


def _path(
    rng: np.random.Generator, direction: str, half: tuple[float, float], travel: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Random first and last centre, ``travel`` pixels apart along ``direction``, with the shape always in the frame.

    A path leads through the middle of the frame, so that a direction says where a clip begins and where it ends: a
    direction that only said which way, from anywhere, is next to nothing of the loss, and was never learned.
    """
    step_x, step_y = DIRECTIONS[direction]
    middle = []
    for span, extent, step in ((WIDTH, half[0], step_x), (HEIGHT, half[1], step_y)):
        low = _MARGIN + extent + abs(step) * travel / 2
        high = span - 1 - low
        if step:
            low, high = max(low, (span - 1) / 2 - _WANDER), min(high, (span - 1) / 2 + _WANDER)
        middle.append(float(rng.uniform(low, high)) if high > low else (span - 1) / 2)
    half_x, half_y = step_x * travel / 2, step_y * travel / 2
    return (middle[0] - half_x, middle[1] - half_y), (middle[0] + half_x, middle[1] + half_y)


def sample_spec(rng: np.random.Generator, combinations: list[Combination]) -> ClipSpec:
    """A random clip of one of ``combinations``; all other properties are drawn evenly."""
    colour, shape, direction = combinations[int(rng.integers(len(combinations)))]
    size, radius = pick(rng, SIZES)
    speed, travel = pick(rng, SPEEDS)
    background, level = pick(rng, BACKGROUNDS)
    half = half_extent(shape, radius)
    room = (WIDTH if DIRECTIONS[direction][0] else HEIGHT) - 1 - 2 * _MARGIN
    travel = min(travel, room - 2 * (half[0] if DIRECTIONS[direction][0] else half[1]))
    start_xy, end_xy = _path(rng, direction, half, travel)
    rgb = tint(rng, colour)
    gradient_xy = (float(rng.uniform(-_GRADIENT, _GRADIENT)), float(rng.uniform(-_GRADIENT, _GRADIENT)))
    return ClipSpec(
        colour,
        shape,
        direction,
        size,
        speed,
        background,
        radius,
        start_xy,
        end_xy,
        rgb,
        level,
        gradient_xy,
    )


def caption(spec: ClipSpec, rng: np.random.Generator) -> str:
    """Words for ``spec``: colour, shape and direction always, each of size, speed and background half of the time."""
    size, speed, place = (bool(keep) for keep in rng.random(3) < 0.5)
    words = ["a", spec.size if size else "", spec.colour, spec.shape, "moving", spec.direction]
    words.append(spec.speed if speed else "")
    words.append(f"on a {spec.background} background" if place else "")
    return " ".join(word for word in words if word)


def vocabulary() -> list[str]:
    """Every word a caption can hold, in a fixed order."""
    words = ["a", "moving", "on", "background", *COLOURS, *SHAPES, *DIRECTIONS]
    return words + [word for table in (SIZES, SPEEDS, BACKGROUNDS) for word in table if word]

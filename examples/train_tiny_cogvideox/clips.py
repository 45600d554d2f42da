"""Clips with captions: one coloured hand-written digit that moves in one direction over a plain background.

A clip is a pure function of a :class:`ClipSpec`, which in turn is a pure function of a seeded generator. It is uint8
RGB of shape ``[frames, height, width, 3]``; lengths are in pixels and speeds in pixels per clip.

Of the 40 pairs of digit and direction, 10 are held out: training never draws them, in any colour, although it sees
each digit in three other directions, and each direction and each colour with other digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from examples.train_shared.drawing import pick, tint
from examples.train_tiny_cogvideox import digits
from mixcache_models.drawn import BACKGROUNDS, COLOURS, DIRECTIONS
from mixcache_models.tiny_cogvideox.score import DIGITS, SPEEDS

FRAMES: Final = 9
HEIGHT: Final = 48
WIDTH: Final = 48

_SIZES: Final = (20.0, 24.0)  # pixels from edge to edge of a digit's 8 cells
_WANDER_ALONG: Final = 1.0  # pixels from the middle of the frame to the middle of the path, along it, at most
_WANDER_ACROSS: Final = 6.0  # the same, across it

Pair = tuple[str, str]
Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class ClipSpec:
    """All there is to know about one clip: words for its caption and numbers for its pixels.

    ``picture`` counts in :func:`digits.training_digits`. ``start_xy`` and ``end_xy`` are the digit's centre in the
    first and the last frame, ``size`` its height: all in pixels.
    """

    colour: str
    digit: str
    direction: str
    speed: str
    background: str
    picture: int
    size: float
    start_xy: tuple[float, float]
    end_xy: tuple[float, float]
    rgb: tuple[float, float, float]
    level: float


def held_out_pairs() -> list[Pair]:
    """The 10 (digit, direction) that training never draws: one direction for each digit."""
    directions = list(DIRECTIONS)
    return [(digit, directions[index % len(directions)]) for index, digit in enumerate(DIGITS)]


def training_pairs() -> list[Pair]:
    """The 30 (digit, direction) that training draws, in a fixed order."""
    held_out = set(held_out_pairs())
    return [(digit, direction) for digit in DIGITS for direction in DIRECTIONS if (digit, direction) not in held_out]


def draw(spec: ClipSpec, first: int = 0, count: int = FRAMES, picture: digits.Plane | None = None) -> Frames:
    """Draw ``count`` frames of the clip of ``spec`` from ``first`` on: uint8 ``[count, height, width, 3]``.

    picture: another 8x8 picture to draw than the one that ``spec`` names.
    """
    ink = digits.training_digits()[0][spec.picture] if picture is None else picture
    rgb = np.asarray(spec.rgb, dtype=np.float32)
    frames = np.empty((count, HEIGHT, WIDTH, 3), dtype=np.uint8)
    for index in range(count):
        part = (first + index) / (FRAMES - 1)
        centre_x = spec.start_xy[0] + part * (spec.end_xy[0] - spec.start_xy[0])
        centre_y = spec.start_xy[1] + part * (spec.end_xy[1] - spec.start_xy[1])
        alpha_HW1 = digits.coverage(ink, (centre_x, centre_y), spec.size, HEIGHT, WIDTH)[..., None]
        image = np.float32(spec.level) * (1 - alpha_HW1) + rgb * alpha_HW1
        frames[index] = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return frames


def _path(rng: np.random.Generator, direction: str, travel: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Random first and last centre, ``travel`` pixels apart along ``direction``.

    A path leads through the middle of the frame, so that a direction says where a clip begins and where it ends: a
    direction that only says which way, from anywhere, is next to nothing of the loss, and would hardly be learned.
    """
    step_x, step_y = DIRECTIONS[direction]
    wander_x, wander_y = (_WANDER_ALONG if step else _WANDER_ACROSS for step in (step_x, step_y))
    middle_x = (WIDTH - 1) / 2 + float(rng.uniform(-wander_x, wander_x))
    middle_y = (HEIGHT - 1) / 2 + float(rng.uniform(-wander_y, wander_y))
    half_x, half_y = step_x * travel / 2, step_y * travel / 2
    return (middle_x - half_x, middle_y - half_y), (middle_x + half_x, middle_y + half_y)


def sample_spec(rng: np.random.Generator, pairs: list[Pair]) -> ClipSpec:
    """A random clip of one of ``pairs``; all other properties are drawn evenly."""
    digit, direction = pairs[int(rng.integers(len(pairs)))]
    colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
    speed, travel = pick(rng, SPEEDS)
    background, level = pick(rng, BACKGROUNDS)
    start_xy, end_xy = _path(rng, direction, travel)
    rgb = tint(rng, colour)
    return ClipSpec(
        colour=colour,
        digit=digit,
        direction=direction,
        speed=speed,
        background=background,
        picture=int(rng.choice(digits.typical(DIGITS.index(digit)))),
        size=float(rng.uniform(*_SIZES)),
        start_xy=start_xy,
        end_xy=end_xy,
        rgb=rgb,
        level=level,
    )


def caption(spec: ClipSpec, rng: np.random.Generator) -> str:
    """Words for ``spec``: colour, digit and direction always, speed and background each half of the time."""
    speed, place = (bool(keep) for keep in rng.random(2) < 0.5)
    words = ["a", spec.colour, spec.digit, "moving", spec.direction, spec.speed if speed else ""]
    words.append(f"on a {spec.background} background" if place else "")
    return " ".join(word for word in words if word)


def vocabulary() -> list[str]:
    """Every word a caption can hold, in a fixed order."""
    words = ["a", "moving", "on", "background", *COLOURS, *DIGITS, *DIRECTIONS]
    return words + [word for table in (SPEEDS, BACKGROUNDS) for word in table if word]

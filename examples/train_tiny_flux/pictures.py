"""Procedural pictures with captions: one coloured shape, or two of different colours, over a plain background.

The shapes, colours and backgrounds are those of :mod:`mixcache_models.drawn`. A picture is
uint8 RGB of shape ``[64, 64, 3]`` and a pure function of a :class:`PictureSpec`, which in turn is a pure function
of a seeded generator. What a caption does not say has one value (a shape is of medium size and in the middle),
except for the background, which may be any.

Of the 96 combinations of colour, shape and place, 24 are held out: training never draws them, although it sees
each of their pairs (colour with shape, colour with place, shape with place).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from examples.train_shared.drawing import pick, tint
from mixcache_models.drawn import BACKGROUNDS, COLOURS, SHAPES, coverage, half_extent

SIDE: Final = 64  # pixels, high and wide

# Place -> centre in pixels. A shape of which no place is said is in the middle.
PLACES: Final[dict[str, tuple[float, float]]] = {
    "left": (17.5, 31.5),
    "right": (45.5, 31.5),
    "top": (31.5, 17.5),
    "bottom": (31.5, 45.5),
}
RELATIONS: Final = {"left": "left of", "right": "right of", "top": "above", "bottom": "below"}
OPPOSITE: Final = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
SIZES: Final[dict[str, tuple[float, float]]] = {"small": (7.0, 7.6), "": (9.6, 10.4), "large": (13.0, 14.0)}

_PAIRS: Final = 0.6  # part of the pictures that show two shapes
_MIDDLE: Final = 0.2  # part of the pictures of one shape that have it in the middle
_SHIFT: Final = 1.5  # pixels from a place's centre, each way, at most
_GRADIENT: Final = 8.0  # levels, from the middle of the background to its edge, at most
_MARGIN: Final = 1.0  # pixels that stay free between a shape and the edge of the picture

Combination = tuple[str, str, str]
Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Thing:
    """One shape: words for its caption, and its centre and radius in pixels."""

    colour: str
    shape: str
    place: str
    size: str
    radius: float
    centre_xy: tuple[float, float]
    rgb: tuple[float, float, float]


@dataclass(frozen=True)
class PictureSpec:
    """All there is to know about one picture.

    ``gradient_xy`` is the change of the background's level from the centre to the right and the lower edge.
    """

    things: tuple[Thing, ...]
    background: str
    level: float
    gradient_xy: tuple[float, float]


def held_out_combinations() -> list[Combination]:
    """The 24 (colour, shape, place) that training never draws: one place for each colour and shape."""
    places = list(PLACES)
    return [
        (colour, shape, places[(i + j) % len(places)])
        for i, colour in enumerate(COLOURS)
        for j, shape in enumerate(SHAPES)
    ]


def training_combinations() -> list[Combination]:
    """The 72 combinations that training draws, in a fixed order."""
    held_out = set(held_out_combinations())
    every = [(colour, shape, place) for colour in COLOURS for shape in SHAPES for place in PLACES]
    return [combination for combination in every if combination not in held_out]


def _thing(rng: np.random.Generator, combination: Combination, size: str) -> Thing:
    """A shape of ``combination`` with random numbers; it is moved into the picture where it would reach out of it."""
    colour, shape, place = combination
    radius = float(rng.uniform(*SIZES[size]))
    half = half_extent(shape, radius)
    centre = []
    for middle, extent in zip(PLACES.get(place, ((SIDE - 1) / 2,) * 2), half, strict=True):
        low = _MARGIN + extent
        centre.append(float(np.clip(middle + rng.uniform(-_SHIFT, _SHIFT), low, SIDE - 1 - low)))
    rgb = tint(rng, colour)
    return Thing(colour, shape, place, size, radius, (centre[0], centre[1]), rgb)


def sample_spec(
    rng: np.random.Generator, combinations: list[Combination], pairs: float = _PAIRS, middle: float = _MIDDLE
) -> PictureSpec:
    """A random picture, of which every shape outside the middle is one of ``combinations``.

    pairs: the part of the pictures that show two shapes; middle: the part of the others with it in the middle.
    """
    colour, shape, place = combinations[int(rng.integers(len(combinations)))]
    if rng.random() < pairs:
        others = [c for c in combinations if c[2] == OPPOSITE[place] and c[0] != colour]
        other = others[int(rng.integers(len(others)))]
        things = (_thing(rng, (colour, shape, place), ""), _thing(rng, other, ""))
    else:
        size = list(SIZES)[int(rng.integers(len(SIZES)))]
        things = (_thing(rng, (colour, shape, "" if rng.random() < middle else place), size),)
    background, level = pick(rng, BACKGROUNDS)
    gradient_xy = (float(rng.uniform(-_GRADIENT, _GRADIENT)), float(rng.uniform(-_GRADIENT, _GRADIENT)))
    return PictureSpec(things, background, level, gradient_xy)


def draw(spec: PictureSpec) -> Picture:
    """Draw the picture of ``spec``: uint8 ``[64, 64, 3]``, antialiased over one pixel."""
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    slope_x, slope_y = (np.float32(slope) for slope in spec.gradient_xy)
    level = np.float32(spec.level) + slope_x * (x / (SIDE - 1) * 2 - 1) + slope_y * (y / (SIDE - 1) * 2 - 1)
    image = np.repeat(level[..., None], 3, axis=-1)
    for thing in spec.things:
        alpha = coverage(thing.shape, thing.centre_xy, thing.radius, SIDE, SIDE)[..., None]
        image = image * (1 - alpha) + np.asarray(thing.rgb, dtype=np.float32) * alpha
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def caption(spec: PictureSpec, rng: np.random.Generator) -> str:
    """Words for ``spec``: all that is seen, but the background half of the time."""
    first = spec.things[0]
    words = ["a", first.size, first.colour, first.shape]
    if len(spec.things) == 2:
        words += [RELATIONS[first.place], "a", spec.things[1].colour, spec.things[1].shape]
    elif first.place:
        words.append(f"at the {first.place}")
    if rng.random() < 0.5:
        words.append(f"on a {spec.background} background")
    return " ".join(word for word in words if word)


def vocabulary() -> list[str]:
    """Every word a caption can hold, in a fixed order."""
    words = ["a", "on", "background", "at", "the", "of", "above", "below", *COLOURS, *SHAPES, *PLACES]
    return words + [word for table in (SIZES, BACKGROUNDS) for word in table if word]

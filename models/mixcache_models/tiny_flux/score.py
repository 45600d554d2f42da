"""Score pictures from their pixels alone: which shapes, of which colours, sizes and places, on which background.

    from mixcache_models.tiny_flux.score import score

    score(frames, "a red circle left of a blue square")   # {"right": 1.0, "colour": 1.0, "shape": 1.0, ...}

It needs numpy only and knows nothing of how a picture was made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mixcache_models.drawn import AREA, COLOURS, SHAPES, covered, overlap

SIDE: Final = 64
BACKGROUNDS: Final = {"dark": 32.0, "grey": 122.0, "light": 212.0}  # middle level of each
PLACES: Final = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
RELATIONS: Final = {
    "left": ("left", "right"),
    "right": ("right", "left"),
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
}
SIZES: Final = {"small": 0.0, "medium": 8.6, "large": 11.7}  # smallest radius of each, in pixels

_GREY: Final = 25.0  # levels of saturation below which a pixel is background
_VISIBLE: Final = 40.0  # pixels that a shape must cover
_CLEAR: Final = 0.6  # overlap with an ideal shape below which none is seen
_OFF_MIDDLE: Final = 7.0  # pixels from the middle of the picture

Plane = NDArray[np.float32]


@dataclass(frozen=True)
class Thing:
    """One shape, asked for or seen, in words: ``place`` is left, right, top, bottom or middle; ``shape`` may be none.

    ``overlap`` (0 to 1) is the intersection over union of the seen pixels with the best fitting ideal shape: above
    0.9 is crisp.
    """

    colour: str
    shape: str
    place: str
    size: str
    overlap: float = 1.0


@dataclass(frozen=True)
class Measurement:
    """What a picture shows: its shapes, the largest first, and the word of its background."""

    things: tuple[Thing, ...]
    background: str


def wanted(prompt: str) -> tuple[list[Thing], str | None]:
    """The things that ``prompt`` asks for, and the background if it names one.

    Raises ValueError where the prompt does not name one colour with one shape, or two of each and how they lie.
    """
    head, _, tail = prompt.lower().partition(" on a ")
    words = head.replace(",", " ").split()
    colours = [word for word in words if word in COLOURS]
    shapes = [word for word in words if word in SHAPES]
    relation = next((word for word in words if word in RELATIONS), None)
    places: tuple[str, ...] = (next((word for word in words if word in PLACES), "middle"),)
    if len(colours) == 2 and relation is not None:
        places = RELATIONS[relation]
    if not len(colours) == len(shapes) == len(places):
        raise ValueError(f"prompt is {prompt!r}; write it like 'a red circle' or 'a red circle left of a blue square'")
    size = next((word for word in words if word in SIZES), "medium")
    background = next((word for word in tail.split() if word in BACKGROUNDS), None)
    return [Thing(*words, size) for words in zip(colours, shapes, places, strict=True)], background


def as_levels(image: NDArray[Any]) -> Plane:
    """A picture ``[64, 64, 3]`` or ``[1, 64, 64, 3]``, uint8 or floats from 0 to 1, as float32 levels 0 to 255."""
    picture = image[0] if image.ndim == 4 and len(image) == 1 else image
    if picture.shape != (SIDE, SIDE, 3):
        raise ValueError(f"the picture has shape {image.shape}; give [{SIDE}, {SIDE}, 3] or [1, {SIDE}, {SIDE}, 3]")
    levels: Plane = picture.astype(np.float32)
    return levels if picture.dtype == np.uint8 else np.clip(levels, 0, 1) * np.float32(255)


def _place(mask: Plane) -> str:
    """Where the centre of ``mask`` lies: the axis along which it is furthest from the middle decides."""
    grid = np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2
    x, y = (float((mask.sum(axis=axis) * grid).sum() / mask.sum()) for axis in (0, 1))
    if max(abs(x), abs(y)) < _OFF_MIDDLE:
        return "middle"
    return max(PLACES, key=lambda name: x * PLACES[name][0] + y * PLACES[name][1])


def _thing(colour: str, mask: Plane) -> Thing:
    """The shape that ``mask`` (coverage of each pixel) shows in ``colour``."""
    overlaps = {shape: overlap(mask, shape) for shape in SHAPES}
    shape = max(overlaps, key=lambda name: overlaps[name])
    radius = math.sqrt(float(mask.sum()) / AREA[shape])
    size = max((word for word in SIZES if radius >= SIZES[word]), key=lambda word: SIZES[word])
    return Thing(colour, shape if overlaps[shape] >= _CLEAR else "none", _place(mask), size, overlaps[shape])


def measure(image: NDArray[Any]) -> Measurement:
    """Measure a picture ``[64, 64, 3]`` or ``[1, 64, 64, 3]`` (uint8, or float from 0 to 1).

    Backgrounds are grey, so a pixel's hue says which shape it belongs to, and its saturation how much of it is covered.
    """
    levels = as_levels(image)
    saturation = levels.max(axis=-1) - levels.min(axis=-1)
    names = list(COLOURS)
    palette = np.array([COLOURS[name] for name in names], dtype=np.float32)
    palette -= palette.mean(axis=1, keepdims=True)
    palette /= np.linalg.norm(palette, axis=1, keepdims=True)
    nearest = ((levels - levels.mean(axis=-1, keepdims=True)) @ palette.T).argmax(axis=-1)
    found: list[tuple[float, Thing]] = []
    for index, name in enumerate(names):
        plane = np.where((nearest == index) & (saturation > _GREY), saturation, 0).astype(np.float32)
        if np.count_nonzero(plane) < _VISIBLE:
            continue
        mask = covered(plane)
        if mask.sum() >= _VISIBLE and (mask > 0.5).any():
            found.append((float(mask.sum()), _thing(name, mask)))
    behind = levels[saturation <= _GREY]
    level = float(np.median(behind)) if len(behind) else math.nan
    background = min(BACKGROUNDS, key=lambda word: abs(BACKGROUNDS[word] - level))
    found.sort(key=lambda pair: -pair[0])
    return Measurement(tuple(thing for _, thing in found), background)


def score(frames: NDArray[Any], prompt: str) -> dict[str, float]:
    """How well a picture ``[64, 64, 3]`` or ``[1, 64, 64, 3]`` shows what ``prompt`` asks for, 0 to 1 each.

    colour: exactly the asked colours are seen; shape, place, size: the part of the asked things that are seen in their
    colour and have it; background: it is as asked, or none is asked; overlap: mean :attr:`Thing.overlap` of the asked
    things; right: 1 if all of them are right, else 0.
    """
    things, background = wanted(prompt)
    seen = measure(frames)
    by_colour = {thing.colour: thing for thing in seen.things}
    pairs = [(thing, by_colour.get(thing.colour)) for thing in things]
    parts = {
        "colour": float(set(by_colour) == {thing.colour for thing in things}),
        "shape": sum(other is not None and other.shape == thing.shape for thing, other in pairs) / len(pairs),
        "place": sum(other is not None and other.place == thing.place for thing, other in pairs) / len(pairs),
        "size": sum(other is not None and other.size == thing.size for thing, other in pairs) / len(pairs),
        "background": float(background is None or seen.background == background),
    }
    fit = sum(other.overlap if other is not None else 0.0 for _, other in pairs) / len(pairs)
    return {"right": float(min(parts.values()) == 1.0), **parts, "overlap": fit}


__all__ = ["Measurement", "Thing", "measure", "score", "wanted"]

"""Score clips from their pixels alone: which digit, in which colour, which way did it move, how fast, on what.

    frames = pipe(prompt, **tiny_cogvideox.CALL, output_type="np").frames[0]
    score(frames, prompt)["right"]  # 1.0 where all that the prompt asks for is seen

Needs numpy only. The digit is told by a frozen classifier of two layers (``classifier.npz``, which the training script
fits on drawn digits); it knows nothing of the pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mixcache_models.drawn import BACKGROUNDS, COLOURS, DIRECTIONS, colour_of, direction_of, masks, middle, travel

DIGITS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Word -> range of values that training draws from. The ranges do not touch, so that a word decides what is seen.
# Pixels from the first to the last frame ("" is no word).
SPEEDS: Final[dict[str, tuple[float, float]]] = {"slowly": (8.0, 10.0), "": (13.0, 16.0), "quickly": (19.0, 22.0)}
CLASSIFIER: Final = Path(__file__).resolve().parent / "classifier.npz"
"""The classifier's weights, in half precision: ``hidden [256, units]``, ``output [units, 10]`` and their offsets."""

_CELLS: Final = 16  # the classifier's picture, high and wide
_REACH: Final = 11.5  # pixels from the digit's middle to the edge of that picture
_MOVED: Final = 4.0  # pixels from the first to the last frame
Planes = NDArray[np.float32]


@dataclass(frozen=True)
class Measurement:
    """What a clip shows, as words of the tables above; "none" where nothing clear is seen.

    ``confidence`` (0 to 1) is the classifier's probability of ``digit``; ``travel_xy`` is in pixels from the first to
    the last frame. ``speed`` may be "", which is neither slow nor quick.
    """

    digit: str
    colour: str
    direction: str
    speed: str
    background: str
    confidence: float
    travel_xy: tuple[float, float]


def wanted(prompt: str) -> dict[str, str]:
    """The words of ``prompt`` that can be seen: digit, colour and direction always, speed and background if asked.

    Raises ValueError where ``prompt`` names no digit, no colour or no direction.
    """
    words = prompt.lower().split()
    tables: dict[str, Sequence[str] | dict[str, Any]] = {
        "digit": DIGITS,
        "colour": COLOURS,
        "direction": DIRECTIONS,
        "speed": SPEEDS,
        "background": BACKGROUNDS,
    }
    found = {name: next((word for word in words if word in table), "") for name, table in tables.items()}
    if not (found["digit"] and found["colour"] and found["direction"]):
        raise ValueError(f"prompt is {prompt!r}; name a colour, a digit and a direction, as in 'a red seven moving up'")
    return {name: word for name, word in found.items() if word}


def as_levels(frames: NDArray[Any]) -> Planes:
    """Frames ``[T, H, W, 3]`` as float32 levels from 0 to 255; floats are taken to run from 0 to 1.

    Raises ValueError for another shape.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames have shape {frames.shape}; give [frames, height, width, 3]")
    levels = frames.astype(np.float32)
    return levels if frames.dtype == np.uint8 else np.clip(levels * np.float32(255), 0, 255)


def _line(pixels: int, middle: float) -> Planes:
    """How much each of ``pixels`` counts in each cell of a line, ``[_CELLS, pixels]``: linear interpolation."""
    places = middle + np.linspace(-_REACH, _REACH, _CELLS)
    weights: Planes = np.clip(1 - np.abs(places[:, None] - np.arange(pixels)), 0, 1).astype(np.float32)
    return weights


def features(mask: Planes) -> Planes:
    """The classifier's view ``[256]`` of one frame's mask: 16x16 cells around the digit's middle."""
    across, down = middle(mask)
    view: Planes = (_line(mask.shape[0], down) @ mask @ _line(mask.shape[1], across).T).ravel()
    return view


@lru_cache(maxsize=1)
def _classifier() -> dict[str, Planes]:
    with np.load(CLASSIFIER) as file:
        return {name: file[name].astype(np.float32) for name in file.files}


def classify(views: Planes) -> Planes:
    """The probabilities ``[count, 10]`` of each digit for the features ``[count, 256]``."""
    weights = _classifier()
    hidden = np.maximum(views @ weights["hidden"] + weights["hidden_offset"], 0)
    logits = hidden @ weights["output"] + weights["output_offset"]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Planes = (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares


def _nearest(value: float, ranges: dict[str, tuple[float, float]]) -> str:
    """The word whose range's middle is nearest to ``value``."""
    return min(ranges, key=lambda word: abs(value - sum(ranges[word]) / 2))


def measure(frames: NDArray[Any]) -> Measurement:
    """Measure a clip ``[T, H, W, 3]`` (uint8, or float from 0 to 1); ValueError for another shape."""
    levels = as_levels(frames)
    alpha = masks(levels)
    empty = levels[alpha <= 0]
    level = float(np.median(empty)) if empty.size else 0.0
    background = _nearest(level, BACKGROUNDS)
    seen = np.flatnonzero((alpha > 0.5).sum(axis=(1, 2)) >= 8)
    inside = alpha > 0.9
    if len(seen) <= len(alpha) // 2 or not inside.any():
        return Measurement("none", "none", "none", "none", background, 0.0, (0.0, 0.0))
    colour = colour_of(levels[inside])
    odds = classify(np.stack([features(alpha[index]) for index in seen])).mean(axis=0)
    travel_xy = travel(alpha, seen)
    speed = _nearest(max(abs(travel_xy[0]), abs(travel_xy[1])), SPEEDS)
    digit = DIGITS[int(odds.argmax())]
    return Measurement(digit, colour, direction_of(travel_xy, _MOVED), speed, background, float(odds.max()), travel_xy)


def score(frames: NDArray[Any], prompt: str) -> dict[str, float]:
    """How far the clip ``[T, H, W, 3]`` shows what ``prompt`` asks for: 1.0 for seen, 0.0 for not seen.

    "digit", "colour", "direction", "speed" and "background" stand for one word each (1.0 where the prompt asks for
    none), "right" for all of them. Raises ValueError for frames of another shape, or a prompt that names no digit, no
    colour or no direction.
    """
    asked, seen = wanted(prompt), measure(frames)
    names = ("digit", "colour", "direction", "speed", "background")
    result = {name: float(name not in asked or getattr(seen, name) == asked[name]) for name in names}
    return {"right": min(result.values()), **result}


__all__ = [
    "CLASSIFIER",
    "DIGITS",
    "SPEEDS",
    "Measurement",
    "classify",
    "features",
    "measure",
    "score",
    "wanted",
]

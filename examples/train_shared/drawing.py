"""Random choices of what is drawn."""

from __future__ import annotations

from typing import Final

import numpy as np

from mixcache_models.drawn import COLOURS

_COLOUR_JITTER: Final = 6.0  # levels, per channel


def pick(rng: np.random.Generator, ranges: dict[str, tuple[float, float]]) -> tuple[str, float]:
    """One word of ``ranges``, evenly, and a value evenly from its range."""
    word = list(ranges)[int(rng.integers(len(ranges)))]
    return word, float(rng.uniform(*ranges[word]))


def tint(rng: np.random.Generator, colour: str) -> tuple[float, float, float]:
    """A colour near the one of that name: levels of red, green and blue."""
    red, green, blue = (base + float(rng.uniform(-_COLOUR_JITTER, _COLOUR_JITTER)) for base in COLOURS[colour])
    return red, green, blue

"""What a metric is: a clip (and the uncached one beside it) -> a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from mixcache.errors import PluginError, called

Frames = NDArray[np.float32]
"""A clip [F, H, W, C] with values in [0, 1]; an image is a clip of one frame."""

Score = Callable[[Frames, str], Mapping[str, float]]
"""(frames_FHWC in [0, 1], prompt) -> numbers by name, of which "right" is 1 if the clip shows what was asked."""


@frozen(kw_only=True)
class Metric:
    """A number that says how good a clip is: what `mixcache_metrics` returns and `mixcache.register` takes.

    measure: (frames_FHWC, reference_FHWC, prompt) -> number; frames in [0, 1], and the uncached frames of the same
    prompt and seed, which it may ignore. NaN means that it cannot be told. name: its column. unit: "dB", or "" for
    none. higher_is_better: which clip is the worst one. digits: after the point, in tables. summary: a line about it.
    """

    kind_of_plugin: ClassVar[str] = "metric"

    name: str
    measure: Callable[[Frames, Frames, str], float]
    unit: str = ""
    higher_is_better: bool = True
    digits: int = 3
    summary: str = ""

    def __call__(self, frames_FHWC: Frames, reference_FHWC: Frames, prompt: str) -> float:
        """Measure one clip. Raises `PluginError` if the metric fails, or returns what is no number."""
        told: Any = called(("metric", self.name), self.measure, frames_FHWC, reference_FHWC, prompt)
        if not isinstance(told, Real) and not (isinstance(told, np.ndarray) and told.size == 1):
            raise PluginError(f"metric {self.name!r} must return one number, got {told!r}.")
        return float(told)

    def worst(self, values: Iterable[float]) -> float:
        """Of several clips; NaN if it is not known of one."""
        known = list(values)
        if any(map(math.isnan, known)):
            return math.nan
        return min(known) if self.higher_is_better else max(known)

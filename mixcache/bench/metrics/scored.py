"""The metrics of a comparison: those that are registered, and the model's own score."""

from __future__ import annotations

import math

from mixcache.core import catalogue
from mixcache.core.metrics import Frames, Metric, Score
from mixcache.errors import ConfigurationError

SCORE = "score"


def metrics_of(score: Score | None = None) -> dict[str, Metric]:
    """Every registered metric by name, and `score` where a model has one of its own.

    Raises `ConfigurationError` if a registered metric has that name too.
    """
    known = dict(catalogue.metrics())
    if score is None:
        return known
    if SCORE in known:
        raise ConfigurationError(f"metric {SCORE!r} is the model's own; rename the one that is registered.")

    def right(frames_FHWC: Frames, _: Frames, prompt: str) -> float:
        try:
            return float(score(frames_FHWC, prompt)["right"])
        except ValueError:  # a prompt that it cannot judge
            return math.nan

    return {
        **known,
        SCORE: Metric(name=SCORE, measure=right, digits=2, summary="whether the clip shows what was asked"),
    }

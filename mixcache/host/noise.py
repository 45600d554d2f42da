"""Noise levels: what a diffusers noise scheduler says about the evaluations of a run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from mixcache.core.points import NoiseLevel, Prediction
from mixcache.host.protocol import Schedule


def read_schedule(noise_scheduler: Any, prediction: Prediction | None, begin: int | None = None) -> Schedule:
    """The noise levels of a diffusers noise scheduler whose timesteps are set, with one transfer per run.

    prediction: overrides what the scheduler's configuration says the model returns. begin: the evaluation that the run
    begins with; by default where the noise scheduler begins.
    """
    timesteps = noise_scheduler.timesteps
    kind = prediction or _prediction(noise_scheduler)
    sigmas = getattr(noise_scheduler, "sigmas", None)
    count = len(timesteps)
    levels: Sequence[NoiseLevel | None] = [None] * count
    if kind == "flow" and sigmas is not None and len(sigmas) >= count:
        places = [*torch.as_tensor(sigmas).tolist(), 0.0]
        levels = [NoiseLevel.flow(*pair) for pair in list(pairwise(places))[:count]]
        if (
            count > 1 and places[0] < places[count - 1]
        ):  # counted from the noise up, and the velocity is towards the clean
            levels = [NoiseLevel(sigma=1 - s, alpha=s, until=1 - u, sign=-1.0) for s, u in pairwise(places)][:count]
    elif kind != "flow" and hasattr(noise_scheduler, "alphas_cumprod"):
        table = torch.as_tensor(noise_scheduler.alphas_cumprod).tolist()
        kept = np.interp(torch.as_tensor(timesteps).tolist(), np.arange(len(table)), table)
        levels = [NoiseLevel(alpha=float(a**0.5), sigma=float((1 - a) ** 0.5), prediction=kind) for a in kept]
    begins = getattr(noise_scheduler, "begin_index", None) if begin is None else begin
    return Schedule(timesteps, tuple(levels), begins or 0)


def _prediction(noise_scheduler: Any) -> Prediction:
    told = getattr(noise_scheduler.config, "prediction_type", None)
    if told in ("epsilon", "v_prediction", "sample"):
        return told  # type: ignore[no-any-return]
    return "flow"


def is_set(noise_scheduler: Any) -> bool:
    """Whether `set_timesteps` was ever called."""
    return getattr(noise_scheduler, "num_inference_steps", None) is not None and len(noise_scheduler.timesteps) > 0

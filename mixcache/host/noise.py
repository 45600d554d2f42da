"""Noise levels: what a diffusers noise scheduler says about the evaluations of a run, and whether its steps agree.

What a model returns is not taken from a configuration alone: the first step that the noise scheduler takes must be the
one that its noise levels imply, `after = alpha' * clean + sigma' * noise`, with the clean latent and the noise that the
model's output implies (exact for every deterministic first-order step: DDIM, Euler, the first of UniPC and DPM-Solver).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from attrs import evolve

from mixcache.core.basis import Clean, Noise
from mixcache.core.points import Granularity, NoiseLevel, Point, Prediction
from mixcache.host.protocol import Schedule

Levels = tuple[NoiseLevel | None, ...]
Pairs = list[tuple[float, float]]

OFF = 0.02
"""How far the step taken may be from the one implied, as a share of what the model's output moved."""


def read_schedule(noise_scheduler: Any, prediction: Prediction | None, begin: int | None = None) -> Schedule:
    """The noise levels of a diffusers noise scheduler whose timesteps are set, with one transfer per run.

    prediction: overrides what the scheduler's configuration says the model returns. begin: the evaluation that the run
    begins with; by default where the noise scheduler begins.
    """
    timesteps = _evaluated(noise_scheduler)
    kind = prediction or _prediction(noise_scheduler)
    tables = _tables(noise_scheduler)
    families = ("flow", "upward flow", "scaled flow") if kind == "flow" else ("variance", "scaled variance")
    levels: Levels = (None,) * len(timesteps)
    for family in families:
        if family in tables:
            levels = _levels(tables[family], kind, -1.0 if family == "upward flow" else 1.0)
            break
    begins = getattr(noise_scheduler, "begin_index", None) if begin is None else begin
    return Schedule(timesteps, levels, begins or 0)


def _evaluated(noise_scheduler: Any) -> Any:
    """Its timesteps, without a last one that is only where the evaluation before it leads (SCM, on angles)."""
    timesteps = noise_scheduler.timesteps
    asked = getattr(noise_scheduler, "num_inference_steps", None)
    ends = asked is not None and len(timesteps) == asked + 1 and not float(timesteps[-1])
    return timesteps[:-1] if ends else timesteps


def _tables(noise_scheduler: Any) -> dict[str, Pairs]:
    """What (alpha, sigma) of the model's input may be, by family: one pair per evaluation, and one for the end."""
    timesteps = _evaluated(noise_scheduler)
    count = len(timesteps)
    found: dict[str, Pairs] = {}
    sigmas = getattr(noise_scheduler, "sigmas", None)
    if sigmas is not None and len(sigmas) >= count:
        places = [*torch.as_tensor(sigmas).tolist(), 0.0][: count + 1]
        if count > 1 and places[0] < places[count - 1]:  # counted from the noise up
            found["upward flow"] = [(s, 1 - s) for s in [*places[:count], 1.0]]
        elif max(places) <= 1.0 + 1e-6:
            found["flow"] = [(1 - s, s) for s in places]
        else:  # of a latent that is scaled for the model
            found["scaled flow"] = [(1 / (1 + s), s / (1 + s)) for s in places]
            data = float(getattr(noise_scheduler.config, "sigma_data", None) or 1.0)
            found["scaled variance"] = [(data / math.hypot(data, s), s / math.hypot(data, s)) for s in places]
    if hasattr(noise_scheduler, "alphas_cumprod"):
        table = torch.as_tensor(noise_scheduler.alphas_cumprod).tolist()
        kept = np.interp(torch.as_tensor(timesteps).tolist(), np.arange(len(table)), table)
        found["variance"] = [(float(a**0.5), float((1 - a) ** 0.5)) for a in [*kept, 1.0]]
    return found


def _levels(pairs: Pairs, kind: Prediction, sign: float) -> Levels:
    return tuple(
        NoiseLevel(alpha=alpha, sigma=sigma, until=after[1], prediction=kind, sign=sign)
        for (alpha, sigma), after in pairwise(pairs)
    )


def agreed(noise_scheduler: Any, index: int, moved: tuple[float, float], rough: float, told: Levels) -> Levels | None:
    """The noise levels under which the step taken at evaluation `index` is the one implied; `None` if none are.

    moved: (P, Q) with after = P * latent + Q * output, the latent as the model was given it. rough: the rounding of
    the dtypes that took part. told: the levels as they were read, which are tried first.
    """
    nexts = [(level.alpha, level.sigma) for level in told[1:] if level is not None] + [(1.0, 0.0)]
    tried: list[tuple[Levels, tuple[float, float]]] = []
    if len(nexts) == len(told):
        for sign in (1.0, -1.0):
            turned = tuple(None if one is None else evolve(one, sign=sign * (one.sign or 1.0)) for one in told)
            tried.append((turned, nexts[index]))
    first = len(tried)
    for family, pairs in _tables(noise_scheduler).items():
        for kind in _KINDS[family.split()[-1]]:
            tried += [(_levels(pairs, kind, sign), pairs[index + 1]) for sign in (1.0, -1.0)]
    offs = []
    for one, after in tried:
        level = one[index]
        offs.append(math.inf if level is None else misfit(level, after, moved, rough))
    if not offs or min(offs) > 1.0:
        return None
    # of what is near enough the nearest: a small step along one prediction is nearly one along another
    nudged = moved[0] * (1.0 + rough / 16), moved[1]  # as well as P is known
    likely, meanings = [], set()
    for i, ((one, after), off) in enumerate(zip(tried, offs)):
        level = one[index]
        if level is not None and off <= min(1.0, max(2.0 * min(offs), abs(misfit(level, after, nudged, rough) - off))):
            likely.append(i)
            meanings.add((level.prediction, level.sign))
    return tried[likely[0]][0] if likely[0] < first or len(meanings) == 1 else None


_KINDS: dict[str, tuple[Prediction, ...]] = {
    "flow": ("flow", "epsilon", "sample"),
    "variance": ("epsilon", "v_prediction", "sample"),
}
"""What a model may predict where alpha + sigma = 1, and where the sum of their squares is."""


def implied(level: NoiseLevel, after: tuple[float, float], moved: tuple[float, float], rough: float) -> bool:
    """Whether a step P * latent + Q * output at this level may lead to alpha' * clean + sigma' * noise."""
    return misfit(level, after, moved, rough) <= 1.0


def misfit(level: NoiseLevel, after: tuple[float, float], moved: tuple[float, float], rough: float) -> float:
    """How far a step P * latent + Q * output at this level is from one to alpha' * clean + sigma' * noise, up to scale;
    1 is the most that rounding explains."""
    point = Point(granularity=Granularity.STEP, step=0, num_steps=1, level=level)
    noise, clean = Noise().coefficients(point), Clean().coefficients(point)
    if noise is None or clean is None:
        return math.inf
    matrix = np.array([[clean[0], noise[0]], [clean[1], noise[1]]])
    if abs(np.linalg.det(matrix)) < 1e-9 * np.abs(matrix).max() ** 2:
        return math.inf
    a, b = np.linalg.solve(matrix, np.array(moved))
    size = abs(moved[1]) * (abs(noise[1]) + abs(clean[1]))
    limit = max(OFF, min(64 * rough, 0.5)) * max(size, 1e-9) + 1e-5  # a small step drowns in a coarse dtype
    if not a * after[0] + b * after[1] > 0:
        return math.inf
    return float(abs(b * after[0] - a * after[1]) / (limit * max(1.0, math.hypot(a, b))))


def unsigned(levels: Sequence[NoiseLevel | None]) -> Levels:
    """The same levels, where nothing says what the model's output means: no basis may rest on them."""
    return tuple(None if level is None else evolve(level, sign=None) for level in levels)


def _prediction(noise_scheduler: Any) -> Prediction:
    told = getattr(noise_scheduler.config, "prediction_type", None)
    if told in ("epsilon", "v_prediction", "sample"):
        return told  # type: ignore[no-any-return]
    return "flow"


def is_set(noise_scheduler: Any) -> bool:
    """Whether `set_timesteps` was ever called."""
    return getattr(noise_scheduler, "num_inference_steps", None) is not None and len(noise_scheduler.timesteps) > 0

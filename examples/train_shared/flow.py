"""Noise levels of flow matching."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def sample_sigmas(rng: np.random.Generator, size: int, shift: float, spread: float) -> Tensor:
    """Noise levels ``[size]`` in 0 to 1: shifted logit-normal, one from each of ``size`` equally likely ranges.

    shift: above 1 moves them up, to where the words decide. spread: standard deviation of the normal.
    """
    quantile = torch.from_numpy((rng.permutation(size) + rng.random(size)) / size).clamp(1e-4, 1 - 1e-4)
    normal = math.sqrt(2) * torch.erfinv(2 * quantile - 1)
    return torch.sigmoid(spread * normal + math.log(shift)).float()

"""SeaCache (arXiv 2602.18993): reuse while the latent, its noise filtered out, has changed little."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor

from mixcache import Point, Policy, Reading, Signal, Tensors, Vote, ge, tunable

POWER, SMALL = 3, 1e-6
"""The spectrum of clean content falls as |f|^-3; what keeps it finite at f = 0, and the filter where all is noise."""


@lru_cache(maxsize=256)
def response(size: int, alpha: float, sigma: float) -> Any:
    """The Wiener filter along one axis of `size`, by frequency in the order of an FFT, divided by its mean."""
    alpha, sigma = max(alpha, SMALL), max(sigma, SMALL)
    content = 1.0 / (np.abs(np.fft.fftfreq(size)) ** POWER + SMALL)
    kept = alpha * content / (alpha**2 * content + sigma**2 + SMALL)
    return (kept / kept.mean()).astype(np.float32)


def filtered(x: Tensor, alpha: float, sigma: float) -> Tensor:
    """x [S, C, (T,) H, W] filtered along T, H and W, in float32: the optimal linear denoiser of content in noise.

    x = alpha content + sigma noise, with a spectrum of content that falls as |f|^-3 along every axis (f in cycles per
    element). The filter is the product over the axes, divided by its mean over all frequencies.
    """
    axes = tuple(range(2, x.dim()))
    bands = torch.fft.rfftn(x.float(), dim=axes)
    for axis in axes:  # x is real: of the last axis half of the frequencies are enough
        line = torch.from_numpy(response(x.shape[axis], alpha, sigma))[: bands.shape[axis]].to(x.device)
        bands = bands * line.reshape([-1 if i == axis else 1 for i in range(x.dim())])
    kept: Tensor = torch.fft.irfftn(bands, s=x.shape[2:], dim=axes)
    return kept


def _sea_change(t: Tensors) -> Tensor | None:
    if t.level is None or t.anchor.dim() < 4:
        return None
    now = filtered(t.anchor.detach(), t.level.alpha, t.level.sigma)
    before = t.own.get("filtered")
    t.own["filtered"] = now
    return None if before is None or before.shape != now.shape else t.norm(now - before) / t.norm(before)


SEA_CHANGE = Signal(
    name="sea_change",
    measure=_sea_change,
    keeps=True,
    summary="relative L1 change of what enters since the previous visit, filtered by noise level: SeaCache's distance",
)


@frozen(kw_only=True)
class SeaCache(Policy):
    """Reuse a step while the accumulated change of the noise-filtered latent stays below `threshold`.

    Early steps settle large structures, later ones details, and noise covers the rest. So the distance is taken behind
    the optimal linear denoiser at each noise level, a Wiener filter by frequency f along frames, height and width:

        H(f) = alpha S / (alpha^2 S + sigma^2)     S(f) = 1 / |f|^3,     H divided by its mean
        r_t = mean|H_t x_t - H_(t-1) x_(t-1)| / mean|H_(t-1) x_(t-1)|     over all visits, computed or not
        E  += r_t;   reuse while E < threshold, otherwise compute and set E = 0

    It needs no table. It needs noise levels and a latent with height and width: packed latents [S, tokens, channels]
    are computed, and the report says why. The first and the last evaluation are computed.

    threshold: relative L1; published 0.2 to 0.35 for Wan 2.1 and HunyuanVideo, 0.3 to 0.6 for FLUX.

    Deviations: the authors filter the modulated input of the first block and reuse what all blocks add; here it is the
    latent (the first block's input is linear in it, up to its modulation), and whole steps are reused, decided for all
    guidance branches at once, as the latent is theirs in common. While steps are forced, the authors' Wan code stores
    the unfiltered input, so their first distance mixes the two. The worst sample of a batch decides.
    """

    name: ClassVar[str] = "seacache"
    signals = (SEA_CHANGE, "sum(sea_change)")
    branches = "leader"

    threshold: float = field(default=0.2, validator=ge(0), metadata=tunable(0.02, 2.0, log=True))
    first_steps: int = field(default=1, validator=ge(0, whole=True))
    last_steps: int = field(default=1, validator=ge(0, whole=True))

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Reuse while E + r_t stays below the threshold."""
        total = reading["sum(sea_change)"]
        if total is None:
            return Vote.compute("no earlier latent, no noise level, or a latent without height and width")
        if total < self.threshold:
            return Vote.reuse(f"accumulated change below {self.threshold:g}", error=total)
        return Vote.compute(f"accumulated change reached {self.threshold:g}", error=total)

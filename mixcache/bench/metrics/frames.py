"""How far a cached clip is from the uncached one.

Arrays carry their layout in their names: F frames, H height, W width, C colour channels.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from mixcache.bench.extras import extra
from mixcache.core.hooks import hookimpl
from mixcache.core.metrics import Frames, Metric

_WINDOW = 7


def psnr(reference_FHWC: Frames, frames_FHWC: Frames) -> float:
    """Peak signal-to-noise ratio in dB, from the mean squared error of the whole clip; `inf` for identical clips."""
    metrics = extra("skimage.metrics", "PSNR")
    with np.errstate(divide="ignore"):
        return float(metrics.peak_signal_noise_ratio(reference_FHWC, frames_FHWC, data_range=1.0))


def ssim(reference_FHWC: Frames, frames_FHWC: Frames) -> float:
    """Structural similarity, the mean over the frames; 1 for identical clips, NaN for frames of less than 3 pixels."""
    side = min(reference_FHWC.shape[1:3])
    window = min(_WINDOW, side - 1 + side % 2)
    if window < 3:
        return math.nan
    compare = extra("skimage.metrics", "SSIM").structural_similarity
    pairs = zip(reference_FHWC.astype(np.float64), frames_FHWC.astype(np.float64))
    values = [compare(a, b, win_size=window, data_range=1.0, channel_axis=-1) for a, b in pairs]
    return float(np.mean(values))


def relative_error(reference: torch.Tensor, latents: torch.Tensor) -> float:
    """|latents - reference| / |reference|, L2 over all elements, dimensionless."""
    return float((latents - reference).norm() / reference.norm())


PSNR = Metric(
    name="psnr",
    measure=lambda frames, reference, _: psnr(reference, frames),
    unit="dB",
    digits=1,
    summary="peak signal-to-noise ratio of the whole clip against the uncached one",
)
SSIM = Metric(
    name="ssim",
    measure=lambda frames, reference, _: ssim(reference, frames),
    digits=4,
    summary="structural similarity to the uncached clip, the mean over the frames",
)


@hookimpl
def mixcache_metrics() -> list[Metric]:
    """What every comparison measures."""
    return [PSNR, SSIM]

"""What the trainings of the autoencoders share: the losses of pictures and clips, and latents that are made once.

Letters in names are axes: B batch, C channels, T frames, H height, W width; a picture has no T.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from examples.train_shared import loop

SQUARE_WEIGHT: Final = 2.0
EDGE_WEIGHT: Final = 0.5
SATURATED: Final = 0.2  # difference between a pixel's channels, of 2, from which it counts as coloured

Phases = tuple[tuple[float, int, int], ...]
"""(part of the training, frames, clips in a batch), in order."""


def to_tensor(frames: NDArray[np.uint8]) -> Tensor:
    """uint8 ``[T, H, W, 3]`` to float ``[3, T, H, W]`` in -1 to 1."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2).float() / 127.5 - 1


def phase(phases: Phases, iteration: int, iterations: int) -> tuple[int, int]:
    """Frames and clips in the batch of ``iteration``."""
    end = 0.0
    for part, frames, size in phases:
        end += part * iterations
        if iteration < end:
            return frames, size
    return phases[-1][1:]


def edge_error(again: Tensor, original: Tensor) -> Tensor:
    """Absolute error of the differences between neighbours in height, in width and in time, summed."""
    axes = [original.dim() - 2, original.dim() - 1]
    if original.dim() == 5 and original.shape[2] > 1:
        axes.append(2)
    return torch.stack([F.l1_loss(again.diff(dim=i), original.diff(dim=i)) for i in axes]).sum()


def psnr(original: Tensor, again: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures or clips in -1 to 1."""
    error = F.mse_loss(again.float(), original).item()
    return float(10 * np.log10(4.0 / max(error, 1e-12)))


def picture_loss(again: Tensor, original: Tensor, colour_weight: float) -> tuple[Tensor, dict[str, float]]:
    """Absolute and squared error of pixels, and the error of their edges.

    colour_weight: extra weight of coloured pixels: they are few, and the error's median ignores the few.
    """
    coloured = (original.amax(1, keepdim=True) - original.amin(1, keepdim=True)) > SATURATED
    weight = 1 + colour_weight * coloured.float()
    error = again - original
    pixel = (weight * (error.abs() + SQUARE_WEIGHT * error.square())).mean()
    edge = edge_error(again, original)
    return pixel + EDGE_WEIGHT * edge, {
        "pixel": pixel.item(),
        "edge": edge.item(),
        "dB": psnr(original, again.detach()),
    }


def autoencoded(vae: Any, original: Tensor, generator: torch.Generator) -> tuple[Any, Tensor]:
    """The latents' distribution, and what comes of a latent that is drawn from it, in float32."""
    with loop.autocast():
        posterior = vae.encode(original).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        again = vae.decode(posterior.mean.float() + posterior.std.float() * noise).sample
    return posterior, again.float()


def divergence(posterior: Any) -> Tensor:
    """How far latents are from a unit Gaussian: the mean Kullback-Leibler divergence of one number."""
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    apart: Tensor = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return apart


@torch.no_grad()
def encode_once(
    folder: Path,
    count: int,
    size: int,
    draw: Callable[[int], tuple[Tensor, list[str]]],
    encode: Callable[[Tensor], Tensor],
    token_ids: Callable[[list[str]], list[list[int]]],
    what: str,
) -> dict[str, Tensor]:
    """Draw and encode ``count`` examples, ``size`` at a time: their latents (half precision) and token ids.

    They are kept in ``folder``/latents.pt and made again only for another count. draw: a batch and its captions, by its
    first example. what: they are, for the progress bar.
    """
    path = folder / "latents.pt"
    state = loop.load_checkpoint(path)
    if state is not None and len(state["latents"]) == count:
        return state
    latents, ids = [], []
    with loop.progress_bar(f"encoding {what}", count) as bar:
        for begin in range(0, count, size):
            batch, captions = draw(begin)
            latents.append(encode(batch).half())
            ids.extend(token_ids(captions))
            bar.advance(size)
            if begin % (100 * size) == 0:
                bar.tell("")
    state = {"latents": torch.cat(latents)[:count], "ids": torch.tensor(ids)[:count]}
    loop.save_checkpoint(path, state)
    return state

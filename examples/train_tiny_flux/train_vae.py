"""First stage: the autoencoder, trained on freshly drawn pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from examples.train_shared import loop
from examples.train_shared.autoencoding import autoencoded, divergence, picture_loss, psnr
from examples.train_shared.muon import build_optimizers
from examples.train_shared.training import load_part, train
from examples.train_tiny_flux import pictures
from examples.train_tiny_flux.networks import build_vae

STAGE: Final = 0
BATCH: Final = 16
PEAK_RATE: Final = 4e-3
LATER_RATE: Final = 8e-4  # peak of a training that goes on from finished weights
KL_WEIGHT: Final = 2e-3
COLOUR_WEIGHT: Final = 4.0


def draw_batch(
    rng: np.random.Generator, combinations: list[pictures.Combination], size: int
) -> tuple[Tensor, list[str]]:
    """``size`` random pictures, ``[size, 3, 64, 64]`` in -1 to 1, and a caption for each."""
    specs = [pictures.sample_spec(rng, combinations) for _ in range(size)]
    levels = torch.from_numpy(np.stack([pictures.draw(spec) for spec in specs]))
    return levels.permute(0, 3, 1, 2).float() / 127.5 - 1, [pictures.caption(spec, rng) for spec in specs]


def vae_loss(vae: AutoencoderKL, image_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    """Absolute and squared error of pixels, the error of their edges, and a slight pull to a unit Gaussian."""
    posterior, again_BCHW = autoencoded(vae, image_BCHW, generator)
    loss, told = picture_loss(again_BCHW, image_BCHW, COLOUR_WEIGHT)
    pull = divergence(posterior)
    return loss + KL_WEIGHT * pull, {**told, "kl": pull.item()}


def train_vae(folder: Path, seed: int, iterations: int, start_from: Path | None = None) -> AutoencoderKL:
    """Train the autoencoder for ``iterations``, or what of them is left, and keep it in ``folder``/vae.pt.

    start_from: a finished pipeline whose autoencoder is the first weights.
    """
    torch.manual_seed(seed)
    vae = build_vae()
    if start_from is not None:
        load_part(vae, start_from, "vae")
    vae.to(memory_format=torch.channels_last)
    optimizers = build_optimizers([p for p in vae.parameters() if p.ndim >= 4], vae.parameters())
    combinations = pictures.training_combinations()

    def loss_of(iteration: int) -> tuple[Tensor, dict[str, float]]:
        rng = loop.batch_rng(seed, STAGE, iteration)
        image_BCHW = draw_batch(rng, combinations, BATCH)[0].contiguous(memory_format=torch.channels_last)
        return vae_loss(vae, image_BCHW, torch.Generator().manual_seed(int(rng.integers(2**31))))

    peak = PEAK_RATE if start_from is None else LATER_RATE
    path = folder / "vae.pt"
    train(vae, optimizers, loss_of, path, name="autoencoder", iterations=iterations, peak=peak, key="vae")
    return vae


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKL, seed: int, count: int = 64) -> float:
    """PSNR in dB over ``count`` pictures of held-out combinations."""
    image_BCHW, _ = draw_batch(np.random.default_rng([seed, 99]), pictures.held_out_combinations(), count)
    return psnr(image_BCHW, vae.decode(vae.encode(image_BCHW).latent_dist.mode()).sample)

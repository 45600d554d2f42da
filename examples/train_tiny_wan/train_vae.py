"""First stage: the autoencoder, trained on freshly drawn clips, and the latents that the second stage learns."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from torch import Tensor

from examples.train_shared import loop
from examples.train_shared.autoencoding import Phases, autoencoded, divergence, phase, picture_loss, psnr, to_tensor
from examples.train_shared.muon import build_optimizers
from examples.train_shared.training import load_part, train
from examples.train_tiny_wan import clips
from examples.train_tiny_wan.networks import build_vae

STAGE: Final = 0
PEAK_RATE: Final = 4e-3
LATER_RATE: Final = 8e-4  # peak of a training that goes on from finished weights
KL_WEIGHT: Final = 1e-3
COLOUR_WEIGHT: Final = 6.0
# First pictures, which cost little and teach all of space; then
# the shortest clips, with one step through time; then whole clips.
PHASES: Final[Phases] = ((1 / 3, 1, 16), (1 / 3, 5, 6), (1 / 3, clips.FRAMES, 4))


def draw_batch(rng: np.random.Generator, combinations: list[clips.Combination], size: int, frames: int) -> Tensor:
    """A stretch of ``frames`` of each of ``size`` random clips, ``[size, 3, frames, 64, 64]``."""
    firsts = rng.integers(clips.FRAMES - frames + 1, size=size)
    specs = [clips.sample_spec(rng, combinations) for _ in range(size)]
    return torch.stack([to_tensor(clips.draw(spec, int(i), frames)) for spec, i in zip(specs, firsts, strict=True)])


def draw_batch_with_captions(
    rng: np.random.Generator, combinations: list[clips.Combination], size: int
) -> tuple[Tensor, list[str]]:
    """``size`` random clips, ``[size, 3, 17, 64, 64]``, and a caption for each."""
    specs = [clips.sample_spec(rng, combinations) for _ in range(size)]
    return torch.stack([to_tensor(clips.draw(spec)) for spec in specs]), [clips.caption(spec, rng) for spec in specs]


def vae_loss(vae: AutoencoderKLWan, clip_BCTHW: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    """Absolute and squared error of pixels, the error of their edges, and a slight pull to a unit Gaussian."""
    posterior, again_BCTHW = autoencoded(vae, clip_BCTHW, generator)
    loss, told = picture_loss(again_BCTHW, clip_BCTHW, COLOUR_WEIGHT)
    pull = divergence(posterior)
    return loss + KL_WEIGHT * pull, {**told, "kl": pull.item()}


def channels_last(vae: AutoencoderKLWan) -> None:
    """Store the kernels channels last: a third faster for convolutions as narrow as these, on a CPU."""
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.weight.data = module.weight.data.to(memory_format=torch.channels_last_3d)


def start_as_pictures(vae: AutoencoderKLWan) -> None:
    """Let the untrained ``vae`` treat each frame on its own: kernels begin with the present frame's weights alone.

    What the phase of pictures learns then holds for clips, where motion is all that is left to learn.
    """
    for module in vae.modules():
        if isinstance(module, WanCausalConv3d) and module.weight.shape[2] == 3:
            weight = module.weight.data
            weight[:, :, :2] = 0
            if weight.shape[3] == 3:
                weight[:, :, 2] *= math.sqrt(3)  # keeps the size of the sum over the three frames
            else:  # resampling in time: the last frame of each pair going down, both the same going up
                weight[:, :, 2, 0, 0] = torch.eye(weight.shape[1]).repeat(weight.shape[0] // weight.shape[1], 1)
                torch.nn.init.zeros_(module.bias)


def train_vae(folder: Path, seed: int, iterations: int, start_from: Path | None = None) -> AutoencoderKLWan:
    """Train the autoencoder for ``iterations``, or what of them is left, and keep it in ``folder``/vae.pt.

    start_from: a finished pipeline whose autoencoder is the first weights; it goes on with whole clips alone.
    """
    torch.manual_seed(seed)
    vae = build_vae()
    if start_from is None:
        start_as_pictures(vae)
    else:
        load_part(vae, start_from, "vae")
    channels_last(vae)
    optimizers = build_optimizers([p for p in vae.parameters() if p.ndim >= 4], vae.parameters())
    combinations = clips.training_combinations()

    def loss_of(iteration: int) -> tuple[Tensor, dict[str, float]]:
        rng = loop.batch_rng(seed, STAGE, iteration)
        frames, size = PHASES[-1][1:] if start_from is not None else phase(PHASES, iteration, iterations)
        clip_BCTHW = draw_batch(rng, combinations, size, frames)
        return vae_loss(vae, clip_BCTHW, torch.Generator().manual_seed(int(rng.integers(2**31))))

    peak = PEAK_RATE if start_from is None else LATER_RATE
    path = folder / "vae.pt"
    train(vae, optimizers, loss_of, path, name="autoencoder", iterations=iterations, peak=peak, key="vae")
    return vae


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKLWan, seed: int, count: int = 32) -> float:
    """PSNR in dB over ``count`` clips of held-out combinations."""
    rng = np.random.default_rng([seed, 99])
    combinations = clips.held_out_combinations()
    batches = [draw_batch(rng, combinations, 4, clips.FRAMES) for _ in range(count // 4)]
    return float(np.mean([psnr(batch, vae.decode(vae.encode(batch).latent_dist.mode()).sample) for batch in batches]))

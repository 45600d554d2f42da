"""First stage: the autoencoder, trained on freshly drawn clips."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXCausalConv3d
from torch import Tensor

from examples.train_shared import loop
from examples.train_shared.autoencoding import Phases, autoencoded, divergence, phase, picture_loss, psnr, to_tensor
from examples.train_shared.muon import build_optimizers
from examples.train_shared.training import load_part, train
from examples.train_tiny_cogvideox import clips
from examples.train_tiny_cogvideox.networks import build_vae

STAGE: Final = 0
PEAK_RATE: Final = 4e-3
LATER_RATE: Final = 8e-4  # peak of a training that goes on from finished weights
KL_WEIGHT: Final = 1e-3
SCALE_WEIGHT: Final = 0.02  # of the latents' means and deviations: the pipeline has one scaling factor for all channels
COLOUR_WEIGHT: Final = 3.0
# First pictures, which cost little and teach all of space; then
# whole clips (the autoencoder takes one frame or 8 n + 1).
PHASES: Final[Phases] = ((0.5, 1, 16), (0.5, clips.FRAMES, 4))


def draw_batch(rng: np.random.Generator, pairs: list[clips.Pair], size: int, frames: int) -> Tensor:
    """A stretch of ``frames`` of each of ``size`` random clips, ``[size, 3, frames, 48, 48]``."""
    firsts = rng.integers(clips.FRAMES - frames + 1, size=size)
    specs = [clips.sample_spec(rng, pairs) for _ in range(size)]
    return torch.stack([to_tensor(clips.draw(spec, int(i), frames)) for spec, i in zip(specs, firsts, strict=True)])


def draw_batch_with_captions(rng: np.random.Generator, pairs: list[clips.Pair], size: int) -> tuple[Tensor, list[str]]:
    """``size`` random clips, ``[size, 3, 9, 48, 48]``, and a caption for each."""
    specs = [clips.sample_spec(rng, pairs) for _ in range(size)]
    return torch.stack([to_tensor(clips.draw(spec)) for spec in specs]), [clips.caption(spec, rng) for spec in specs]


def vae_loss(
    vae: AutoencoderKLCogVideoX, clip_BCTHW: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """The loss of the pictures, and slight pulls of the latents to mean 0 and deviation 1."""
    posterior, again_BCTHW = autoencoded(vae, clip_BCTHW, generator)
    loss, told = picture_loss(again_BCTHW, clip_BCTHW, COLOUR_WEIGHT)
    pull = divergence(posterior)
    channels = posterior.mean.float().transpose(0, 1).flatten(1)
    scale = (channels.mean(1).square() + (channels.std(1) - 1).square()).mean()
    loss = loss + KL_WEIGHT * pull + SCALE_WEIGHT * scale
    return loss, {**told, "kl": pull.item(), "scale": scale.item()}


def kernels_in_time(vae: AutoencoderKLCogVideoX) -> list[torch.nn.Parameter]:
    """The kernels ``[out, in, 3, 3, 3]`` that see the present frame and the two before it."""
    convolutions = [module.conv for module in vae.modules() if isinstance(module, CogVideoXCausalConv3d)]
    return [convolution.weight for convolution in convolutions if convolution.weight.shape[2] == 3]


def start_as_pictures(vae: AutoencoderKLCogVideoX) -> None:
    """Let the untrained ``vae`` treat each frame on its own: kernels begin with the present frame's weights alone."""
    for weight in kernels_in_time(vae):
        weight.data[:, :, :2] = 0
        weight.data[:, :, 2] *= math.sqrt(3)  # keeps the size of the sum over the three frames


def keep_as_pictures(vae: AutoencoderKLCogVideoX, drawn: Callable[[], int]) -> None:
    """Take the gradient of the earlier frames' weights away where a batch has one frame, as ``drawn`` tells.

    A picture is padded with itself: those weights would all learn the same, and clips would begin as blurs.
    """

    def present_only(gradient: Tensor) -> Tensor:
        if drawn() == 1:
            gradient = gradient.clone()
            gradient[:, :, :2] = 0
        return gradient

    for weight in kernels_in_time(vae):
        weight.register_hook(present_only)


def train_vae(folder: Path, seed: int, iterations: int, start_from: Path | None = None) -> AutoencoderKLCogVideoX:
    """Train the autoencoder for ``iterations``, or what of them is left, and keep it in ``folder``/vae.pt.

    start_from: a finished pipeline whose autoencoder is the first weights; it goes on with whole clips alone.
    """
    torch.manual_seed(seed)
    vae = build_vae()
    if start_from is None:
        start_as_pictures(vae)
    else:
        load_part(vae, start_from, "vae")
    optimizers = build_optimizers([p for p in vae.parameters() if p.ndim >= 4], vae.parameters())
    pairs, frames = clips.training_pairs(), clips.FRAMES
    keep_as_pictures(vae, lambda: frames)

    def loss_of(iteration: int) -> tuple[Tensor, dict[str, float]]:
        nonlocal frames
        rng = loop.batch_rng(seed, STAGE, iteration)
        frames, size = PHASES[-1][1:] if start_from is not None else phase(PHASES, iteration, iterations)
        clip_BCTHW = draw_batch(rng, pairs, size, frames)
        return vae_loss(vae, clip_BCTHW, torch.Generator().manual_seed(int(rng.integers(2**31))))

    peak = PEAK_RATE if start_from is None else LATER_RATE
    path = folder / "vae.pt"
    train(vae, optimizers, loss_of, path, name="autoencoder", iterations=iterations, peak=peak, key="vae")
    return vae


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKLCogVideoX, seed: int, count: int = 32) -> float:
    """PSNR in dB over ``count`` clips of held-out pairs."""
    rng = np.random.default_rng([seed, 99])
    pairs = clips.held_out_pairs()
    batches = [draw_batch(rng, pairs, 4, clips.FRAMES) for _ in range(count // 4)]
    return float(np.mean([psnr(batch, vae.decode(vae.encode(batch).latent_dist.mode()).sample) for batch in batches]))

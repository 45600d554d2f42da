"""First stage: the autoencoder, trained on freshly drawn pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from examples.train_shared import loop
from examples.train_shared.muon import build_optimizers, take_step
from examples.train_tiny_flux import pictures
from examples.train_tiny_flux.networks import build_vae

STAGE: Final = 0
BATCH: Final = 16
PEAK_RATE: Final = 4e-3
LATER_RATE: Final = 8e-4  # peak of a training that goes on from finished weights
KL_WEIGHT: Final = 2e-3
SQUARE_WEIGHT: Final = 2.0
EDGE_WEIGHT: Final = 0.5
COLOUR_WEIGHT: Final = 4.0  # extra weight of coloured pixels: they are few, and the error's median ignores the few
SATURATED: Final = 0.2  # difference between a pixel's channels, of 2, from which it counts as coloured


def draw_batch(
    rng: np.random.Generator, combinations: list[pictures.Combination], size: int
) -> tuple[Tensor, list[str]]:
    """``size`` random pictures, ``[size, 3, 64, 64]`` in -1 to 1, and a caption for each."""
    specs = [pictures.sample_spec(rng, combinations) for _ in range(size)]
    levels = torch.from_numpy(np.stack([pictures.draw(spec) for spec in specs]))
    return levels.permute(0, 3, 1, 2).float() / 127.5 - 1, [pictures.caption(spec, rng) for spec in specs]


def vae_loss(vae: AutoencoderKL, image_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    """Absolute and squared error of pixels, the error of their edges, and a slight pull to a unit Gaussian."""
    with loop.autocast():
        posterior = vae.encode(image_BCHW).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        again_BCHW = vae.decode(posterior.mean.float() + posterior.std.float() * noise).sample
    again_BCHW = again_BCHW.float()
    coloured = (image_BCHW.amax(1, keepdim=True) - image_BCHW.amin(1, keepdim=True)) > SATURATED
    weight = 1 + COLOUR_WEIGHT * coloured.float()
    error = again_BCHW - image_BCHW
    pixel = (weight * (error.abs() + SQUARE_WEIGHT * error.square())).mean()
    edge = torch.stack([F.l1_loss(again_BCHW.diff(dim=i), image_BCHW.diff(dim=i)) for i in (2, 3)]).sum()
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    loss = pixel + EDGE_WEIGHT * edge + KL_WEIGHT * divergence
    return loss, {"psnr": psnr(image_BCHW, again_BCHW.detach()), "edge": edge.item(), "kl": divergence.item()}


def psnr(image_BCHW: Tensor, again_BCHW: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in -1 to 1."""
    return float(10 * np.log10(4.0 / max(F.mse_loss(again_BCHW.float(), image_BCHW).item(), 1e-12)))


def train_vae(folder: Path, seed: int, iterations: int, start_from: Path | None = None) -> AutoencoderKL:
    """Train the autoencoder for ``iterations``, or what of them is left, and keep it in ``folder``/vae.pt.

    start_from: a finished pipeline whose autoencoder is the first weights.
    """
    torch.manual_seed(seed)
    vae = build_vae()
    if start_from is not None:
        finished = AutoencoderKL.from_pretrained(start_from, subfolder="vae", torch_dtype=torch.float32)
        vae.load_state_dict(finished.state_dict())
    vae.to(memory_format=torch.channels_last)
    optimizers = build_optimizers([p for p in vae.parameters() if p.ndim >= 4], vae.parameters())
    path, first = folder / "vae.pt", 0
    state = loop.load_checkpoint(path)
    if state is not None:
        vae.load_state_dict(state["vae"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first = int(state["iteration"])
    combinations, log = pictures.training_combinations(), loop.LossLog()
    peak = PEAK_RATE if start_from is None else LATER_RATE

    def save(done: int) -> None:
        states = [optimizer.state_dict() for optimizer in optimizers]
        loop.save_checkpoint(path, {"vae": vae.state_dict(), "optimizers": states, "iteration": done})

    with loop.progress_bar("autoencoder", iterations, first) as bar:
        for iteration in range(first, iterations):
            rng = loop.batch_rng(seed, STAGE, iteration)
            image_BCHW, _ = draw_batch(rng, combinations, BATCH)
            generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
            loss, parts = vae_loss(vae, image_BCHW.contiguous(memory_format=torch.channels_last), generator)
            take_step(vae, optimizers, loss, loop.learning_rate(iteration, iterations, peak))
            log.add(**parts)
            bar.advance()
            if (iteration + 1) % loop.LOG_EVERY == 0:
                bar.tell(log.line())
            if (iteration + 1) % loop.SAVE_EVERY == 0:
                save(iteration + 1)
    save(max(first, iterations))  # of no iterations too: the next stage reads it
    return vae.eval()


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKL, seed: int, count: int = 64) -> float:
    """PSNR in dB over ``count`` pictures of held-out combinations."""
    image_BCHW, _ = draw_batch(np.random.default_rng([seed, 99]), pictures.held_out_combinations(), count)
    return psnr(image_BCHW, vae.decode(vae.encode(image_BCHW).latent_dist.mode()).sample)

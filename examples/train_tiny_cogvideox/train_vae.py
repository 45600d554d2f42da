"""First stage: the autoencoder, trained on freshly drawn clips."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXCausalConv3d
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from examples.train_shared import loop
from examples.train_shared.muon import build_optimizers, take_step
from examples.train_tiny_cogvideox import clips
from examples.train_tiny_cogvideox.networks import build_vae

STAGE: Final = 0
PEAK_RATE: Final = 4e-3
LATER_RATE: Final = 8e-4  # peak of a training that goes on from finished weights
KL_WEIGHT: Final = 1e-3
SQUARE_WEIGHT: Final = 2.0
EDGE_WEIGHT: Final = 0.5
SCALE_WEIGHT: Final = 0.02  # of the latents' means and deviations: the pipeline has one scaling factor for all channels
COLOUR_WEIGHT: Final = 3.0  # extra weight of coloured pixels: they are few, and the error's median ignores the few
SATURATED: Final = 0.2  # difference between a pixel's channels, of 2, from which it counts as coloured
# (part of the training, frames, clips in a batch): first pictures, which cost little and teach all of space; then
# whole clips (the autoencoder takes one frame or 8 n + 1).
PHASES: Final = ((0.5, 1, 16), (0.5, clips.FRAMES, 4))


def to_tensor(frames: clips.Frames) -> Tensor:
    """uint8 ``[T, H, W, 3]`` to float ``[3, T, H, W]`` in -1 to 1."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2).float() / 127.5 - 1


def draw_batch(rng: np.random.Generator, pairs: list[clips.Pair], size: int, frames: int) -> Tensor:
    """A stretch of ``frames`` of each of ``size`` random clips, ``[size, 3, frames, 48, 48]``."""
    firsts = rng.integers(clips.FRAMES - frames + 1, size=size)
    specs = [clips.sample_spec(rng, pairs) for _ in range(size)]
    return torch.stack([to_tensor(clips.draw(spec, int(i), frames)) for spec, i in zip(specs, firsts, strict=True)])


def draw_batch_with_captions(rng: np.random.Generator, pairs: list[clips.Pair], size: int) -> tuple[Tensor, list[str]]:
    """``size`` random clips, ``[size, 3, 9, 48, 48]``, and a caption for each."""
    specs = [clips.sample_spec(rng, pairs) for _ in range(size)]
    return torch.stack([to_tensor(clips.draw(spec)) for spec in specs]), [clips.caption(spec, rng) for spec in specs]


def edge_error(again_BCTHW: Tensor, clip_BCTHW: Tensor) -> Tensor:
    """Absolute error of the differences between neighbours in height, in width and in time, summed."""
    axes = (3, 4, 2) if clip_BCTHW.shape[2] > 1 else (3, 4)
    return torch.stack([F.l1_loss(again_BCTHW.diff(dim=i), clip_BCTHW.diff(dim=i)) for i in axes]).sum()


def psnr(clip_BCTHW: Tensor, again_BCTHW: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of clips in -1 to 1."""
    error = F.mse_loss(again_BCTHW.float(), clip_BCTHW).item()
    return float(10 * np.log10(4.0 / max(error, 1e-12)))


def picture_loss(again_BCTHW: Tensor, clip_BCTHW: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Absolute and squared error of pixels, coloured ones above all, and the error of their edges."""
    coloured = (clip_BCTHW.amax(1, keepdim=True) - clip_BCTHW.amin(1, keepdim=True)) > SATURATED
    weight = 1 + COLOUR_WEIGHT * coloured.float()
    error = again_BCTHW - clip_BCTHW
    pixel = (weight * (error.abs() + SQUARE_WEIGHT * error.square())).mean()
    edge = edge_error(again_BCTHW, clip_BCTHW)
    told = {"pixel": pixel.item(), "edge": edge.item(), "dB": psnr(clip_BCTHW, again_BCTHW)}
    return pixel + EDGE_WEIGHT * edge, told


def vae_loss(
    vae: AutoencoderKLCogVideoX, clip_BCTHW: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """The loss of the pictures, and slight pulls of the latents to mean 0 and deviation 1."""
    with loop.autocast():
        posterior = vae.encode(clip_BCTHW).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        latent_BCTHW = posterior.mean.float() + posterior.std.float() * noise
        again_BCTHW = vae.decode(latent_BCTHW).sample
    loss, told = picture_loss(again_BCTHW.float(), clip_BCTHW)
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    channels = mean.transpose(0, 1).flatten(1)
    scale = (channels.mean(1).square() + (channels.std(1) - 1).square()).mean()
    loss = loss + KL_WEIGHT * divergence + SCALE_WEIGHT * scale
    return loss, {**told, "kl": divergence.item(), "scale": scale.item()}


def kernels_in_time(vae: AutoencoderKLCogVideoX) -> list[torch.nn.Parameter]:
    """The kernels ``[out, in, 3, 3, 3]`` that see the present frame and the two before it."""
    convolutions = [module.conv for module in vae.modules() if isinstance(module, CogVideoXCausalConv3d)]
    return [convolution.weight for convolution in convolutions if convolution.weight.shape[2] == 3]


def start_as_pictures(vae: AutoencoderKLCogVideoX) -> None:
    """Let the untrained ``vae`` treat each frame on its own: kernels begin with the present frame's weights alone."""
    for weight in kernels_in_time(vae):
        weight.data[:, :, :2] = 0
        weight.data[:, :, 2] *= math.sqrt(3)  # keeps the size of the sum over the three frames


def keep_as_pictures(vae: AutoencoderKLCogVideoX) -> list[RemovableHandle]:
    """Take the gradient of the earlier frames' weights away until the handles are removed.

    A picture is padded with itself: those weights would all learn the same, and clips would begin as blurs.
    """

    def present_only(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[:, :, :2] = 0
        return gradient

    return [weight.register_hook(present_only) for weight in kernels_in_time(vae)]


def phase(iteration: int, iterations: int) -> tuple[int, int]:
    """Frames and clips in the batch of ``iteration``."""
    end = 0.0
    for part, frames, size in PHASES:
        end += part * iterations
        if iteration < end:
            return frames, size
    return PHASES[-1][1:]


def train_vae(folder: Path, seed: int, iterations: int, start_from: Path | None = None) -> AutoencoderKLCogVideoX:
    """Train the autoencoder for ``iterations``, or what of them is left, and keep it in ``folder``/vae.pt.

    start_from: a finished pipeline whose autoencoder is the first weights; it goes on with whole clips alone.
    """
    torch.manual_seed(seed)
    vae = build_vae()
    if start_from is None:
        start_as_pictures(vae)
    else:
        finished = AutoencoderKLCogVideoX.from_pretrained(start_from, subfolder="vae", torch_dtype=torch.float32)
        vae.load_state_dict(finished.state_dict())
    optimizers = build_optimizers([p for p in vae.parameters() if p.ndim >= 4], vae.parameters())
    path, first = folder / "vae.pt", 0
    state = loop.load_checkpoint(path)
    if state is not None:
        vae.load_state_dict(state["vae"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first = int(state["iteration"])
    pairs, log = clips.training_pairs(), loop.LossLog()
    peak = PEAK_RATE if start_from is None else LATER_RATE

    def save(done: int) -> None:
        states = [optimizer.state_dict() for optimizer in optimizers]
        loop.save_checkpoint(path, {"vae": vae.state_dict(), "optimizers": states, "iteration": done})

    with loop.progress_bar("autoencoder", iterations, first) as bar:
        for iteration in range(first, iterations):
            rng = loop.batch_rng(seed, STAGE, iteration)
            frames, size = PHASES[-1][1:] if start_from is not None else phase(iteration, iterations)
            clip_BCTHW = draw_batch(rng, pairs, size, frames)
            generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
            loss, parts = vae_loss(vae, clip_BCTHW, generator)
            handles = keep_as_pictures(vae) if frames == 1 else []
            take_step(vae, optimizers, loss, loop.learning_rate(iteration, iterations, peak))
            for handle in handles:
                handle.remove()
            log.add(**parts)
            bar.advance()
            if (iteration + 1) % loop.LOG_EVERY == 0:
                bar.tell(log.line())
            if (iteration + 1) % loop.SAVE_EVERY == 0:
                save(iteration + 1)
    save(max(first, iterations))  # of no iterations too: the next stage reads it
    return vae.eval()


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKLCogVideoX, seed: int, count: int = 32) -> float:
    """PSNR in dB over ``count`` clips of held-out pairs."""
    rng = np.random.default_rng([seed, 99])
    pairs = clips.held_out_pairs()
    batches = [draw_batch(rng, pairs, 4, clips.FRAMES) for _ in range(count // 4)]
    return float(np.mean([psnr(batch, vae.decode(vae.encode(batch).latent_dist.mode()).sample) for batch in batches]))

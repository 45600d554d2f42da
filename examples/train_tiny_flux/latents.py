"""Latents of drawn pictures: encoded once, normalised in each channel, packed to the transformer's tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from examples.train_shared import loop
from examples.train_shared.autoencoding import encode_once
from examples.train_tiny_flux import pictures
from examples.train_tiny_flux.networks import TOKENS_SIDE, build_vae, token_ids
from examples.train_tiny_flux.train_vae import draw_batch

STAGE: Final = 1
ENCODE_BATCH: Final = 32


def encode_pictures(vae: AutoencoderKL, folder: Path, seed: int, count: int) -> dict[str, Tensor]:
    """Draw and encode ``count`` training pictures, once: their raw latents (half precision) and token ids."""

    def draw(begin: int) -> tuple[Tensor, list[str]]:
        return draw_batch(loop.batch_rng(seed, STAGE, begin), pictures.training_combinations(), ENCODE_BATCH)

    def encode(image_BCHW: Tensor) -> Tensor:
        latent: Tensor = vae.encode(image_BCHW).latent_dist.mode()
        return latent

    return encode_once(folder, count, ENCODE_BATCH, draw, encode, token_ids, "pictures")


def latent_statistics(latents_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent channel, ``[channels]``."""
    channels = latents_NCHW.float().transpose(0, 1).flatten(1)
    return channels.mean(dim=1), channels.std(dim=1)


def normalised(latents_NCHW: Tensor) -> Tensor:
    """Latents with mean 0 and standard deviation 1 in each channel, in float32."""
    mean, std = (value.view(1, -1, 1, 1) for value in latent_statistics(latents_NCHW))
    return (latents_NCHW.float() - mean) / std


def pack(latents_NCHW: Tensor) -> Tensor:
    """Latents as tokens of 2x2 pixels, ``[count, height * width / 4, channels * 4]``, as the pipeline packs them."""
    return F.pixel_unshuffle(latents_NCHW, 2).flatten(2).transpose(1, 2).contiguous()


def unpack(tokens_NLC: Tensor) -> Tensor:
    """The reverse of :func:`pack`."""
    return F.pixel_shuffle(tokens_NLC.transpose(1, 2).unflatten(2, (TOKENS_SIDE, TOKENS_SIDE)), 2)


@torch.no_grad()
def normalise(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Make ``vae`` give and take normalised latents, by its 1x1 convolutions beside them.

    The class itself knows one mean and one standard deviation for all channels; here each channel has its own.
    """
    count, into, out_of = len(mean), vae.quant_conv, vae.post_quant_conv
    into.weight[:count] /= std.view(-1, 1, 1, 1)
    into.bias[:count] = (into.bias[:count] - mean) / std
    into.bias[count:] -= 2 * std.log()  # the second half is the logarithm of the variance
    out_of.bias += out_of.weight.flatten(1) @ mean
    out_of.weight *= std.view(1, -1, 1, 1)


def finished_vae(folder: Path) -> AutoencoderKL:
    """The autoencoder of the checkpoints in ``folder``, of normalised latents."""
    vae = build_vae()
    vae.load_state_dict(loop.need_checkpoint(folder / "vae.pt", "--stage vae")["vae"])
    normalise(vae, *latent_statistics(loop.need_checkpoint(folder / "latents.pt", "--stage teacher")["latents"]))
    return vae.eval()

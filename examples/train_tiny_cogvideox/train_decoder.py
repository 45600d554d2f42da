"""Third stage: the decoder alone goes on, while the encoder, and with it what the transformer learns, stays as it is.

Moving digits are blurred first where the autoencoder is small: this stage sharpens them and costs half of what training
all of the autoencoder does. It needs the first stage only, so it may run beside the second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor

from examples.train_shared import loop
from examples.train_shared.autoencoding import picture_loss
from examples.train_shared.muon import build_optimizers
from examples.train_shared.training import train
from examples.train_tiny_cogvideox import clips
from examples.train_tiny_cogvideox.networks import build_vae
from examples.train_tiny_cogvideox.train_vae import COLOUR_WEIGHT, draw_batch

STAGE: Final = 3
PEAK_RATE: Final = 2e-3
BATCH: Final = 4


def train_decoder(folder: Path, seed: int, iterations: int) -> AutoencoderKLCogVideoX:
    """Train the decoder of ``folder``/vae.pt for ``iterations``, or what is left; keep it in decoder.pt there."""
    vae = build_vae()
    vae.load_state_dict(loop.need_checkpoint(folder / "vae.pt", "--stage vae")["vae"])
    vae.encoder.requires_grad_(False)
    weights = list(vae.decoder.parameters())
    optimizers = build_optimizers([p for p in weights if p.ndim >= 4], weights)
    pairs = clips.training_pairs()

    def loss_of(iteration: int) -> tuple[Tensor, dict[str, float]]:
        clip_BCTHW = draw_batch(loop.batch_rng(seed, STAGE, iteration), pairs, BATCH, clips.FRAMES)
        with loop.autocast():
            with torch.no_grad():
                latent_BCTHW = vae.encode(clip_BCTHW).latent_dist.mode()
            again_BCTHW = vae.decode(latent_BCTHW).sample
        return picture_loss(again_BCTHW.float(), clip_BCTHW, COLOUR_WEIGHT)

    path = folder / "decoder.pt"
    train(vae, optimizers, loss_of, path, name="decoder", iterations=iterations, peak=PEAK_RATE, key="vae")
    return vae

"""Third stage: the decoder alone goes on, while the encoder, and with it what the transformer learns, stays as it is.

Moving digits are blurred first where the autoencoder is small: this stage sharpens them and costs half of what training
all of the autoencoder does. It needs the first stage only, so it may run beside the second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from diffusers import AutoencoderKLCogVideoX

from examples.train_shared import loop
from examples.train_shared.muon import build_optimizers, take_step
from examples.train_tiny_cogvideox import clips
from examples.train_tiny_cogvideox.networks import build_vae
from examples.train_tiny_cogvideox.train_vae import draw_batch, picture_loss

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
    path, first = folder / "decoder.pt", 0
    state = loop.load_checkpoint(path)
    if state is not None:
        vae.load_state_dict(state["vae"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first = int(state["iteration"])
    pairs, log = clips.training_pairs(), loop.LossLog()

    def save(done: int) -> None:
        states = [optimizer.state_dict() for optimizer in optimizers]
        loop.save_checkpoint(path, {"vae": vae.state_dict(), "optimizers": states, "iteration": done})

    with loop.progress_bar("decoder", iterations, first) as bar:
        for iteration in range(first, iterations):
            clip_BCTHW = draw_batch(loop.batch_rng(seed, STAGE, iteration), pairs, BATCH, clips.FRAMES)
            with loop.autocast():
                with torch.no_grad():
                    latent_BCTHW = vae.encode(clip_BCTHW).latent_dist.mode()
                again_BCTHW = vae.decode(latent_BCTHW).sample
            loss, told = picture_loss(again_BCTHW.float(), clip_BCTHW)
            take_step(vae, optimizers, loss, loop.learning_rate(iteration, iterations, PEAK_RATE))
            log.add(**told)
            bar.advance()
            if (iteration + 1) % loop.LOG_EVERY == 0:
                bar.tell(log.line())
            if (iteration + 1) % loop.SAVE_EVERY == 0:
                save(iteration + 1)
    save(max(first, iterations))
    return vae.eval()

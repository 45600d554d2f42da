"""Second stage: the transformer and the text encoder, trained together on latents of drawn clips, to say a velocity.

The velocity is that of Salimans & Ho (2022, "Progressive distillation", section 4): v = a noise - s data for a noisy
latent a data + s noise, where a and s are the square roots of the schedule's alphas_cumprod and of its rest.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from torch import Tensor, nn
from transformers import T5EncoderModel

from examples.train_shared import loop
from examples.train_shared.autoencoding import encode_once
from examples.train_shared.muon import build_optimizers
from examples.train_shared.training import load_parts, train
from examples.train_shared.words import padded_ids
from examples.train_tiny_cogvideox import clips
from examples.train_tiny_cogvideox.networks import (
    TEXT_TOKENS,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_transformer,
)
from examples.train_tiny_cogvideox.train_vae import draw_batch_with_captions

LATENT_STAGE: Final = 1
TRANSFORMER_STAGE: Final = 2
BATCH: Final = 16
ENCODE_BATCH: Final = 8
EMPTY_CAPTIONS: Final = 0.12  # part of the captions that training blanks, for guidance
PEAK_RATE: Final = 3e-3
ADAMW_SHARE: Final = 0.5  # AdamW's part of the rate, for all but the blocks' matrices
TIME_POWER: Final = 1.4  # a timestep is drawn with density t^(TIME_POWER - 1): words decide where there is most noise


class PlainAttention:
    """What diffusers' ``CogVideoXAttnProcessor2_0`` computes, as two products and a softmax.

    For so few tokens it is twice as fast in training, on a CPU and in bfloat16, as the blockwise attention.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
        image_rotary_emb: None = None,
    ) -> tuple[Tensor, Tensor]:
        """The new hidden states and the new states of the text, which come first; this model masks, turns nothing."""
        states_BLD = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        batch, length, width = states_BLD.shape
        heads = [
            layer(states_BLD).view(batch, length, attn.heads, -1).transpose(1, 2)
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        ]
        query, key, value = attn.norm_q(heads[0]), attn.norm_k(heads[1]), heads[2]
        logits = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)
        mixed = (logits.softmax(dim=-1).to(value.dtype) @ value).transpose(1, 2).reshape(batch, length, width)
        text, rest = attn.to_out[0](mixed).split([encoder_hidden_states.shape[1], hidden_states.shape[1]], dim=1)
        return rest, text


class TextToVelocity(nn.Module):
    """The two networks that are trained together: token ids and a noisy latent in, a velocity out."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer: CogVideoXTransformer3DModel = build_transformer()
        self.text_encoder: T5EncoderModel = build_text_encoder()
        nn.init.zeros_(self.transformer.proj_out.weight)
        blocks = self.transformer.transformer_blocks
        for block in blocks:
            block.attn1.set_processor(PlainAttention())
            for norm in (block.norm1, block.norm2):  # begin as plain residual blocks: no shift, no scale, gates open
                nn.init.zeros_(norm.linear.weight)
                nn.init.zeros_(norm.linear.bias)
                for gate in (2, 5):
                    nn.init.ones_(norm.linear.bias.view(6, -1)[gate])
            for last in (block.attn1.to_out[0], block.ff.net[2]):
                last.weight.data /= math.sqrt(2 * len(blocks))

    def forward(self, latent_BTCHW: Tensor, timestep_B: Tensor, ids_BL: Tensor) -> Tensor:
        """Velocity of ``latent_BTCHW`` at ``timestep_B`` (999 is noise); padding is text too, as in the pipeline."""
        text_BLD = self.text_encoder(ids_BL).last_hidden_state
        velocity: Tensor = self.transformer(latent_BTCHW, text_BLD, timestep_B, return_dict=False)[0]
        return velocity


def token_ids(captions: list[str]) -> list[list[int]]:
    """Token ids of ``captions``, each padded with 0 to ``TEXT_TOKENS``."""
    return padded_ids(build_tokenizer(), captions, TEXT_TOKENS)


def encode_clips(vae: AutoencoderKLCogVideoX, folder: Path, seed: int, count: int) -> dict[str, Tensor]:
    """Draw and encode ``count`` training clips, once: their latents ``[count, 3, 8, 12, 12]`` and token ids.

    Latents are in half precision, frames before channels as the transformer reads them, and not scaled yet.
    """

    def draw(begin: int) -> tuple[Tensor, list[str]]:
        rng = loop.batch_rng(seed, LATENT_STAGE, begin)
        return draw_batch_with_captions(rng, clips.training_pairs(), ENCODE_BATCH)

    def encode(clip_BCTHW: Tensor) -> Tensor:
        latent: Tensor = vae.encode(clip_BCTHW).latent_dist.mode()
        return latent.transpose(1, 2).contiguous()

    return encode_once(folder, count, ENCODE_BATCH, draw, encode, token_ids, "clips")


def scaling_factor(latents: Tensor) -> float:
    """One over the root mean square of the latents: the one number that the pipeline scales them by."""
    return float(1 / latents.float().square().mean().sqrt())


def sample_timesteps(rng: np.random.Generator, size: int, count: int = 1000) -> Tensor:
    """Timesteps ``[size]`` from 0 to ``count`` - 1, one from each of ``size`` equally likely ranges."""
    quantile = (rng.permutation(size) + rng.random(size)) / size
    return torch.from_numpy(np.minimum(count * quantile ** (1 / TIME_POWER), count - 1).astype(np.int64))


def velocity_loss(
    model: nn.Module, alphas: Tensor, latents_N: Tensor, ids_NL: Tensor, rng: np.random.Generator
) -> Tensor:
    """Mean squared error of the velocity on one random batch of scaled latents; ``alphas`` are alphas_cumprod."""
    pick = torch.from_numpy(rng.integers(len(latents_N), size=BATCH))
    data, ids_BL = latents_N[pick], ids_NL[pick].clone()
    ids_BL[torch.from_numpy(rng.random(BATCH) < EMPTY_CAPTIONS)] = torch.tensor(token_ids([""]))
    noise = torch.from_numpy(rng.standard_normal(data.shape, dtype=np.float32))
    timestep_B = sample_timesteps(rng, BATCH)
    alpha = alphas[timestep_B].view(-1, 1, 1, 1, 1)
    signal, level = alpha.sqrt(), (1 - alpha).sqrt()
    with loop.autocast():
        velocity = model(signal * data + level * noise, timestep_B, ids_BL)
    return F.mse_loss(velocity.float(), signal * noise - level * data)


def train_transformer(
    folder: Path,
    data: dict[str, Tensor],
    seed: int,
    iterations: int,
    start_from: Path | None = None,
    compiled: bool = False,
) -> TextToVelocity:
    """Train for ``iterations``, or what of them is left, and keep the state in ``folder``/transformer.pt.

    start_from: a finished pipeline whose transformer and text encoder are the first weights.
    """
    torch.manual_seed(seed)
    model = TextToVelocity()
    if start_from is not None:
        load_parts(model, start_from, "transformer", "text_encoder")
    matrices = [p for p in model.transformer.transformer_blocks.parameters() if p.ndim == 2]
    optimizers = build_optimizers(matrices, model.parameters(), ADAMW_SHARE, loop.compute_dtype())
    latents = data["latents"].float() * scaling_factor(data["latents"])
    alphas = build_scheduler().alphas_cumprod.float()
    run: Any = torch.compile(model) if compiled else model

    def loss_of(iteration: int) -> tuple[Tensor, dict[str, float]]:
        rng = loop.batch_rng(seed, TRANSFORMER_STAGE, iteration)
        loss = velocity_loss(run, alphas, latents, data["ids"], rng)
        return loss, {"loss": loss.item()}

    path = folder / "transformer.pt"
    train(model, optimizers, loss_of, path, name="transformer", iterations=iterations, peak=PEAK_RATE, averaged=True)
    return model

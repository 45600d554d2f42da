"""Second stage: the transformer and the text encoder, trained together by flow matching on latents of drawn clips.

:class:`~diffusers.WanPipeline` pads every prompt with zeros to 512 tokens and lets the transformer attend to all of
them. Here the 500 or so equal zeros are one token whose attention logit is raised by the logarithm of their number:
the same result for a fraction of the work (:func:`short_text_error` measures how far the two are apart).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from examples.train_shared import loop
from examples.train_shared.autoencoding import encode_once
from examples.train_shared.flow import sample_sigmas
from examples.train_shared.muon import build_optimizers
from examples.train_shared.training import load_parts, train
from examples.train_shared.words import padded_ids
from examples.train_tiny_wan import clips
from examples.train_tiny_wan.networks import MAX_TEXT_TOKENS, build_text_encoder, build_tokenizer, build_transformer
from examples.train_tiny_wan.train_vae import draw_batch_with_captions

LATENT_STAGE: Final = 1
WAN_STAGE: Final = 2
BATCH: Final = 16
ENCODE_BATCH: Final = 8
TEXT_TOKENS: Final = 12  # the longest caption's words and its end mark
EMPTY_CAPTIONS: Final = 0.12  # part of the captions that training blanks, for guidance
PEAK_RATE: Final = 3e-3
ADAMW_SHARE: Final = 0.5  # AdamW's part of the rate, for all but the blocks' matrices
SIGMA_SHIFT: Final = 6.0  # moves the sampled noise levels up: what the words decide is decided above 0.95
SIGMA_SPREAD: Final = 1.7
TEXT_GAIN: Final = 1.6  # first gain of cross-attention's queries and keys, so that words stand out among the zeros


class ShortTextProcessor(WanAttnProcessor):  # type: ignore[misc]
    """Wan's attention with ``bias`` (``[batch, 1, 1, tokens]``) added to the logits; one object for all blocks."""

    bias: Tensor | None = None

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attend from ``hidden_states`` to ``encoder_hidden_states``, as the base class does, with the bias."""
        result: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, self.bias, rotary_emb)
        return result


class TextToFlow(nn.Module):
    """The two networks that are trained together: token ids and a noisy latent in, a velocity out."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer: WanTransformer3DModel = build_transformer()
        self.text_encoder: UMT5EncoderModel = build_text_encoder()
        self.short_text = ShortTextProcessor()
        nn.init.zeros_(self.transformer.proj_out.weight)
        for block in self.transformer.blocks:
            nn.init.constant_(block.attn2.norm_q.weight, TEXT_GAIN)
            nn.init.constant_(block.attn2.norm_k.weight, TEXT_GAIN)
        self.use_short_text(True)

    def use_short_text(self, short: bool) -> None:
        """Switch cross-attention between the training's short text and the pipeline's own processor."""
        for block in self.transformer.blocks:
            block.attn2.set_processor(self.short_text if short else WanAttnProcessor())

    def embed(self, ids_BL: Tensor) -> Tensor:
        """Text embeddings ``[batch, length, width]``; zeros where ``ids_BL`` is padding (0)."""
        mask_BL = ids_BL.ne(0)
        states: Tensor = self.text_encoder(ids_BL, mask_BL.long()).last_hidden_state
        return states * mask_BL.unsqueeze(-1)

    def forward(self, latent_BCTHW: Tensor, timestep_B: Tensor, ids_BL: Tensor) -> Tensor:
        """Velocity (noise minus data) of ``latent_BCTHW`` at ``timestep_B`` (1000 is noise, 0 is data)."""
        text_BLD = F.pad(self.embed(ids_BL), (0, 0, 0, 1))  # one zero token stands for all the padding
        count_B = ids_BL.ne(0).sum(dim=1)
        bias_BL = torch.zeros(ids_BL.shape).masked_fill(ids_BL.eq(0), -torch.inf)
        zeros_B1 = (MAX_TEXT_TOKENS - count_B).float().log().unsqueeze(1)
        self.short_text.bias = torch.cat([bias_BL, zeros_B1], dim=1)[:, None, None, :]
        velocity: Tensor = self.transformer(latent_BCTHW, timestep_B, text_BLD, return_dict=False)[0]
        return velocity


@torch.no_grad()
def short_text_error(model: TextToFlow, seed: int) -> float:
    """Largest difference between the training's short text and all 512 tokens, relative to the largest velocity."""
    generator = torch.Generator().manual_seed(seed)
    ids_BL = torch.as_tensor(token_ids(["", "a small red circle moving left slowly on a dark background"]))
    latent = torch.randn((2, model.transformer.config.in_channels, 5, 8, 8), generator=generator)
    timestep = torch.tensor([900.0, 400.0])
    model.use_short_text(True)
    short = model(latent, timestep, ids_BL)
    text_BLD = F.pad(model.embed(ids_BL), (0, 0, 0, MAX_TEXT_TOKENS - ids_BL.shape[1]))
    model.use_short_text(False)
    full = model.transformer(latent, timestep, text_BLD, return_dict=False)[0]
    model.use_short_text(True)
    return float((short - full).abs().max() / full.abs().max())


def token_ids(captions: list[str]) -> list[list[int]]:
    """Token ids of ``captions``, each padded with 0 to ``TEXT_TOKENS``."""
    return padded_ids(build_tokenizer(), captions, TEXT_TOKENS)


def encode_clips(vae: AutoencoderKLWan, folder: Path, seed: int, count: int) -> dict[str, Tensor]:
    """Draw and encode ``count`` training clips, once: their raw latents (half precision) and token ids."""

    def draw(begin: int) -> tuple[Tensor, list[str]]:
        rng = loop.batch_rng(seed, LATENT_STAGE, begin)
        return draw_batch_with_captions(rng, clips.training_combinations(), ENCODE_BATCH)

    def encode(clip_BCTHW: Tensor) -> Tensor:
        latent: Tensor = vae.encode(clip_BCTHW).latent_dist.mode()
        return latent

    return encode_once(folder, count, ENCODE_BATCH, draw, encode, token_ids, "clips")


def latent_statistics(latents_NCTHW: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each latent channel."""
    channels = latents_NCTHW.float().transpose(0, 1).flatten(1)
    return channels.mean(dim=1).tolist(), channels.std(dim=1).tolist()


def flow_loss(model: nn.Module, latents_NCTHW: Tensor, ids_NL: Tensor, rng: np.random.Generator) -> Tensor:
    """Mean squared error of the velocity on one random batch of normalised latents."""
    pick = torch.from_numpy(rng.integers(len(latents_NCTHW), size=BATCH))
    data, ids_BL = latents_NCTHW[pick], ids_NL[pick].clone()
    ids_BL[torch.from_numpy(rng.random(BATCH) < EMPTY_CAPTIONS)] = torch.tensor(token_ids([""]))
    noise = torch.from_numpy(rng.standard_normal(data.shape, dtype=np.float32))
    sigma_B = sample_sigmas(rng, BATCH, SIGMA_SHIFT, SIGMA_SPREAD)
    level = sigma_B.view(-1, 1, 1, 1, 1)
    with loop.autocast():
        velocity = model((1 - level) * data + level * noise, 1000 * sigma_B, ids_BL)
    return F.mse_loss(velocity.float(), noise - data)


def train_wan(
    folder: Path,
    data: dict[str, Tensor],
    seed: int,
    iterations: int,
    start_from: Path | None = None,
    compiled: bool = False,
) -> TextToFlow:
    """Train for ``iterations``, or what of them is left, and keep the state in ``folder``/wan.pt.

    start_from: a finished pipeline whose transformer and text encoder are the first weights.
    """
    torch.manual_seed(seed)
    model = TextToFlow()
    if start_from is not None:
        load_parts(model, start_from, "transformer", "text_encoder")
    matrices = [p for p in model.transformer.blocks.parameters() if p.ndim == 2]
    optimizers = build_optimizers(matrices, model.parameters(), ADAMW_SHARE)
    mean, std = latent_statistics(data["latents"])
    scale = torch.tensor(std).view(1, -1, 1, 1, 1)
    latents = (data["latents"].float() - torch.tensor(mean).view(1, -1, 1, 1, 1)) / scale
    run: Any = torch.compile(model) if compiled else model

    def loss_of(iteration: int) -> tuple[Tensor, dict[str, float]]:
        loss = flow_loss(run, latents, data["ids"], loop.batch_rng(seed, WAN_STAGE, iteration))
        return loss, {"loss": loss.item()}

    path = folder / "wan.pt"
    train(model, optimizers, loss_of, path, name="transformer", iterations=iterations, peak=PEAK_RATE, averaged=True)
    return model

"""Second stage: the teacher, a transformer and its text encoders trained together by flow matching on latents.

Its guidance embedding is fed a random scale that means nothing yet, and learns to ignore it: classifier-free guidance
takes two evaluations here, with and without the caption. The student (:mod:`examples.train_tiny_flux.reflow`) goes on
from its weights and learns what the embedded scale is to do.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, T5EncoderModel

from examples.train_shared import loop
from examples.train_shared.flow import sample_sigmas
from examples.train_shared.muon import build_optimizers
from examples.train_shared.training import load_parts, train
from examples.train_tiny_flux.latents import normalised, pack
from examples.train_tiny_flux.networks import (
    TEXT_TOKENS,
    TOKENS_SIDE,
    build_clip,
    build_t5,
    build_transformer,
    token_ids,
)

STAGE: Final = 2
BATCH: Final = 16
EMPTY_CAPTIONS: Final = 0.12  # part of the captions that training blanks, for guidance
GUIDANCE: Final = (1.5, 5.0)  # scales that the student learns
PEAK_RATE: Final = 3e-3
LATER_RATE: Final = 2e-3  # peak of a training that goes on from finished weights
ADAMW_SHARE: Final = 0.5  # AdamW's part of the rate, for all but the blocks' matrices
SIGMA_SHIFT: Final = 4.0  # moves the sampled noise levels up: it is there that the words decide
SIGMA_SPREAD: Final = 1.5
SHARPNESS: Final = 1.4  # first gain of attention's queries and keys
# What T5's heads look at first, as places in its table of distances: the word before, the word after, the third and
# fourth before, and the second on either side. Which colour belongs to which shape is found much sooner so.
NEIGHBOURS: Final = ((1,), (9,), (3, 4), (2, 10))
NEIGHBOUR_GAIN: Final = 3.0

PARTS: Final = ("transformer", "text_encoder", "text_encoder_2")

LossOfModel = Callable[[nn.Module, int], Tensor]


@torch.no_grad()
def look_at_neighbours(t5: T5EncoderModel) -> None:
    """Turn each head of ``t5`` to a few distances of words."""
    table = t5.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    for head, places in enumerate(NEIGHBOURS):
        table[list(places), head] += NEIGHBOUR_GAIN


class TextToFlow(nn.Module):
    """The three networks of the pipeline that make a velocity of token ids and a noisy latent."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer: FluxTransformer2DModel = build_transformer()
        self.text_encoder: CLIPTextModel = build_clip()
        self.text_encoder_2: T5EncoderModel = build_t5()
        nn.init.zeros_(self.transformer.proj_out.weight)
        nn.init.zeros_(self.transformer.time_text_embed.guidance_embedder.linear_2.weight)
        for name, weight in self.transformer.named_parameters():
            if "norm_q" in name or "norm_k" in name or "norm_added" in name:
                nn.init.constant_(weight, SHARPNESS)
        look_at_neighbours(self.text_encoder_2)
        rows, columns = torch.meshgrid(torch.arange(TOKENS_SIDE), torch.arange(TOKENS_SIDE), indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float()
        self.register_buffer("image_ids", places, persistent=False)
        self.register_buffer("text_ids", torch.zeros(TEXT_TOKENS, 3), persistent=False)

    def embed(self, ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        """The captions' vectors ``[batch, width]`` and their tokens' ``[batch, length, width]``, as the pipeline's."""
        return self.text_encoder(ids_BL).pooler_output, self.text_encoder_2(ids_BL)[0]

    def velocity(self, latent_BLC: Tensor, sigma_B: Tensor, text: tuple[Tensor, Tensor], scale_B: Tensor) -> Tensor:
        """Velocity (noise minus data) of packed ``latent_BLC`` at noise level ``sigma_B`` (1 is noise, 0 is data)."""
        velocity: Tensor = self.transformer(
            hidden_states=latent_BLC,
            timestep=sigma_B,
            guidance=scale_B,
            pooled_projections=text[0],
            encoder_hidden_states=text[1],
            txt_ids=self.text_ids,
            img_ids=self.image_ids,
            return_dict=False,
        )[0]
        return velocity

    def forward(self, latent_BLC: Tensor, sigma_B: Tensor, ids_BL: Tensor, scale_B: Tensor) -> Tensor:
        """:meth:`velocity` of the captions ``ids_BL`` with embedded guidance ``scale_B``."""
        return self.velocity(latent_BLC, sigma_B, self.embed(ids_BL), scale_B)


def sample_scales(rng: np.random.Generator, size: int) -> Tensor:
    """Guidance scales ``[size]``, evenly."""
    return torch.from_numpy(rng.uniform(*GUIDANCE, size=size)).float()


def flow_loss(model: nn.Module, data_NLC: Tensor, ids_NL: Tensor, rng: np.random.Generator) -> Tensor:
    """Mean squared error of the velocity on one random batch of packed, normalised latents."""
    pick = torch.from_numpy(rng.integers(len(data_NLC), size=BATCH))
    data, ids_BL = data_NLC[pick], ids_NL[pick].clone()
    ids_BL[torch.from_numpy(rng.random(BATCH) < EMPTY_CAPTIONS)] = torch.tensor(token_ids([""]))
    noise = torch.from_numpy(rng.standard_normal(data.shape, dtype=np.float32))
    sigma_B = sample_sigmas(rng, BATCH, SIGMA_SHIFT, SIGMA_SPREAD)
    level = sigma_B.view(-1, 1, 1)
    with loop.autocast():
        velocity = model((1 - level) * data + level * noise, sigma_B, ids_BL, sample_scales(rng, BATCH))
    return F.mse_loss(velocity.float(), noise - data)


def descend(
    model: TextToFlow, path: Path, loss_of: LossOfModel, name: str, iterations: int, peak: float, compiled: bool
) -> None:
    """Train what of ``model`` has gradients for ``iterations``, or what of them is left; keep the state at ``path``.

    loss_of: the loss of the model (compiled, if wished) on the batch of an iteration. On return ``model`` has
    the averaged weights.
    """
    blocks = [*model.transformer.transformer_blocks, *model.transformer.single_transformer_blocks]
    matrices = [p for block in blocks for p in block.parameters() if p.ndim == 2]
    optimizers = build_optimizers(matrices, [p for p in model.parameters() if p.requires_grad], ADAMW_SHARE)
    run: Any = torch.compile(model) if compiled else model

    def told(iteration: int) -> tuple[Tensor, dict[str, float]]:
        loss = loss_of(run, iteration)
        return loss, {"loss": loss.item()}

    train(model, optimizers, told, path, name=name, iterations=iterations, peak=peak, averaged=True)


def train_teacher(
    folder: Path,
    data: dict[str, Tensor],
    seed: int,
    iterations: int,
    start_from: Path | None = None,
    compiled: bool = False,
) -> TextToFlow:
    """Train the teacher and keep its state in ``folder``/teacher.pt.

    start_from: a finished pipeline whose transformer and text encoders are the first weights.
    """
    torch.manual_seed(seed)
    model = TextToFlow()
    if start_from is not None:
        load_parts(model, start_from, *PARTS)
    data_NLC = pack(normalised(data["latents"]))

    def loss_of(run: nn.Module, iteration: int) -> Tensor:
        return flow_loss(run, data_NLC, data["ids"], loop.batch_rng(seed, STAGE, iteration))

    peak = PEAK_RATE if start_from is None else LATER_RATE
    descend(model, folder / "teacher.pt", loss_of, "teacher", iterations, peak, compiled)
    return model

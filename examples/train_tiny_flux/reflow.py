"""Third and fourth stage: pairs of noise and picture from the teacher, and the student that joins them straight.

The teacher denoises many noises with true classifier-free guidance of a random scale. The student starts from its
weights and learns the velocity of the straight line from each picture to the noise that it came from (rectified flow,
Liu, Gong and Liu 2022, arXiv:2209.03003, "reflow") with the scale as its embedded guidance (as in Meng et al. 2022,
arXiv:2210.03142). So guidance needs one evaluation instead of two, and few steps suffice.

One thing is added: a pair is kept only if the picture shows what its caption says.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.train_shared import loop
from examples.train_shared.training import load_parts
from examples.train_tiny_flux.latents import finished_vae, unpack
from examples.train_tiny_flux.networks import SHIFT, build_tokenizer, token_ids
from examples.train_tiny_flux.train_flux import PARTS, TextToFlow, descend, sample_scales
from mixcache_models.tiny_flux.score import score

PAIRS_STAGE: Final = 3
STUDENT_STAGE: Final = 4
CHUNK: Final = 128  # pairs in a file
TEACHER_STEPS: Final = 8
BATCH: Final = 16
ALL_NOISE: Final = 0.15  # part of the batches that is noise alone, where every denoising begins
PEAK_RATE: Final = 1.5e-3


def shifted(even: Tensor) -> Tensor:
    """Noise levels of even numbers in 0 to 1, as the exported scheduler shifts them."""
    return SHIFT * even / (1 + (SHIFT - 1) * even)


@torch.no_grad()
def guided_latents(
    model: TextToFlow, noise_BLC: Tensor, ids_BL: Tensor, scale_B: Tensor, steps: int = TEACHER_STEPS
) -> Tensor:
    """Denoise with classifier-free guidance ``scale_B``; two-step Adams-Bashforth, the first step Euler's."""
    blank_BL = torch.tensor(token_ids([""])).expand_as(ids_BL)
    with loop.autocast():
        text = model.embed(torch.cat([ids_BL, blank_BL]))
    levels, scale = shifted(torch.linspace(1, 0, steps + 1)), scale_B.view(-1, 1, 1)
    latent, before, width_before = noise_BLC, None, 0.0
    for level, following in pairwise(levels):
        with loop.autocast():
            both = model.velocity(latent.repeat(2, 1, 1), level.expand(2 * len(latent)), text, scale_B.repeat(2))
        asked, blank = both.float().chunk(2)
        velocity, width = blank + scale * (asked - blank), float(following - level)
        change = velocity if before is None else velocity + width / (2 * width_before) * (velocity - before)
        latent, before, width_before = latent + width * change, velocity, width
    return latent


@torch.no_grad()
def _right(vae: nn.Module, latent_BLC: Tensor, captions: list[str]) -> Tensor:
    """Which of the latents show what their captions say, ``[batch]`` of booleans."""
    images = (vae.decode(unpack(latent_BLC)).sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return torch.tensor([score(i, words)["right"] == 1 for i, words in zip(images, captions, strict=True)])


@torch.no_grad()
def make_pairs(folder: Path, ids_NL: Tensor, seed: int, count: int, keep_all: bool = False) -> dict[str, Tensor]:
    """The kept ones of ``count`` pairs of noise and latent (half precision), with token ids and guidance scales.

    keep_all: keep those too whose picture does not show what was asked. Pairs are made in chunks, each a file in
    ``folder``/pairs, and those that are there are not made again.
    """
    model, vae = TextToFlow(), finished_vae(folder)
    model.load_state_dict(loop.need_checkpoint(folder / "teacher.pt", "--stage teacher")["ema"])
    model.eval()
    tokenizer, chunks = build_tokenizer(), []
    with loop.progress_bar("pairs", count) as bar:
        for begin in range(0, count, CHUNK):
            path = folder / "pairs" / f"{begin:06d}.pt"
            chunk = loop.load_checkpoint(path)
            if chunk is None:
                rng = loop.batch_rng(seed, PAIRS_STAGE, begin)
                ids_BL = ids_NL[torch.from_numpy(rng.integers(len(ids_NL), size=CHUNK))]
                shape = (CHUNK, model.image_ids.shape[0], model.transformer.config.in_channels)
                noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).half().float()
                scale_B = sample_scales(rng, CHUNK)
                latent = guided_latents(model, noise, ids_BL, scale_B)
                keep = _right(vae, latent, tokenizer.batch_decode(ids_BL, skip_special_tokens=True)) | keep_all
                chunk = {"noise": noise.half(), "latents": latent.half(), "ids": ids_BL, "scales": scale_B}
                chunk = {name: value[keep].clone() for name, value in chunk.items()}
                loop.save_checkpoint(path, chunk)
            chunks.append(chunk)
            bar.advance(CHUNK)
            bar.tell(f"kept {len(chunk['ids'])} of {CHUNK}")
    pairs = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
    if not len(pairs["ids"]):
        raise RuntimeError(
            f"none of {count} pictures shows what was asked; train the teacher longer, or keep all pairs"
        )
    return pairs


def reflow_loss(model: nn.Module, pairs: dict[str, Tensor], rng: np.random.Generator) -> Tensor:
    """Mean squared error of the velocity on the straight lines of one random batch of pairs."""
    pick = torch.from_numpy(rng.integers(len(pairs["ids"]), size=BATCH))
    noise, latent = pairs["noise"][pick].float(), pairs["latents"][pick].float()
    even = torch.from_numpy((rng.permutation(BATCH) + rng.random(BATCH)) / BATCH).float()
    even[torch.from_numpy(rng.random(BATCH) < ALL_NOISE)] = 1.0
    sigma_B = shifted(even)
    level = sigma_B.view(-1, 1, 1)
    with loop.autocast():
        velocity = model((1 - level) * latent + level * noise, sigma_B, pairs["ids"][pick], pairs["scales"][pick])
    return F.mse_loss(velocity.float(), noise - latent)


def train_student(
    folder: Path,
    pairs: dict[str, Tensor],
    seed: int,
    iterations: int,
    start_from: Path | None = None,
    compiled: bool = False,
) -> TextToFlow:
    """Train the student's transformer and keep its state in ``folder``/student.pt; the text encoders stay as they are.

    start_from: a finished pipeline whose weights are the first ones instead of the teacher's.
    """
    torch.manual_seed(seed)
    model = TextToFlow()
    model.load_state_dict(loop.need_checkpoint(folder / "teacher.pt", "--stage teacher")["ema"])
    if start_from is not None:
        load_parts(model, start_from, *PARTS)
    model.text_encoder.requires_grad_(False)
    model.text_encoder_2.requires_grad_(False)

    def loss_of(run: nn.Module, iteration: int) -> Tensor:
        return reflow_loss(run, pairs, loop.batch_rng(seed, STUDENT_STAGE, iteration))

    descend(model, folder / "student.pt", loss_of, "student", iterations, PEAK_RATE, compiled)
    return model

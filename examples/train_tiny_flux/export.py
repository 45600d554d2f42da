"""Last stage: the trained weights as a folder that ``FluxPipeline.from_pretrained`` loads, in half precision."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import FluxPipeline

from examples.train_shared import loop
from examples.train_tiny_flux.latents import finished_vae
from examples.train_tiny_flux.networks import build_scheduler, build_tokenizer
from examples.train_tiny_flux.train_flux import TextToFlow
from examples.train_tiny_wan.export import replace_folder


def build_pipeline(folder: Path, shift: float, part: str = "student") -> FluxPipeline:
    """The pipeline of the checkpoints in ``folder``, with the averaged weights of ``part``, in float32.

    part: "student", or "teacher", whose embedded guidance does nothing and which wants true guidance and more steps.
    """
    model = TextToFlow()
    model.load_state_dict(loop.need_checkpoint(folder / f"{part}.pt", f"--stage {part}")["ema"])
    model.eval()
    return FluxPipeline(
        scheduler=build_scheduler(shift),
        vae=finished_vae(folder),
        text_encoder=model.text_encoder,
        tokenizer=build_tokenizer(),
        text_encoder_2=model.text_encoder_2,
        tokenizer_2=build_tokenizer(),
        transformer=model.transformer,
    )


def export_pipeline(folder: Path, shift: float) -> Path:
    """Write ``folder``/pipeline from the checkpoints in ``folder``; returns its path."""
    pipe = build_pipeline(folder, shift)
    for part in (pipe.text_encoder, pipe.text_encoder_2, pipe.vae, pipe.transformer):
        torch.nn.Module.to(part, torch.float16)  # the parts' own ``to`` warns about layers that prefer float32
    new = folder / "pipeline.new"
    shutil.rmtree(new, ignore_errors=True)
    pipe.save_pretrained(str(new), safe_serialization=True)
    replace_folder(new, folder / "pipeline")
    return folder / "pipeline"

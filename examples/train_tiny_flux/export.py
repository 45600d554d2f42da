"""Last stage: the trained weights as a folder that ``FluxPipeline.from_pretrained`` loads, in half precision."""

from __future__ import annotations

from pathlib import Path

from diffusers import FluxPipeline

from examples.train_shared import loop
from examples.train_tiny_flux.latents import finished_vae
from examples.train_tiny_flux.networks import build_scheduler, build_tokenizer
from examples.train_tiny_flux.train_flux import TextToFlow


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

"""Last stage: the trained weights as a folder that ``WanPipeline.from_pretrained`` loads, in half precision."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import WanPipeline

from examples.train_shared import loop
from examples.train_tiny_wan.networks import build_scheduler, build_tokenizer, build_vae
from examples.train_tiny_wan.train_wan import TextToFlow, latent_statistics


def build_pipeline(folder: Path, flow_shift: float) -> WanPipeline:
    """The pipeline of the checkpoints in ``folder``, with the averaged weights of the transformer, in float32."""
    vae_state = loop.need_checkpoint(folder / "vae.pt", "--stage vae")
    latents = loop.need_checkpoint(folder / "latents.pt", "--stage wan")["latents"]
    wan_state = loop.need_checkpoint(folder / "wan.pt", "--stage wan")
    vae = build_vae(*latent_statistics(latents))
    vae.load_state_dict(vae_state["vae"])
    model = TextToFlow()
    model.load_state_dict(wan_state["ema"])
    model.use_short_text(False)
    return WanPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=model.text_encoder.eval(),
        vae=vae.eval(),
        scheduler=build_scheduler(flow_shift),
        transformer=model.transformer.eval(),
    )


def replace_folder(new: Path, place: Path) -> None:
    """Put folder ``new`` at ``place``, so that a reader finds the old one or the new one and never half of either."""
    old = place.with_name(place.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def export_pipeline(folder: Path, flow_shift: float) -> Path:
    """Write ``folder``/pipeline from the checkpoints in ``folder``; returns its path."""
    pipe = build_pipeline(folder, flow_shift)
    for part in (pipe.text_encoder, pipe.vae, pipe.transformer):
        torch.nn.Module.to(part, torch.float16)  # the parts' own ``to`` warns about layers that prefer float32
    new = folder / "pipeline.new"
    shutil.rmtree(new, ignore_errors=True)
    pipe.save_pretrained(str(new), safe_serialization=True)
    replace_folder(new, folder / "pipeline")
    return folder / "pipeline"

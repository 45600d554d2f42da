"""Last stage: the trained weights as a folder that ``CogVideoXPipeline.from_pretrained`` loads, in half precision."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import CogVideoXPipeline
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0

from examples.train_shared import loop
from examples.train_tiny_cogvideox.networks import build_scheduler, build_tokenizer, build_vae
from examples.train_tiny_cogvideox.train_transformer import TextToVelocity, scaling_factor
from examples.train_tiny_wan.export import replace_folder


def build_pipeline(folder: Path) -> CogVideoXPipeline:
    """The pipeline of the checkpoints in ``folder``, with the averaged weights of the transformer, in float32."""
    vae_state = loop.load_checkpoint(folder / "decoder.pt") or loop.need_checkpoint(folder / "vae.pt", "--stage vae")
    latents = loop.need_checkpoint(folder / "latents.pt", "--stage transformer")["latents"]
    state = loop.need_checkpoint(folder / "transformer.pt", "--stage transformer")
    vae = build_vae(scaling_factor(latents))
    vae.load_state_dict(vae_state["vae"])
    model = TextToVelocity()
    model.load_state_dict(state["ema"])
    model.transformer.set_attn_processor(CogVideoXAttnProcessor2_0())
    return CogVideoXPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=model.text_encoder.eval(),
        vae=vae.eval(),
        scheduler=build_scheduler(),
        transformer=model.transformer.eval(),
    )


def export_pipeline(folder: Path) -> Path:
    """Write ``folder``/pipeline from the checkpoints in ``folder``; returns its path."""
    pipe = build_pipeline(folder)
    for part in (pipe.text_encoder, pipe.vae, pipe.transformer):
        torch.nn.Module.to(part, torch.float16)  # the parts' own ``to`` warns about layers that prefer float32
    new = folder / "pipeline.new"
    shutil.rmtree(new, ignore_errors=True)
    pipe.save_pretrained(str(new), safe_serialization=True)
    replace_folder(new, folder / "pipeline")
    return folder / "pipeline"

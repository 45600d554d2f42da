"""Last stage: the trained weights as a folder that ``CogVideoXPipeline.from_pretrained`` loads, in half precision."""

from __future__ import annotations

from pathlib import Path

from diffusers import CogVideoXPipeline
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0

from examples.train_shared import loop
from examples.train_tiny_cogvideox.networks import build_scheduler, build_tokenizer, build_vae
from examples.train_tiny_cogvideox.train_transformer import TextToVelocity, scaling_factor


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

"""Last stage: the trained weights as a folder that ``WanPipeline.from_pretrained`` loads, in half precision."""

from __future__ import annotations

from pathlib import Path

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

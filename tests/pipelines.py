"""Tiny pipelines that need no network: random ones, and the embedded one. All have three blocks or more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch

from tests.image_pipelines import qwen, sd3
from tests.tiny import Tiny, quiet, randn, repeat
from tests.video_pipelines import cogvideox, hunyuan, ltx


def wan_transformer(seed: int = 0, text_dim: int = 16, num_layers: int = 3) -> Any:
    torch.manual_seed(seed)
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=text_dim,
        freq_dim=32,
        ffn_dim=32,
        num_layers=num_layers,
        cross_attn_norm=True,
        rope_max_seq_len=32,
    ).eval()


def wan_vae(latents_std: float = 1.0) -> Any:
    return diffusers.AutoencoderKLWan(
        base_dim=3,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[latents_std] * 4,
    )


def unipc() -> Any:
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )


def wan(transformer: Any = None, noise_scheduler: Any = None, **more: Any) -> Tiny:
    """Sequential guidance branches, `CacheContext` with the step."""
    pipe = diffusers.WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=wan_vae(),
        transformer=wan_transformer() if transformer is None else transformer,
        scheduler=unipc() if noise_scheduler is None else noise_scheduler,
        **more,
    )

    def arguments(batch: int) -> dict[str, Any]:
        return {
            "prompt_embeds": repeat(randn(1, 8, 16), batch),
            "negative_prompt_embeds": torch.zeros(batch, 8, 16),
            "height": 32,
            "width": 32,
            "num_frames": 9,
        }

    return Tiny(quiet(pipe), arguments, {"height": 48}, unguided={"guidance_scale": 1.0})


def flux(noise_scheduler: Any = None, transformer: Any = None) -> Tiny:
    """Embedded guidance, packed latents, `CacheContext` without the step."""
    torch.manual_seed(0)
    transformer = (
        transformer
        or diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        ).eval()
    )
    vae = diffusers.AutoencoderKL(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    pipe = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler() if noise_scheduler is None else noise_scheduler,
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )

    def arguments(batch: int) -> dict[str, Any]:
        return {
            "prompt_embeds": repeat(randn(1, 6, 32), batch),
            "pooled_prompt_embeds": repeat(randn(1, 32, seed=3), batch),
            "height": 16,
            "width": 16,
        }

    return Tiny(quiet(pipe), arguments, {"height": 32})


def embedded() -> Tiny:
    """The embedded pipeline, with its text encoder; few steps and frames, to stay quick."""
    from mixcache_models.tiny_wan import PIPELINE

    pipe = diffusers.WanPipeline.from_pretrained(PIPELINE)

    def arguments(batch: int) -> dict[str, Any]:
        return {
            "prompt": ["a red circle moving left"] * batch,
            "negative_prompt": [""] * batch,
            "height": 64,
            "width": 64,
            "num_frames": 5,
            "guidance_scale": 4.0,
        }

    return Tiny(quiet(pipe), arguments, {"num_frames": 9}, steps=6)


BUILDERS: dict[str, Callable[[], Tiny]] = {
    "wan": wan,
    "flux": flux,
    "hunyuan": hunyuan,
    "ltx": ltx,
    "cogvideox": cogvideox,
    "qwen": qwen,
    "sd3": sd3,
    "embedded": embedded,
}

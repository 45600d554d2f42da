"""Tiny pipelines that need no network: random ones, and the embedded one. All have three blocks or more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch

from tests.zoo.tiny import Tiny, quiet, randn, repeat

WAN_14B = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 13824,
    "num_layers": 40,
    "cross_attn_norm": True,
}
"""Wan 2.1 14B, and each of the two experts of Wan 2.2 A14B."""


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


def hunyuan() -> Tiny:
    """Embedded guidance, video latents, `CacheContext` without the step."""
    torch.manual_seed(0)
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    ).eval()
    vae = diffusers.AutoencoderKLHunyuanVideo(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    pipe = diffusers.HunyuanVideoPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
    )

    def arguments(batch: int) -> dict[str, Any]:
        return {
            "prompt_embeds": repeat(randn(1, 6, 16), batch),
            "pooled_prompt_embeds": repeat(randn(1, 8, seed=3), batch),
            "prompt_attention_mask": torch.ones(batch, 6),
            "height": 16,
            "width": 16,
            "num_frames": 9,
        }

    return Tiny(quiet(pipe), arguments, {"height": 32})


def ltx() -> Tiny:
    """One doubled batch, packed latents."""
    torch.manual_seed(0)
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        patch_size=1,
        patch_size_t=1,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=3,
        caption_channels=32,
    ).eval()
    vae = diffusers.AutoencoderKLLTXVideo(
        in_channels=3,
        out_channels=3,
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False, False, False, False, False),
        upsample_residual=(False, False, False, False),
        upsample_factor=(1, 1, 1, 1),
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    pipe = diffusers.LTXPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )

    def arguments(batch: int) -> dict[str, Any]:
        return {
            "prompt_embeds": repeat(randn(1, 6, 32), batch),
            "prompt_attention_mask": torch.ones(batch, 6),
            "negative_prompt_embeds": torch.zeros(batch, 6, 32),
            "negative_prompt_attention_mask": torch.ones(batch, 6),
            "height": 32,
            "width": 32,
            "num_frames": 9,
        }

    return Tiny(quiet(pipe), arguments, {"height": 64}, unguided={"guidance_scale": 1.0})


def cogvideox(noise_scheduler: Any = None) -> Tiny:
    """One doubled batch, a DDIM noise scheduler that counts no steps, v-prediction."""
    torch.manual_seed(0)
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=32,
        num_layers=3,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=16,
    ).eval()
    vae = diffusers.AutoencoderKLCogVideoX(
        in_channels=3,
        out_channels=3,
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    if noise_scheduler is None:
        noise_scheduler = diffusers.CogVideoXDDIMScheduler(
            prediction_type="v_prediction", rescale_betas_zero_snr=False, timestep_spacing="trailing"
        )
    pipe = diffusers.CogVideoXPipeline(
        tokenizer=None, text_encoder=None, vae=vae, transformer=transformer, scheduler=noise_scheduler
    )

    def arguments(batch: int) -> dict[str, Any]:
        return {
            "prompt_embeds": repeat(randn(1, 16, 32), batch),
            "negative_prompt_embeds": torch.zeros(batch, 16, 32),
            "height": 16,
            "width": 16,
            "num_frames": 9,
        }

    return Tiny(quiet(pipe), arguments, {"num_frames": 17}, unguided={"guidance_scale": 1.0})


def qwen() -> Tiny:
    """Sequential guidance branches, packed tokens of which each holds a patch."""
    torch.manual_seed(0)
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    ).eval()
    pipe = diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )

    def arguments(batch: int) -> dict[str, Any]:
        return {
            "prompt_embeds": repeat(randn(1, 7, 16), batch),
            "prompt_embeds_mask": torch.ones(batch, 7, dtype=torch.int64),
            "negative_prompt_embeds": repeat(randn(1, 7, 16, seed=5), batch),
            "negative_prompt_embeds_mask": torch.ones(batch, 7, dtype=torch.int64),
            "true_cfg_scale": 4.0,
            "height": 48,
            "width": 32,
        }

    return Tiny(quiet(pipe), arguments, {"height": 64}, unguided={"true_cfg_scale": 1.0})


def sd3() -> Tiny:
    """One doubled batch of image latents; the last block drops the text."""
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        out_channels=4,
    ).eval()
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )

    def arguments(batch: int) -> dict[str, Any]:
        return {
            "prompt_embeds": repeat(randn(1, 7, 32), batch),
            "negative_prompt_embeds": torch.zeros(batch, 7, 32),
            "pooled_prompt_embeds": repeat(randn(1, 32, seed=3), batch),
            "negative_pooled_prompt_embeds": torch.zeros(batch, 32),
            "height": 32,
            "width": 32,
        }

    return Tiny(quiet(pipe), arguments, {"height": 48}, unguided={"guidance_scale": 1.0})


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

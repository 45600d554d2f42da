"""Tiny random HunyuanVideo, LTX and CogVideoX pipelines that need no network."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tests.tiny import Tiny, quiet, randn, repeat


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


def mochi_transformer() -> Any:
    """A tiny Mochi transformer; its pipeline is left out, as its autoencoder is large."""
    torch.manual_seed(0)
    return diffusers.MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=3,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=16,
        time_embed_dim=4,
        max_sequence_length=8,
    ).eval()

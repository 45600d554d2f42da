"""Tiny random diffusers pipelines that need no network: text encoders are left out, embeddings are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from attrs import field, frozen


@frozen
class Tiny:
    """A pipeline and the arguments that make a quick run of it. `run()` returns the final latents."""

    pipe: Any
    arguments: Callable[[int], dict[str, Any]] = field(repr=False)
    other_size: dict[str, Any] = field(factory=dict)
    steps: int = 8

    def run(self, steps: int | None = None, *, seed: int = 1, batch: int = 1, **changes: Any) -> torch.Tensor:
        given = {
            "num_inference_steps": self.steps if steps is None else steps,
            "output_type": "latent",
            "generator": torch.Generator().manual_seed(seed),
            **self.arguments(batch),
            **changes,
        }
        return self.pipe(return_dict=False, **given)[0]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def repeat(tensor: torch.Tensor, batch: int) -> torch.Tensor:
    return tensor.repeat(batch, *[1] * (tensor.dim() - 1))


def wan_transformer(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        rope_max_seq_len=32,
    ).eval()


def wan_vae() -> Any:
    return diffusers.AutoencoderKLWan(
        base_dim=3,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def unipc() -> Any:
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


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

    return Tiny(quiet(pipe), arguments, {"height": 48})


def flux(noise_scheduler: Any = None) -> Tiny:
    """Embedded guidance, packed latents, `CacheContext` without the step."""
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    ).eval()
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
        num_layers=1,
        num_single_layers=1,
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
        num_layers=1,
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

    return Tiny(quiet(pipe), arguments, {"height": 64})


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
        num_layers=1,
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

    return Tiny(quiet(pipe), arguments, {"num_frames": 17})


def embedded() -> Tiny:
    """The embedded pipeline, with its text encoder; few steps, to stay quick."""
    from mixcache_models.tiny_wan import PIPELINE

    pipe = diffusers.WanPipeline.from_pretrained(PIPELINE)

    def arguments(batch: int) -> dict[str, Any]:
        return {
            "prompt": ["a red circle moving left"] * batch,
            "negative_prompt": [""] * batch,
            "height": 64,
            "width": 64,
            "num_frames": 17,
            "guidance_scale": 4.0,
        }

    return Tiny(quiet(pipe), arguments, {"num_frames": 9}, steps=6)


BUILDERS: dict[str, Callable[[], Tiny]] = {
    "wan": wan,
    "flux": flux,
    "hunyuan": hunyuan,
    "ltx": ltx,
    "cogvideox": cogvideox,
    "embedded": embedded,
}

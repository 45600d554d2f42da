"""Tiny random transformers of more architectures, each with the arguments of one call; pipelines around some."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch

from tests.zoo.pipelines import unipc, wan_vae
from tests.zoo.tiny import Tiny, quiet, randn

Call = tuple[Any, dict[str, Any]]
T = torch.tensor([500.0])


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


def mochi() -> Call:
    return mochi_transformer(), {
        "hidden_states": randn(1, 4, 2, 4, 4),
        "encoder_hidden_states": randn(1, 8, 16),
        "timestep": T,
        "encoder_attention_mask": torch.ones(1, 8).bool(),
    }


def hunyuan15() -> Call:
    """More channels in than out: the condition and its mask follow the latent."""
    model = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=3,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=16,
        text_embed_2_dim=8,
        image_embed_dim=12,
        rope_axes_dim=(2, 6, 8),
        target_size=16,
        task_type="t2v",
    )
    return model, {
        "hidden_states": randn(1, 9, 2, 4, 4),
        "encoder_hidden_states": randn(1, 5, 16),
        "timestep": T,
        "encoder_attention_mask": torch.ones(1, 5),
        "encoder_hidden_states_2": randn(1, 4, 8),
        "encoder_attention_mask_2": torch.ones(1, 4),
        "image_embeds": torch.zeros(1, 3, 12),
    }


def framepack() -> Call:
    """Tokens of earlier frames stand beside those of the latent in the blocks alone."""
    model = diffusers.HunyuanVideoFramepackTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=2,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
        has_image_proj=True,
        image_proj_dim=12,
        has_clean_x_embedder=True,
    )
    return model, {
        "hidden_states": randn(1, 4, 3, 8, 8),
        "encoder_hidden_states": randn(1, 5, 16),
        "encoder_attention_mask": torch.ones(1, 5),
        "pooled_projections": randn(1, 8),
        "image_embeds": randn(1, 3, 12),
        "timestep": T,
        "guidance": torch.tensor([6000.0]),
        "indices_latents": torch.arange(19, 22),
        "latents_clean": randn(1, 4, 2, 8, 8),
        "indices_latents_clean": torch.tensor([0, 18]),
        "latents_history_2x": randn(1, 4, 2, 8, 8),
        "indices_latents_history_2x": torch.tensor([16, 17]),
        "latents_history_4x": randn(1, 4, 16, 8, 8),
        "indices_latents_history_4x": torch.arange(16),
    }


def skyreels() -> Call:
    model = diffusers.SkyReelsV2Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=3,
        rope_max_seq_len=32,
    )
    return model, {"hidden_states": randn(1, 4, 2, 4, 4), "encoder_hidden_states": randn(1, 8, 16), "timestep": T}


def flux2() -> Call:
    """Two lists of blocks; the second works on text and image as one stream."""
    model = diffusers.Flux2Transformer2DModel(
        in_channels=8,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )
    return model, {**tokens(8, text=6, axes=4), "timestep": T / 1000, "guidance": torch.tensor([3.5])}


def chroma() -> Call:
    """As Flux 2, with true guidance."""
    model = diffusers.ChromaTransformer2DModel(
        in_channels=8,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return model, {**tokens(8, text=6, axes=3), "timestep": T / 1000}


def sana() -> Call:
    """Nobody described it: whole steps alone."""
    model = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=4,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=16,
    )
    return model, {"hidden_states": randn(1, 4, 8, 8), "encoder_hidden_states": randn(1, 5, 8), "timestep": T}


def bria() -> Call:
    """Nobody described it either; packed tokens."""
    model = diffusers.BriaTransformer2DModel(
        in_channels=8,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=[4, 4, 8],
    )
    return model, {**tokens(8, text=6, axes=3), "timestep": T / 1000}


def tokens(channels: int, *, text: int, axes: int) -> dict[str, Any]:
    """12 packed image tokens and `text` text tokens, and where they lie."""
    return {
        "hidden_states": randn(1, 12, channels),
        "encoder_hidden_states": randn(1, text, 16),
        "img_ids": torch.arange(12.0)[:, None].repeat(1, axes),
        "txt_ids": torch.zeros(text, axes),
    }


TRANSFORMERS: dict[str, Callable[[], Call]] = {
    "mochi": mochi,
    "hunyuan15": hunyuan15,
    "framepack": framepack,
    "skyreels": skyreels,
    "flux2": flux2,
    "chroma": chroma,
    "sana": sana,
    "bria": bria,
}


def build(name: str) -> Call:
    """A transformer of random weights, the same at every call, and the arguments of one call of it."""
    torch.manual_seed(0)
    model, arguments = TRANSFORMERS[name]()
    return model.eval(), {**arguments, "return_dict": False}


# pipelines around them


def chroma_pipeline() -> Tiny:
    pipe = diffusers.ChromaPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=build("chroma")[0],
    )
    masks = {f"{name}_attention_mask": torch.ones(1, 6) for name in ("prompt", "negative_prompt")}
    return around(pipe, **embeds(6, 16), **masks, height=32, width=32, guidance_scale=4.0)


def flux2_pipeline() -> Tiny:
    pipe = diffusers.Flux2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=build("flux2")[0],
    )
    return around(pipe, prompt_embeds=randn(1, 6, 16), height=32, width=32)


def skyreels_pipeline() -> Tiny:
    pipe = diffusers.SkyReelsV2Pipeline(
        tokenizer=None, text_encoder=None, vae=wan_vae(), transformer=build("skyreels")[0], scheduler=unipc()
    )
    return around(pipe, **embeds(8, 16), height=32, width=32, num_frames=9)


def hunyuan15_pipeline() -> Tiny:
    """A guider of diffusers calls the branches."""
    pipe = diffusers.HunyuanVideo15Pipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=build("hunyuan15")[0],
        vae=diffusers.AutoencoderKLHunyuanVideo15(
            latent_channels=4, block_out_channels=(8,) * 5, spatial_compression_ratio=16, layers_per_block=1
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        text_encoder_2=None,
        tokenizer_2=None,
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=4.0),
    )
    second = {name + "_2": value for name, value in embeds(4, 8).items()}
    masks = {
        f"{name}_embeds_mask{which}": torch.ones(1, length)
        for name in ("prompt", "negative_prompt")
        for which, length in (("", 5), ("_2", 4))
    }
    return around(pipe, **embeds(5, 16), **second, **masks, height=64, width=64, num_frames=9)


def embeds(length: int, size: int) -> dict[str, Any]:
    """A prompt's embeddings and the negative prompt's."""
    return {"prompt_embeds": randn(1, length, size), "negative_prompt_embeds": randn(1, length, size, seed=4)}


def around(pipe: Any, **arguments: Any) -> Tiny:
    """The pipeline with its arguments, for a batch of one."""
    return Tiny(quiet(pipe), lambda batch: arguments)


MORE: dict[str, Callable[[], Tiny]] = {
    "chroma": chroma_pipeline,
    "flux2": flux2_pipeline,
    "skyreels": skyreels_pipeline,
    "hunyuan15": hunyuan15_pipeline,
}

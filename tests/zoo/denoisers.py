"""Every denoiser class of diffusers, as tiny and random as it can be, each with the arguments of one call.

`classes()` lists what the installed diffusers exports; a class stands in `ROWS`, or in `NOT_BUILT` with its reason.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from attrs import frozen
from diffusers.models.transformers import (
    transformer_ideogram4,
    transformer_sana_wm_refiner,
    transformer_wan_animate_2,
)
from torch import Tensor

from tests.zoo import architectures, pipelines
from tests.zoo.architectures import Call, T, tokens
from tests.zoo.tiny import randn

Arguments = dict[str, Any]


@frozen
class Row:
    """One class: its tiny configuration, and what makes the arguments of a call.

    latent: the argument that holds the noisy latent; where it has more channels than the output, they come after it.
    predicted: (dimension, length) of what the pipeline keeps of the first output, at its end, if not what is as large
    as the latent at its beginning. then: what makes those of a denoising call out of the model and
    of the arguments of a call that must come before it.
    """

    config: dict[str, Any]
    arguments: Callable[[], Arguments]
    latent: str = "hidden_states"
    then: Callable[[Any, Arguments], Arguments] | None = None
    predicted: tuple[int, int] | None = None

    def build(self, kind: type) -> Call:
        model = drawn(kind(**self.config))
        arguments = self.arguments()
        return model, arguments if self.then is None else self.then(model, arguments)


def row(
    arguments: Callable[[], Arguments],
    latent: str = "hidden_states",
    then: Callable[[Any, Arguments], Arguments] | None = None,
    predicted: tuple[int, int] | None = None,
    **config: Any,
) -> Row:
    return Row(config, arguments, latent, then, predicted)


def drawn(model: Any) -> Any:
    """The model with its matrices drawn, and all else that starts at zero: some start at zero, some as memory was."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=(parameter[0].numel() or 1) ** -0.5)
        elif not bool(parameter.detach().isfinite().all() and parameter.detach().any()):
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def image(channels: int = 4, size: int = 8, *, text: tuple[int, ...] | None = (5, 16), **more: Any) -> Arguments:
    """An image latent, a prompt's embedding and a timestep."""
    return video(channels, size=size, text=text, **more)


def video(
    channels: int = 4, frames: int = 0, size: int = 8, *, text: tuple[int, ...] | None = (5, 16), **more: Any
) -> Arguments:
    """A latent of so many frames (none: an image), a prompt's embedding and a timestep."""
    shape = (1, channels, *((frames,) if frames else ()), size, size)
    prompt = {} if text is None else {"encoder_hidden_states": randn(1, *text, seed=1)}
    return {"hidden_states": randn(*shape), "timestep": T, **prompt, **more}


HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
AXES = {"axes_dims_rope": (4, 4, 8)}
DOUBLE = {"num_layers": 2, "num_single_layers": 2}
WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}
COG = {
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 2,
    "text_embed_dim": 16,
    "num_layers": 2,
    "sample_width": 8,
    "sample_height": 8,
    "sample_frames": 9,
    "max_text_seq_length": 5,
}
LTX2 = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 16,
    "audio_in_channels": 4,
    "audio_out_channels": 4,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 4,
    "audio_cross_attention_dim": 8,
    "num_layers": 2,
    "caption_channels": 16,
    "rope_double_precision": False,
}
UNET = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 8, "norm_num_groups": 4, "num_layers": 2}


def ace_step() -> Arguments:
    return {
        "hidden_states": randn(1, 8, 8),
        "timestep": T / 1000,
        "timestep_r": T / 1000,
        "encoder_hidden_states": randn(1, 5, 32, seed=1),
        "context_latents": randn(1, 8, 16, seed=2),
    }


def cogview(**more: Any) -> Arguments:
    size = torch.tensor([[64, 64]])
    return image(original_size=size, target_size=size, crop_coords=torch.zeros(1, 2).long(), **more)


def cosmos3() -> Arguments:
    """Two text tokens, then the patches of one frame of 2x2."""
    where = torch.arange(2, 6)
    return {
        "input_ids": torch.tensor([1, 2]),
        "text_indexes": torch.tensor([0, 1]),
        "position_ids": torch.arange(6).repeat(3, 1),
        "und_len": 2,
        "sequence_length": 6,
        "vision_tokens": [randn(1, 2, 1, 2, 2)],
        "vision_token_shapes": [(1, 2, 2)],
        "vision_sequence_indexes": where,
        "vision_mse_loss_indexes": where,
        "vision_timesteps": torch.full((4,), 500.0),
        "vision_noisy_frame_indexes": [torch.tensor([0])],
    }


def ideogram() -> Arguments:
    """Four text tokens and four of the image, in one sequence."""
    at = torch.arange(4)
    grid = torch.stack([at * 0, at // 2, at % 2], dim=-1) + transformer_ideogram4.IMAGE_POSITION_OFFSET
    kinds = [transformer_ideogram4.LLM_TOKEN_INDICATOR] * 4 + [transformer_ideogram4.OUTPUT_IMAGE_INDICATOR] * 4
    return {
        "hidden_states": torch.cat([torch.zeros(1, 4, 16), randn(1, 4, 16)], dim=1),
        "timestep": T / 1000,
        "encoder_hidden_states": torch.cat([randn(1, 4, 24, seed=1), torch.zeros(1, 4, 24)], dim=1),
        "position_ids": torch.cat([at[:, None].repeat(1, 3), grid])[None],
        "segment_ids": torch.ones(1, 8).long(),
        "indicator": torch.tensor([kinds]),
    }


def kandinsky5() -> Arguments:
    return {
        "hidden_states": randn(1, 2, 4, 4, 9),
        "encoder_hidden_states": randn(1, 5, 16, seed=1),
        "timestep": T,
        "pooled_projections": randn(1, 8, seed=2),
        "visual_rope_pos": [torch.arange(2), torch.arange(2), torch.arange(2)],
        "text_rope_pos": torch.arange(5),
    }


def ltx2() -> Arguments:
    return {
        "hidden_states": randn(1, 8, 4),
        "audio_hidden_states": randn(1, 3, 4, seed=1),
        "encoder_hidden_states": randn(1, 5, 16, seed=2),
        "audio_encoder_hidden_states": randn(1, 5, 16, seed=3),
        "timestep": T,
        "num_frames": 2,
        "height": 2,
        "width": 2,
        "audio_num_frames": 3,
        "fps": 24.0,
    }


def minimax_h3() -> Arguments:
    """Text, then sound, then video in one sequence; two noise levels."""
    kinds = torch.tensor([1] * 4 + [2] * 6 + [0] * 8)
    return {
        "hidden_states": randn(1, 8, 16),
        "audio_hidden_states": randn(1, 6, 6, seed=1),
        "encoder_hidden_states": randn(1, 4, 8, seed=2),
        "timestep": torch.tensor([0.7, 0.3]),
        "timestep_indices": (kinds == 2).long(),
        "token_tags": kinds,
        "position_ids": torch.arange(18.0)[:, None].repeat(1, 3),
        "text_indices": torch.arange(4),
        "audio_indices": torch.arange(4, 10),
        "video_indices": torch.arange(10, 18),
    }


def omnigen() -> Arguments:
    length = 4 + 1 + 16
    return image(
        text=None,
        input_ids=torch.arange(1, 5)[None],
        input_img_latents=[],
        input_image_sizes={},
        attention_mask=torch.ones(1, length, length).long(),
        position_ids=torch.arange(length)[None],
    )


def qwen21() -> Arguments:
    return {
        "hidden_states": randn(1, 4, 4),
        "encoder_hidden_states": randn(1, 4, 8, seed=1),
        "encoder_hidden_states_mask": torch.ones(1, 4).long(),
        "timestep": T / 1000,
        "img_shapes": [[(1, 2, 2)]],
        "img_mask": torch.tensor([[False] * 4 + [True]]),
    }


def sana_wm() -> Arguments:
    camera = torch.eye(4).repeat(1, 2, 1, 1).flatten(-2)
    lens = torch.tensor([4.0, 4.0, 2.0, 2.0]).expand(1, 2, 4)
    return {
        "hidden_states": randn(1, 4, 2, 4, 4),
        "timestep": torch.full((1, 1, 2), 500.0),
        "encoder_hidden_states": randn(1, 1, 5, 8, seed=1),
        "encoder_attention_mask": torch.ones(1, 5).long(),
        "camera_conditions": torch.cat([camera, lens], dim=-1),
        "chunk_plucker": randn(1, 8, 2, 4, 4, seed=2),
    }


def sana_wm_refiner() -> Arguments:
    rope = transformer_sana_wm_refiner.SanaWMLTX2AudioVideoRotaryPosEmbed(
        dim=16,
        patch_size=1,
        patch_size_t=1,
        modality="video",
        double_precision=False,
        num_attention_heads=2,
        base_num_frames=20,
        base_height=2048,
        base_width=2048,
        scale_factors=(8, 32, 32),
    )
    return {
        "hidden_states": randn(1, 8, 4),
        "encoder_hidden_states": randn(1, 5, 16, seed=1),
        "timestep": torch.full((1, 8), 500.0),
        "video_rotary_emb": rope(rope.prepare_video_coords(1, 2, 2, 2, device="cpu", fps=24.0), device="cpu"),
    }


def wan_animate2() -> Arguments:
    """The pass that fills the cache of keys and values; the latent is a list of one."""
    return {
        "hidden_states": [randn(4, 2, 4, 4)],
        "timestep": T,
        "encoder_hidden_states": [randn(5, 16, seed=1)],
        "condition_latents": [randn(5, 2, 4, 4, seed=2)],
        "encoder_hidden_states_image": randn(1, 3, 1280, seed=3),
        "kv_cache": transformer_wan_animate_2.WanAnimate2KVCache(2),
        "kv_cache_mode": "extract",
        "seq_len": 8,
        "offset_grid_sizes": torch.tensor([[2, 2, 2]]),
    }


def after_extraction(model: Any, extracting: Arguments) -> Arguments:
    """A denoising call with the keys and values that a first pass has left; one frame more, for the reference."""
    model(**extracting)
    return {
        **extracting,
        "hidden_states": [randn(4, 3, 4, 4)],
        "condition_latents": [randn(5, 3, 4, 4, seed=2)],
        "kv_cache_mode": "cached",
        "seq_len": 12,
        "reference_grid_sizes": extracting["offset_grid_sizes"],
        "origin_len": 5,
        "origin_area": [32, 32],
    }


def proteina() -> Arguments:
    return {
        "bb_ca": randn(1, 6, 3),
        "local_latents": randn(1, 6, 4, seed=1),
        "bb_ca_time": torch.tensor([0.5]),
        "local_latents_time": torch.tensor([0.5]),
        "padding_mask": torch.ones(1, 6).bool(),
        "conditioning": {
            "is_in_context_conditioning": torch.zeros(1, 6).bool(),
            "supports_local_latent": torch.ones(1, 6).bool(),
        },
    }


def wan_animate() -> Arguments:
    return video(
        12,
        3,
        4,
        encoder_hidden_states_image=randn(1, 3, 16, seed=2),
        pose_hidden_states=randn(1, 4, 2, 4, 4, seed=3),
        face_pixel_values=randn(1, 3, 5, 16, 16, seed=4),
    )


ROWS: dict[str, Row] = {
    "AceStepTransformer1DModel": row(
        ace_step,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        in_channels=24,
        audio_acoustic_hidden_dim=8,
    ),
    "AllegroTransformer3DModel": row(
        lambda: video(4, 2, attention_mask=torch.ones(1, 2, 8, 8), encoder_attention_mask=torch.ones(1, 5)),
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        cross_attention_dim=16,
        caption_channels=16,
        sample_height=8,
        sample_width=8,
        sample_frames=2,
    ),
    "AnyFlowFARTransformer3DModel": row(
        lambda: video(3, 4, timestep=T.expand(1, 3), r_timestep=T.expand(1, 3) / 2, chunk_partition=(1, 2)),
        **WAN,
        full_chunk_limit=3,
        chunk_partition=(1, 2),
    ),
    "AnyFlowTransformer3DModel": row(
        lambda: video(2, 4, timestep=T.expand(1, 2), r_timestep=T.expand(1, 2) / 2), **WAN
    ),
    "AuraFlowTransformer2DModel": row(
        lambda: image(timestep=T / 1000),
        sample_size=8,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        **HEADS,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pos_embed_max_size=64,
    ),
    "BriaFibo2Transformer2DModel": row(
        lambda: image(text=(2, 6, 24), timestep=T / 1000),
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=24,
        injection_layer_ids=(1,),
        perceiver_num_layers=1,
        min_num_gist_tokens=4,
        max_num_gist_tokens=8,
        gist_step=4,
        gist_min_text_len=4,
        gist_max_text_len=16,
        axes_dims=(4, 6, 6),
        axes_lens=(16, 16, 16),
    ),
    "BriaFiboTransformer2DModel": row(
        lambda: {**tokens(8, text=6, axes=3), "timestep": T, "text_encoder_layers": [randn(1, 6, 16)] * 4},
        in_channels=8,
        **DOUBLE,
        **HEADS,
        joint_attention_dim=16,
        text_encoder_dim=16,
        axes_dims_rope=[4, 4, 8],
    ),
    "ChronoEditTransformer3DModel": row(lambda: video(9, 2), **{**WAN, "in_channels": 9}),
    "CogView3PlusTransformer2DModel": row(
        cogview,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        **HEADS,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=8,
        sample_size=8,
    ),
    "CogView4Transformer2DModel": row(
        cogview,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        **HEADS,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
        rope_axes_dim=(8, 8),
    ),
    "ConsisIDTransformer3DModel": row(
        lambda: video(hidden_states=randn(1, 3, 8, 8, 8)),
        **{**COG, "in_channels": 8},
    ),
    "Cosmos3OmniTransformer": row(
        cosmos3,
        "vision_tokens",
        head_dim=6,
        hidden_size=12,
        intermediate_size=24,
        latent_channel=2,
        latent_patch_size=1,
        num_attention_heads=2,
        num_hidden_layers=2,
        num_key_value_heads=1,
        patch_latent_dim=2,
        rope_axes_dim=[1, 1, 1],
        vocab_size=32,
    ),
    "CosmosTransformer3DModel": row(
        lambda: video(4, 2, fps=24),
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        mlp_ratio=2,
        text_embed_dim=16,
        adaln_lora_dim=4,
        max_size=(4, 8, 8),
        concat_padding_mask=False,
        extra_pos_embed_type=None,
    ),
    "DiTTransformer2DModel": row(
        lambda: image(text=None, timestep=torch.tensor([500]), class_labels=torch.tensor([1])),
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
    ),
    "DreamLiteTransformer2DModel": row(lambda: image(8), **UNET, cross_attention_dim=16),
    "EasyAnimateTransformer3DModel": row(
        lambda: video(4, 2),
        in_channels=4,
        out_channels=4,
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=16,
        sample_width=8,
        sample_height=8,
        num_layers=2,
        mmdit_layers=2,
        time_embed_dim=8,
        text_embed_dim=16,
    ),
    "ErnieImageTransformer2DModel": row(
        lambda: image(text=None, text_bth=randn(1, 5, 16, seed=1), text_lens=torch.tensor([5])),
        hidden_size=32,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=32,
        in_channels=4,
        out_channels=4,
        text_in_dim=16,
        rope_axes_dim=(4, 4, 8),
    ),
    "Flux3Transformer2DModel": row(
        lambda: {**tokens(8, text=6, axes=4), "timestep": T / 1000},
        in_channels=8,
        cond_in_channels=8,
        **DOUBLE,
        **HEADS,
        joint_attention_dim=16,
        timestep_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    ),
    "GlmImageTransformer2DModel": row(
        lambda: image(
            prior_token_id=torch.arange(16)[None],
            prior_token_drop=torch.tensor([False]),
            target_size=torch.tensor([[64.0, 64.0]]),
            crop_coords=torch.zeros(1, 2),
        ),
        in_channels=4,
        out_channels=4,
        num_layers=2,
        **HEADS,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
        prior_vq_quantizer_codebook_size=32,
    ),
    "HeliosTransformer3DModel": row(
        lambda: video(4, 2),
        **{k: v for k, v in WAN.items() if k != "rope_max_seq_len"},
        rope_dim=(4, 4, 4),
    ),
    "HiDreamImageTransformer2DModel": row(
        lambda: {
            "hidden_states": randn(1, 4, 8, 8),
            "timesteps": T,
            "encoder_hidden_states_t5": randn(1, 5, 16, seed=1),
            "encoder_hidden_states_llama3": randn(2, 1, 5, 16, seed=2),
            "pooled_embeds": randn(1, 8, seed=3),
        },
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=[16, 16],
        text_emb_dim=8,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(8, 8),
        llama_layers=[0, 1],
        force_inference_output=True,
    ),
    "HunyuanDiT2DModel": row(
        lambda: image(
            text_embedding_mask=torch.ones(1, 5),
            encoder_hidden_states_t5=randn(1, 6, 16, seed=2),
            text_embedding_mask_t5=torch.ones(1, 6),
            image_meta_size=torch.tensor([[64, 64, 64, 64, 0, 0]]),
            style=torch.tensor([0]),
            image_rotary_emb=[torch.ones(16, 8), torch.zeros(16, 8)],
        ),
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=16,
        num_layers=2,
        mlp_ratio=2.0,
        cross_attention_dim=16,
        cross_attention_dim_t5=16,
        pooled_projection_dim=4,
        text_len=5,
        text_len_t5=6,
    ),
    "HunyuanImageTransformer2DModel": row(
        lambda: image(encoder_attention_mask=torch.ones(1, 5)),
        in_channels=4,
        out_channels=4,
        **HEADS,
        **DOUBLE,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=16,
        rope_axes_dim=(8, 8),
    ),
    "Ideogram4Transformer2DModel": row(
        ideogram,
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        intermediate_size=32,
        adaln_dim=16,
        llm_features_dim=24,
        rope_theta=10_000,
        mrope_section=(2, 1, 1),
    ),
    "JoyImageEditPlusTransformer3DModel": row(
        lambda: {
            "hidden_states": randn(1, 2, 4, 1, 2, 2),
            "timestep": T,
            "encoder_hidden_states": randn(1, 5, 16, seed=1),
            "shape_list": [[(1, 1, 1), (1, 1, 1)]],
        },
        in_channels=4,
        hidden_size=32,
        num_attention_heads=2,
        text_dim=16,
        num_layers=2,
        rope_dim_list=[4, 6, 6],
    ),
    "JoyImageEditTransformer3DModel": row(
        lambda: video(4, 1, 4),
        in_channels=4,
        hidden_size=32,
        num_attention_heads=2,
        text_dim=16,
        num_layers=2,
        rope_dim_list=[4, 6, 6],
    ),
    "Kandinsky5Transformer3DModel": row(
        kandinsky5,
        in_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=8,
        time_dim=16,
        out_visual_dim=4,
        model_dim=24,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 4, 4),
        visual_cond=True,
    ),
    "Kandinsky6SRTransformer3DModel": row(
        lambda: {"hidden_states": randn(1, 2, 16, 16, 9), "timestep": T},
        in_visual_dim=4,
        out_visual_dim=4,
        time_dim=16,
        patch_size=(1, 2, 2),
        model_dim=24,
        ff_dim=32,
        num_visual_blocks=2,
        axes_dims=(4, 4, 4),
    ),
    "Kandinsky6Transformer3DModel": row(
        lambda: {
            "hidden_states": randn(1, 2, 4, 4, 9),
            "audio_hidden_states": randn(1, 5, 4, seed=3),
            "encoder_hidden_states": randn(1, 6, 8, seed=1),
            "pooled_projections": randn(1, 8, seed=2),
            "timestep": T,
            "visual_rope_pos": [torch.arange(2), torch.arange(2), torch.arange(2)],
        },
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=8,
        in_text_dim2=8,
        time_dim=16,
        model_dim=48,
        ff_dim=64,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 4, 4),
        in_audio_dim=4,
        out_audio_dim=4,
    ),
    "Krea2Transformer2DModel": row(
        lambda: {
            "hidden_states": randn(1, 12, 16),
            "encoder_hidden_states": randn(1, 6, 3, 16, seed=1),
            "timestep": T / 1000,
            "position_ids": torch.arange(18)[:, None].repeat(1, 3),
        },
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 4, 8),
    ),
    "LTX2VideoTransformer3DModel": row(ltx2, **LTX2),
    "LatteTransformer3DModel": row(
        lambda: video(4, 2),
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        attention_bias=True,
        sample_size=8,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        caption_channels=16,
        video_length=2,
    ),
    "LongCatAudioDiTTransformer": row(
        lambda: {
            "hidden_states": randn(1, 16, 8),
            "encoder_hidden_states": randn(1, 5, 32, seed=1),
            "encoder_attention_mask": torch.ones(1, 5).bool(),
            "attention_mask": torch.ones(1, 16).bool(),
            "timestep": T / 1000,
        },
        dit_dim=64,
        dit_depth=2,
        dit_heads=4,
        dit_text_dim=32,
        latent_dim=8,
        text_conv=False,
    ),
    "LongCatImageTransformer2DModel": row(
        lambda: {**tokens(8, text=6, axes=3), "timestep": T / 1000},
        in_channels=8,
        **DOUBLE,
        **HEADS,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 4, 8],
    ),
    "Lumina2Transformer2DModel": row(
        lambda: image(timestep=T / 1000, encoder_attention_mask=torch.ones(1, 5).bool()),
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=2,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(64, 64, 64),
        cap_feat_dim=16,
    ),
    "LuminaNextDiT2DModel": row(
        lambda: image(
            timestep=T / 1000,
            encoder_mask=torch.ones(1, 5).bool(),
            image_rotary_emb=torch.ones(384, 384, 4, dtype=torch.complex64),
            cross_attention_kwargs={},
        ),
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=16,
        cross_attention_dim=16,
    ),
    "MiniMaxH3Transformer3DModel": row(
        minimax_h3,
        num_attention_heads=2,
        attention_head_dim=16,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        ffn_dim=32,
        in_channels=4,
        audio_in_channels=6,
        text_dim=8,
        freq_dim=8,
        time_embed_hidden_dim=24,
        time_embed_dim=16,
        rope_freq_dim=2,
    ),
    "MiniMaxMusic3Transformer1DModel": row(
        lambda: {"hidden_states": randn(1, 8, 8), "timestep": T / 1000, "encoder_hidden_states": randn(1, 8, 16)},
        in_channels=8,
        condition_dim=16,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        ff_inner_dim=32,
        rotary_dim=8,
        fourier_embedding_dim=16,
    ),
    "MotifVideoTransformer3DModel": row(
        lambda: video(9, 2, encoder_attention_mask=torch.ones(1, 5)),
        in_channels=9,
        out_channels=4,
        **HEADS,
        **DOUBLE,
        mlp_ratio=2.0,
        text_embed_dim=16,
        rope_axes_dim=(4, 4, 8),
    ),
    "NucleusMoEImageTransformer2DModel": row(
        lambda: {
            "hidden_states": randn(1, 12, 16),
            "encoder_hidden_states": randn(1, 6, 16, seed=1),
            "timestep": T / 1000,
            "img_shapes": [(1, 4, 3)],
        },
        in_channels=16,
        out_channels=4,
        num_layers=2,
        **HEADS,
        num_key_value_heads=1,
        joint_attention_dim=16,
        **AXES,
        mlp_ratio=2.0,
        dense_moe_strategy="none",
        num_experts=2,
        moe_intermediate_dim=16,
        capacity_factors=[2.0, 2.0],
    ),
    "OmniGenTransformer2DModel": row(
        omnigen,
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        num_layers=2,
        pad_token_id=0,
        vocab_size=32,
        max_position_embeddings=128,
        original_max_position_embeddings=128,
        pos_embed_max_size=8,
        time_step_dim=8,
        rope_scaling={"long_factor": [1.0] * 4, "short_factor": [1.0] * 4},
    ),
    "OvisImageTransformer2DModel": row(
        lambda: {**tokens(8, text=6, axes=3), "timestep": T / 1000},
        in_channels=8,
        out_channels=8,
        **DOUBLE,
        **HEADS,
        joint_attention_dim=16,
        **AXES,
    ),
    "PRXTransformer2DModel": row(
        lambda: image(timestep=T / 1000, attention_mask=torch.ones(1, 5).bool()),
        in_channels=4,
        context_in_dim=16,
        hidden_size=16,
        mlp_ratio=2.0,
        num_heads=2,
        depth=2,
        axes_dim=[4, 4],
    ),
    "PixArtTransformer2DModel": row(
        lambda: image(added_cond_kwargs={"resolution": None, "aspect_ratio": None}),
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=8,
        caption_channels=16,
        use_additional_conditions=False,
    ),
    "PriorTransformer": row(
        lambda: {
            "hidden_states": randn(1, 16),
            "timestep": T,
            "proj_embedding": randn(1, 16, seed=1),
            "encoder_hidden_states": randn(1, 5, 16, seed=2),
        },
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        embedding_dim=16,
        num_embeddings=5,
    ),
    "QwenImage21Transformer2DModel": row(
        qwen21,
        predicted=(1, 4),
        in_channels=4,
        out_channels=4,
        num_layers=2,
        **HEADS,
        context_in_dim=8,
        mlp_ratio=2,
        axes_dims_rope=(4, 6, 6),
    ),
    "RFD4ProteinaTransformer": row(
        proteina,
        "bb_ca",
        nlayers=2,
        token_dim=16,
        nheads=2,
        dim_cond=8,
        pair_repr_dim=8,
        latent_dim=4,
        t_emb_dim=8,
        feats_seq=("xt_bb_ca", "xt_local_latents"),
        feats_cond_seq=("time_emb_bb_ca", "time_emb_local_latents"),
        feats_pair_repr=("xt_bb_ca_pair_dists",),
        feats_pair_cond=("time_emb_bb_ca",),
        tri_mult_c=8,
    ),
    "SanaVideoTransformer3DModel": row(
        lambda: video(4, 2),
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=16,
        sample_size=8,
        rope_max_seq_len=32,
    ),
    "SanaWMLTX2RefinerTransformer3DModel": row(sana_wm_refiner, **LTX2),
    "SanaWMTransformer3DModel": row(
        sana_wm,
        in_channels=4,
        num_layers=2,
        hidden_size=32,
        num_attention_heads=2,
        softmax_every_n=2,
        linear_head_dim=16,
        caption_channels=8,
        mlp_ratio=2.0,
        chunk_plucker_channels=8,
        chunk_plucker_post_attn_blocks=2,
    ),
    "StableAudio3DiTModel": row(
        lambda: {
            "hidden_states": randn(1, 8, 8),
            "timestep": T / 1000,
            "encoder_hidden_states": randn(1, 5, 16, seed=1),
            "global_hidden_states": randn(1, 16, seed=2),
            "local_add_cond": randn(1, 9, 8, seed=3),
        },
        io_channels=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        cond_token_dim=16,
        global_cond_dim=16,
        local_add_cond_dim=9,
        timestep_features_dim=16,
        ff_mult=2.0,
        num_memory_tokens=2,
    ),
    "StableAudioDiTModel": row(
        lambda: {
            "hidden_states": randn(1, 4, 8),
            "timestep": T / 1000,
            "encoder_hidden_states": randn(1, 5, 16, seed=1),
            "global_hidden_states": randn(1, 1, 8, seed=2),
            "rotary_embedding": (torch.ones(9, 8), torch.zeros(9, 8)),
        },
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        **HEADS,
        num_key_value_attention_heads=2,
        cross_attention_dim=16,
        time_proj_dim=8,
        global_states_input_dim=8,
        cross_attention_input_dim=16,
    ),
    "T5FilmDecoder": row(
        lambda: {
            "decoder_input_tokens": randn(1, 8, 4),
            "decoder_noise_time": torch.tensor([0.5]),
            "encodings_and_masks": [(randn(1, 5, 16, seed=1), torch.ones(1, 5))],
        },
        "decoder_input_tokens",
        input_dims=4,
        targets_length=8,
        d_model=16,
        num_layers=2,
        num_heads=2,
        d_kv=8,
        d_ff=32,
    ),
    "Transformer2DModel": row(lambda: image(8), **UNET, cross_attention_dim=16),
    "TransformerTemporalModel": row(lambda: {"hidden_states": randn(2, 8, 4, 4), "num_frames": 2}, **UNET),
    "WanAnimate2Transformer3DModel": row(
        wan_animate2,
        then=after_extraction,
        text_len=16,
        in_dim=9,
        dim=48,
        ffn_dim=32,
        freq_dim=32,
        text_dim=16,
        out_dim=4,
        num_heads=4,
        num_layers=2,
    ),
    "WanAnimateTransformer3DModel": row(
        wan_animate,
        **{**WAN, "in_channels": 12},
        latent_channels=4,
        image_dim=16,
        added_kv_proj_dim=None,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=8,
        face_encoder_hidden_dim=8,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    ),
    "WanVACETransformer3DModel": row(
        lambda: video(4, 2, control_hidden_states=randn(1, 6, 2, 8, 8, seed=2)),
        **WAN,
        vace_layers=[0, 1],
        vace_in_channels=6,
    ),
    "ZImageTransformer2DModel": row(
        lambda: {"x": [randn(4, 1, 8, 8)], "t": T / 1000, "cap_feats": [randn(5, 16, seed=1)]},
        "x",
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[64, 16, 16],
    ),
}


def _piped(name: str, arguments: Callable[[], Arguments]) -> Callable[[], Call]:
    """The transformer of a tiny pipeline."""
    return lambda: (pipelines.BUILDERS[name]().pipe.transformer, arguments())


ELSEWHERE: dict[str, Callable[[], Call]] = {
    "BriaTransformer2DModel": architectures.bria,
    "ChromaTransformer2DModel": architectures.chroma,
    "CogVideoXTransformer3DModel": _piped(
        "cogvideox", lambda: video(hidden_states=randn(1, 3, 4, 4, 4), encoder_hidden_states=randn(1, 16, 32))
    ),
    "Flux2Transformer2DModel": architectures.flux2,
    "FluxTransformer2DModel": _piped(
        "flux",
        lambda: {
            **tokens(16, text=6, axes=3),
            "encoder_hidden_states": randn(1, 6, 32, seed=1),
            "pooled_projections": randn(1, 32, seed=2),
            "timestep": T / 1000,
            "guidance": torch.tensor([3.5]),
        },
    ),
    "HunyuanVideo15Transformer3DModel": architectures.hunyuan15,
    "HunyuanVideoFramepackTransformer3DModel": architectures.framepack,
    "HunyuanVideoTransformer3DModel": _piped(
        "hunyuan",
        lambda: video(
            4,
            2,
            4,
            encoder_attention_mask=torch.ones(1, 5),
            pooled_projections=randn(1, 8, seed=2),
            guidance=torch.tensor([6000.0]),
        ),
    ),
    "LTXVideoTransformer3DModel": _piped(
        "ltx",
        lambda: {
            "hidden_states": randn(1, 8, 8),
            "encoder_hidden_states": randn(1, 6, 32, seed=1),
            "timestep": T,
            "encoder_attention_mask": torch.ones(1, 6),
            "num_frames": 2,
            "height": 2,
            "width": 2,
        },
    ),
    "MochiTransformer3DModel": architectures.mochi,
    "QwenImageTransformer2DModel": _piped(
        "qwen",
        lambda: {
            "hidden_states": randn(1, 12, 16),
            "encoder_hidden_states": randn(1, 7, 16, seed=1),
            "encoder_hidden_states_mask": torch.ones(1, 7).long(),
            "timestep": T / 1000,
            "img_shapes": [[(1, 4, 3)]],
        },
    ),
    "SD3Transformer2DModel": _piped("sd3", lambda: image(4, 16, text=(7, 32), pooled_projections=randn(1, 32, seed=2))),
    "SanaTransformer2DModel": architectures.sana,
    "SkyReelsV2Transformer3DModel": architectures.skyreels,
    "WanTransformer3DModel": lambda: (pipelines.wan_transformer(), video(4, 2)),
}
"""Those that other files of the zoo build."""

NOT_BUILT: dict[str, str] = {
    "MiniMaxMusic3RVQDepthDecoder": "writes codes of sound one after the other: no denoiser",
}
"""Classes of diffusers that are left out, each with its reason."""

BUILT = tuple(sorted([*ROWS, *ELSEWHERE]))


def classes() -> list[str]:
    """What the installed diffusers exports of its transformers, by looking."""
    exported = {name: getattr(diffusers, name) for name in dir(diffusers)}
    return [
        name
        for name, kind in exported.items()
        if inspect.isclass(kind)
        and issubclass(kind, torch.nn.Module)
        and (kind.__module__.startswith("diffusers.models.transformers.") or "Transformer" in name)
        and "ControlNet" not in name
    ]


def build(name: str) -> Call:
    """A tiny model of that class, the same at every call, and the arguments of one call of it."""
    torch.manual_seed(0)
    if name in ROWS:
        with torch.no_grad():
            return ROWS[name].build(getattr(diffusers, name))
    model, arguments = ELSEWHERE[name]()
    torch.manual_seed(1)
    return drawn(model), arguments


def latent_argument(name: str) -> str:
    """The argument of `forward` that holds the noisy latent."""
    return ROWS[name].latent if name in ROWS else "hidden_states"


def aligned(name: str, latent: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """The noisy latent in an argument, and the prediction in the first output: views of one shape."""
    at_end = ROWS[name].predicted if name in ROWS else None
    if at_end is not None:
        dim, size = at_end
        output = output.narrow(dim, output.shape[dim] - size, size)
    for dim in range(latent.dim()):
        size = min(latent.shape[dim], output.shape[dim])
        latent, output = latent.narrow(dim, 0, size), output.narrow(dim, 0, size)
    return latent, output

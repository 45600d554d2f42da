"""The untrained parts of the tiny pipeline: their sizes, and how each is built.

One clip of ``[3, 17, 64, 64]`` is a latent of ``[LATENT_CHANNELS, 5, 8, 8]``, which the transformer reads as 80 tokens
(patches of 1x2x2, as the large Wan does).
"""

from __future__ import annotations

from typing import Any, Final

from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from examples.train_shared.words import SMALL_T5, word_tokenizer
from examples.train_tiny_wan import clips

LATENT_CHANNELS: Final = 8
LATENT_FRAMES: Final = 5
LATENT_SIZE: Final = 8  # latent pixels, high and wide
TEXT_WIDTH: Final = 64
MAX_TEXT_TOKENS: Final = 512  # what WanPipeline pads every prompt to
FLOW_SHIFT: Final = 5.0


def build_vae(latents_mean: list[float] | None = None, latents_std: list[float] | None = None) -> AutoencoderKLWan:
    """A Wan autoencoder: 8x smaller in space (2x of it by patches) and 4x in time.

    ``latents_mean`` and ``latents_std`` are per channel, measured after training; until then 0 and 1.
    """
    return AutoencoderKLWan(
        base_dim=12,
        decoder_base_dim=20,
        is_residual=True,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=latents_mean or [0.0] * LATENT_CHANNELS,
        latents_std=latents_std or [1.0] * LATENT_CHANNELS,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=4,
        scale_factor_spatial=8,
    )


def build_transformer() -> WanTransformer3DModel:
    """A Wan transformer of 8 blocks, 192 wide, about 4.7 million parameters."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=6,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=128,
        ffn_dim=640,
        num_layers=8,
        cross_attn_norm=True,
        rope_max_seq_len=64,
    )


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the captions' words."""
    return word_tokenizer(clips.vocabulary(), MAX_TEXT_TOKENS)


def build_text_encoder() -> UMT5EncoderModel:
    """A UMT5 encoder of 2 layers, 64 wide; without dropout, as its captions are few and short."""
    config = UMT5Config(vocab_size=32, d_model=TEXT_WIDTH, **SMALL_T5)
    return UMT5EncoderModel(config)


def build_scheduler(flow_shift: float = FLOW_SHIFT) -> UniPCMultistepScheduler:
    """UniPC on the flow from noise (sigma 1) to data (sigma 0), with ``flow_shift`` more steps at high noise."""
    settings: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    return UniPCMultistepScheduler(num_train_timesteps=1000, solver_order=2, flow_shift=flow_shift, **settings)

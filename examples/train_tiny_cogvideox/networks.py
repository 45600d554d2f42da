"""The untrained parts of the tiny pipeline: their sizes, and how each is built.

One clip of ``[3, 9, 48, 48]`` is a latent of ``[LATENT_CHANNELS, 3, 12, 12]``, which the transformer reads as 108
tokens (patches of 2x2, as the large CogVideoX does) after the 16 of the text. Positions are sines and cosines that are
added once, as in CogVideoX-2b.
"""

from __future__ import annotations

from typing import Final

from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from examples.train_shared.words import SMALL_T5, word_tokenizer
from examples.train_tiny_cogvideox import clips

LATENT_CHANNELS: Final = 8
LATENT_SIZE: Final = 12  # latent pixels, high and wide
TEXT_WIDTH: Final = 64
TEXT_TOKENS: Final = 16  # what each prompt is padded to: the call's max_sequence_length
SNR_SHIFT: Final = 3.0  # as CogVideoX-2b


def build_vae(scaling_factor: float = 1.0) -> AutoencoderKLCogVideoX:
    """A CogVideoX autoencoder: 4x smaller in space and in time, about 0.5 million parameters.

    scaling_factor: one over the standard deviation of the latents, measured after training.
    """
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(16, 24, 32),
        latent_channels=LATENT_CHANNELS,
        layers_per_block=1,
        norm_num_groups=8,
        temporal_compression_ratio=4,
        sample_height=clips.HEIGHT,
        sample_width=clips.WIDTH,
        scaling_factor=scaling_factor,
    )


def build_transformer() -> CogVideoXTransformer3DModel:
    """A CogVideoX transformer of 7 blocks, 160 wide, about 3.1 million parameters."""
    return CogVideoXTransformer3DModel(
        num_attention_heads=5,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        time_embed_dim=64,
        text_embed_dim=TEXT_WIDTH,
        num_layers=7,
        sample_width=LATENT_SIZE,
        sample_height=LATENT_SIZE,
        sample_frames=clips.FRAMES,
        max_text_seq_length=TEXT_TOKENS,
        spatial_interpolation_scale=1.0,
    )


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the captions' words."""
    return word_tokenizer(clips.vocabulary(), 226)


def build_text_encoder() -> T5EncoderModel:
    """A T5 encoder of 2 layers, 64 wide; without dropout, as its captions are few and short."""
    config = T5Config(vocab_size=40, d_model=TEXT_WIDTH, feed_forward_proj="gated-gelu", **SMALL_T5)
    return T5EncoderModel(config)


def build_scheduler() -> CogVideoXDDIMScheduler:
    """DDIM on a velocity, as CogVideoX-2b's: scaled-linear betas down to no signal at all, trailing steps."""
    return CogVideoXDDIMScheduler(
        beta_start=0.00085,
        beta_end=0.0120,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        snr_shift_scale=SNR_SHIFT,
    )

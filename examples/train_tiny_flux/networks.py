"""The untrained parts of the tiny pipeline: their sizes, and how each is built.

One picture of ``[3, 64, 64]`` is a latent of ``[LATENT_CHANNELS, 16, 16]``, which the pipeline packs by 2x2 to 64
tokens, as it does for the large Flux.
"""

from __future__ import annotations

from typing import Final

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from examples.train_shared.words import END, PAD, SMALL_T5, padded_ids, word_tokenizer
from examples.train_tiny_flux import pictures

LATENT_CHANNELS: Final = 4
TOKENS_SIDE: Final = 8  # packed latent, high and wide
TEXT_TOKENS: Final = 16  # the longest caption's words, its end mark and some padding; ``max_sequence_length``
TEXT_WIDTH: Final = 64
VOCABULARY: Final = 40
SHIFT: Final = 3.0


def build_vae() -> AutoencoderKL:
    """An autoencoder of three levels: 4x smaller in space."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=pictures.SIDE,
        mid_block_add_attention=False,
        shift_factor=0.0,
        scaling_factor=1.0,
        force_upcast=False,
    )


def build_transformer() -> FluxTransformer2DModel:
    """A Flux transformer of 2 double and 4 single blocks, 144 wide, with embedded guidance."""
    return FluxTransformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=24,
        num_attention_heads=6,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 10, 10),
    )


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the captions' words."""
    return word_tokenizer(pictures.vocabulary(), TEXT_TOKENS)


def token_ids(captions: list[str]) -> list[list[int]]:
    """Token ids of ``captions``, each padded with 0 to ``TEXT_TOKENS``."""
    return padded_ids(build_tokenizer(), captions, TEXT_TOKENS)


def build_clip() -> CLIPTextModel:
    """A CLIP text encoder of 2 layers, 64 wide, whose pooled output is a caption's one vector."""
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=TEXT_WIDTH,
        intermediate_size=128,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TEXT_TOKENS,
        pad_token_id=PAD,
        bos_token_id=END,
        eos_token_id=END,
    )
    return CLIPTextModel(config)


def build_t5() -> T5EncoderModel:
    """A T5 encoder of 2 layers, 64 wide; without dropout, as its captions are few and short."""
    config = T5Config(vocab_size=VOCABULARY, d_model=TEXT_WIDTH, **SMALL_T5)
    return T5EncoderModel(config)


def build_scheduler(shift: float = SHIFT) -> FlowMatchEulerDiscreteScheduler:
    """Euler's method on the flow from noise (sigma 1) to data (sigma 0); ``shift`` puts more steps at high noise."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)

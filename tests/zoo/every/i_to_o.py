"""Tiny pipelines of diffusers, Ideogram to Ovis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
)

from tests.zoo import pipelines, unusual
from tests.zoo.architectures import embeds
from tests.zoo.denoisers import ROWS, drawn
from tests.zoo.pipelines import wan_transformer, wan_vae
from tests.zoo.tiny import Tiny, quiet, randn, repeat
from tests.zoo.unusual import image_vae

NOTHING: dict[str, Any] = {}
UNGUIDED = {"guidance_scale": 1.0}
NO_ENCODER = {"text_encoder": None, "tokenizer": None}


def model(name: str, seed: int = 0, **changes: Any) -> Any:
    """The tiny model of that class, with some of its configuration changed."""
    torch.manual_seed(seed)
    with torch.no_grad():
        return drawn(getattr(diffusers, name)(**{**ROWS[name].config, **changes}))


def tiny(
    pipe: Any,
    other_size: dict[str, Any],
    unguided: dict[str, Any] | None = None,
    each: tuple[str, ...] = (),
    **given: Any,
) -> Tiny:
    """The pipeline with arguments for a batch of one; a larger one repeats prompts, and what is named in `each`."""

    def arguments(batch: int) -> dict[str, Any]:
        return {k: batched(v, batch) if "prompt" in k or k in each else v for k, v in given.items()}

    return Tiny(quiet(pipe), arguments, other_size, unguided=UNGUIDED if unguided is None else unguided)


def batched(value: Any, batch: int) -> Any:
    if isinstance(value, Tensor):
        return repeat(value, batch)
    return value if batch == 1 or value is None else [value] * batch


def masks(length: int, name: str = "{}_attention_mask", kind: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {name.format(prompt): torch.ones(1, length, dtype=kind) for prompt in ("prompt", "negative_prompt")}


def flow(**config: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


def picture(size: int = 32, seed: int = 0) -> Image.Image:
    pixels = (randn(size, size, 3, seed=seed).sigmoid() * 255).to(torch.uint8)
    return Image.fromarray(pixels.numpy())


def clip(frames: int, size: int = 32) -> list[Image.Image]:
    return [picture(size, seed) for seed in range(frames)]


def tokenizer(**more: Any) -> Any:
    """A token for each letter; the first four are special."""
    special = ["<pad>", "<eos>", "<|image_pad|>", "<unk>"]
    letters = [chr(code) for code in range(32, 127)]
    words = {token: index for index, token in enumerate([*special, *letters])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template="{% for message in messages %}{{ message['content'][0]['text'] }}{% endfor %}",
        **more,
    )


def qwen3_vl(kind: type, layers: int = 1) -> Any:
    """A vision and language model, with room for pictures, though here it reads the words alone."""
    torch.manual_seed(2)
    text = {
        "vocab_size": 128,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rope_scaling": {"mrope_section": [2, 1, 1], "rope_type": "default", "mrope_interleaved": True},
    }
    vision = {
        "depth": 1,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_heads": 2,
        "out_hidden_size": 16,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 4,
    }
    return kind(Qwen3VLConfig(text_config=text, vision_config=vision)).eval()


# images


def ideogram4() -> Tiny:
    """Two denoisers: the second knows no prompt, and sees the image's tokens alone."""
    # thirteen layers of the text encoder, up to the thirty-sixth, in one embedding
    config = {"llm_features_dim": 13 * 16}
    pipe = diffusers.Ideogram4Pipeline(
        scheduler=flow(),
        vae=None,
        text_encoder=qwen3_vl(Qwen3VLModel, layers=36),
        tokenizer=tokenizer(),
        transformer=model("Ideogram4Transformer2DModel", **config),
        unconditional_transformer=model("Ideogram4Transformer2DModel", seed=1, **config),
    )
    # the pipeline runs both denoisers even where a scale of one drops the second's prediction
    size = {"height": 64, "width": 64, "max_sequence_length": 16}
    return tiny(
        pipe, {"height": 96}, NOTHING, prompt="a red circle", **size, guidance_scale=4.0, guidance_schedule=None
    )


def krea2() -> Tiny:
    """Some layers of the text encoder side by side; guidance is added to the prompt's own prediction."""
    pipe = diffusers.Krea2Pipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=None,
        **NO_ENCODER,
        transformer=model("Krea2Transformer2DModel"),
        text_encoder_select_layers=(0, 1, 2),
    )
    prompts = {"prompt_embeds": randn(1, 6, 3, 16), "negative_prompt_embeds": randn(1, 6, 3, 16, seed=4)}
    size = {"height": 64, "width": 48}
    return tiny(
        pipe,
        {"height": 96},
        {"guidance_scale": 0.0},
        **prompts,
        **masks(6, "{}_embeds_mask", torch.bool),
        **size,
        guidance_scale=4.5,
    )


def ovis() -> Tiny:
    pipe = diffusers.OvisImagePipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=None,
        **NO_ENCODER,
        transformer=model("OvisImageTransformer2DModel"),
    )
    # the default negative prompt, an empty string, is refused beside embeddings
    return tiny(pipe, {"height": 96}, **embeds(6, 16), negative_prompt=None, height=64, width=48, guidance_scale=5.0)


def nucleus() -> Tiny:
    """Experts in the blocks; the guided prediction is scaled back to the length of the prompt's own."""
    pipe = diffusers.NucleusMoEImagePipeline(
        transformer=model("NucleusMoEImageTransformer2DModel"),
        scheduler=flow(use_dynamic_shifting=True),
        vae=None,
        text_encoder=None,
        processor=None,
    )
    return tiny(
        pipe, {"height": 96}, **embeds(6, 16), **masks(6, "{}_embeds_mask"), height=64, width=48, guidance_scale=4.0
    )


PIPELINES: dict[str, Callable[[], Tiny]] = {
    "Ideogram4Pipeline": ideogram4,
    "Krea2Pipeline": krea2,
    "LTXPipeline": pipelines.ltx,
    "NucleusMoEImagePipeline": nucleus,
    "OvisImagePipeline": ovis,
}

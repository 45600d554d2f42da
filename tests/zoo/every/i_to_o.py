"""Tiny pipelines of diffusers, Ideogram to Ovis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import diffusers
import torch
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_hdr_lora import LTX2HDRReferenceCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_ic_lora import LTX2ReferenceCondition
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from diffusers.pipelines.omnigen import pipeline_omnigen, processor_omnigen
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    BatchFeature,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.modeling_outputs import BaseModelOutput

from tests.zoo import pipelines, unusual
from tests.zoo.architectures import embeds
from tests.zoo.denoisers import ROWS, WAN, drawn
from tests.zoo.pipelines import unipc, wan_vae
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
    return value if batch == 1 or value is None or isinstance(value, bool) else [value] * batch


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
    special = ["<pad>", "<eos>", "<|vision_start|>", "<unk>"]
    letters = [chr(code) for code in range(32, 127)]
    words = {token: index for index, token in enumerate([*special, *letters])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.add_special_tokens(special)
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
    made = drawn(kind(Qwen3VLConfig(text_config=text, vision_config=vision)))
    torch.nn.init.normal_(made.get_input_embeddings().weight)
    return made


class Reader(torch.nn.Module):
    """Stands in for a text encoder: looks tokens up, and tells each the mean of those before it."""

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, size: int) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.embedding = torch.nn.Embedding(128, size)

    def forward(self, input_ids: Tensor, **others: Any) -> BaseModelOutput:
        first = self.embedding(input_ids)
        last = first + first.cumsum(1) / torch.arange(1.0, first.shape[1] + 1)[:, None]
        return BaseModelOutput(last_hidden_state=last, hidden_states=(first, last))


class Mean(diffusers.AutoencoderKLWan):
    """Encodes to the mean: a pipeline draws from torch's own generator."""

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        encoded = super().encode(*args, **kwargs)
        encoded.latent_dist.std = torch.zeros_like(encoded.latent_dist.std)
        return encoded


def wide_vae(kind: Any) -> Any:
    """With the 16 channels of the real one: four do not tell how a prediction was rescaled at every place."""
    changes = {"z_dim": 16, "latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}
    return kind(**{**wan_vae().config, **changes}).eval()


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
    more = {"max_sequence_length": 24, "guidance_scale": 4.0, "guidance_schedule": None}
    return tiny(pipe, {"height": 96}, NOTHING, prompt="a red circle", height=64, width=64, **more)


def krea2() -> Tiny:
    """Some layers of the text encoder side by side; guidance is added to the prompt's own prediction."""
    pipe = diffusers.Krea2Pipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=None,
        **NO_ENCODER,
        transformer=model("Krea2Transformer2DModel", num_layerwise_text_blocks=2, num_refiner_text_blocks=2),
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


def of_any_size(processor: Any) -> None:
    """The smallest size that the image processor offers is a megapixel; here it takes what is given."""
    processor.get_default_height_width = lambda image, height=None, width=None: (height or 32, width or 32)


def joy_edit() -> Tiny:
    """The image to edit lies before the latent, along a dimension of its own, and is put back at each step."""
    torch.manual_seed(1)
    pipe = diffusers.JoyImageEditPipeline(
        scheduler=flow(shift=1.5),
        vae=wide_vae(Mean),
        **NO_ENCODER,
        transformer=model("JoyImageEditTransformer3DModel", in_channels=16),
        processor=None,
    )
    of_any_size(pipe.vae_image_processor)
    size = {"height": 32, "width": 32}
    return tiny(
        pipe, {"height": 48}, **embeds(5, 16), **masks(5, "{}_embeds_mask"), image=picture(), **size, guidance_scale=4.0
    )


def joy_edit_plus() -> Tiny:
    """One row of patches: those of the latent, then those of each image, which are put back at each step."""

    def words(text: list[str], images: Any, **others: Any) -> Any:
        """Stands in for the processor: it reads the words alone."""
        return tokenizer()(text, padding=True, return_tensors="pt")

    torch.manual_seed(1)
    pipe = diffusers.JoyImageEditPlusPipeline(
        scheduler=flow(shift=1.5),
        vae=wide_vae(diffusers.AutoencoderKLWan),
        text_encoder=qwen3_vl(Qwen3VLForConditionalGeneration),
        tokenizer=None,
        transformer=model("JoyImageEditPlusTransformer3DModel", in_channels=16),
        processor=words,
    )
    of_any_size(pipe.image_processor)
    prompts = {"prompt": "paint it red", "negative_prompt": "grey"}
    images = [picture(), picture(seed=1)]
    return tiny(pipe, {"height": 48}, each=("images",), **prompts, images=images, height=32, width=32)


class Looker:
    """Stands in for a processor of words and pictures: the text encoder here reads the words alone."""

    merge_size = 2

    def __init__(self) -> None:
        self.image_processor = self

    def __call__(self, images: Any, return_tensors: str) -> Any:
        return BatchFeature({"pixel_values": torch.zeros(4, 1), "image_grid_thw": torch.tensor([[1, 2, 2]])})


def longcat(kind: str, vae: Any = None, **given: Any) -> Tiny:
    """Sixteen channels of a latent are a number in the code."""
    pipe = getattr(diffusers, kind)(
        scheduler=flow(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=Reader(16),
        tokenizer=tokenizer(),
        text_processor=Looker(),
        transformer=model("LongCatImageTransformer2DModel", in_channels=64),
    )
    pipe.tokenizer_max_length = 24
    return tiny(pipe, {"height": 96}, prompt="a red circle", negative_prompt="grey", guidance_scale=4.5, **given)


def longcat_image() -> Tiny:
    # a rewritten prompt would be written by the language model
    return longcat("LongCatImagePipeline", height=64, width=48, enable_prompt_rewrite=False)


def longcat_edit() -> Tiny:
    """The image's tokens follow the latent's; one prompt at a time, of which a batch makes several images."""
    # the pipeline scales every image to a megapixel: seven levels leave a latent of 16x16
    made = longcat("LongCatImageEditPipeline", image_vae(16, levels=7), image=picture())

    def arguments(batch: int) -> dict[str, Any]:
        return {**made.arguments(1), "num_images_per_prompt": batch}

    return Tiny(made.pipe, arguments, {"image": picture().resize((64, 16))}, unguided=UNGUIDED)


def lumina() -> Tiny:
    """Guidance is for three channels alone."""
    pipe = diffusers.LuminaPipeline(
        transformer=model("LuminaNextDiT2DModel"), scheduler=flow(shift=4.0), vae=None, **NO_ENCODER
    )
    prompts = {**embeds(5, 16), **masks(5, kind=torch.bool)}
    return tiny(pipe, {"height": 96}, **prompts, height=64, width=64, guidance_scale=4.0)


def lumina2() -> Tiny:
    """It returns the velocity from noise to clean, where others return that from clean to noise."""
    transformer = model("Lumina2Transformer2DModel", num_refiner_layers=2)
    pipe = diffusers.Lumina2Pipeline(transformer=transformer, scheduler=flow(shift=6.0), vae=None, **NO_ENCODER)
    prompts = {**embeds(5, 16), **masks(5, kind=torch.bool)}
    return tiny(pipe, {"height": 96}, **prompts, height=64, width=64, guidance_scale=4.0)


class Words(processor_omnigen.OmniGenMultiModalProcessor):
    """Without what turns pictures into tensors, for which diffusers asks for torchvision."""

    def __init__(self, text_tokenizer: Any, max_image_size: int) -> None:
        self.text_tokenizer = text_tokenizer
        self.max_image_size = max_image_size
        self.collator = processor_omnigen.OmniGenCollator()


def omnigen() -> Tiny:
    """Words and image in one sequence; both branches are made whatever the scale is."""
    parts = {"scheduler": flow(), "vae": image_vae(), "tokenizer": tokenizer()}
    with mock.patch.object(pipeline_omnigen, "OmniGenMultiModalProcessor", Words, create=True):
        pipe = diffusers.OmniGenPipeline(model("OmniGenTransformer2DModel", vocab_size=128), **parts)
    return tiny(pipe, {"height": 96}, NOTHING, prompt="a red circle", height=64, width=64, guidance_scale=2.5)


# Kandinsky


def kandinsky_prior(kind: str, **more: Any) -> Tiny:
    """What it denoises is the embedding of an image, in one doubled batch."""
    torch.manual_seed(2)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    words = CLIPTextConfig(
        **sizes, projection_dim=16, vocab_size=128, max_position_embeddings=16, bos_token_id=0, eos_token_id=1
    )
    pictures = CLIPVisionConfig(**sizes, projection_dim=16, image_size=8, patch_size=4)
    pipe = getattr(diffusers, kind)(
        prior=model("PriorTransformer", num_embeddings=16),
        image_encoder=CLIPVisionModelWithProjection(pictures).eval(),
        text_encoder=CLIPTextModelWithProjection(words).eval(),
        tokenizer=tokenizer(model_max_length=16),
        scheduler=diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0
        ),
        image_processor=None,
    )
    return tiny(pipe, NOTHING, prompt="a red circle", guidance_scale=4.0, output_type="pt", **more)


def kandinsky1_prior() -> Tiny:
    return kandinsky_prior("KandinskyPriorPipeline")


def kandinsky22_prior() -> Tiny:
    return kandinsky_prior("KandinskyV22PriorPipeline")


def kandinsky5(kind: str, vae: Any = None, visual_cond: bool = True, **given: Any) -> Tiny:
    """Sequential branches; the condition's channels and a mask follow the latent's."""
    pipe = getattr(diffusers, kind)(
        transformer=model("Kandinsky5Transformer3DModel", visual_cond=visual_cond, num_text_blocks=2),
        vae=vae,
        **NO_ENCODER,
        text_encoder_2=None,
        tokenizer_2=None,
        scheduler=flow(shift=5.0),
    )
    pipe.resolutions = [(32, 32), (32, 48)]  # those of the pipelines for images are megapixels
    prompts = {}
    for seed, name in enumerate(("prompt", "negative_prompt")):
        prompts[f"{name}_embeds_qwen"] = randn(1, 5, 16, seed=seed)
        prompts[f"{name}_embeds_clip"] = randn(1, 8, seed=seed + 2)

    def arguments(batch: int) -> dict[str, Any]:
        ends = torch.arange(batch + 1) * 5
        return {
            **{name: repeat(value, batch) for name, value in prompts.items()},
            "prompt_cu_seqlens": ends,
            "negative_prompt_cu_seqlens": ends,
            "height": 32,
            "width": 32,
            **given,
            **({"image": [picture()] * batch} if vae else {}),
        }

    return Tiny(quiet(pipe), arguments, {"height": 48}, unguided=UNGUIDED)


def kandinsky5_t2v() -> Tiny:
    return kandinsky5("Kandinsky5T2VPipeline", num_frames=9)


def kandinsky5_i2v() -> Tiny:
    """The first frame is the image's, and no step changes it."""
    # the pipeline scales the first four latent frames by those that follow them
    return kandinsky5("Kandinsky5I2VPipeline", pipelines.hunyuan().pipe.vae.eval(), num_frames=21)


def kandinsky5_t2i() -> Tiny:
    return kandinsky5("Kandinsky5T2IPipeline", visual_cond=False)


def kandinsky5_i2i() -> Tiny:
    return kandinsky5("Kandinsky5I2IPipeline", image_vae())


def kandinsky6() -> Tiny:
    """Video and sound, each with a noise scheduler of its own."""
    torch.manual_seed(1)
    audio_vae = diffusers.MMAudioVAE(
        mel_bins=8,
        latent_channels=4,
        hidden_channels=8,
        channel_multipliers=(1, 2),
        layers_per_block=1,
        sample_rate=8000,
        n_fft=256,
        hop_length=256,
    )
    vocoder = diffusers.MMAudioVocoder(
        num_mels=8,
        upsample_initial_channel=8,
        upsample_rates=(2, 2),
        upsample_kernel_sizes=(4, 4),
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1,),),
    )
    pipe = diffusers.Kandinsky6TI2VAPipeline(
        transformer=model("Kandinsky6Transformer3DModel", num_text_blocks=2),
        vae=None,
        **NO_ENCODER,
        text_encoder_2=None,
        tokenizer_2=None,
        scheduler=flow(shift=5.0),
        audio_vae=audio_vae.eval(),
        vocoder=vocoder.eval(),
    )
    pooled = {"pooled_prompt_embeds": randn(1, 8, seed=2), "negative_pooled_prompt_embeds": randn(1, 8, seed=3)}
    size = {"height": 32, "width": 32, "num_frames": 9}
    return tiny(pipe, {"height": 48}, **embeds(6, 8), **pooled, **size, guidance_scale=5.0)


def kandinsky6_sr() -> Tiny:
    """No prompt; two tiles of the video one after the other, with as many steps each."""
    torch.manual_seed(1)
    vae = diffusers.Kandinsky6SRVAE(
        latent_channels=4,
        encoder_block_out_channels=(4, 4, 4),
        decoder_block_out_channels=(4, 4, 4),
        layers_per_block=1,
    )
    pipe = diffusers.Kandinsky6SRPipeline(
        transformer=model("Kandinsky6SRTransformer3DModel", patch_size=(1, 1, 1), tile_sizes=((32, 32),)),
        vae=vae.eval(),
        scheduler=flow(),
    )
    video, taller = randn(1, 5, 3, 24, 16).sigmoid(), randn(1, 5, 3, 32, 16).sigmoid()
    more = {"resolution_scale": 2, "output_type": "pt"}
    return tiny(pipe, {"video": taller}, NOTHING, ("video",), video=video, **more)


# video and sound


def ltx_i2v() -> Tiny:
    """The tokens of the first frame have a timestep of zero, and stay."""
    return like(pipelines.ltx(), "LTXImageToVideoPipeline", image=picture())


def ltx_condition() -> Tiny:
    """Each token has a timestep."""
    return like(pipelines.ltx(), "LTXConditionPipeline", image=picture())


def like(made: Tiny, kind: str, **more: Any) -> Tiny:
    """Another pipeline of the same components and arguments."""
    pipe = getattr(diffusers, kind)(**made.pipe.components)
    return Tiny(quiet(pipe), lambda batch: {**made.arguments(batch), **more}, made.other_size, unguided=made.unguided)


def ltx_long() -> Tiny:
    """Two windows of frames one after the other, with a prompt each; one video at a time.

    A window takes one step fewer than asked for: the pipeline leaves out the last timestep.
    """
    parts = pipelines.ltx().pipe.components
    pipe = diffusers.LTXI2VLongMultiPromptPipeline(
        **{
            **parts,
            "scheduler": diffusers.LTXEulerAncestralRFScheduler(),
            "text_encoder": Reader(32),
            "tokenizer": tokenizer(),
        }
    )
    given = {
        "prompt": "a red circle | a blue square",
        "negative_prompt": "grey",
        "max_sequence_length": 16,
        "cond_image": picture(),
        "height": 32,
        "width": 32,
        "num_frames": 17,
        "temporal_tile_size": 12,
        "temporal_overlap": 4,
        "guidance_scale": 3.0,
        "seed": None,
    }
    return Tiny(quiet(pipe), lambda batch: given, {"height": 64}, unguided=UNGUIDED)


STREAMS = ("", "audio_")
LTX2_UNGUIDED = {
    f"{stream}{name}": value
    for stream in STREAMS
    for name, value in {"guidance_scale": 1.0, "stg_scale": 0.0, "modality_scale": 1.0}.items()
}


def ltx2(kind: str = "LTX2Pipeline", scheduler: Any = None, config: dict[str, Any] = NOTHING, **more: Any) -> Tiny:
    """Video and sound; a doubled batch, then a call that skips a block's attention, and one that parts the streams."""
    torch.manual_seed(1)
    vae = diffusers.AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8,),
        down_block_types=("LTX2VideoDownBlock3D",),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatiotemporal",),
        upsample_type=("spatiotemporal",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        decoder_causal=False,
    )
    audio_vae = diffusers.AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2, mel_bins=8
    )
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "num_learnable_registers": None}
    connectors = LTX2TextConnectors(
        caption_channels=16,
        text_proj_in_factor=1,
        connector_rope_base_seq_len=32,
        rope_double_precision=False,
        **{f"{stream}_connector_{name}": value for stream in ("video", "audio") for name, value in sizes.items()},
    )
    vocoder = LTX2Vocoder(
        in_channels=16,
        hidden_channels=8,
        upsample_kernel_sizes=[4],
        upsample_factors=[2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1]],
    )
    pipe = getattr(diffusers, kind)(
        scheduler=scheduler or flow(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1),
        vae=vae.eval(),
        audio_vae=audio_vae.eval(),
        **NO_ENCODER,
        connectors=drawn(connectors),
        transformer=model("LTX2VideoTransformer3DModel", perturbed_attn=True, **config),  # or nothing is skipped
        vocoder=vocoder.eval(),
    )
    given = {"height": 32, "width": 32, "num_frames": 9, "spatio_temporal_guidance_blocks": [1]}
    return tiny(pipe, {"height": 64}, LTX2_UNGUIDED, **embeds(6, 16), **masks(6), **{**given, **more})


def ltx2_i2v() -> Tiny:
    return ltx2("LTX2ImageToVideoPipeline", image=picture(), image_crf=0)


def ltx2_condition() -> Tiny:
    """A frame is given at the end."""
    return ltx2("LTX2ConditionPipeline", conditions=LTX2VideoCondition(picture(), index=-1, crf=0))


def ltx2_in_context() -> Tiny:
    """The tokens of a reference video follow the latent's."""
    return ltx2("LTX2InContextPipeline", reference_conditions=LTX2ReferenceCondition(clip(9)))


def ltx2_hdr() -> Tiny:
    return ltx2(
        "LTX2HDRPipeline",
        reference_conditions=LTX2HDRReferenceCondition(clip(9)),
        guidance_scale=3.0,
        stg_scale=1.0,
        modality_scale=3.0,
    )


def ltx2_dfr() -> Tiny:
    """Distilled: eight sigmas of its own and no guidance; slots for keyframes follow the latent's tokens."""
    made = ltx2("LTX2DFRPipeline", flow(), {"use_keyframes_abs_pos_embedding": True})
    return Tiny(made.pipe, made.arguments, made.other_size)


def latte() -> Tiny:
    """Spatial and temporal blocks take turns; the prediction has a variance, which the pipeline drops."""
    pipe = diffusers.LattePipeline(
        **NO_ENCODER, vae=None, transformer=model("LatteTransformer3DModel"), scheduler=diffusers.DDIMScheduler()
    )
    size = {"height": 64, "width": 64, "video_length": 2}
    return tiny(pipe, {"height": 96}, **embeds(5, 16), negative_prompt=None, **size, guidance_scale=7.5)


def longcat_audio() -> Tiny:
    torch.manual_seed(1)
    sizes = {"channels": 4, "c_mults": [1, 2], "strides": [2], "latent_dim": 8, "encoder_latent_dim": 16}
    vae = diffusers.LongCatAudioDiTVae(**sizes, downsampling_ratio=2, sample_rate=16)
    pipe = diffusers.LongCatAudioDiTPipeline(
        vae=vae.eval(),
        text_encoder=Reader(32),
        tokenizer=tokenizer(),
        transformer=model("LongCatAudioDiTTransformer"),
        scheduler=flow(shift=1.0, invert_sigmas=True),
    )
    return tiny(pipe, {"audio_duration_s": 3.0}, prompt="a drum", negative_prompt="hum", audio_duration_s=2.0)


def lucy() -> Tiny:
    """The video to edit lies beside the latent's channels; a timestep for each token."""
    torch.manual_seed(0)
    pipe = diffusers.LucyEditPipeline(
        **NO_ENCODER,
        vae=wan_vae().eval(),
        scheduler=unipc(),
        transformer=drawn(diffusers.WanTransformer3DModel(**{**WAN, "in_channels": 8})),
        expand_timesteps=True,
    )
    size = {"height": 32, "width": 32, "num_frames": 9}
    return tiny(pipe, {"height": 48}, each=("video",), **embeds(8, 16), video=clip(9), **size, guidance_scale=5.0)


def mochi() -> Tiny:
    """Its noise scheduler counts sigmas upwards."""
    pipe = unusual.mochi().pipe
    torch.manual_seed(1)
    drawn(pipe.transformer)
    prompts = {**embeds(16, 16), **masks(16, kind=torch.bool)}
    return tiny(pipe, {"height": 32}, **prompts, height=16, width=16, num_frames=7, guidance_scale=4.5)


def motif(kind: str, config: dict[str, Any] = NOTHING, *, parts: dict[str, Any] = NO_ENCODER, **more: Any) -> Tiny:
    """A guider of diffusers calls the branches."""
    torch.manual_seed(1)
    pipe = getattr(diffusers, kind)(
        scheduler=flow(),
        vae=wan_vae().eval(),
        transformer=model("MotifVideoTransformer3DModel", **config),
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=4.0),
        **parts,
    )
    size = {"height": 32, "width": 32, "num_frames": 9}
    return tiny(pipe, {"height": 48}, NOTHING, **embeds(5, 16), **masks(5), **size, **more)


def motif_t2v() -> Tiny:
    return motif("MotifVideoPipeline")


def motif_i2v() -> Tiny:
    """A mask and the first frame beside the latent's channels; the text encoder sees that frame, too."""
    encoder = Reader(16)
    config = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder.vision_tower = SiglipVisionModel(SiglipVisionConfig(**config, image_size=8, patch_size=4))
    parts = {
        "text_encoder": encoder.eval(),
        "tokenizer": None,
        "feature_extractor": SiglipImageProcessorPil(size={"height": 8, "width": 8}),
    }
    given = {"prompt": None, "image": picture()}
    made = motif("MotifVideoImage2VideoPipeline", {"image_embed_dim": 8}, parts=parts, **given)
    # the pipeline fails at a larger batch: it repeats the condition too seldom, and the mask too often
    return Tiny(made.pipe, lambda batch: made.arguments(1), made.other_size)


PIPELINES: dict[str, Callable[[], Tiny]] = {
    "Ideogram4Pipeline": ideogram4,
    "JoyImageEditPipeline": joy_edit,
    "JoyImageEditPlusPipeline": joy_edit_plus,
    "Kandinsky5I2IPipeline": kandinsky5_i2i,
    "Kandinsky5I2VPipeline": kandinsky5_i2v,
    "Kandinsky5T2IPipeline": kandinsky5_t2i,
    "Kandinsky5T2VPipeline": kandinsky5_t2v,
    "Kandinsky6SRPipeline": kandinsky6_sr,
    "Kandinsky6TI2VAPipeline": kandinsky6,
    "KandinskyPriorPipeline": kandinsky1_prior,
    "KandinskyV22PriorPipeline": kandinsky22_prior,
    "Krea2Pipeline": krea2,
    "LTX2ConditionPipeline": ltx2_condition,
    "LTX2DFRPipeline": ltx2_dfr,
    "LTX2HDRPipeline": ltx2_hdr,
    "LTX2ImageToVideoPipeline": ltx2_i2v,
    "LTX2InContextPipeline": ltx2_in_context,
    "LTX2Pipeline": ltx2,
    "LTXConditionPipeline": ltx_condition,
    "LTXI2VLongMultiPromptPipeline": ltx_long,
    "LTXImageToVideoPipeline": ltx_i2v,
    "LTXPipeline": pipelines.ltx,
    "LattePipeline": latte,
    "LongCatAudioDiTPipeline": longcat_audio,
    "LongCatImageEditPipeline": longcat_edit,
    "LongCatImagePipeline": longcat_image,
    "LucyEditPipeline": lucy,
    "Lumina2Pipeline": lumina2,
    "LuminaPipeline": lumina,
    "MochiPipeline": mochi,
    "MotifVideoImage2VideoPipeline": motif_i2v,
    "MotifVideoPipeline": motif_t2v,
    "NucleusMoEImagePipeline": nucleus,
    "OmniGenPipeline": omnigen,
    "OvisImagePipeline": ovis,
}

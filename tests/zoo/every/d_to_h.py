"""Tiny pipelines of diffusers, DiT to Hunyuan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from attrs import evolve
from PIL import Image
from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

from tests.zoo import pipelines
from tests.zoo.architectures import TRANSFORMERS, embeds
from tests.zoo.denoisers import DOUBLE, HEADS, ROWS, drawn
from tests.zoo.every.a_to_c import NO_ENCODER, TALLER, UNGUIDED, Mean, flow, masks, model, picture, tiny, vae
from tests.zoo.pipelines import unipc, wan_vae
from tests.zoo.tiny import Tiny, quiet, randn, repeat

SQUARE = {"height": 32, "width": 32}


def mask(size: int = 32) -> Image.Image:
    """Its left half is to be painted."""
    made = Image.new("L", (size, size))
    made.paste(255, (0, 0, size // 2, size))
    return made


def dit() -> Tiny:
    """Classes instead of prompts; half of the output is a variance that the pipeline drops. It returns pictures."""
    pipe = diffusers.DiTPipeline(
        transformer=model("DiTTransformer2DModel"), vae=vae(), scheduler=diffusers.DDIMScheduler()
    )
    return evolve(
        tiny(pipe, {}),
        arguments=lambda batch: {"class_labels": [1] * batch, "guidance_scale": 4.0, "output_type": "pt"},
        unguided=UNGUIDED,
    )


class MendedControl(diffusers.EasyAnimateControlPipeline):
    """Its `__call__` gives its `encode_prompt` an argument that this one does not take: as it is, it cannot run."""

    def encode_prompt(self, *args: Any, text_encoder_index: int = 0, **kwargs: Any) -> Any:
        return super().encode_prompt(*args, **kwargs)


def easy_animate(kind: type = diffusers.EasyAnimatePipeline, in_channels: int = 4, **more: Any) -> Tiny:
    torch.manual_seed(1)
    autoencoder = diffusers.AutoencoderKLMagvit(
        latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2
    )
    pipe = kind(
        **NO_ENCODER,
        vae=autoencoder.eval(),
        transformer=model("EasyAnimateTransformer3DModel", in_channels=in_channels, resize_inpaint_mask_directly=False),
        scheduler=flow(),
    )
    return tiny(pipe, TALLER, **embeds(5, 16), **masks(5), **SQUARE, num_frames=9, **more)


def easy_animate_control() -> Tiny:
    """The latent of a control video, then the one of a reference image, join the channels."""
    given = {"control_video": randn(1, 3, 9, 32, 32).sigmoid(), "ref_image": randn(1, 3, 1, 32, 32, seed=2).sigmoid()}
    return easy_animate(MendedControl, 12, **given, each=tuple(given))


def easy_animate_inpaint() -> Tiny:
    """A mask's latent, then the masked video's, join the channels."""
    given = {"video": randn(1, 3, 9, 32, 32).sigmoid(), "mask_video": (randn(1, 1, 9, 32, 32) > 0) * 255.0}
    return easy_animate(diffusers.EasyAnimateInpaintPipeline, 12, **given, each=tuple(given))


def ernie() -> Tiny:
    pipe = diffusers.ErnieImagePipeline(
        **NO_ENCODER, vae=None, transformer=model("ErnieImageTransformer2DModel"), scheduler=flow(shift=3.0)
    )
    return tiny(pipe, {"height": 64}, **embeds(5, 16), **SQUARE)


def shifting(**config: Any) -> Any:
    """As Flux has it: the more tokens, the more noise."""
    return flow(use_dynamic_shifting=True, shift=3.0, **config)


def flux2(kind: str, guidance_embeds: bool = False, **more: Any) -> Tiny:
    transformer = model(
        "Flux2Transformer2DModel",
        in_channels=8,
        **DOUBLE,
        **HEADS,
        joint_attention_dim=16,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )
    torch.manual_seed(1)
    autoencoder = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 4, 4),
        layers_per_block=1,
        latent_channels=2,
        norm_num_groups=1,
        sample_size=32,
    )
    pipe = getattr(diffusers, kind)(**NO_ENCODER, vae=autoencoder.eval(), transformer=transformer, scheduler=shifting())
    return tiny(pipe, TALLER, **{"prompt_embeds": randn(1, 6, 16), **SQUARE, **more})


def flux2_text() -> Tiny:
    """Embedded guidance."""
    return evolve(flux2("Flux2Pipeline", guidance_embeds=True), unguided={})


def flux2_klein() -> Tiny:
    return flux2("Flux2KleinPipeline", **embeds(6, 16))


def flux2_klein_kv() -> Tiny:
    """No guidance; the first step fills a cache with keys and values of the reference image, the others read it."""
    # smaller images are refused
    return evolve(flux2("Flux2KleinKVPipeline", image=picture(64)), unguided={})


def flux2_klein_inpaint() -> Tiny:
    """The image's tokens follow those of the latent, and a second image's. Starts at the third of eight steps."""
    given = {"image": picture(), "mask_image": mask(), "image_reference": picture(seed=1), "strength": 0.8}
    # the size is the image's
    return evolve(flux2("Flux2KleinInpaintPipeline", **embeds(6, 16), **given), other_size={"image": picture(48)})


def flux(kind: str, in_channels: int = 8, **more: Any) -> Tiny:
    """Embedded guidance; the latent has two channels, a token eight."""
    return flux_with(kind, flux_transformer(in_channels), **more)


def flux_config(in_channels: int = 8) -> dict[str, Any]:
    return {
        "in_channels": in_channels,
        **DOUBLE,
        **HEADS,
        "joint_attention_dim": 16,
        "pooled_projection_dim": 16,
        "axes_dims_rope": (4, 4, 8),
        "guidance_embeds": True,
    }


def flux_transformer(in_channels: int = 8, **changes: Any) -> Any:
    return model("FluxTransformer2DModel", **{**flux_config(in_channels), "out_channels": 8, **changes})


def flux_with(kind: str, transformer: Any, parts: dict[str, Any] | None = None, **more: Any) -> Tiny:
    pipe = getattr(diffusers, kind)(
        scheduler=shifting(),
        vae=vae(2, 3),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
        **(parts or {}),
    )
    prompt = {"prompt_embeds": randn(1, 6, 16), "pooled_prompt_embeds": randn(1, 16, seed=3)}
    pooled = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    return tiny(pipe, TALLER, {}, pooled, **{**prompt, **SQUARE, **more})


def flux_true_guidance() -> Tiny:
    """Two calls a step, none of them told a guidance scale."""
    tried = flux_with(
        "FluxPipeline",
        flux_transformer(guidance_embeds=False),
        negative_prompt_embeds=randn(1, 6, 16, seed=4),
        negative_pooled_prompt_embeds=randn(1, 16, seed=5),
        true_cfg_scale=3.0,
    )
    return evolve(tried, unguided={"true_cfg_scale": 1.0})


STRENGTH = {"strength": 0.6}
"""Starts at the fourth of eight steps."""


def flux_img2img() -> Tiny:
    return flux("FluxImg2ImgPipeline", image=picture(), **STRENGTH)


def flux_inpaint() -> Tiny:
    """Puts the image back beside the mask after each step."""
    return flux("FluxInpaintPipeline", image=picture(), mask_image=mask(), **STRENGTH)


def flux_control() -> Tiny:
    """The control image's channels follow those of the latent."""
    return flux("FluxControlPipeline", 16, control_image=picture(seed=1))


def flux_control_img2img() -> Tiny:
    return flux("FluxControlImg2ImgPipeline", 16, image=picture(), control_image=picture(seed=1), **STRENGTH)


def flux_control_inpaint() -> Tiny:
    given = {"image": picture(), "mask_image": mask(), "control_image": picture(seed=1)}
    return flux("FluxControlInpaintPipeline", 16, **given, **STRENGTH)


def flux_controlnet(kind: str = "FluxControlNetPipeline", **more: Any) -> Tiny:
    """What a ControlNet found is added after each block."""
    torch.manual_seed(2)
    controlnet = drawn(diffusers.FluxControlNetModel(**flux_config()))
    parts = {"controlnet": controlnet}
    return flux_with(kind, flux_transformer(), parts, control_image=picture(seed=1), **more)


def flux_controlnet_img2img() -> Tiny:
    return flux_controlnet("FluxControlNetImg2ImgPipeline", image=picture(), **STRENGTH)


def flux_controlnet_inpaint() -> Tiny:
    return flux_controlnet("FluxControlNetInpaintPipeline", image=picture(), mask_image=mask(), **STRENGTH)


def flux_fill() -> Tiny:
    """The masked image's channels, then the mask's 64 (16 pixels a latent one, four of these a token), join."""
    return flux("FluxFillPipeline", 80, image=picture(), mask_image=mask())


# else the image would grow to a megapixel
KONTEXT = {"max_area": 32 * 32, "_auto_resize": False}


def flux_kontext() -> Tiny:
    """The image's tokens follow those of the latent."""
    made = flux("FluxKontextPipeline", image=picture(), **KONTEXT)
    return evolve(made, other_size={"height": 48, "max_area": 48 * 32})


def flux_kontext_inpaint() -> Tiny:
    given = {"image": picture(), "mask_image": mask(), "image_reference": picture(seed=1), "strength": 0.8}
    made = flux("FluxKontextInpaintPipeline", **given, **KONTEXT)
    # the size is the image's
    return evolve(made, other_size={"image": picture(48)})


def glm() -> Tiny:
    """A language model's image tokens, given here, go into the image's at the start; without them where unguided."""
    pipe = diffusers.GlmImagePipeline(
        **NO_ENCODER,
        processor=None,
        vision_language_encoder=None,
        vae=None,
        transformer=model("GlmImageTransformer2DModel"),
        scheduler=flow(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, time_shift_type="linear"),
    )
    prior = ("prior_token_ids",)
    taller = {"height": 64, "prior_token_ids": torch.arange(8)[None]}
    return tiny(pipe, taller, each=prior, **embeds(5, 16), **SQUARE, prior_token_ids=torch.arange(4)[None])


def helios(kind: str, scheduler: Any, more: dict[str, Any], **config: Any) -> Tiny:
    """Two chunks of frames one after the other; tokens of the first stand beside those of the second."""
    pipe = getattr(diffusers, kind)(
        **NO_ENCODER,
        vae=wan_vae().eval(),
        transformer=model("HeliosTransformer3DModel"),
        scheduler=scheduler,
        **config,
    )
    given = {**SQUARE, "num_frames": 18, "num_latent_frames_per_chunk": 3, "history_sizes": [4, 2, 1], **more}
    return tiny(pipe, TALLER, **{**embeds(5, 16), **given})


def helios_base() -> Tiny:
    """Eight steps a chunk."""
    scheduler = diffusers.HeliosScheduler(stages=1, stage_range=[0, 1], use_dynamic_shifting=True)
    return helios("HeliosPipeline", scheduler, {})


# eight steps a chunk, whatever number of them is asked for; a quarter of a smaller side is one patch, for which the
# pipeline's views fail
PYRAMID = {"pyramid_num_inference_steps_list": [3, 3, 2], "height": 128, "width": 128}
# a third, the default, makes a matrix singular that the pipeline factorizes
GAMMA = 0.33


def helios_pyramid() -> Tiny:
    """The latent grows from a quarter of its side to a half and to the whole; guidance as in CFG-Zero*."""
    scheduler = diffusers.HeliosScheduler(gamma=GAMMA)
    made = helios("HeliosPyramidPipeline", scheduler, PYRAMID, is_cfg_zero_star=True)
    return evolve(made, other_size={"height": 192})


def helios_distilled() -> Tiny:
    """No guidance, a DMD noise scheduler that goes back to each stage's start."""
    scheduler = diffusers.HeliosDMDScheduler(gamma=GAMMA)
    given = {**PYRAMID, "guidance_scale": 1.0, "negative_prompt_embeds": None}
    made = helios("HeliosPyramidPipeline", scheduler, given, is_distilled=True)
    return evolve(made, other_size={"height": 192}, unguided={})


def hidream() -> Tiny:
    """A layer of the language model for each block; mixtures of experts; what it predicts is negated."""
    transformer = model("HiDreamImageTransformer2DModel", num_layers=2, num_single_layers=2, llama_layers=[0, 1, 2, 3])
    pipe = diffusers.HiDreamImagePipeline(
        scheduler=unipc(),
        vae=None,
        **NO_ENCODER,
        **{f"{part}_{which}": None for part in ("text_encoder", "tokenizer") for which in (2, 3, 4)},
        transformer=transformer,
    )
    # every image is brought to the area of a square of so many latent pixels
    pipe.default_sample_size = 4

    def arguments(batch: int) -> dict[str, Any]:
        # the pipeline repeats the embeddings for all pooled ones
        return {
            "prompt_embeds_t5": randn(1, 5, 16),
            "prompt_embeds_llama3": randn(4, 1, 5, 16, seed=1),
            "pooled_prompt_embeds": repeat(randn(1, 8, seed=2), batch),
            "negative_prompt_embeds_t5": randn(1, 5, 16, seed=3),
            "negative_prompt_embeds_llama3": randn(4, 1, 5, 16, seed=4),
            "negative_pooled_prompt_embeds": repeat(randn(1, 8, seed=5), batch),
            **SQUARE,
        }

    return Tiny(quiet(pipe), arguments, {"height": 64, "width": 16}, unguided=UNGUIDED)


def two_prompts(lengths: tuple[int, int], sizes: tuple[int, int], mask_name: str) -> dict[str, Any]:
    """The embeddings of two text encoders, and masks of that name."""
    given: dict[str, Any] = {}
    for suffix, length, size in zip(("", "_2"), lengths, sizes, strict=True):
        ones = {f"{prompt}_{mask_name}": torch.ones(1, length) for prompt in ("prompt", "negative_prompt")}
        given |= {name + suffix: value for name, value in {**embeds(length, size), **ones}.items()}
    return given


def hunyuan_dit(kind: str = "HunyuanDiTPipeline", parts: dict[str, Any] | None = None, **more: Any) -> Tiny:
    """Later blocks see what earlier ones gave; a noise scheduler that draws."""
    pipe = getattr(diffusers, kind)(
        **NO_ENCODER,
        vae=vae(4, 4, Mean),
        transformer=model("HunyuanDiT2DModel", num_layers=6),
        scheduler=diffusers.DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.03,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            clip_sample=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **(parts or {}),
    )
    prompts = two_prompts((5, 6), (16, 16), "attention_mask")
    # else the size becomes a megapixel's
    return tiny(pipe, TALLER, each=tuple(prompts), **prompts, **SQUARE, use_resolution_binning=False, **more)


def hunyuan_dit_pag() -> Tiny:
    """A third branch, whose second block attends to nothing but itself."""
    made = hunyuan_dit("HunyuanDiTPAGPipeline", {"pag_applied_layers": ["blocks.1"]}, pag_scale=3.0)
    return evolve(made, unguided={"guidance_scale": 1.0, "pag_scale": 0.0})


def hunyuan_dit_controlnet() -> Tiny:
    """What the ControlNet found is added to what the later blocks see of earlier ones."""
    config = {name: value for name, value in ROWS["HunyuanDiT2DModel"].config.items() if name != "num_layers"}
    torch.manual_seed(2)
    controlnet = drawn(diffusers.HunyuanDiT2DControlNetModel(**config, transformer_num_layers=6))
    return hunyuan_dit("HunyuanDiTControlNetPipeline", {"controlnet": controlnet}, control_image=picture())


def hunyuan_image() -> Tiny:
    """A guider, which nothing in a call switches off; it projects from the sixth step on."""
    pipe = diffusers.HunyuanImagePipeline(
        scheduler=flow(shift=5.0),
        vae=None,
        **NO_ENCODER,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=model("HunyuanImageTransformer2DModel", text_embed_2_dim=8),
        guider=diffusers.AdaptiveProjectedMixGuidance(),
        ocr_guider=diffusers.AdaptiveProjectedMixGuidance(),
    )
    prompts = two_prompts((5, 4), (16, 8), "embeds_mask")
    return evolve(tiny(pipe, {"height": 192}, each=tuple(prompts), **prompts, height=128, width=128), unguided={})


def hunyuan_image_refiner() -> Tiny:
    """The image's latent, with noise, follows that of the noise, both as one frame."""
    torch.manual_seed(1)
    autoencoder = diffusers.AutoencoderKLHunyuanImageRefiner(
        latent_channels=2,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
    )
    pipe = diffusers.HunyuanImageRefinerPipeline(
        scheduler=flow(shift=4.0),
        vae=autoencoder.eval(),
        **NO_ENCODER,
        transformer=model(
            "HunyuanImageTransformer2DModel",
            in_channels=8,
            patch_size=(1, 1, 1),
            rope_axes_dim=(4, 6, 6),
            guidance_embeds=True,
        ),
        guider=diffusers.AdaptiveProjectedMixGuidance(),
    )
    prompts = {**embeds(5, 16), "prompt_embeds_mask": torch.ones(1, 5), "negative_prompt_embeds_mask": torch.ones(1, 5)}
    return evolve(tiny(pipe, TALLER, each=tuple(prompts), **prompts, image=picture(), **SQUARE), unguided={})


def changed(transformer: Any, **config: Any) -> Any:
    """A transformer of that class with some of its configuration changed."""
    old = {name: value for name, value in transformer.config.items() if not name.startswith("_")}
    return type(transformer)(**{**old, **config})


def hunyuan_video(kind: str, given: dict[str, Any], parts: dict[str, Any] | None = None, **config: Any) -> Tiny:
    """With the parts of the pipeline from text to video, but for changes in the transformer's configuration."""
    parts = {**pipelines.hunyuan().pipe.components, **(parts or {})}
    if config:
        torch.manual_seed(0)
        old = parts["transformer"]
        parts["transformer"] = drawn(changed(old, **config))
    pipe = getattr(diffusers, kind)(**parts)
    prompt = {
        "prompt_embeds": randn(1, 6, 16),
        "pooled_prompt_embeds": randn(1, 8, seed=3),
        "prompt_attention_mask": torch.ones(1, 6),
        "negative_prompt_embeds": randn(1, 6, 16, seed=4),
        "negative_pooled_prompt_embeds": randn(1, 8, seed=5),
        "negative_prompt_attention_mask": torch.ones(1, 6),
    }
    embedded = "true_cfg_scale" not in given
    if embedded:
        prompt = {name: value for name, value in prompt.items() if not name.startswith("negative")}
    given = {**prompt, "image": picture(), **SQUARE, "num_frames": 9, **given}
    off = {} if embedded else {"true_cfg_scale": 1.0}
    return tiny(pipe, TALLER, off, (*prompt, "image"), **given)


def hunyuan_skyreels() -> Tiny:
    """Two calls a step; the image's channels follow those of the latent."""
    return hunyuan_video("HunyuanSkyreelsImageToVideoPipeline", {"true_cfg_scale": 6.0}, in_channels=8)


def hunyuan_image_to_video() -> Tiny:
    """The image's latent takes the first frame's place; embedded guidance."""
    parts = {"image_processor": None}
    return hunyuan_video("HunyuanVideoImageToVideoPipeline", {}, parts, image_condition_type="token_replace")


def hunyuan_image_to_video_concat() -> Tiny:
    """The image's channels and a mask follow those of the latent; two calls a step."""
    return hunyuan_video(
        "HunyuanVideoImageToVideoPipeline",
        {"true_cfg_scale": 3.0},
        {"image_processor": None},
        in_channels=9,
        guidance_embeds=False,
        image_condition_type="latent_concat",
    )


def siglip() -> dict[str, Any]:
    """What sees an image: its embedding's size is 12."""
    torch.manual_seed(2)
    sizes = {"image_size": 8, "patch_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2}
    encoder = SiglipVisionModel(SiglipVisionConfig(hidden_size=12, intermediate_size=16, **sizes))
    processor = SiglipImageProcessorPil(size={"height": 8, "width": 8})
    return {"image_encoder": encoder.eval(), "feature_extractor": processor}


def drawn_transformer(name: str) -> Any:
    """The transformer of that name with its weights drawn."""
    torch.manual_seed(0)
    return drawn(TRANSFORMERS[name]()[0])


def framepack() -> Tiny:
    """Two sections, the last one first; eight steps each."""
    parts = {"transformer": drawn_transformer("framepack"), **siglip(), "scheduler": shifting()}
    # fewer latent pixels than 8x8 are too few for the patches of the history
    given = {"height": 64, "width": 64, "num_frames": 18, "latent_window_size": 3, "image": picture(64)}
    return evolve(hunyuan_video("HunyuanVideoFramepackPipeline", given, parts), other_size={"height": 96})


def hunyuan15(kind: str, parts: dict[str, Any], target_size: int = 16, **given: Any) -> Tiny:
    """A guider calls the branches, which nothing in a call switches off."""
    torch.manual_seed(0)
    old = TRANSFORMERS["hunyuan15"]()[0]
    transformer = drawn(changed(old, target_size=target_size))
    autoencoder = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8,) * 5, spatial_compression_ratio=16, layers_per_block=1
    )
    pipe = getattr(diffusers, kind)(
        **NO_ENCODER,
        transformer=transformer,
        vae=autoencoder.eval(),
        scheduler=flow(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=4.0),
        **parts,
    )
    prompts = two_prompts((5, 4), (16, 8), "embeds_mask")
    return evolve(tiny(pipe, {}, each=tuple(prompts), **prompts, num_frames=9, **given), unguided={})


def hunyuan15_text() -> Tiny:
    made = hunyuan15("HunyuanVideo15Pipeline", {}, height=64, width=64)
    return evolve(made, other_size={"height": 96})


def hunyuan15_image() -> Tiny:
    """The size is the image's, brought to the area of a square of 64 pixels."""
    made = hunyuan15("HunyuanVideo15ImageToVideoPipeline", siglip(), 64, image=picture(64))
    return evolve(made, other_size={"image": picture(64).resize((128, 32))})


PIPELINES: dict[str, Callable[[], Tiny]] = {
    "DiTPipeline": dit,
    "EasyAnimatePipeline": easy_animate,
    "EasyAnimateControlPipeline mended": easy_animate_control,
    "EasyAnimateInpaintPipeline": easy_animate_inpaint,
    "ErnieImagePipeline": ernie,
    "Flux2Pipeline": flux2_text,
    "Flux2KleinPipeline": flux2_klein,
    "Flux2KleinKVPipeline": flux2_klein_kv,
    "Flux2KleinInpaintPipeline": flux2_klein_inpaint,
    "FluxPipeline": pipelines.flux,
    "FluxPipeline true_cfg": flux_true_guidance,
    "FluxImg2ImgPipeline": flux_img2img,
    "FluxInpaintPipeline": flux_inpaint,
    "FluxControlPipeline": flux_control,
    "FluxControlImg2ImgPipeline": flux_control_img2img,
    "FluxControlInpaintPipeline": flux_control_inpaint,
    "FluxControlNetPipeline": flux_controlnet,
    "FluxControlNetImg2ImgPipeline": flux_controlnet_img2img,
    "FluxControlNetInpaintPipeline": flux_controlnet_inpaint,
    "FluxFillPipeline": flux_fill,
    "FluxKontextPipeline": flux_kontext,
    "FluxKontextInpaintPipeline": flux_kontext_inpaint,
    "GlmImagePipeline": glm,
    "HeliosPipeline": helios_base,
    "HeliosPyramidPipeline": helios_pyramid,
    "HeliosPyramidPipeline distilled": helios_distilled,
    "HiDreamImagePipeline": hidream,
    "HunyuanDiTPipeline": hunyuan_dit,
    "HunyuanDiTPAGPipeline": hunyuan_dit_pag,
    "HunyuanDiTControlNetPipeline": hunyuan_dit_controlnet,
    "HunyuanImagePipeline": hunyuan_image,
    "HunyuanImageRefinerPipeline": hunyuan_image_refiner,
    "HunyuanVideoPipeline": pipelines.hunyuan,
    "HunyuanSkyreelsImageToVideoPipeline": hunyuan_skyreels,
    "HunyuanVideoImageToVideoPipeline": hunyuan_image_to_video,
    "HunyuanVideoImageToVideoPipeline latent_concat": hunyuan_image_to_video_concat,
    "HunyuanVideoFramepackPipeline": framepack,
    "HunyuanVideo15Pipeline": hunyuan15_text,
    "HunyuanVideo15ImageToVideoPipeline": hunyuan15_image,
}

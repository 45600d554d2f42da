"""Tiny pipelines of diffusers, StableAudio to ZImage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from attrs import evolve
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    Siglip2ImageProcessorPil,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    T5Config,
    T5EncoderModel,
)

from tests.zoo import pipelines
from tests.zoo.architectures import embeds
from tests.zoo.denoisers import DOUBLE, HEADS, ROWS, WAN, drawn
from tests.zoo.every.a_to_c import NO_ENCODER, TALLER, UNGUIDED, Mean, flow, picture
from tests.zoo.pipelines import unipc, wan_vae
from tests.zoo.tiny import Tiny, quiet, randn, repeat


def model(name: str, seed: int = 0, **changes: Any) -> Any:
    """The tiny model of that class, with some of its configuration changed."""
    torch.manual_seed(seed)
    config = ROWS[name].config if name in ROWS else {}
    return drawn(getattr(diffusers, name)(**{**config, **changes}))


PER_PROMPT = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)


def tiny(
    pipe: Any,
    other_size: dict[str, Any],
    unguided: dict[str, Any] | None = None,
    each: tuple[str, ...] = (),
    **given: Any,
) -> Tiny:
    """The pipeline with arguments for a batch of one; a larger one repeats the prompts, and what is named in `each`."""

    def arguments(batch: int) -> dict[str, Any]:
        return {name: batched(value, batch) if name in PER_PROMPT + each else value for name, value in given.items()}

    return Tiny(quiet(pipe), arguments, other_size, unguided=UNGUIDED if unguided is None else unguided)


def batched(value: Any, batch: int) -> Any:
    if isinstance(value, Tensor):
        return repeat(value, batch)
    if isinstance(value, PromptList):
        return value * batch
    return value if batch == 1 else [value] * batch


class PromptList(list):
    """An embedding for each prompt; a larger batch has more of them."""


def video(frames: int, size: int = 32) -> list[Image.Image]:
    return [picture(size, seed) for seed in range(frames)]


def half_mask(size: int = 32) -> Image.Image:
    mask = Image.new("L", (size, size))
    mask.paste(255, (0, 0, size // 2, size))
    return mask


def vae(channels: int, levels: int, kind: type = diffusers.AutoencoderKL) -> Any:
    """An autoencoder that halves an image's side at all levels but the last."""
    torch.manual_seed(1)
    return kind(
        block_out_channels=(4,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=1,
        sample_size=32,
        shift_factor=0.0,
    ).eval()


# Stable Audio


def stable_audio() -> Tiny:
    """One doubled batch of sound, always of one length.

    The scheduler is the one the pipeline is annotated with; `CosineDPMSolverMultistepScheduler` needs torchsde.
    """
    torch.manual_seed(1)
    sound_vae = diffusers.AutoencoderOobleck(
        encoder_hidden_size=4,
        downsampling_ratios=[1, 2],
        decoder_channels=4,
        decoder_input_channels=4,
        channel_multiples=[1, 2],
        sampling_rate=4,
    )
    projection = diffusers.StableAudioProjectionModel(
        text_encoder_dim=16, conditioning_dim=16, min_value=0, max_value=8
    )
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(
        sigma_min=0.3,
        sigma_max=500.0,
        sigma_data=1.0,
        sigma_schedule="exponential",
        solver_order=2,
        prediction_type="v_prediction",
    )
    pipe = diffusers.StableAudioPipeline(
        **NO_ENCODER,
        vae=sound_vae.eval(),
        projection_model=drawn(projection),
        transformer=model("StableAudioDiTModel", global_states_input_dim=32),
        scheduler=scheduler,
    )
    return tiny(pipe, {}, **embeds(5, 16))


def stable_audio3(kind: str, unguided: dict[str, Any] | None = None, stochastic: bool = True, **more: Any) -> Tiny:
    """Noise drawn anew after each step, from the generator given."""
    torch.manual_seed(1)
    sound_vae = diffusers.AutoencoderSAME(
        patch_size=2,
        encoder_channels=8,
        encoder_c_mults=(2,),
        encoder_strides=(2,),
        encoder_transformer_depths=(1,),
        latent_dim=8,
        dim_heads=8,
        sampling_rate=16,
    )
    pipe = getattr(diffusers, kind)(
        **NO_ENCODER,
        vae=drawn(sound_vae),
        duration_embedder=drawn(diffusers.StableAudio3DurationEmbedder(output_dim=16, fourier_dim=8)),
        transformer=model("StableAudio3DiTModel"),
        # the transformer takes times from 0 to 1
        scheduler=flow(num_train_timesteps=1, stochastic_sampling=stochastic),
    )
    return tiny(pipe, {"duration": 3.0}, unguided, prompt_embeds=randn(1, 5, 16), duration=2.0, **more)


GUIDED_SOUND = {"guidance_scale": 4.0, "negative_prompt_embeds": randn(1, 5, 16, seed=4)}


def stable_audio3_text() -> Tiny:
    return stable_audio3("StableAudio3Pipeline", **GUIDED_SOUND)


def stable_audio3_base() -> Tiny:
    """As the checkpoint that is not distilled: Euler's steps."""
    return stable_audio3("StableAudio3Pipeline", stochastic=False, **GUIDED_SOUND)


SOUND = {"audio": randn(1, 2, 32, seed=6), "each": ("audio",)}


def stable_audio3_audio_to_audio() -> Tiny:
    """All eight steps, from less noise; no guidance."""
    return stable_audio3("StableAudio3AudioToAudioPipeline", {}, **SOUND, init_noise_level=0.7)


def stable_audio3_inpaint() -> Tiny:
    """What is kept of the sound enters every block; no guidance."""
    times = {"mask_start_seconds": 0.5, "mask_end_seconds": 1.5}
    return stable_audio3("StableAudio3InpaintPipeline", {}, **SOUND, **times)


# Stable Diffusion 3

SD3 = {
    "sample_size": 16,
    "patch_size": 1,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "caption_projection_dim": 16,
    "joint_attention_dim": 16,
    "pooled_projection_dim": 8,
}


def sd3(kind: str, channels: int = 4, unguided: Any = None, **more: Any) -> Tiny:
    """A ControlNet and the perturbed layers go to the pipeline, the rest into the call."""
    parts = {name: more.pop(name) for name in ("controlnet", "pag_applied_layers") if name in more}
    encoders = {f"{part}{which}": None for part in ("text_encoder", "tokenizer") for which in ("", "_2", "_3")}
    pipe = getattr(diffusers, kind)(
        transformer=model("SD3Transformer2DModel", **{**SD3, "in_channels": channels, "out_channels": channels}),
        scheduler=flow(shift=3.0),
        vae=vae(channels, 4, Mean),
        **encoders,
        **parts,
    )
    pooled = {"pooled_prompt_embeds": randn(1, 8, seed=3), "negative_pooled_prompt_embeds": randn(1, 8, seed=5)}
    return tiny(pipe, TALLER, unguided, **embeds(7, 16), **pooled, height=32, width=32, **more)


def sd3_skip_layers() -> Tiny:
    """In some steps a second call of the transformer, without the middle block, and without the negative prompt."""
    return sd3("StableDiffusion3Pipeline", skip_guidance_layers=[1], skip_layer_guidance_stop=0.5)


def sd3_img2img() -> Tiny:
    """Starts at the fourth of eight steps."""
    return sd3("StableDiffusion3Img2ImgPipeline", image=picture(), strength=0.6)


def sd3_inpaint() -> Tiny:
    """Puts the image back beside the mask after each step; asks for 16 or 33 channels."""
    given = {"image": picture(), "mask_image": half_mask(), "strength": 0.6}
    return sd3("StableDiffusion3InpaintPipeline", channels=16, **given)


def sd3_controlnet() -> Tiny:
    controlnet = model("SD3ControlNetModel", **{**SD3, "num_layers": 2})
    return sd3("StableDiffusion3ControlNetPipeline", controlnet=controlnet, control_image=picture())


def sd3_controlnet_inpaint() -> Tiny:
    controlnet = model("SD3ControlNetModel", **{**SD3, "num_layers": 2}, extra_conditioning_channels=1)
    given = {"control_image": picture(), "control_mask": half_mask()}
    return sd3("StableDiffusion3ControlNetInpaintingPipeline", controlnet=controlnet, **given)


PERTURBED = {"pag_applied_layers": ["blocks.1"], "unguided": {"guidance_scale": 1.0, "pag_scale": 0.0}}


def sd3_pag() -> Tiny:
    """A batch of three: the prompt's a second time, with the attention of one block perturbed."""
    return sd3("StableDiffusion3PAGPipeline", **PERTURBED)


def sd3_pag_img2img() -> Tiny:
    return sd3("StableDiffusion3PAGImg2ImgPipeline", **PERTURBED, image=picture(), strength=0.6)


# Wan

EXPERTS = {"guidance_scale": 4.0, "guidance_scale_2": 3.0}


def wan(kind: str, transformer: Any = None, config: dict[str, Any] | None = None, **more: Any) -> Tiny:
    """`config` goes to the pipeline, the rest into the call."""
    torch.manual_seed(1)
    pipe = getattr(diffusers, kind)(
        **NO_ENCODER,
        vae=wan_vae().eval(),
        transformer=wan_transformer() if transformer is None else transformer,
        scheduler=unipc(),
        **(config or {}),
    )
    return tiny(pipe, TALLER, **embeds(8, 16), height=32, width=32, **more)


def wan_transformer(in_channels: int = 4, **more: Any) -> Any:
    return model("WanTransformer3DModel", **{**WAN, "in_channels": in_channels}, **more)


def experts(in_channels: int = 4) -> dict[str, Any]:
    """Wan 2.2: one transformer for the noisy steps, another with a guidance scale of its own for the rest."""
    return {"transformer_2": wan_transformer(in_channels, seed=1), "boundary_ratio": 0.9}


def wan_two_experts() -> Tiny:
    return wan("WanPipeline", None, experts(), num_frames=9, **EXPERTS)


def wan_token_times() -> Tiny:
    """Wan 2.2 of 5B parameters: each token has a time of its own."""
    return wan("WanPipeline", None, {"expand_timesteps": True}, num_frames=9)


def image_encoder() -> dict[str, Any]:
    torch.manual_seed(1)
    encoder = CLIPVisionModel(CLIPVisionConfig(**VISION, image_size=8, patch_size=4))
    processor = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size=8)
    return {"image_encoder": encoder.eval(), "image_processor": processor}


VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def wan_image_to_video() -> Tiny:
    """Wan 2.1: the image as channels beside the latent, and its embedding in the cross-attention."""
    transformer = wan_transformer(12, image_dim=16, added_kv_proj_dim=24)
    return wan("WanImageToVideoPipeline", transformer, image_encoder(), image=picture(), num_frames=9)


def wan_image_to_video_two_experts() -> Tiny:
    """Wan 2.2: the image as channels alone."""
    return wan("WanImageToVideoPipeline", wan_transformer(12), experts(12), image=picture(), num_frames=9, **EXPERTS)


def wan_image_to_video_token_times() -> Tiny:
    """Wan 2.2 of 5B parameters: the first frame stays, its tokens at time zero."""
    return wan("WanImageToVideoPipeline", None, {"expand_timesteps": True}, image=picture(), num_frames=9)


def wan_video_to_video() -> Tiny:
    """Starts at the third of eight steps."""
    return wan("WanVideoToVideoPipeline", video=video(9), strength=0.8)


def wan_vace() -> Tiny:
    """Blocks for the control beside the others; a reference image becomes a latent frame. One video at a time."""
    # the mask has a channel for each of a latent pixel's 8 x 8
    transformer = model("WanVACETransformer3DModel", vace_in_channels=2 * 4 + 64)
    given = {"video": video(9), "mask": [half_mask()] * 9, "reference_images": [picture(32, 20)]}
    return wan("WanVACEPipeline", transformer, **given, num_frames=9)


def wan_animate(segments: int = 1) -> Tiny:
    """Faces enter the blocks; one segment of frames after another, each with eight steps of its own."""
    frames = 8 * segments + 1
    given = {"image": picture(), "pose_video": video(frames), "face_video": video(frames, 16)}
    transformer = model("WanAnimateTransformer3DModel")
    return wan("WanAnimatePipeline", transformer, image_encoder(), **given, segment_frame_length=9, guidance_scale=4.0)


def wan_animate_two_segments() -> Tiny:
    return wan_animate(2)


# VisualCloze


def tokenizer() -> Any:
    """A token for each of a few words; the others are one."""
    words = ["<pad>", "<unk>", "a", "red", "blue", "circle", "square", "grid"]
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", model_max_length=48)


def visual_cloze(kind: str, **more: Any) -> Tiny:
    """A grid of examples of which the last image is missing, as one sequence; embedded guidance."""
    torch.manual_seed(1)
    clip = CLIPTextConfig(
        **{**VISION, "hidden_size": 8}, vocab_size=32, max_position_embeddings=48, bos_token_id=0, eos_token_id=1
    )
    t5 = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2)
    text_encoders = {"text_encoder": CLIPTextModel(clip).eval(), "text_encoder_2": T5EncoderModel(t5).eval()}
    transformer = model(
        "FluxTransformer2DModel",
        # 2 x 2 latent pixels: the latent, the image given, and a mask of 2 x 2 pixels for each
        in_channels=4 * (4 + 4 + 4),
        out_channels=4 * 4,
        **DOUBLE,
        **HEADS,
        joint_attention_dim=16,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    pipe = getattr(diffusers, kind)(
        scheduler=flow(use_dynamic_shifting=True),
        vae=vae(4, 2),
        **text_encoders,
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        transformer=transformer,
        resolution=16,
    )
    return tiny(
        pipe,
        {},
        {},
        each=("task_prompt", "content_prompt", "image"),
        task_prompt="a red circle",
        content_prompt="a blue square",
        image=[[picture(16, 1), picture(16, 2)], [picture(16, 3), None]],
        max_sequence_length=48,
        **more,
    )


def visual_cloze_generation() -> Tiny:
    made = visual_cloze("VisualClozeGenerationPipeline")
    return evolve(made, other_size={"image": [[picture(16, 4), picture(16, 5)], *made.arguments(1)["image"]]})


def visual_cloze_whole() -> Tiny:
    """Two pipelines one after the other in one call, eight steps and four; the second makes the image larger."""
    made = visual_cloze("VisualClozePipeline", upsampling_height=24, upsampling_width=24, upsampling_strength=0.4)
    quiet(made.pipe.generation_pipe)
    quiet(made.pipe.upsampling_pipe)
    return evolve(made, other_size={"upsampling_height": 32})


# Z-Image

LARGER = {"height": 48, "width": 48}
Z = {"dim": 32, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}


def z_image(kind: str, size: int = 32, controlnet: Any = None, **more: Any) -> Tiny:
    """Lists in place of batches, with the prompts first and the negative ones after them."""
    pipe = getattr(diffusers, kind)(
        **NO_ENCODER,
        scheduler=flow(shift=3.0),
        vae=vae(4, 3),
        transformer=model("ZImageTransformer2DModel"),
        **({} if controlnet is None else {"controlnet": controlnet}),
    )
    prompts = {name: PromptList([value[0]]) for name, value in embeds(5, 16).items()}
    return tiny(pipe, TALLER, **prompts, height=size, width=size, **more)


def z_image_text() -> Tiny:
    return z_image("ZImagePipeline")


def z_image_img2img() -> Tiny:
    """Starts at the fourth of eight steps."""
    made = z_image("ZImageImg2ImgPipeline", image=picture(), strength=0.6)
    return evolve(made, other_size={"image": picture(48), **LARGER})


def z_image_inpaint() -> Tiny:
    """Puts the image back beside the mask after each step."""
    made = z_image("ZImageInpaintPipeline", image=picture(), mask_image=half_mask())
    return evolve(made, other_size={"image": picture(48), **LARGER})


def z_image_control(channels: int) -> Any:
    """Has two blocks, and takes the transformer's own embedders and refiners besides."""
    return model(
        "ZImageControlNetModel",
        **Z,
        control_layers_places=[0, 1],
        control_refiner_layers_places=[0],
        control_in_dim=channels,
        add_control_noise_refiner="control_noise_refiner",
    )


def z_image_controlnet() -> Tiny:
    return z_image("ZImageControlNetPipeline", controlnet=z_image_control(4), control_image=picture())


def z_image_controlnet_inpaint() -> Tiny:
    """The mask and the rest of the image go into the ControlNet alone."""
    given = {"control_image": picture(), "image": picture(32, 1), "mask_image": half_mask(), "each": ("mask_image",)}
    return z_image("ZImageControlNetInpaintPipeline", controlnet=z_image_control(4 + 1 + 4), **given)


def z_image_omni() -> Tiny:
    """An image to edit among the text and the latent; the guidance is off at zero, not at one."""
    torch.manual_seed(1)
    siglip = Siglip2VisionModel(Siglip2VisionConfig(**VISION, num_patches=4, patch_size=4))
    pipe = diffusers.ZImageOmniPipeline(
        **NO_ENCODER,
        scheduler=flow(shift=3.0),
        # the pipeline encodes in this precision, whatever the autoencoder's is
        vae=vae(4, 3).bfloat16(),
        transformer=model("ZImageTransformer2DModel", siglip_feat_dim=16),
        siglip=siglip.eval(),
        siglip_processor=Siglip2ImageProcessorPil(patch_size=4, max_num_patches=4),
    )
    # before the image, between the image and the latent, after the latent
    prompts = {name: PromptList([[value[0, :2], value[0, 2:], value[0, :1]]]) for name, value in embeds(5, 16).items()}
    return tiny(pipe, TALLER, {"guidance_scale": 0.0}, **prompts, image=picture(64), height=32, width=32)


PIPELINES: dict[str, Callable[[], Tiny]] = {
    "StableAudioPipeline": stable_audio,
    "StableAudio3Pipeline": stable_audio3_text,
    "StableAudio3Pipeline base": stable_audio3_base,
    "StableAudio3AudioToAudioPipeline": stable_audio3_audio_to_audio,
    "StableAudio3InpaintPipeline": stable_audio3_inpaint,
    "StableDiffusion3Pipeline": pipelines.sd3,
    "StableDiffusion3Pipeline skip_layers": sd3_skip_layers,
    "StableDiffusion3Img2ImgPipeline": sd3_img2img,
    "StableDiffusion3InpaintPipeline": sd3_inpaint,
    "StableDiffusion3ControlNetPipeline": sd3_controlnet,
    "StableDiffusion3ControlNetInpaintingPipeline": sd3_controlnet_inpaint,
    "StableDiffusion3PAGPipeline": sd3_pag,
    "StableDiffusion3PAGImg2ImgPipeline": sd3_pag_img2img,
    "VisualClozeGenerationPipeline": visual_cloze_generation,
    "VisualClozePipeline": visual_cloze_whole,
    "WanPipeline": pipelines.wan,
    "WanPipeline two experts": wan_two_experts,
    "WanPipeline token times": wan_token_times,
    "WanImageToVideoPipeline": wan_image_to_video,
    "WanImageToVideoPipeline two experts": wan_image_to_video_two_experts,
    "WanImageToVideoPipeline token times": wan_image_to_video_token_times,
    "WanVideoToVideoPipeline": wan_video_to_video,
    "WanVACEPipeline": wan_vace,
    "WanAnimatePipeline": wan_animate,
    "WanAnimatePipeline two segments": wan_animate_two_segments,
    "ZImagePipeline": z_image_text,
    "ZImageImg2ImgPipeline": z_image_img2img,
    "ZImageInpaintPipeline": z_image_inpaint,
    "ZImageControlNetPipeline": z_image_controlnet,
    "ZImageControlNetInpaintPipeline": z_image_controlnet_inpaint,
    "ZImageOmniPipeline": z_image_omni,
}

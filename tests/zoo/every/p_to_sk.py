"""Tiny pipelines of diffusers, PRX to SkyReels."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import torch
from attrs import evolve
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from tests.zoo import pipelines
from tests.zoo.architectures import embeds
from tests.zoo.denoisers import ROWS, build, drawn
from tests.zoo.pipelines import unipc, wan_vae
from tests.zoo.tiny import Tiny, quiet, randn, repeat

UNGUIDED = {"guidance_scale": 1.0}
NO_ENCODER = {"text_encoder": None, "tokenizer": None}
TALLER = {"height": 64}
SQUARE = {"height": 32, "width": 32}


def model(name: str, **changes: Any) -> Any:
    """The tiny model of that class, with some of its configuration changed."""
    if name not in ROWS:
        changes = {**build(name)[0].config, **changes}
    torch.manual_seed(0)
    return drawn(getattr(diffusers, name)(**{**(ROWS[name].config if name in ROWS else {}), **changes}))


def controlnet(kind: type, transformer: Any) -> Any:
    """A ControlNet of two blocks, as wide as the transformer."""
    taken = set(inspect.signature(kind.__init__).parameters) - {"self", "num_layers"}
    torch.manual_seed(2)
    return drawn(kind(num_layers=2, **{name: value for name, value in transformer.config.items() if name in taken}))


def tiny(pipe: Any, other_size: dict[str, Any], unguided: dict[str, Any] | None = None, **given: Any) -> Tiny:
    """The pipeline with arguments for a batch of one; a larger one repeats what belongs to a prompt."""

    def arguments(batch: int) -> dict[str, Any]:
        return {name: batched(name, value, batch) for name, value in given.items()}

    return Tiny(quiet(pipe), arguments, other_size, unguided=UNGUIDED if unguided is None else unguided)


def batched(name: str, value: Any, batch: int) -> Any:
    if "prompt_" in name and isinstance(value, Tensor):
        return repeat(value, batch)
    return value * batch if isinstance(value, list) and name == "prompt" else value


def masks(length: int, *, to: torch.dtype = torch.int64) -> dict[str, Tensor]:
    """Attention masks of a prompt and of the negative prompt."""
    return {f"{name}_attention_mask": torch.ones(1, length).to(to) for name in ("prompt", "negative_prompt")}


def flow(**config: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


def picture(size: int = 32, seed: int = 0) -> Image.Image:
    pixels = (randn(size, size, 3, seed=seed).sigmoid() * 255).to(torch.uint8)
    return Image.fromarray(pixels.numpy())


def half_mask(size: int = 32) -> Image.Image:
    mask = Image.new("L", (size, size))
    mask.paste(255, (0, 0, size // 2, size))
    return mask


# PRX


def prx() -> Tiny:
    """One doubled batch; the pipeline gives each half one timestep, so that it fails for more than one prompt."""
    pipe = diffusers.PRXPipeline(model("PRXTransformer2DModel"), flow(shift=3.0), None, None)
    return tiny(pipe, TALLER, **SQUARE, use_resolution_binning=False, **embeds(5, 16), **masks(5, to=torch.bool))


def prx_pixel() -> Tiny:
    """No autoencoder; the transformer predicts the clean image, the pipeline makes a velocity of it."""
    transformer = model("PRXTransformer2DModel", in_channels=3, patch_size=4, bottleneck_size=4, resolution_embeds=True)
    pipe = diffusers.PRXPixelPipeline(transformer, flow(shift=3.0), None, None)
    return tiny(
        pipe,
        {"height": 24},
        height=16,
        width=16,
        use_resolution_binning=False,
        **embeds(5, 16),
        **masks(5, to=torch.bool),
    )


# PixArt


def pixart(name: str, *, unguided: dict[str, Any] | None = None, **more: Any) -> Tiny:
    """One doubled batch, learned variance that the pipeline drops, a multistep noise scheduler.

    A sample size of 128 makes Alpha send the image's size, too; its embedding takes thirds of the width.
    """
    alpha = name == "PixArtAlphaPipeline"
    sizes = {"sample_size": 128, "use_additional_conditions": True, "num_attention_heads": 3, "cross_attention_dim": 24}
    transformer = model("PixArtTransformer2DModel", **(sizes if alpha else {}))
    noise_scheduler = diffusers.DPMSolverMultistepScheduler()
    pipe = getattr(diffusers, name)(**NO_ENCODER, vae=None, transformer=transformer, scheduler=noise_scheduler)
    return tiny(
        pipe,
        TALLER,
        unguided,
        **SQUARE,
        use_resolution_binning=False,
        negative_prompt=None,
        **embeds(5, 16),
        **masks(5),
        **more,
    )


def pixart_alpha() -> Tiny:
    return pixart("PixArtAlphaPipeline")


def pixart_sigma() -> Tiny:
    return pixart("PixArtSigmaPipeline")


def pixart_sigma_pag() -> Tiny:
    """Three batches in one: the third with the attention of block 1 perturbed."""
    return pixart("PixArtSigmaPAGPipeline", pag_scale=3.0, unguided={"guidance_scale": 1.0, "pag_scale": 0.0})


# QwenImage


class Shrinking(diffusers.AutoencoderKLQwenImage):
    """Shrinks a picture before it encodes it: the editing pipelines blow every one up to a megapixel."""

    def encode(self, x: Tensor, *args: Any, **more: Any) -> Any:
        side = 2 ** (len(self.temperal_downsample) - 3)
        return super().encode(torch.nn.functional.avg_pool3d(x, (1, side, side)), *args, **more)


def qwen_vae(levels: int = 3, channels: int = 3, latent_channels: int = 4) -> Any:
    """An autoencoder that halves the side so many times; three of them its own."""
    torch.manual_seed(1)
    autoencoder = Shrinking(
        base_dim=3,
        z_dim=latent_channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * latent_channels,
        latents_std=[1.0] * latent_channels,
        input_channels=channels,
    )
    # the pipelines count these to know how much it shrinks
    autoencoder.temperal_downsample = [False] * levels
    return drawn(autoencoder)


def qwen(
    name: str,
    other_size: dict[str, Any],
    vae: Any = None,
    parts: dict[str, Any] | None = None,
    transformer: dict[str, Any] | None = None,
    **given: Any,
) -> Tiny:
    """Sequential guidance branches, packed tokens of which each holds a patch; the published noise scheduler."""
    noise_scheduler = flow(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
    )
    pipe = getattr(diffusers, name)(
        **{**NO_ENCODER, **(parts or {})},
        scheduler=noise_scheduler,
        vae=vae or qwen_vae(),
        transformer=model("QwenImageTransformer2DModel", **(transformer or {})),
    )
    return tiny(
        pipe,
        other_size,
        {"true_cfg_scale": 1.0},
        true_cfg_scale=4.0,
        **embeds(7, 16),
        prompt_embeds_mask=torch.ones(1, 7).long(),
        negative_prompt_embeds_mask=torch.ones(1, 7).long(),
        **given,
    )


def qwen_img2img() -> Tiny:
    return qwen("QwenImageImg2ImgPipeline", TALLER, **SQUARE, image=picture(), strength=0.75)


def qwen_inpaint() -> Tiny:
    """What is kept is noised and put back after every step."""
    masked = {"image": picture(), "mask_image": half_mask(), "strength": 0.75}
    return qwen("QwenImageInpaintPipeline", TALLER, **SQUARE, **masked)


NO_PROCESSOR = {"processor": None}


def qwen_edit(name: str = "QwenImageEditPipeline", **given: Any) -> Tiny:
    """The tokens of a picture follow those of the latent, and so does what is predicted for them."""
    size = {"height": 512, "width": 512, "image": picture()}
    return qwen(name, {"height": 768}, qwen_vae(levels=7), NO_PROCESSOR, **{**size, **given})


def qwen_edit_plus(**given: Any) -> Tiny:
    """Two pictures."""
    return qwen_edit("QwenImageEditPlusPipeline", image=[picture(), picture(seed=1)], **given)


def qwen_edit_plus_zero() -> Tiny:
    """The pictures have time zero."""
    return qwen_edit_plus(transformer={"zero_cond_t": True})


def qwen_edit_inpaint() -> Tiny:
    """It has one size for square pictures."""
    masked = {"mask_image": half_mask(), "strength": 0.75}
    return evolve(qwen_edit("QwenImageEditInpaintPipeline", **masked), other_size={})


class Float32:
    """A text encoder that is asked for its type alone."""

    dtype = torch.float32


def qwen_layered() -> Tiny:
    """One latent for the whole and one for each layer. It returns decoded pictures: for latents the pipeline fails."""
    return qwen(
        "QwenImageLayeredPipeline",
        {"layers": 2},
        # as many channels as the picture's would make it pass for a latent
        qwen_vae(levels=6, channels=4, latent_channels=8),
        {**NO_PROCESSOR, "text_encoder": Float32()},
        {"in_channels": 32, "out_channels": 8, "use_additional_t_cond": True, "use_layer3d_rope": True},
        image=picture().convert("RGBA"),
        layers=1,
        # without one it asks for a description of the picture
        prompt=["a picture"],
        output_type="pt",
    )


def qwen_controlnet() -> Tiny:
    """The branch without the prompt gets the other one's residuals."""
    net = controlnet(diffusers.QwenImageControlNetModel, model("QwenImageTransformer2DModel"))
    parts = {"controlnet": net}
    return qwen("QwenImageControlNetPipeline", TALLER, parts=parts, **SQUARE, control_image=picture())


# QwenImage 2.1


class Processor:
    """Asked for its template and the image token alone when embeddings are given."""

    tokenizer: Processor

    def __init__(self) -> None:
        self.tokenizer = self

    def apply_chat_template(self, *_: Any, **__: Any) -> list[list[int]]:
        return [[0, 1]]

    def encode(self, _: str) -> list[int]:
        return [2]


def qwen21(**more: Any) -> Tiny:
    """Sequential guidance branches; the first step fills a cache of the prompt's keys and values."""
    pipe = diffusers.QwenImage21Pipeline(
        scheduler=flow(),
        vae=None,
        text_encoder=None,
        processor=Processor(),
        transformer=model("QwenImage21Transformer2DModel"),
    )
    return tiny(
        pipe,
        {"height": 96},
        {"true_cfg_scale": 1.0},
        height=64,
        width=64,
        true_cfg_scale=4.0,
        **embeds(4, 8),
        prompt_embeds_mask=torch.ones(1, 4).long(),
        negative_prompt_embeds_mask=torch.ones(1, 4).long(),
        **more,
    )


def qwen21_plain() -> Tiny:
    """Without that cache: the prompt is computed at every step."""
    return qwen21(use_kv_cache=False)


# Sana


def dpm() -> Any:
    return diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


SANA = {"height": 128, "width": 64, "use_resolution_binning": False, "negative_prompt": None}


def sana() -> Tiny:
    """One doubled batch, a multistep noise scheduler of flows."""
    pipe = diffusers.SanaPipeline(**NO_ENCODER, vae=None, transformer=model("SanaTransformer2DModel"), scheduler=dpm())
    return tiny(pipe, {"height": 96}, **SANA, **embeds(5, 8), **masks(5))


def sana_pag() -> Tiny:
    """Three batches in one: the third with the attention of block 0 perturbed."""
    pipe = diffusers.SanaPAGPipeline(
        **NO_ENCODER, vae=None, transformer=model("SanaTransformer2DModel"), scheduler=flow(shift=3.0)
    )
    given = {**SANA, **SQUARE, "pag_scale": 3.0}
    return tiny(pipe, TALLER, {"guidance_scale": 1.0, "pag_scale": 0.0}, **given, **embeds(5, 8), **masks(5))


def sana_vae() -> Any:
    torch.manual_seed(1)
    return diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_out_channels=(4,) * 4,
        decoder_block_out_channels=(4,) * 4,
        encoder_layers_per_block=(1,) * 4,
        decoder_layers_per_block=(1,) * 4,
        encoder_qkv_multiscales=((),) * 4,
        decoder_qkv_multiscales=((),) * 4,
    ).eval()


def sana_controlnet() -> Tiny:
    transformer = model("SanaTransformer2DModel", num_layers=3)
    pipe = diffusers.SanaControlNetPipeline(
        **NO_ENCODER,
        vae=sana_vae(),
        transformer=transformer,
        controlnet=controlnet(diffusers.SanaControlNetModel, transformer),
        scheduler=dpm(),
    )
    given = {**SANA, **SQUARE, "control_image": picture()}
    return tiny(pipe, TALLER, **given, **embeds(5, 8), **masks(5))


def sana_sprint(name: str = "SanaSprintPipeline", **given: Any) -> Tiny:
    """Embedded guidance; the noise scheduler works on angles and adds noise at every step."""
    transformer = model("SanaTransformer2DModel", guidance_embeds=True, qk_norm="rms_norm_across_heads")
    pipe = getattr(diffusers, name)(
        **NO_ENCODER, vae=sana_vae(), transformer=transformer, scheduler=diffusers.SCMScheduler()
    )
    return tiny(
        pipe,
        TALLER,
        {},
        **SQUARE,
        use_resolution_binning=False,
        # only two steps may have a time in between
        intermediate_timesteps=None,
        prompt_embeds=randn(1, 5, 8),
        prompt_attention_mask=torch.ones(1, 5).long(),
        **given,
    )


def sana_sprint_img2img() -> Tiny:
    return sana_sprint("SanaSprintImg2ImgPipeline", image=picture(), strength=0.75)


def seeded_wan_vae() -> Any:
    torch.manual_seed(1)
    return wan_vae().eval()


def sana_video(name: str = "SanaVideoPipeline", noise_scheduler: Any = None, **given: Any) -> Tiny:
    pipe = getattr(diffusers, name)(
        **NO_ENCODER,
        vae=seeded_wan_vae(),
        transformer=model("SanaVideoTransformer3DModel"),
        scheduler=noise_scheduler or dpm(),
    )
    return tiny(
        pipe,
        TALLER,
        **SQUARE,
        frames=9,
        use_resolution_binning=False,
        negative_prompt=None,
        **embeds(5, 16),
        **masks(5),
        **given,
    )


def sana_image_to_video() -> Tiny:
    """The first frame is given; its tokens have time zero, and only the others go through the noise scheduler."""
    return sana_video("SanaImageToVideoPipeline", flow(shift=3.0), image=picture())


def sana_wm() -> Tiny:
    """A picture and the path of a camera; one video at a time, a time for each frame."""
    torch.manual_seed(1)
    vae = diffusers.AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8, 8),
        down_block_types=("LTX2VideoDownBlock3D",) * 2,
        decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False,) * 3,
        downsample_type=("spatiotemporal",) * 2,
        upsample_type=("spatiotemporal",) * 2,
        upsample_residual=(False, False),
        upsample_factor=(1, 1),
        patch_size=1,
    ).eval()
    # six numbers of a ray for each of the four frames behind one of the latent
    transformer = model("SanaWMTransformer3DModel", chunk_plucker_channels=24)
    pipe = diffusers.SanaWMPipeline(**NO_ENCODER, vae=vae, transformer=transformer, scheduler=flow(shift=3.0))
    path = np.eye(4, dtype=np.float32)[None].repeat(9, 0)
    path[:, 2, 3] = np.linspace(0, 1, 9)
    given = {
        "image": picture(16),
        "prompt": "",
        "c2w": path,
        "intrinsics": [16.0, 16.0, 8.0, 8.0],
        "height": 16,
        "width": 16,
        "num_frames": 9,
        **{name: value[:, None] for name, value in embeds(5, 8).items()},
        **masks(5),
    }
    return Tiny(quiet(pipe), lambda batch: given, {"height": 24}, unguided=UNGUIDED)


# SkyReels


def skyreels(name: str = "SkyReelsV2Pipeline", parts: dict[str, Any] | None = None, **given: Any) -> Tiny:
    pipe = getattr(diffusers, name)(
        **{
            **NO_ENCODER,
            "vae": seeded_wan_vae(),
            "transformer": model("SkyReelsV2Transformer3DModel"),
            "scheduler": unipc(),
            **(parts or {}),
        }
    )
    return tiny(pipe, {"height": 48}, **{**SQUARE, "num_frames": 9, **embeds(8, 16), **given})


def skyreels_image_to_video() -> Tiny:
    """The condition and its mask follow the latent; the picture's embedding stands beside the prompt's."""
    transformer = model("SkyReelsV2Transformer3DModel", in_channels=12, image_dim=16, added_kv_proj_dim=24)
    torch.manual_seed(1)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=16,
    )
    parts = {
        "transformer": transformer,
        "image_encoder": CLIPVisionModelWithProjection(config).eval(),
        "image_processor": CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
    }
    return skyreels("SkyReelsV2ImageToVideoPipeline", parts, image=picture())


def skyreels_forcing(kind: str = "", **given: Any) -> Tiny:
    """A time for each frame; each has its own copy of the noise scheduler."""
    return skyreels(f"SkyReelsV2DiffusionForcing{kind}Pipeline", **{"prompt": None, "num_frames": 13, **given})


def skyreels_forcing_asynchronous() -> Tiny:
    """A frame begins one step after the one before it: more calls than steps, and frames that rest in some."""
    return skyreels_forcing(ar_step=1, causal_block_size=1)


def skyreels_forcing_long() -> Tiny:
    """Two denoisings, one after the other: the second is given the first one's last frames."""
    return skyreels_forcing(num_frames=21, base_num_frames=13, overlap_history=5)


def skyreels_forcing_image_to_video() -> Tiny:
    return skyreels_forcing("ImageToVideo", image=picture())


def skyreels_forcing_video_to_video() -> Tiny:
    """The last frames of a video are continued, within one denoising."""
    sizes = {"num_frames": 13, "base_num_frames": 13, "overlap_history": 5}
    return skyreels_forcing("VideoToVideo", video=[picture(seed=seed) for seed in range(5)], **sizes)


PIPELINES: dict[str, Callable[[], Tiny]] = {
    "PRXPipeline": prx,
    "PRXPixelPipeline": prx_pixel,
    "PixArtAlphaPipeline": pixart_alpha,
    "PixArtSigmaPipeline": pixart_sigma,
    "PixArtSigmaPAGPipeline": pixart_sigma_pag,
    "QwenImagePipeline": pipelines.qwen,
    "QwenImageImg2ImgPipeline": qwen_img2img,
    "QwenImageInpaintPipeline": qwen_inpaint,
    "QwenImageEditPipeline": qwen_edit,
    "QwenImageEditPlusPipeline": qwen_edit_plus,
    "QwenImageEditPlusPipeline zero time": qwen_edit_plus_zero,
    "QwenImageEditInpaintPipeline": qwen_edit_inpaint,
    "QwenImageLayeredPipeline": qwen_layered,
    "QwenImageControlNetPipeline": qwen_controlnet,
    "QwenImage21Pipeline": qwen21,
    "QwenImage21Pipeline no cache": qwen21_plain,
    "SanaPipeline": sana,
    "SanaPAGPipeline": sana_pag,
    "SanaControlNetPipeline": sana_controlnet,
    "SanaSprintPipeline": sana_sprint,
    "SanaSprintImg2ImgPipeline": sana_sprint_img2img,
    "SanaVideoPipeline": sana_video,
    "SanaImageToVideoPipeline": sana_image_to_video,
    "SanaWMPipeline": sana_wm,
    "SkyReelsV2Pipeline": skyreels,
    "SkyReelsV2ImageToVideoPipeline": skyreels_image_to_video,
    "SkyReelsV2DiffusionForcingPipeline": skyreels_forcing,
    "SkyReelsV2DiffusionForcingPipeline asynchronous": skyreels_forcing_asynchronous,
    "SkyReelsV2DiffusionForcingPipeline long": skyreels_forcing_long,
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": skyreels_forcing_image_to_video,
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": skyreels_forcing_video_to_video,
}

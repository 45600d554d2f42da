"""Tiny pipelines of diffusers, AceStep to Cosmos."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers.models.controlnets import controlnet_cosmos
from diffusers.pipelines.consisid import pipeline_consisid  # diffusers itself offers it only beside OpenCV
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from tests.zoo import pipelines
from tests.zoo.architectures import embeds
from tests.zoo.denoisers import COG, DOUBLE, HEADS, ROWS, drawn
from tests.zoo.pipelines import unipc, wan_vae
from tests.zoo.tiny import Tiny, quiet, randn, repeat

UNGUIDED = {"guidance_scale": 1.0}
NO_ENCODER = {"text_encoder": None, "tokenizer": None}
TALLER = {"height": 48}


def model(name: str, **changes: Any) -> Any:
    """The tiny model of that class, with some of its configuration changed."""
    torch.manual_seed(0)
    config = ROWS[name].config if name in ROWS else {}
    return drawn(getattr(diffusers, name)(**{**config, **changes}))


PER_PROMPT = (
    "lyrics",
    "prompt",
    "negative_prompt",
    "prompt_embeds",
    "negative_prompt_embeds",
    "prompt_attention_mask",
    "negative_prompt_attention_mask",
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
    return value if batch == 1 or value is None else [value] * batch


def masks(length: int) -> dict[str, Tensor]:
    return {f"{name}_attention_mask": torch.ones(1, length) for name in ("prompt", "negative_prompt")}


def flow(**config: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


def picture(size: int = 32, seed: int = 0) -> Image.Image:
    pixels = (randn(size, size, 3, seed=seed).sigmoid() * 255).to(torch.uint8)
    return Image.fromarray(pixels.numpy())


class Mean(diffusers.AutoencoderKL):
    """Encodes to the mean: a pipeline of CogView 4 draws from torch's own generator."""

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        encoded = super().encode(*args, **kwargs)
        encoded.latent_dist.std = torch.zeros_like(encoded.latent_dist.std)
        return encoded


def vae(channels: int = 4, levels: int = 1, kind: type = diffusers.AutoencoderKL) -> Any:
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


def tokenizer() -> Any:
    """A token for each letter; the first four are special."""
    special = ["<pad>", "<eos>", "<|vision_start|>", "<unk>"]
    letters = [chr(code) for code in range(32, 127)]
    words = {token: index for index, token in enumerate([*special, *letters])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    )


LANGUAGE_MODEL = {
    "vocab_size": 128,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}


def ace_step() -> Tiny:
    """Music; guidance keeps a momentum of its own from step to step, and its null condition is a weight."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    condition_encoder = diffusers.AceStepConditionEncoder(
        hidden_size=32,
        intermediate_size=32,
        text_hidden_dim=8,
        timbre_hidden_dim=8,
        num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1,
        **sizes,
    )
    text_encoder = Qwen3Model(Qwen3Config(**LANGUAGE_MODEL, head_dim=4))
    sound_vae = diffusers.AutoencoderOobleck(
        encoder_hidden_size=4,
        downsampling_ratios=[1, 2],
        decoder_channels=4,
        decoder_input_channels=8,
        channel_multiples=[1, 2],
        sampling_rate=4,
    )
    pipe = diffusers.AceStepPipeline(
        vae=sound_vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer(),
        transformer=model("AceStepTransformer1DModel"),
        condition_encoder=condition_encoder.eval(),
        scheduler=flow(num_train_timesteps=1),
    )
    return tiny(pipe, {"audio_duration": 12.0}, prompt="a drum", lyrics="la", audio_duration=8.0)


def allegro() -> Tiny:
    torch.manual_seed(1)
    video_vae = diffusers.AutoencoderKLAllegro(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    pipe = diffusers.AllegroPipeline(
        **NO_ENCODER,
        vae=video_vae.eval(),
        transformer=model("AllegroTransformer3DModel", attention_head_dim=12, cross_attention_dim=24),
        scheduler=diffusers.EulerAncestralDiscreteScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    )
    # the default negative prompt, an empty string, is refused beside embeddings
    return tiny(pipe, TALLER, **embeds(5, 16), **masks(5), negative_prompt=None, height=32, width=32, num_frames=8)


# without guidance the pipeline joins the negative prompt all the same, if it is given
ANYFLOW_UNGUIDED = {"guidance_scale": 1.0, "negative_prompt_embeds": None}


def anyflow() -> Tiny:
    """A flow map: the transformer is told where each step leads, too."""
    pipe = diffusers.AnyFlowPipeline(
        **NO_ENCODER,
        transformer=model("AnyFlowTransformer3DModel"),
        vae=wan_vae(),
        scheduler=diffusers.FlowMapEulerDiscreteScheduler(),
    )
    size = {"height": 32, "width": 32, "num_frames": 9}
    return tiny(pipe, TALLER, ANYFLOW_UNGUIDED, **embeds(5, 16), **size, guidance_scale=4.0)


def anyflow_far() -> Tiny:
    """Two chunks of frames one after the other, eight steps each; a cache of keys and values between them."""
    pipe = diffusers.AnyFlowFARPipeline(
        **NO_ENCODER,
        transformer=model("AnyFlowFARTransformer3DModel"),
        vae=wan_vae(),
        scheduler=diffusers.FlowMapEulerDiscreteScheduler(),
    )
    size = {"height": 32, "width": 32, "num_frames": 9}
    return tiny(pipe, TALLER, ANYFLOW_UNGUIDED, **embeds(5, 16), **size, guidance_scale=4.0)


def aura_flow() -> Tiny:
    pipe = diffusers.AuraFlowPipeline(
        **NO_ENCODER, vae=None, transformer=model("AuraFlowTransformer2DModel"), scheduler=flow(shift=1.73)
    )
    return tiny(pipe, {"height": 64}, **embeds(5, 16), **masks(5), height=32, width=32)


PACKED = {"in_channels": 8, **DOUBLE, **HEADS, "joint_attention_dim": 16, "axes_dims_rope": [4, 4, 8]}


def bria() -> Tiny:
    pipe = diffusers.BriaPipeline(
        transformer=model("BriaTransformer2DModel", **PACKED),
        scheduler=flow(),
        vae=vae(2),
        **NO_ENCODER,
    )
    return tiny(pipe, {"height": 16}, **embeds(6, 16), height=8, width=8)


def fibo_parts() -> dict[str, Any]:
    """A language model of which all layers go into the transformer; the autoencoder has 16 pixels to a latent one."""
    torch.manual_seed(1)
    language_model = SmolLM3ForCausalLM(SmolLM3Config(**LANGUAGE_MODEL))
    return {
        "transformer": model("BriaFiboTransformer2DModel", text_encoder_dim=8),
        "scheduler": flow(use_dynamic_shifting=True),
        "vae": diffusers.AutoencoderKLWan(
            base_dim=4,
            z_dim=8,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.0] * 8,
            latents_std=[1.0] * 8,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            is_residual=True,
        ).eval(),
        "text_encoder": language_model.eval(),
        "tokenizer": tokenizer(),
    }


def bria_fibo() -> Tiny:
    pipe = diffusers.BriaFiboPipeline(**fibo_parts())
    # an empty negative prompt would be token 128000
    return tiny(pipe, {"height": 96}, prompt="a red circle", negative_prompt="grey", height=64, width=64)


def bria_fibo_edit() -> Tiny:
    """The tokens of the image to edit follow those of the latent."""
    pipe = diffusers.BriaFiboEditPipeline(**fibo_parts())
    prompt = json.dumps({"edit_instruction": "paint it red"})
    return tiny(pipe, {"height": 96}, prompt=prompt, negative_prompt="grey", image=picture(64), height=64, width=64)


def bria_fibo2() -> Tiny:
    """Two layers of the text encoder in one embedding; a scheduler with dynamic shifting."""
    pipe = diffusers.BriaFibo2Pipeline(
        transformer=model("BriaFibo2Transformer2DModel", n_refiner_layers=2, perceiver_num_layers=2),
        scheduler=flow(use_dynamic_shifting=True),
        vae=None,
        text_encoder=None,
        processor=None,
    )
    prompts = {"prompt_embeds": randn(1, 2, 6, 24), "negative_prompt_embeds": randn(1, 2, 6, 24, seed=4)}
    return tiny(pipe, {"height": 64}, **prompts, height=32, width=32)


def chroma(kind: str, **more: Any) -> Tiny:
    transformer = model(
        "ChromaTransformer2DModel",
        **PACKED,
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=2,
    )
    # the inpainting pipeline reads this, and the class does not set it
    transformer.register_to_config(guidance_embeds=False)
    pipe = getattr(diffusers, kind)(scheduler=flow(), vae=vae(2, 3), **NO_ENCODER, transformer=transformer)
    return tiny(pipe, {"height": 32}, **embeds(6, 16), **masks(6), height=16, width=16, guidance_scale=4.0, **more)


def chroma_text() -> Tiny:
    return chroma("ChromaPipeline")


def chroma_img2img() -> Tiny:
    """Starts at the fourth of eight steps."""
    return chroma("ChromaImg2ImgPipeline", image=picture(), strength=0.6)


def chroma_inpaint() -> Tiny:
    """Puts the image back beside the mask after each step; starts at the fourth of eight, too."""
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    return chroma("ChromaInpaintPipeline", image=picture(), mask_image=mask, strength=0.6)


def chrono_edit() -> Tiny:
    """An edit as a video of two latent frames; the image's embedding goes into the cross-attention."""
    torch.manual_seed(1)
    image_encoder = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=8,
            patch_size=4,
        )
    )
    pipe = diffusers.ChronoEditPipeline(
        **NO_ENCODER,
        image_encoder=image_encoder.eval(),
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size=8),
        transformer=model("ChronoEditTransformer3DModel", in_channels=12, image_dim=8, added_kv_proj_dim=24),
        vae=wan_vae().eval(),
        scheduler=unipc(),
    )
    return tiny(pipe, TALLER, **embeds(5, 16), image=picture(), height=32, width=32)


def cog_vae() -> Any:
    torch.manual_seed(1)
    return diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    ).eval()


ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
COG_ROTARY = {
    "attention_head_dim": 16,
    "use_rotary_positional_embeddings": True,
    "sample_width": 4,
    "sample_height": 4,
}


def cogvideox(kind: str, scheduler: type, in_channels: int, **more: Any) -> Tiny:
    pipe = getattr(diffusers, kind)(
        **NO_ENCODER,
        vae=cog_vae(),
        transformer=model("CogVideoXTransformer3DModel", **{**COG, **COG_ROTARY, "in_channels": in_channels}),
        scheduler=scheduler(**ZERO_SNR, clip_sample=False),
    )
    return tiny(pipe, TALLER, **embeds(5, 16), height=32, width=32, **more)


def video(frames: int, size: int = 32) -> list[Image.Image]:
    return [picture(size, seed) for seed in range(frames)]


def cogvideox_fun_control() -> Tiny:
    return cogvideox(
        "CogVideoXFunControlPipeline", diffusers.DDIMScheduler, 8, control_video=video(9), each=("control_video",)
    )


def cogvideox_image_to_video() -> Tiny:
    """The noise scheduler is of second order, and is given what it predicted a step before."""
    given = {"image": picture(), "num_frames": 9, "each": ("image",)}
    return cogvideox("CogVideoXImageToVideoPipeline", diffusers.CogVideoXDPMScheduler, 8, **given)


def cogvideox_video_to_video() -> Tiny:
    return cogvideox("CogVideoXVideoToVideoPipeline", diffusers.CogVideoXDPMScheduler, 4, video=video(9))


def cogview3() -> Tiny:
    pipe = diffusers.CogView3PlusPipeline(
        **NO_ENCODER,
        vae=None,
        transformer=model("CogView3PlusTransformer2DModel"),
        scheduler=diffusers.CogVideoXDDIMScheduler(**ZERO_SNR),
    )
    return tiny(pipe, TALLER, **embeds(5, 16), height=32, width=32)


def cogview4(kind: str = "CogView4Pipeline", in_channels: int = 4, **more: Any) -> Tiny:
    pipe = getattr(diffusers, kind)(
        **NO_ENCODER,
        vae=vae(4, 4, Mean),
        transformer=model("CogView4Transformer2DModel", in_channels=in_channels),
        scheduler=flow(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, time_shift_type="linear"),
    )
    return tiny(pipe, TALLER, **embeds(5, 16), height=32, width=32, **more)


def cogview4_control() -> Tiny:
    return cogview4("CogView4ControlPipeline", 8, control_image=picture())


def consis_id() -> Tiny:
    """A face's embeddings enter after every block."""
    face = {
        "is_train_face": True,
        "cross_attn_interval": 1,
        "cross_attn_dim_head": 8,
        "cross_attn_num_heads": 2,
        "LFE_id_dim": 8,
        "LFE_vit_dim": 8,
        "LFE_depth": 2,
        "LFE_dim_head": 4,
        "LFE_num_heads": 2,
        "LFE_num_id_token": 2,
        "LFE_num_querie": 3,
        "LFE_output_dim": 42,  # two thirds of the width
        "LFE_ff_mult": 2,
        "LFE_num_scale": 2,
    }
    pipe = pipeline_consisid.ConsisIDPipeline(
        **NO_ENCODER,
        vae=cog_vae(),
        transformer=model("ConsisIDTransformer3DModel", **{**COG_ROTARY, "in_channels": 8, **face}),
        scheduler=diffusers.CogVideoXDPMScheduler(**ZERO_SNR),
    )
    return tiny(
        pipe,
        TALLER,
        **embeds(5, 16),
        each=("image",),
        image=picture(),
        id_cond=randn(1, 8, seed=6),
        id_vit_hidden=[randn(1, 4, 8, seed=seed) for seed in (7, 8)],
        height=32,
        width=32,
        num_frames=9,
    )


class Harmless:
    """Stands in for Cosmos's safety checker, without which its pipelines refuse to run."""

    def to(self, device: Any) -> Harmless:
        return self

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, frames: Any) -> Any:
        return frames


def cosmos(kind: str, autoencoder: Any, scheduler: Any, in_channels: int = 4, **more: Any) -> Any:
    """A pipeline of Cosmos; conditioned on frames it has a channel more that says which."""
    return getattr(diffusers, kind)(
        **NO_ENCODER,
        vae=autoencoder.eval(),
        transformer=model("CosmosTransformer3DModel", in_channels=in_channels, **more),
        scheduler=scheduler,
        safety_checker=Harmless(),
    )


def cosmos1(kind: str, in_channels: int, **more: Any) -> Tiny:
    """An EDM noise scheduler that is called twice a step, and told what it predicted."""
    torch.manual_seed(1)
    autoencoder = diffusers.AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        patch_size=4,
        scaling_factor=1.0,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )
    scheduler = diffusers.EDMEulerScheduler(
        sigma_min=0.002,
        sigma_max=80.0,
        sigma_data=0.5,
        sigma_schedule="karras",
        prediction_type="epsilon",
        final_sigmas_type="sigma_min",
    )
    pipe = cosmos(kind, autoencoder, scheduler, in_channels, extra_pos_embed_type="learnable")
    return tiny(pipe, {"height": 32}, **embeds(5, 16), height=16, width=16, num_frames=5, **more)


def cosmos_text_to_world() -> Tiny:
    return cosmos1("CosmosTextToWorldPipeline", 4)


def cosmos_video_to_world() -> Tiny:
    return cosmos1("CosmosVideoToWorldPipeline", 5, image=picture(16))


def cosmos2(kind: str, in_channels: int, **more: Any) -> Tiny:
    """Its own preconditioning around the transformer."""
    torch.manual_seed(1)
    pipe = cosmos(kind, wan_vae(), flow(use_karras_sigmas=True), in_channels)
    return tiny(pipe, TALLER, **embeds(5, 16), height=32, width=32, **more)


def cosmos2_text_to_image() -> Tiny:
    return cosmos2("Cosmos2TextToImagePipeline", 4)


def cosmos2_video_to_world() -> Tiny:
    return cosmos2("Cosmos2VideoToWorldPipeline", 5, image=picture(), num_frames=9)


def karras_unipc() -> Any:
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        use_karras_sigmas=True,
        sigma_min=0.01,
        sigma_max=200.0,
        num_train_timesteps=1000,
    )


PROJECTION = {
    "use_crossattn_projection": True,
    "crossattn_proj_in_channels": 16,
    "encoder_hidden_states_channels": 16,
}
LONG = {**PROJECTION, "max_size": (8, 8, 8)}


def cosmos2_5_predict() -> Tiny:
    """Text alone; the mask of given frames is empty."""
    torch.manual_seed(1)
    pipe = cosmos("Cosmos2_5_PredictBasePipeline", wan_vae(), karras_unipc(), 5, **PROJECTION)
    return tiny(pipe, TALLER, **embeds(5, 16), height=32, width=32, num_frames=9)


def cosmos2_5_transfer() -> Tiny:
    """A ControlNet; two chunks of five frames one after the other, the second beginning with the first's last."""
    if not hasattr(controlnet_cosmos, "transforms"):
        # the ControlNet fits its padding mask to the latent with torchvision, which is not installed
        controlnet_cosmos.transforms = SimpleNamespace(
            functional=SimpleNamespace(resize=lambda mask, size, interpolation: interpolate(mask, size)),
            InterpolationMode=SimpleNamespace(NEAREST="nearest"),
        )
    torch.manual_seed(1)
    controlnet = diffusers.CosmosControlNetModel(
        n_controlnet_blocks=2,
        in_channels=6,
        latent_channels=6,
        model_channels=24,
        num_attention_heads=2,
        attention_head_dim=12,
        mlp_ratio=2.0,
        text_embed_dim=16,
        adaln_lora_dim=4,
        **LONG,
    )
    pipe = diffusers.Cosmos2_5_TransferPipeline(
        **NO_ENCODER,
        vae=wan_vae().eval(),
        transformer=model("CosmosTransformer3DModel", in_channels=5, controlnet_block_every_n=1, **LONG),
        scheduler=karras_unipc(),
        controlnet=drawn(controlnet),
        safety_checker=Harmless(),
    )
    return tiny(pipe, TALLER, **embeds(5, 16), controls=video(9), height=32, width=32, num_frames_per_chunk=5)


def cosmos3() -> Tiny:
    """Text and video as one sequence of tokens; takes one prompt at a time."""
    torch.manual_seed(1)
    autoencoder = diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=2,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 2,
        latents_std=[1.0] * 2,
    )
    pipe = diffusers.Cosmos3OmniPipeline(
        transformer=model("Cosmos3OmniTransformer", vocab_size=128),
        text_tokenizer=tokenizer(),
        vae=autoencoder.eval(),
        scheduler=unipc(),
        enable_safety_checker=False,
    )
    return tiny(
        pipe,
        TALLER,
        prompt="a red circle",
        negative_prompt="grey",
        use_system_prompt=False,
        height=32,
        width=32,
        num_frames=9,
    )


PIPELINES: dict[str, Callable[[], Tiny]] = {
    "AceStepPipeline": ace_step,
    "AllegroPipeline": allegro,
    "AnyFlowPipeline": anyflow,
    "AnyFlowFARPipeline": anyflow_far,
    "AuraFlowPipeline": aura_flow,
    "BriaFibo2Pipeline": bria_fibo2,
    "BriaFiboPipeline": bria_fibo,
    "BriaFiboEditPipeline": bria_fibo_edit,
    "BriaPipeline": bria,
    "ChromaPipeline": chroma_text,
    "ChromaImg2ImgPipeline": chroma_img2img,
    "ChromaInpaintPipeline": chroma_inpaint,
    "ChronoEditPipeline": chrono_edit,
    "CogVideoXPipeline": pipelines.cogvideox,
    "CogVideoXFunControlPipeline": cogvideox_fun_control,
    "CogVideoXImageToVideoPipeline": cogvideox_image_to_video,
    "CogVideoXVideoToVideoPipeline": cogvideox_video_to_video,
    "CogView3PlusPipeline": cogview3,
    "CogView4Pipeline": cogview4,
    "CogView4ControlPipeline": cogview4_control,
    "ConsisIDPipeline": consis_id,
    "CosmosTextToWorldPipeline": cosmos_text_to_world,
    "CosmosVideoToWorldPipeline": cosmos_video_to_world,
    "Cosmos2TextToImagePipeline": cosmos2_text_to_image,
    "Cosmos2VideoToWorldPipeline": cosmos2_video_to_world,
    "Cosmos2_5_PredictBasePipeline": cosmos2_5_predict,
    "Cosmos2_5_TransferPipeline": cosmos2_5_transfer,
    "Cosmos3OmniPipeline": cosmos3,
}

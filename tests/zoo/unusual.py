"""Tiny pipelines that do something that the usual ones do not: what enters, leaves or drives their model is unlike.

They begin late, hold three branches in one batch, get residuals in a list, step a noise scheduler for each frame, take
channels beside the latent, return more than one value, or return the velocity with the other sign.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from PIL import Image
from torch import Tensor

from tests.zoo import pipelines
from tests.zoo.architectures import around, build, embeds
from tests.zoo.pipelines import unipc, wan_transformer, wan_vae
from tests.zoo.tiny import Tiny, quiet, randn


def picture(size: int = 32, shade: int = 40) -> Image.Image:
    return Image.new("RGB", (size, size), (shade, 200 - shade, 90))


def clip(frames: int, size: int = 32) -> list[Image.Image]:
    return [picture(size, 10 * i) for i in range(frames)]


def image_vae(latent_channels: int = 4, levels: int = 4) -> Any:
    """Downsamples by 2 ** (levels - 1)."""
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(4,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        scaling_factor=1.5,
    ).eval()


def nothing(batch: int) -> dict[str, Any]:
    return {}


def like(tiny: Tiny, pipe: Any, without: tuple[str, ...] = (), more: Callable[[int], dict[str, Any]] = nothing) -> Tiny:
    """Another pipeline with a tiny one's arguments, less some, and `more(batch)`."""

    def arguments(batch: int) -> dict[str, Any]:
        kept = {name: value for name, value in tiny.arguments(batch).items() if name not in without}
        return {**kept, **more(batch)}

    return Tiny(quiet(pipe), arguments, unguided=tiny.unguided)


def parts(tiny: Tiny, **others: Any) -> dict[str, Any]:
    """The components of a tiny pipeline, some of them replaced."""
    return {**tiny.pipe.components, **others}


# a second pass over a clip or an image: only the last of its timesteps are made


def wan_again(noise_scheduler: Any = None) -> Tiny:
    tiny = pipelines.wan(noise_scheduler=noise_scheduler)
    kept = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")
    pipe = diffusers.WanVideoToVideoPipeline(**{name: tiny.pipe.components[name] for name in kept})
    return like(tiny, pipe, ("num_frames",), lambda batch: {"video": clip(9), "strength": 0.5})


def wan_again_by_euler() -> Tiny:
    return wan_again(diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0))


def cogvideox_again() -> Tiny:
    """Its noise scheduler counts no steps."""
    tiny = pipelines.cogvideox()
    pipe = diffusers.CogVideoXVideoToVideoPipeline(**tiny.pipe.components)
    return like(tiny, pipe, ("num_frames",), lambda batch: {"video": clip(9, 16), "strength": 0.5})


def ltx_again() -> Tiny:
    """It slices the timesteps itself, and every token has one."""
    tiny = pipelines.ltx()
    pipe = diffusers.LTXConditionPipeline(**tiny.pipe.components)
    return like(tiny, pipe, (), lambda batch: {"video": clip(9), "strength": 0.5, "denoise_strength": 0.5})


def sd3_with_vae() -> Tiny:
    tiny = pipelines.sd3()
    return like(tiny, diffusers.StableDiffusion3Pipeline(**parts(tiny, vae=image_vae())))


def sd3_again(tiny: Tiny | None = None, strength: float = 0.5) -> Tiny:
    """It tells its noise scheduler where to begin. With a pipeline given, the same models by `from_pipe`."""
    if tiny is None:
        tiny = sd3_with_vae()
        pipe = diffusers.StableDiffusion3Img2ImgPipeline(**tiny.pipe.components)
    else:
        pipe = diffusers.StableDiffusion3Img2ImgPipeline.from_pipe(tiny.pipe)

    def more(batch: int) -> dict[str, Any]:
        return {"image": [picture(shade=90 * i) for i in range(batch)], "strength": strength}

    return like(tiny, pipe, ("height", "width"), more)


AGAIN: dict[str, Callable[[], Tiny]] = {
    "wan, Euler": wan_again_by_euler,
    "wan, UniPC": wan_again,
    "cogvideox": cogvideox_again,
    "ltx": ltx_again,
    "sd3": sd3_again,
}


# what enters the model beside the latents of two branches


def perturbed() -> Tiny:
    """Perturbed-attention guidance: a third branch in the same batch."""
    tiny = sd3_with_vae()
    kept = {n: v for n, v in tiny.pipe.components.items() if n not in ("image_encoder", "feature_extractor")}
    pipe = diffusers.StableDiffusion3PAGPipeline(**kept, pag_applied_layers=["blocks.1"])
    return like(tiny, pipe, (), lambda batch: {"pag_scale": 3.0, "guidance_scale": 5.0})


def controlled() -> Tiny:
    """A ControlNet's residuals reach the model as a list of tensors."""
    tiny = sd3_with_vae()
    config = tiny.pipe.transformer.config
    torch.manual_seed(1)
    net = diffusers.SD3ControlNetModel(
        **{name: config[name] for name in ("sample_size", "patch_size", "in_channels", "out_channels", "num_layers")},
        attention_head_dim=config.attention_head_dim,
        num_attention_heads=config.num_attention_heads,
        joint_attention_dim=config.joint_attention_dim,
        caption_projection_dim=config.caption_projection_dim,
        pooled_projection_dim=config.pooled_projection_dim,
    ).eval()
    for block in net.controlnet_blocks:
        torch.nn.init.normal_(block.weight, std=0.3)
    pipe = diffusers.StableDiffusion3ControlNetPipeline(**tiny.pipe.components, controlnet=net)
    return like(tiny, pipe, (), lambda batch: {"control_image": randn(batch, 3, 32, 32, seed=3).sigmoid()})


def wan_from_image() -> Tiny:
    """A mask and a condition beside the latent's channels, and two experts."""

    def expert(seed: int) -> Any:
        torch.manual_seed(seed)
        config = {**wan_transformer().config, "in_channels": 12}
        return diffusers.WanTransformer3DModel.from_config(config).eval()

    pipe = diffusers.WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=wan_vae(),
        scheduler=unipc(),
        transformer=expert(0),
        transformer_2=expert(1),
        boundary_ratio=0.9,
    )
    return around(pipe, **embeds(8, 16), image=picture(), height=32, width=32, num_frames=9, guidance_scale=4.0)


def flux_transformer(**config: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.FluxTransformer2DModel(
        **{
            "patch_size": 1,
            "in_channels": 16,
            "num_layers": 2,
            "num_single_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "pooled_projection_dim": 32,
            "axes_dims_rope": (4, 4, 8),
            **config,
        }
    ).eval()


def flux_fill() -> Tiny:
    """A masked image and its mask beside the latent's channels, all packed."""
    tiny = pipelines.flux(transformer=flux_transformer(in_channels=36, out_channels=16, guidance_embeds=True))
    kept = ("scheduler", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer")
    pipe = diffusers.FluxFillPipeline(**{name: tiny.pipe.components[name] for name in kept}, vae=image_vae(4, levels=1))
    mask = Image.new("L", (16, 16), 255)
    return like(tiny, pipe, (), lambda batch: {"image": picture(16), "mask_image": mask, "height": 16, "width": 16})


def flux_truly_guided() -> Tiny:
    """Two scales: `true_cfg_scale` combines the branches, `guidance_scale` does not."""
    tiny = pipelines.flux(transformer=flux_transformer())
    negative = {
        "negative_prompt_embeds": randn(1, 6, 32, seed=5),
        "negative_pooled_prompt_embeds": randn(1, 32, seed=6),
    }
    return like(tiny, tiny.pipe, (), lambda batch: {**negative, "true_cfg_scale": 6.0, "guidance_scale": 1.0})


# what leaves the model


def flux2_klein() -> Tiny:
    """With a reference image, the first call returns keys and values beside its prediction; the others do not."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLFlux2(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=2,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()
    config = {**build("flux2")[0].config, "guidance_embeds": False}
    torch.manual_seed(0)
    pipe = diffusers.Flux2KleinKVPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        transformer=diffusers.Flux2Transformer2DModel.from_config(config).eval(),
    )
    return around(pipe, prompt_embeds=randn(1, 6, 16), image=picture(64), height=8, width=8)


def dit() -> Tiny:
    """Learned variance: it returns twice the channels that it takes."""
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=4,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
    ).eval()
    pipe = diffusers.DiTPipeline(
        transformer=model, vae=image_vae(levels=1), scheduler=diffusers.DPMSolverMultistepScheduler()
    )
    pipe.vae.register_to_config(scaling_factor=1.0)

    def arguments(batch: int) -> dict[str, Any]:
        return {"class_labels": [1] * batch, "output_type": "np"}

    return Tiny(quiet(pipe), arguments)


def lumina2() -> Tiny:
    """It returns the velocity from noise to clean, where others return that from clean to noise."""
    torch.manual_seed(0)
    model = diffusers.Lumina2Transformer2DModel(
        sample_size=4,
        in_channels=4,
        hidden_size=8,
        num_layers=2,
        num_attention_heads=1,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        cap_feat_dim=8,
    ).eval()
    pipe = diffusers.Lumina2Pipeline(
        transformer=model,
        vae=None,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0),
        text_encoder=None,
        tokenizer=None,
    )
    masks = {f"{name}_attention_mask": torch.ones(1, 6).bool() for name in ("prompt", "negative_prompt")}
    return around(pipe, **embeds(6, 8), **masks, height=64, width=64, guidance_scale=4.0)


def mochi() -> Tiny:
    """Its noise scheduler counts sigmas upwards."""
    torch.manual_seed(0)
    model = diffusers.MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        out_channels=None,
        text_embed_dim=16,
        time_embed_dim=4,
        max_sequence_length=16,
    ).eval()
    pipe = diffusers.MochiPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=model,
    )
    masks = {f"{name}_attention_mask": torch.ones(1, 16).bool() for name in ("prompt", "negative_prompt")}
    return around(pipe, **embeds(16, 16), **masks, height=16, width=16, num_frames=7)


def constant(tiny: Tiny, head: str) -> Tiny:
    """The model made a constant velocity: every right change of variable continues it exactly."""
    linear = tiny.pipe.transformer.get_submodule(head)
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.normal_(linear.bias, generator=torch.Generator().manual_seed(7))
    return tiny


# what drives the model


def forced(transformer: Any = None) -> Tiny:
    """Diffusion forcing: copies of the noise scheduler are stepped, one a frame; the pipeline's own never moves."""
    pipe = diffusers.SkyReelsV2DiffusionForcingPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=wan_vae(),
        transformer=build("skyreels")[0] if transformer is None else transformer,
        scheduler=unipc(),
    )
    return around(pipe, prompt=None, **embeds(8, 16), height=32, width=32, num_frames=9, guidance_scale=4.0)


class Talkative(torch.nn.Module):
    """Returns its prediction with something beside it, at all calls or at the first alone."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.always = always
        self.calls = 0

    def forward(self, hidden_states: Tensor, timestep: Any = None, return_dict: bool = False) -> tuple[Tensor, ...]:
        self.calls += 1
        more = (hidden_states + 1,) if self.always or self.calls == 1 else ()
        return (hidden_states.sin(), *more)

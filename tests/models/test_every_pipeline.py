"""Every pipeline of diffusers with a denoiser: each cell of the support table works, or is refused with a reason."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest

from mixcache.host.diffusers import _may_denoise
from tests.models.piped import CELLS, check
from tests.zoo.every import PIPELINES

pytestmark = [
    pytest.mark.filterwarnings("ignore:In CPU autocast"),
    pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore::mixcache.NothingReusedWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

QUICK = (
    "AllegroPipeline",  # draws fresh noise
    "AnyFlowFARPipeline",  # returns its keys and values
    "AuraFlowPipeline",  # two lists of blocks
    "BriaPipeline",  # asks for the class of its noise scheduler
    "CogVideoXImageToVideoPipeline",  # a solver with memory of its own
    "CosmosTextToWorldPipeline",  # sigmas far above one, and an input that is scaled
    "Cosmos3OmniPipeline",  # the latent in a list
    "DiTPipeline",  # the latent kept once per branch, and a variance
    "Flux2KleinKVPipeline",  # more outputs at its first call
    "FluxControlNetPipeline",  # residuals between blocks
    "HiDreamImagePipeline",  # the negative velocity; samples counted by the second dimension
    "HunyuanDiTPipeline",  # a noise scheduler that counts no steps
    "HunyuanDiTControlNetPipeline",  # the model empties the list of residuals that it is given
    "HunyuanVideo15Pipeline",  # a guider
    "Ideogram4Pipeline",  # two denoisers, text and image in one sequence
    "Kandinsky5T2VPipeline",  # channels last
    "LattePipeline",  # blocks in turn
    "LTX2Pipeline",  # sound beside video
    "Lumina2Pipeline",  # the negative velocity, and refiners
    "MochiPipeline",  # sigmas that count upwards
    "NucleusMoEImagePipeline",  # guidance that is rescaled per token
    "PRXPixelPipeline",  # predicts the clean image
    "PixArtSigmaPAGPipeline",  # three branches in one batch
    "QwenImagePipeline",
    "SanaSprintPipeline",
    "SkyReelsV2DiffusionForcingPipeline",  # a noise scheduler per frame
    "StableAudioPipeline",
    "StableDiffusion3Pipeline skip_layers",  # a third branch for some of the steps
    "WanPipeline two experts",
    "WanVACEPipeline",
    "ZImagePipeline",  # lists in and out
    "ZImageOmniPipeline",
)
"""A third of the classes of denoisers, of every kind there is: these run in `make test`."""

NOT_BUILT: dict[str, str] = {
    "AmusedImg2ImgPipeline": "predicts tokens, no noise",
    "AmusedInpaintPipeline": "predicts tokens, no noise",
    "AmusedPipeline": "predicts tokens, no noise",
    "EasyAnimateControlPipeline": "fails without mixcache; `EasyAnimateControlPipeline mended` stands for it",
    "KandinskyV22PriorEmb2EmbPipeline": "as KandinskyV22PriorPipeline",
    "LTX2DFRTemporalRefinePipeline": "refines what LTX2DFRPipeline made",
    "QwenImageControlNetInpaintPipeline": "as QwenImageControlNetPipeline",
    "RFD4ProteinaPipeline": "proteins, several latents",
    "ShapEImg2ImgPipeline": "renders shapes",
    "ShapEPipeline": "renders shapes",
    "StableCascadePriorPipeline": "its prior is a UNet",
    "StableUnCLIPPipeline": "a UNet beside the prior",
    "UnCLIPPipeline": "UNets beside the prior",
    "VQDiffusionPipeline": "predicts tokens, no noise",
    "WuerstchenPriorPipeline": "its prior is no transformer",
}
"""Pipelines with a transformer that are left out, each with its reason."""


def test_every_pipeline_with_a_transformer_is_built_or_left_out_with_a_reason() -> None:
    """A pipeline that diffusers adds fails here until it works, or stands on the list."""
    named = {name.split()[0] for name in PIPELINES}
    found = set()
    for name in dir(diffusers):
        kind = getattr(diffusers, name, None)
        if name.endswith("Pipeline") and inspect.isclass(kind) and kind.__module__.startswith("diffusers.pipelines."):
            parameters = inspect.signature(kind.__init__).parameters
            if any("transformer" in one or one == "prior" for one in parameters):
                found.add(name)
    assert found - named - set(NOT_BUILT) == set()
    assert set(QUICK) <= set(PIPELINES)
    assert all(NOT_BUILT.values())


def cells() -> list[Any]:
    return [
        pytest.param(name, column, marks=[] if name in QUICK else [pytest.mark.slow], id=f"{name}-{column}")
        for name in PIPELINES
        for column in CELLS
    ]


@pytest.mark.parametrize(("name", "column"), cells())
def test_every_cell_works_or_says_why(name: str, column: str) -> None:
    """Nothing is silently wrong, and what is refused is refused with a reason; exactness and restoring always hold."""
    cell = check(name, column)
    assert cell.verdict == "works" or cell.why.strip(), f"{name} does nothing at {column!r} and says nothing"
    assert cell.verdict == "works" or column != "restored"


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("HunyuanDiTControlNetPipeline", "cfg"),  # residuals in a list, which a call empties
        ("Ideogram4Pipeline", "default"),  # the second model of a step has none of its own to follow
        ("Kandinsky5I2VPipeline", "noise"),  # the solver steps all but the first frame, in some of the channels
        ("LTX2Pipeline", "default"),
        ("SanaSprintPipeline", "exact"),  # the last of its timesteps is no evaluation
        ("ZImageOmniPipeline", "cfg"),  # a list of pictures for every sample, the latent last
        ("ZImageOmniPipeline", "step"),
    ],
)
def test_what_is_hard_is_not_only_refused(name: str, column: str) -> None:
    assert check(name, column).verdict == "works"


def test_components_that_do_not_denoise_are_left_alone() -> None:
    """Encoders, decoders and ControlNets of every pipeline here; and something is found in each."""
    for name in QUICK:
        parts = PIPELINES[name]().pipe.components
        assert [part for part in parts.values() if _may_denoise(part)], name
        for label in ("vae", "text_encoder", "text_encoder_2", "controlnet", "image_encoder", "vocoder"):
            assert not _may_denoise(parts.get(label)), (name, label)

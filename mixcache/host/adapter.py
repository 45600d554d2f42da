"""Where a transformer class keeps what mixcache needs: plain records, written by whoever knows the architecture."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from attrs import field, frozen
from torch import Tensor

from mixcache.core.points import Prediction
from mixcache.core.tables import Calibration
from mixcache.errors import AttachError, ConfigurationError

Probe = Callable[[Any, Mapping[str, Any]], Tensor]


@frozen(kw_only=True)
class BlockList:
    """One list of blocks of a model, in the order in which `forward` runs them.

    path: the attribute that holds it. streams: the arguments of a block's `forward` that it transforms, the image or
    video stream first. returns: the same names in the order in which a block returns them. probe: for the first list,
    what TeaCache measures there, from the first block and its arguments by name.
    """

    path: str
    streams: tuple[str, ...] = ("hidden_states",)
    returns: tuple[str, ...] = ("hidden_states",)
    probe: Probe | None = None


@frozen(kw_only=True)
class ModelAdapter:
    """One transformer class.

    model: its class name. latent_argument: the argument of `forward` that holds x_t. channel_dim: the dimension of
    that tensor that counts channels; by default the last of packed tokens (three dimensions), else the second. Where
    the model takes more channels than it returns (image conditions beside the latent), the first of them are the
    latent. branches: how guidance branches reach the model
    ("sequential" calls, one "doubled" batch, or "embedded" guidance); doubled_order: which half comes first.
    prediction: what the model returns, or `None` to ask the noise scheduler. blocks: its block lists, none if what runs
    between its blocks forbids spans. injected: arguments of `forward` that, when given, add residuals between blocks
    (ControlNet): a span would skip them, so spans are then refused. unbatched: tensors that all branches of one batch
    share, although their first dimension may equal the batch. calibrations: tables of known checkpoints.
    """

    kind_of_plugin: ClassVar[str] = "model"

    model: str
    latent_argument: str = "hidden_states"
    channel_dim: int | None = None
    branches: Literal["sequential", "doubled", "embedded"] = "sequential"
    doubled_order: tuple[str, ...] = ("uncond", "cond")
    prediction: Prediction | None = None
    blocks: tuple[BlockList, ...] = ()
    injected: tuple[str, ...] = ()
    unbatched: tuple[str, ...] = ("img_ids", "txt_ids", "image_rotary_emb")
    calibrations: tuple[Calibration, ...] = ()
    generic: bool = False

    def tables(self, model: Any) -> dict[str, Calibration]:
        """The calibrations that fit `model`, by policy name; of several the one that says most about it."""
        fitting = sorted((c for c in self.calibrations if c.fits(model)), key=lambda c: len(c.match))
        return {calibration.policy: calibration for calibration in fitting}

    def latent(self, model: Any, arguments: dict[str, Any]) -> Tensor:
        """x_t out of a call's bound arguments: the anchor of a STEP point, in the model's own layout."""
        latent = arguments.get(self.latent_argument)
        if not isinstance(latent, Tensor):
            raise AttachError(
                f"{type(model).__name__}.forward was called without a tensor `{self.latent_argument}`, got "
                f"{type(latent).__name__}; pass adapter=ModelAdapter(model={type(model).__name__!r}, "
                "latent_argument=...) to enable()."
            )
        packed = latent.dim() == 3
        dim = self.channel_dim if self.channel_dim is not None else -1 if packed else 1
        config = getattr(model, "config", None)
        given, taken, patch = (getattr(config, name, None) for name in ("out_channels", "in_channels", "patch_size"))
        if not isinstance(given, int):
            return latent
        if packed and isinstance(patch, int):
            given *= patch**2  # a packed token holds a patch; what the model returns is counted by pixel
        if given >= latent.shape[dim] or (isinstance(taken, int) and given >= taken):
            return latent
        return latent.narrow(dim, 0, given)


@frozen(kw_only=True)
class PipelineFolder:
    """A diffusers pipeline folder that a plugin ships, loadable by name: `mixcache generate --model NAME`.

    defaults: keyword arguments of a call (frames, size, steps, guidance). tuning and held_out: prompts to choose
    settings on, and others to report on. demo: the recipes that `mixcache demo` shows.
    """

    kind_of_plugin: ClassVar[str] = "pipeline"

    name: str
    path: Path
    summary: str = ""
    defaults: dict[str, Any] = field(factory=dict)
    tuning: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    demo: tuple[str, ...] = ()


def adapter_for(model: Any, adapters: Iterable[ModelAdapter]) -> ModelAdapter:
    """The adapter of a model's class or of the nearest base class that has one.

    A class nobody described gets a generic adapter if its `forward` takes `hidden_states`: that is all STEP needs.
    Raises `AttachError` for one that does not.
    """
    by_name = {adapter.model: adapter for adapter in adapters}
    for kind in type(model).__mro__:
        if kind.__name__ in by_name:
            return by_name[kind.__name__]
    forward = getattr(type(model), "forward", None)
    names = inspect.signature(forward).parameters if callable(forward) else ()
    if "hidden_states" in names:
        return ModelAdapter(model=type(model).__name__, generic=True)
    raise AttachError(
        f"no adapter knows {type(model).__name__}, and its forward takes no `hidden_states`; pass "
        "adapter=ModelAdapter(model=..., latent_argument=...) to enable(). Adapters there are: "
        f"{', '.join(sorted(by_name)) or 'none'}."
    )


def check_adapter(adapter: Any) -> ModelAdapter:
    """`adapter` itself if it is a `ModelAdapter`; `ConfigurationError` otherwise."""
    if not isinstance(adapter, ModelAdapter):
        raise ConfigurationError(f"`adapter` must be a mixcache.ModelAdapter, got {adapter!r}.")
    return adapter

"""Where a transformer class keeps what mixcache needs: plain records, written by whoever knows the architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from attrs import field, frozen

from mixcache.core.points import Prediction
from mixcache.core.tables import Calibration
from mixcache.errors import ConfigurationError
from mixcache.host.rows import BlockList


@frozen(kw_only=True)
class ModelAdapter:
    """One transformer class.

    What running the model tells is not stated here, but found: where the latent is, how branches are combined, what
    enters between blocks. Where nothing can be watched (a loop of one's own whose latents do not follow from the
    outputs), what is stated holds.

    model: its class name. latent_argument: the argument of `forward` that holds x_t; where it is larger than the
    output, the latent stands first in it. branches: how guidance branches reach the model ("sequential" calls, one
    "doubled" batch, or "embedded" guidance); doubled_order: which half comes first. prediction: what the model returns,
    or `None` to ask the noise scheduler. blocks: its block lists, by default those that watching finds. unbatched:
    tensors that all branches of one batch share, although their first dimension may equal the batch. calibrations:
    tables of known checkpoints. generic: whether nobody stated any of this.
    """

    kind_of_plugin: ClassVar[str] = "model"

    model: str
    latent_argument: str = "hidden_states"
    branches: Literal["sequential", "doubled", "embedded"] = "sequential"
    doubled_order: tuple[str, ...] = ("uncond", "cond")
    prediction: Prediction | None = None
    blocks: tuple[BlockList, ...] = ()
    unbatched: tuple[str, ...] = ("img_ids", "txt_ids", "image_rotary_emb")
    calibrations: tuple[Calibration, ...] = ()
    generic: bool = False

    @property
    def stated(self) -> str | None:
        """The argument that holds x_t, if a record states it; a name that nobody stated says nothing."""
        return None if self.generic else self.latent_argument

    def tables(self, model: Any, experts: int = 1) -> dict[str, Calibration]:
        """The calibrations that fit `model`, by policy name; of several the one that says most about it.

        experts: how many models of its class take turns in a run.
        """
        fitting = sorted((c for c in self.calibrations if c.fits(model, experts)), key=lambda c: len(c.match))
        return {calibration.policy: calibration for calibration in fitting}


@frozen(kw_only=True)
class PipelineFolder:
    """A diffusers pipeline folder that a plugin ships, loadable by name: `mixcache generate --model NAME`.

    defaults: keyword arguments of a call (frames, size, steps, guidance). tuning and held_out: prompts to choose
    settings on, and others to report on. demo: the recipes that `mixcache demo` shows. score: whether a clip (or image)
    still shows what was asked: (frames [F, H, W, C] in [0, 1], prompt) -> numbers by name, of which "right" is 1 if it
    does and 0 if not. It raises `ValueError` for a prompt that it cannot judge.
    """

    kind_of_plugin: ClassVar[str] = "pipeline"

    name: str
    path: Path
    summary: str = ""
    defaults: dict[str, Any] = field(factory=dict)
    tuning: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    demo: tuple[str, ...] = ()
    score: Callable[[Any, str], Mapping[str, float]] | None = None


def adapter_for(model: Any, adapters: Iterable[ModelAdapter]) -> ModelAdapter:
    """The adapter of a model's class or of the nearest base class that has one; else one that states nothing."""
    by_name = {adapter.model: adapter for adapter in adapters}
    for kind in type(model).__mro__:
        if kind.__name__ in by_name:
            return by_name[kind.__name__]
    return ModelAdapter(model=type(model).__name__, generic=True)


def check_adapter(adapter: Any) -> ModelAdapter:
    """`adapter` itself if it is a `ModelAdapter`; `ConfigurationError` otherwise."""
    if not isinstance(adapter, ModelAdapter):
        raise ConfigurationError(f"`adapter` must be a mixcache.ModelAdapter, got {adapter!r}.")
    return adapter

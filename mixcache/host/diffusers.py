"""Diffusers pipelines as hosts: which models they drive, and what their noise scheduler tells about a denoising."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from mixcache.core.points import Prediction
from mixcache.errors import AttachError
from mixcache.host.noise import is_set, read_schedule
from mixcache.host.protocol import Schedule


def models_of(target: Any) -> dict[str, Any]:
    """The transformers to attach to, by component name: those of a pipeline, or `target` itself if it is one.

    Raises `AttachError` for something that is neither, and for a pipeline without a transformer.
    """
    if isinstance(target, torch.nn.Module):
        return {"transformer": target}
    if not hasattr(target, "components"):
        raise AttachError(f"`target` must be a diffusers pipeline or a transformer, got {type(target).__name__}.")
    names = [name for name in target.components if name.startswith("transformer")]
    found = {name: getattr(target, name) for name in names if isinstance(getattr(target, name), torch.nn.Module)}
    if not found:
        raise AttachError(
            f"{type(target).__name__} has no transformer to attach to (components: {', '.join(target.components)})."
        )
    return found


def is_pipeline(target: Any) -> bool:
    """Whether `target` is a pipeline with a noise scheduler, rather than a bare model."""
    return hasattr(target, "components") and hasattr(target, "scheduler")


class PipelineHost:
    """A pipeline whose noise scheduler tells where a denoising stands."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    def token(self) -> object | None:
        """The noise scheduler's own timesteps: `set_timesteps` makes new ones for every run."""
        noise_scheduler = self._pipeline.scheduler
        return noise_scheduler.timesteps if is_set(noise_scheduler) else None

    def schedule(self, prediction: Prediction | None, timestep: Any) -> Schedule:
        """The noise levels of the run in progress."""
        return read_schedule(self._pipeline.scheduler, prediction, self.position(timestep) or 0)

    def position(self, timestep: Any) -> int | None:
        """See `position`."""
        return position(self._pipeline, timestep)

    def solver(self) -> Any:
        """The noise scheduler."""
        return self._pipeline.scheduler

    def guidance(self, component: str, model: Any) -> float | None:
        """See `guidance_of`."""
        return guidance_of(self._pipeline, component, model)


class BareHost:
    """A bare model: nothing is known but what its calls and `session.run` tell."""

    def token(self) -> object | None:
        """Nothing tells one denoising from another."""
        return None

    def schedule(self, prediction: Prediction | None, timestep: Any) -> Schedule:
        """A bare model has no noise scheduler."""
        raise AttachError("a bare model has no noise scheduler.")

    def position(self, timestep: Any) -> int | None:
        """Unknown."""
        return None

    def solver(self) -> Any:
        """There is none."""
        return None

    def guidance(self, component: str, model: Any) -> float | None:
        """Unknown."""
        return None


def guidance_of(pipeline: Any, component: str, model: Any) -> float | None:
    """The scale with which a pipeline combines its branches, where that is all that it does with them."""
    second = getattr(pipeline, "guidance_scale_2", None) if component.endswith("_2") else None
    scale = getattr(pipeline, "guidance_scale", None) if second is None else second
    if "true_cfg_scale" in inspect.signature(pipeline.__call__).parameters:
        return None  # two scales: which of them combines the branches is not known
    other = getattr(pipeline, "guidance_rescale", 0.0) or getattr(
        getattr(model, "config", None), "guidance_embeds", False
    )
    return float(scale) if isinstance(scale, (int, float)) and not other else None


def position(pipeline: Any, timestep: Any) -> int | None:
    """Which evaluation a pipeline is at: the index into its noise scheduler's timesteps; `None` if nothing tells it.

    The scheduler counts its own steps. Before its first, and where it does not count, the present timestep is looked up
    among its timesteps: the pipeline's `current_timestep`, which is mostly a view into them, so that no device waits;
    else the one that the model was given.
    """
    noise_scheduler = pipeline.scheduler
    index = getattr(noise_scheduler, "step_index", None)
    if index is None:
        index = getattr(noise_scheduler, "begin_index", None)
    if index is not None:
        return int(index)
    now = getattr(pipeline, "_current_timestep", None)
    found = None if now is None else _place(noise_scheduler.timesteps, now)
    return _place(noise_scheduler.timesteps, timestep) if found is None else found


def _place(timesteps: torch.Tensor, now: Any) -> int | None:
    """Where a timestep stands among those of a noise scheduler, as it is or divided by 1000; `None` if nowhere."""
    if isinstance(now, torch.Tensor):
        same = now.untyped_storage().data_ptr() == timesteps.untyped_storage().data_ptr()
        if now.dim() == 0 and same:
            return int((now.storage_offset() - timesteps.storage_offset()) // max(timesteps.stride(0), 1))
        values = now.detach().flatten().tolist()
        if not values or any(value != values[0] for value in values):
            return None  # every frame has a timestep of its own
        now = float(values[0])
    if not isinstance(now, (int, float)):
        return None
    table = timesteps.tolist()
    for scale in (1.0, 1000.0):
        close = [i for i, time in enumerate(table) if abs(time - now * scale) <= 1e-3 * max(abs(time), 1.0)]
        if len(close) == 1:
            return close[0]
    return None

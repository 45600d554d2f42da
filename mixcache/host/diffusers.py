"""Diffusers pipelines as hosts: which models they drive, and what their noise scheduler tells about a denoising."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from attrs import evolve

from mixcache.core.points import Prediction
from mixcache.errors import AttachError
from mixcache.host.noise import is_set, read_schedule
from mixcache.host.protocol import Schedule
from mixcache.host.ranks import group_over
from mixcache.host.rows import unwrapped
from mixcache.host.watch import Listener, Stepped, Watch, can_be_watched, noise_schedulers


def models_of(target: Any) -> dict[str, Any]:
    """The denoisers to attach to, by component name: those of a pipeline, or `target` itself if it is a model.

    A denoiser is a module that is no encoder, decoder or adapter: whatever it is called, and whoever wrote it.
    Raises `AttachError` for something that is neither, and for a pipeline without one.
    """
    if isinstance(target, torch.nn.Module):
        return {"transformer": unwrapped(target)}
    if not hasattr(target, "components"):
        raise AttachError(f"`target` must be a diffusers pipeline or a transformer, got {type(target).__name__}.")
    found = {name: unwrapped(value) for name, value in target.components.items() if _may_denoise(unwrapped(value))}
    if not found:
        raise AttachError(
            f"{type(target).__name__} has no transformer to attach to (components: {', '.join(target.components)})."
        )
    return found


def _may_denoise(component: Any) -> bool:
    """Whether a component may be what denoises: no encoder, no decoder, no ControlNet, nothing of transformers'."""
    if not isinstance(component, torch.nn.Module):
        return False
    if any(callable(getattr(component, name, None)) for name in ("encode", "decode", "generate")):
        return False
    homes = [kind.__module__ for kind in type(component).__mro__]
    return not any(home.startswith(_OTHERS) for home in homes)


_OTHERS = ("transformers.", "diffusers.models.controlnets", "diffusers.models.autoencoders", "diffusers.pipelines.")


def group_of(target: Any) -> Any:
    """The process group over which the denoisers of a pipeline, or a model, are sharded; see `group_over`."""
    if isinstance(target, torch.nn.Module):
        return group_over([target])
    return group_over([one for one in getattr(target, "components", {}).values() if _may_denoise(unwrapped(one))])


def fingerprint(model: Any) -> str:
    """A model's class, and a hash of its configuration and, unless it is sharded, of samples of its weights."""
    config = dict(getattr(model, "config", {}) or {})
    told = sorted((item for item in config.items() if not str(item[0]).startswith("_")), key=str)  # not whence it is
    digest = hashlib.sha256(repr(told).encode())
    state = {} if group_over([model]) else model.state_dict()  # reading a sharded one asks all ranks to take part
    weights = [tensor for _, tensor in sorted(state.items()) if isinstance(tensor, torch.Tensor)]
    for tensor in weights[:: max(len(weights) // 16, 1)]:
        try:
            sample = tensor.detach().flatten()[:64].float().cpu().numpy().tobytes()
        except (NotImplementedError, RuntimeError, TypeError):  # quantized: a class of tensors without views
            sample = f"{type(tensor).__name__} {tuple(tensor.shape)}".encode()
        digest.update(sample)
    return f"{type(model).__name__} {digest.hexdigest()[:16]}"


def is_pipeline(target: Any) -> bool:
    """Whether `target` is a pipeline with a noise scheduler, rather than a bare model."""
    return hasattr(target, "components") and hasattr(target, "scheduler")


class PipelineHost:
    """A pipeline whose noise schedulers are watched: they tell where a denoising stands."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._listener: Listener | None = None
        self._watches: list[Watch] = []
        self._begin = 0

    def listen(self, wanted: Callable[[], bool], told: Callable[[Stepped], None]) -> None:
        """Watch every noise scheduler that the pipeline has."""
        self._listener = Listener(wanted, told)
        self._watch()

    def hush(self) -> None:
        """Leave them as they were found."""
        if self._listener is not None:
            for watch in self._watches:
                watch.leave(self._listener)
        self._watches = []

    def called(self) -> None:
        """A model is called: a noise scheduler may have been exchanged since."""
        if self._watches and self._watches[0].noise_scheduler is not self._pipeline.scheduler:
            self.hush()
            self._watch()
        for watch in self._watches:
            watch.called()

    def _watch(self) -> None:
        assert self._listener is not None
        found = [self._pipeline.scheduler, *noise_schedulers(self._pipeline)]
        once = {id(one): one for one in found if can_be_watched(one)}
        self._watches = [Watch.join(one, self._listener) for one in once.values()]

    @property
    def _main(self) -> Watch | None:
        found = self._watches[0] if self._watches else None
        return found if found is not None and found.noise_scheduler is self._pipeline.scheduler else None

    def token(self) -> object | None:
        """The noise scheduler's own timesteps: `set_timesteps` makes new ones for every run.

        Where copies step for it (diffusion forcing), it is what stands for their present timesteps.
        """
        noise_scheduler = self._pipeline.scheduler
        if not is_set(noise_scheduler):
            return None
        main = self._main
        return noise_scheduler.timesteps if main is None or main.epoch is None else main.epoch

    def schedule(self, prediction: Prediction | None, timestep: Any) -> Schedule:
        """The noise levels of the run in progress."""
        self._begin = self.position(timestep) or 0
        return evolve(read_schedule(self._pipeline.scheduler, prediction, self._begin), token=self.token())

    def position(self, timestep: Any) -> int | None:
        """See `position`; where copies step for the noise scheduler, the rounds that they made."""
        main, noise_scheduler = self._main, self._pipeline.scheduler
        if main is not None and main.epoch is not None:
            return main.rounds
        found = position(self._pipeline, timestep)
        if main is None or getattr(noise_scheduler, "step_index", None) is not None:
            return found
        if not main.fresh and not hasattr(noise_scheduler, "step_index"):
            return len(noise_scheduler.timesteps)  # it does not count, and what it did before is not known
        if not main.count:
            return found
        counted = self._begin + main.count  # it does not count, but was seen to take its steps
        return counted if found is None or counted >= len(noise_scheduler.timesteps) else found

    def solver(self) -> Any:
        """The noise scheduler."""
        return self._pipeline.scheduler


class BareHost:
    """A bare model: nothing is known but what its calls and `session.run` tell."""

    def listen(self, wanted: Callable[[], bool], told: Callable[[Stepped], None]) -> None:
        """There is no noise scheduler to watch."""

    def hush(self) -> None:
        """There is none."""

    def called(self) -> None:
        """Of no interest."""

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

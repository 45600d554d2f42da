"""Where in a denoising run a model call stands: its step, its branch, its noise level, and whether a run began.

In order of trust: what `session.run` was told; the step in diffusers' `CacheContext`; the pipeline's noise scheduler.
Never the parity of a call counter: guidance may start or stop half-way.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from attrs import define, field, frozen

from mixcache.errors import RunError
from mixcache.points import Granularity, NoiseLevel, Point, Prediction


@frozen(kw_only=True)
class Call:
    """One call of a transformer, as the hook sees it. Fields that the pipeline does not tell are `None`."""

    component: str
    branch: str | None = None
    step: int | None = None
    num_steps: int | None = None
    sigma: float | None = None
    timestep: Any = None


@frozen
class Schedule:
    """The noise levels of a run, one an evaluation, read from a diffusers noise scheduler with one transfer a run.

    token: the scheduler's own timesteps tensor. `set_timesteps` makes a new one, so another token is another run.
    begin: the first evaluation that the run makes of them (image-to-image starts late).
    """

    token: object
    levels: tuple[NoiseLevel | None, ...]
    begin: int = 0

    @property
    def num_steps(self) -> int:
        """Evaluations in the run."""
        return len(self.levels) - self.begin

    def relative(self, index: int | None) -> int | None:
        """The evaluation of this run that an index into the noise scheduler's timesteps is."""
        return None if index is None else index - self.begin

    def fits(self, call: Call) -> bool:
        """Whether what a call tells about itself is true of this run; a call that tells nothing fits."""
        if call.num_steps is not None and call.num_steps != self.num_steps:
            return False
        if call.step is None or call.sigma is None:
            return True
        level = self.levels[self.begin + call.step] if call.step < self.num_steps else None
        return level is None or abs(level.sigma - call.sigma) < 1e-6

    @classmethod
    def of(cls, noise_scheduler: Any, prediction: Prediction | None) -> Schedule:
        """Read it; `prediction` overrides what the scheduler's configuration says the model returns."""
        timesteps = noise_scheduler.timesteps
        kind = prediction or _prediction(noise_scheduler)
        sigmas = getattr(noise_scheduler, "sigmas", None)
        count = len(timesteps)
        levels: Sequence[NoiseLevel | None] = [None] * count
        if kind == "flow" and sigmas is not None and len(sigmas) >= count:
            places = [*torch.as_tensor(sigmas).tolist(), 0.0]
            levels = [NoiseLevel.flow(*pair) for pair in list(pairwise(places))[:count]]
        elif kind != "flow" and hasattr(noise_scheduler, "alphas_cumprod"):
            table = torch.as_tensor(noise_scheduler.alphas_cumprod).tolist()
            kept = np.interp(torch.as_tensor(timesteps).tolist(), np.arange(len(table)), table)
            levels = [NoiseLevel(alpha=float(a**0.5), sigma=float((1 - a) ** 0.5), prediction=kind) for a in kept]
        return cls(timesteps, tuple(levels), getattr(noise_scheduler, "begin_index", None) or 0)


def _prediction(noise_scheduler: Any) -> Prediction:
    told = getattr(noise_scheduler.config, "prediction_type", None)
    if told in ("epsilon", "v_prediction", "sample"):
        return told  # type: ignore[no-any-return]
    return "flow"


def is_set(noise_scheduler: Any) -> bool:
    """Whether `set_timesteps` was ever called."""
    return getattr(noise_scheduler, "num_inference_steps", None) is not None and len(noise_scheduler.timesteps) > 0


def guidance_of(pipeline: Any, component: str, model: Any) -> float | None:
    """The scale with which a pipeline combines its branches, where that is all that it does with them."""
    second = getattr(pipeline, "guidance_scale_2", None) if component.endswith("_2") else None
    scale = getattr(pipeline, "guidance_scale", None) if second is None else second
    other = getattr(pipeline, "guidance_rescale", 0.0) or getattr(
        getattr(model, "config", None), "guidance_embeds", False
    )
    return float(scale) if isinstance(scale, (int, float)) and not other else None


def position(pipeline: Any) -> int | None:
    """Which evaluation the pipeline is at: index into its noise scheduler's timesteps, without touching the device.

    The scheduler counts its own steps (`None` before the first); one that does not is placed by the pipeline's
    current timestep, which is a view into the timesteps tensor. `None` if neither tells.
    """
    noise_scheduler = pipeline.scheduler
    if hasattr(noise_scheduler, "step_index"):
        index = noise_scheduler.step_index
        return int(index) if index is not None else (getattr(noise_scheduler, "begin_index", None) or 0)
    now = getattr(pipeline, "_current_timestep", None)
    timesteps = noise_scheduler.timesteps
    if (
        isinstance(now, torch.Tensor)
        and now.dim() == 0
        and now.untyped_storage().data_ptr() == (timesteps.untyped_storage().data_ptr())
    ):
        return int((now.storage_offset() - timesteps.storage_offset()) // max(timesteps.stride(0), 1))
    if isinstance(now, (int, float, torch.Tensor)):
        matches = (timesteps == now).nonzero()
        return int(matches[0]) if len(matches) else None
    return None


@frozen(kw_only=True)
class Place:
    """Where a call stands in its run; `ordinal` counts the calls of its step."""

    step: int
    num_steps: int
    branch: str
    ordinal: int
    level: NoiseLevel | None

    def point(self, site: str) -> Point:
        """The STEP point of a call that stands here."""
        return Point(
            granularity=Granularity.STEP,
            step=self.step,
            num_steps=self.num_steps,
            branch=self.branch,
            site=site,
            leads=self.ordinal == 0,
            level=self.level,
        )


@define(kw_only=True)
class Progress:
    """How far a run has come: its current step and the branches that this step has seen, by component."""

    num_steps: int
    step: int = -1
    seen: list[tuple[str, str]] = field(factory=list)
    timestep: Any = None

    def repeats(self, call: Call, step: int) -> bool:
        """Whether a call at `step` can only be the start of something new: a step back, or a branch seen already."""
        named = call.branch is not None and (call.component, call.branch) in self.seen
        return step < self.step or (step == self.step and named)

    def advance(self, call: Call, step: int, level: NoiseLevel | None) -> Place:
        """Take the call; the branch without a name gets its ordinal within the step ("call0", "call1", ...)."""
        if not 0 <= step < self.num_steps:
            raise RunError(
                f"step {step} is outside a run of {self.num_steps} steps (0 to {self.num_steps - 1}); open the run "
                "with `session.run(num_steps=...)` as long as the loop is."
            )
        if step != self.step:
            self.step, self.seen = step, []
        branch = call.branch or f"call{sum(component == call.component for component, _ in self.seen)}"
        place = Place(step=step, num_steps=self.num_steps, branch=branch, ordinal=len(self.seen), level=level)
        self.seen.append((call.component, branch))
        return place

    def step_by_timestep(self, timestep: Any) -> int:
        """The step of a loop that tells nothing but the timestep: a new one is the next step. Reads it on the host."""
        now = float(timestep.flatten()[0]) if isinstance(timestep, torch.Tensor) else timestep
        if now is None:
            raise RunError(
                "cannot tell the step of this call: wrap it in `run.step(i)` of `session.run(num_steps=...)`."
            )
        step = self.step if now == self.timestep and self.step >= 0 else self.step + 1
        self.timestep = now
        return step

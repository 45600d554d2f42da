"""What a recipe was tuned for: which model, and under which conditions it was measured.

A mask or a threshold that was found on one model says nothing about another, so that is refused. The same model in
another run (more steps, another size) is a matter of degree, so that is said aloud.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping
from typing import Any

import cattrs
import torch
from attrs import frozen

from mixcache.core.points import Granularity
from mixcache.errors import ConfigurationError, TunedElsewhereWarning
from mixcache.host.own_loop import Run

SAMPLED = 64
"""Weights of which one number each is compared."""

ROUNDED = 2.0**-7
"""How far two of them may be apart, relative: twice what rounding to bfloat16 does."""

_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
_converter = cattrs.Converter(forbid_extra_keys=True)
_converter.register_structure_hook(float, lambda value, _: float(value))


@frozen(kw_only=True)
class Identity:
    """What tells a denoiser from another, whatever it was loaded from, and in whatever dtype.

    kind: its class. parameters: how many there are. weights: single numbers from `SAMPLED` of its matrices, spread over
    the model; NaN where one is not there (offloaded, sharded, quantized).
    """

    kind: str
    parameters: int
    weights: tuple[float, ...]

    @classmethod
    def of(cls, model: Any) -> Identity:
        """Of a model."""
        named = sorted((n, t) for n, t in model.named_parameters() if isinstance(t, torch.Tensor))
        matrices = [tensor for _, tensor in named if tensor.dim() > 1] or [tensor for _, tensor in named]
        count = min(len(matrices), SAMPLED)
        chosen = sorted({int(len(matrices) * (i * _GOLDEN % 1.0)) for i in range(count)})
        return cls(
            kind=type(model).__name__,
            parameters=sum(tensor.numel() for _, tensor in named),
            weights=tuple(_number(matrices[i], i) for i in chosen),
        )

    def differs(self, now: Identity) -> str | None:
        """Why `now` is another model, in words; `None` if it is not."""
        if now.kind != self.kind:
            return f"it is a {now.kind}, not a {self.kind}"
        if now.parameters != self.parameters:
            return f"it has {now.parameters:,} parameters, not {self.parameters:,} (a LoRA adds some)"
        far = [math.isfinite(a + b) and abs(a - b) > ROUNDED * max(abs(a), abs(b)) + 1e-6 for a, b in _pairs(self, now)]
        if any(far):
            return f"{sum(far)} of {len(far)} weights that were compared differ (a fine-tune, or a LoRA fused into it)"
        return None


def _pairs(a: Identity, b: Identity) -> list[tuple[float, float]]:
    return list(zip(a.weights, b.weights, strict=True)) if len(a.weights) == len(b.weights) else [(0.0, 1.0)]


def _number(tensor: Any, index: int) -> float:
    """One element, to five digits."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.is_meta or not tensor.numel():
        return math.nan
    return float(f"{float(tensor.detach().flatten()[int(tensor.numel() * ((index + 1) * _GOLDEN % 1.0))]):.5g}")


@frozen(kw_only=True)
class Conditions:
    """How a run was made; what nobody tells is `None`, and compared with nothing.

    evaluations: of the whole run. latent: its shape, without the batch. noise_scheduler: its class and configuration.
    guidance: the scale.
    """

    evaluations: int
    latent: tuple[int, ...] | None = None
    guidance: float | None = None
    noise_scheduler: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, run: Run[Any], solver: Any, pipeline: Any) -> Conditions:
        """Of a run that is ending. solver: its noise scheduler. pipeline: or the model alone."""
        guidance = getattr(pipeline, "guidance_scale", None)
        return cls(
            evaluations=run.num_steps,
            latent=run.memory.store.entered(Granularity.STEP.value),
            guidance=float(guidance) if isinstance(guidance, (int, float)) else None,
            noise_scheduler=None if solver is None else scheduler_told(solver),
        )

    def apart(self, now: Conditions) -> list[str]:
        """What is otherwise now, in words."""
        found = []
        for name, unit in (("evaluations", " evaluations"), ("latent", ""), ("guidance", "")):
            then, here = getattr(self, name), getattr(now, name)
            if then is not None and here is not None and then != here:
                label = "" if unit else {"latent": "latents of ", "guidance": "guidance "}[name]
                found.append(f"{label}{_shown(here)}{unit}, not {_shown(then)}")
        before, after = self.noise_scheduler, now.noise_scheduler
        if before is None or after is None:
            return found
        if before.get("class") != after.get("class"):
            return [*found, f"the noise scheduler {after.get('class')}, not {before.get('class')}"]
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key):
                found.append(f"a noise scheduler with {key}={after.get(key)}, not {before.get(key)}")
        return found


def scheduler_told(noise_scheduler: Any) -> dict[str, Any]:
    """The class of a noise scheduler, and its configuration in values that TOML knows."""
    config = dict(getattr(noise_scheduler, "config", {}) or {})
    told = {str(key): _plain(one) for key, one in config.items() if not str(key).startswith("_") and one is not None}
    return {"class": type(noise_scheduler).__name__, **told}


def _plain(one: Any) -> Any:
    if isinstance(one, (bool, int, float, str)):
        return one
    if isinstance(one, (list, tuple)) and len(one) <= 8:
        return [_plain(item) for item in one]
    return hashlib.sha256(repr(one).encode()).hexdigest()[:16]


def _shown(one: Any) -> str:
    return "x".join(map(str, one)) if isinstance(one, tuple) else f"{one:g}" if isinstance(one, float) else str(one)


@frozen(kw_only=True)
class Tuned:
    """Where a tuned recipe comes from: the table [tuned] of its settings file.

    target: what was asked for. model: how it was asked for. tuning, held_out: what was measured, in words. command:
    what tuned it. conditions: under which it was measured. models: by component of the pipeline, the one it is for.
    """

    target: str
    model: str
    tuning: str
    held_out: str
    command: str
    conditions: Conditions
    models: Mapping[str, Identity]

    @classmethod
    def read(cls, given: Any) -> Tuned | None:
        """From the table of a settings file. Raises `ConfigurationError` for a table that is none."""
        if given is None or isinstance(given, Tuned):
            return given
        try:
            return _converter.structure(given, cls)
        except Exception as error:  # whatever a file of others makes of the reader
            raise ConfigurationError(
                f"[tuned] is not what `mixcache tune` writes ({type(error).__name__}); tune again, or leave it out."
            ) from error

    def told(self) -> dict[str, Any]:
        """As a table of a settings file."""
        found: dict[str, Any] = _converter.unstructure(self)
        return found


def check_model(tuned: Tuned | None, models: Mapping[str, Any]) -> None:
    """Raise `ConfigurationError` if a recipe was tuned, and these are not the models that it was tuned for."""
    if tuned is None:
        return
    why = next((f"there is a {name!r} here and none there" for name in models if name not in tuned.models), None)
    if why is None:
        why = next((f"there is no {name!r}" for name in tuned.models if name not in models), None)
    for name, model in models.items() if why is None else ():
        why = why or tuned.models[name].differs(Identity.of(model))
    if why is not None:
        raise ConfigurationError(
            f"this recipe was tuned for {tuned.model!r}, and this is another model: {why}. Tune it for this one "
            "(`mixcache tune --model ...`); or take the table [tuned] out of the file, and measure what it gives."
        )


def check_run(tuned: Tuned | None, now: Conditions, notes: set[str]) -> None:
    """Note in which ways a run is unlike those that a recipe was tuned in, and warn of it, once for each."""
    apart = [] if tuned is None else tuned.conditions.apart(now)
    note = f"this recipe was tuned for other runs, and not measured for {'; '.join(apart)}"
    if apart and note not in notes:
        notes.add(note)
        warnings.warn(f"mixcache: {note}", TunedElsewhereWarning, stacklevel=2)

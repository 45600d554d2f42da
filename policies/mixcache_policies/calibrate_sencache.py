"""How SenCache's table is measured: calls of the model with the latent or the timestep of the step after."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from attrs import define, frozen
from torch import Tensor, nn

from mixcache import AttachError, ConfigurationError, Granularity, catalogue
from mixcache.bench import Watch, generate
from mixcache.study import Calibrator, Fit, Job
from mixcache_policies.sencache import ROWS, rms

TIME = "timestep"


@frozen(kw_only=True)
class Sensitivity(Calibrator):
    """A calibrator that measures how strongly a model's output follows its latent and its noise level.

    With f the model on the leading branch, x_s and t_s the latent and timestep of step s, sigma_s its noise level:

        |J_x|(s) = rms(f(x_(s+1), t_s) - f(x_s, t_s)) / rms(x_(s+1) - x_s)
        |J_t|(s) = rms(f(x_s, t_(s+1)) - f(x_s, t_s)) / |sigma_(s+1) - sigma_s|

    which takes two more calls of the model per step. The last step has the numbers of the one before. The mean over the
    prompts and seeds is the table's entry "sensitivity": rows sigma, x, t, and output, rms(f). Deviation: the authors
    take x_s from noised videos; here it is the model's own, from prompts.
    """

    name: str = "sencache"
    summary: str = "|J_x| and |J_t| at every step (arXiv 2602.24208); one run per prompt, of two more calls per step"

    def runs(self, job: Job) -> int:
        """One run gives all its numbers."""
        return 1

    def measure(self, job: Job, watch: Watch) -> Fit:
        """Probe every prompt and seed. Raises `ConfigurationError` where steps or noise levels cannot be told."""
        if job.steps < 2:
            raise ConfigurationError("there is no step to compare: the run has a single one; give --steps 2 or more.")
        runs = []
        for pair in job.pairs:
            runs.append(_probe(job, pair, watch))
            watch.call()
        table = {name: [round(float(v), 6) for v in np.mean([run[name] for run in runs], axis=0)] for name in ROWS}
        spread = ", ".join(f"|J_{name}| {min(table[name]):.3g} to {max(table[name]):.3g}" for name in ("x", "t"))
        return Fit({"sensitivity": table}, f"sensitivity at {len(table['sigma'])} steps: {spread}")


@define
class _Seen:
    """One computed step: what the model was called with, by name, and what it gave."""

    arguments: dict[str, Any]
    latent: str
    output: Tensor
    by_x: float = float("nan")
    change_t: float = float("nan")

    @property
    def x(self) -> Tensor:
        """The latent, which stands first where its argument holds more."""
        x: Tensor = self.arguments[self.latent]
        for dim, size in enumerate(self.output.shape):
            x = x.narrow(dim, 0, min(size, x.shape[dim]))
        return x


def _probe(job: Job, pair: tuple[str, int], watch: Watch) -> Mapping[str, Any]:
    """The rows of one run."""
    with _watched(job.model.pipeline) as seen:
        made = generate(job.model, *pair, job.arguments, "static:every=1", on_step=watch.step)
    levels: dict[int, float | None] = {}
    for record in made.records:
        if record.point.granularity is Granularity.STEP:
            levels.setdefault(record.point.step, record.point.sigma)
    sigma = [levels[step] for step in sorted(levels)]
    if None in sigma or len(sigma) != len(seen):
        what = "has no noise levels" if None in sigma else f"evaluates {len(sigma)} steps at {len(seen)} timesteps"
        raise ConfigurationError(
            f"sencache compares one timestep with the next, and {type(job.model.pipeline).__name__} {what}; use a "
            "first-order or multistep noise scheduler."
        )
    there = np.array(sigma, dtype=np.float64)
    by_x = np.array([one.by_x for one in seen])
    by_t = np.array([one.change_t for one in seen]) / np.abs(np.append(np.diff(there), 1.0))
    for row in (by_x, by_t):
        for step in range(1, len(row)):
            row[step] = row[step] if np.isfinite(row[step]) else row[step - 1]
    if not (np.isfinite(by_x).all() and np.isfinite(by_t).all()):
        raise ConfigurationError(f"the sensitivity at {pair[0]!r}, seed {pair[1]}, is not finite; try --dtype float32.")
    size = np.array([float(rms(one.output).mean()) for one in seen])
    return dict(zip(ROWS, (there, by_x, by_t, size)))


@contextmanager
def _watched(pipeline: Any) -> Iterator[list[_Seen]]:
    """Every step on its leading branch, in order, with what the step after told of it; outputs are kept until then."""
    seen: list[_Seen] = []
    last: dict[int, _Seen] = {}

    def after(model: Any, args: Any, kwargs: Any, result: Any) -> None:
        bound = inspect.signature(type(model).forward).bind(model, *args, **kwargs).arguments
        arguments = {name: value for name, value in list(bound.items())[1:] if name != "kwargs"}
        now = _Seen({**arguments, **bound.get("kwargs", {})}, names[id(model)], _tensor(result).detach().clone())
        before = last.get(id(model))
        if before is not None and _time(before) == _time(now):
            return  # another guidance branch of the same step
        now.arguments[now.latent] = now.arguments[now.latent].detach().clone()
        if before is not None and before.x.shape == now.x.shape:
            moved = float(rms(now.x - before.x).mean())
            other_x = _call(model, {**before.arguments, before.latent: now.arguments[now.latent]})
            other_t = _call(model, {**before.arguments, TIME: now.arguments[TIME]})
            before.by_x = float(rms(other_x - before.output).mean()) / moved if moved else 0.0
            before.change_t = float(rms(other_t - before.output).mean())
        seen.append(now)
        last[id(model)] = now

    models = _models(pipeline)
    names = {id(model): latent for model, latent in models}
    handles = [model.register_forward_hook(after, with_kwargs=True) for model, _ in models]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _models(pipeline: Any) -> list[tuple[nn.Module, str]]:
    """The pipeline's models of latent and timestep, and how each calls its latent."""
    adapters = catalogue.models()
    found = []
    for model in pipeline.components.values():
        if isinstance(model, nn.Module):
            adapter = adapters.get(type(model).__name__)
            latent = "hidden_states" if adapter is None else adapter.latent_argument
            if {latent, TIME} <= set(inspect.signature(type(model).forward).parameters):
                found.append((model, latent))
    if not found:
        raise AttachError(
            f"{type(pipeline).__name__} has no model that is called with `hidden_states` and `{TIME}`, or with the "
            "`latent_argument` of its adapter; write a ModelAdapter for it."
        )
    return found


def _call(model: Any, arguments: Mapping[str, Any]) -> Tensor:
    """The model itself, past every hook and patch."""
    with torch.no_grad():
        return _tensor(type(model).forward(model, **arguments)).detach()


def _tensor(result: Any) -> Tensor:
    found: Tensor = result[0] if isinstance(result, tuple) else result.sample
    return found


def _time(seen: _Seen) -> float:
    return float(torch.as_tensor(seen.arguments[TIME]).flatten()[0])


SENCACHE_TABLE = Sensitivity()

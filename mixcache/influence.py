"""How much an error at a point does to the result: one reuse in an otherwise computed run, and what became of it.

The deviation of the final latent over the error of that reuse is the influence of the point: how the model and its
noise scheduler carry an error from there to the end. A policy weighs the errors that it predicts by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor

from mixcache import plugins
from mixcache.compare import Watch
from mixcache.errors import AttachError, ConfigurationError
from mixcache.generation import generate
from mixcache.loading import Model
from mixcache.plan import make_plan
from mixcache.points import Granularity, Point, Reading, Vote
from mixcache.policy import BranchMode, Policy
from mixcache.session import Session

PROBED = 16
"""Steps of a run at which the influence is measured; between them it is interpolated (its logarithm, linearly)."""


@frozen(kw_only=True)
class Once(Policy):
    """Reuse a single evaluation, where and as another policy would: its spans, its basis and its forecaster."""

    branches: ClassVar[BranchMode] = "leader"

    of: Policy
    when: int = field(default=1)

    def rebuilt(self, granularity: Granularity) -> tuple[str | None, str | None]:
        """As the other policy rebuilds."""
        return self.of.rebuilt(granularity)

    def spans(self, blocks: int) -> tuple[tuple[int, int], ...]:
        """Those of the other policy."""
        return self.of.spans(blocks)

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Reuse at one step."""
        return Vote.reuse("probed") if point.step == self.when else Vote.compute("not probed")


def runs_of(steps: int) -> int:
    """How many calls of the pipeline `measure` makes for a prompt and a seed, if the model has blocks to skip."""
    return 1 + len(_probed(steps)) * len(Granularity)


def measure(
    policy: str, model: Model, arguments: Mapping[str, Any], pairs: Sequence[tuple[str, int]], watch: Watch
) -> tuple[dict[str, Any], str]:
    """The influence by granularity, one number a step, and a line about it; the mean over "step" is 1.

    pairs: prompts and seeds. For each, one run is computed in full and one for every probed step and granularity, in
    which a single evaluation is reused as `policy` would and computed beside (audit=True):

        influence = ||x' - x|| / ||x||  /  true relative L1 error of that reuse on the leading branch

    x the final latent, geometric mean over the pairs. Raises `ConfigurationError` where nothing can be measured.
    """
    steps = model.steps(arguments)
    if steps < 2:
        raise ConfigurationError("there is no reuse to probe: the run has a single step; give --steps 2 or more.")
    (probed,) = plugins.build_policies(policy)
    found: dict[tuple[Granularity, int], list[float]] = {}
    for prompt, seed in pairs:
        plain = _final(generate(model, prompt, seed, arguments, on_step=watch.step).latents)
        watch.call()
        for granularity in Granularity:
            for step in _probed(steps):
                ratio = _probe(Once(of=probed, at=granularity, when=step), model, prompt, seed, arguments, plain, watch)
                watch.call()
                if ratio is not None:
                    found.setdefault((granularity, step), []).append(math.log(ratio))
    rows = {g: _row({step: np.mean(logs) for (at, step), logs in found.items() if at is g}, steps) for g, _ in found}
    if Granularity.STEP not in rows:
        raise ConfigurationError("no reuse of a step changed the result, so there is no influence to measure.")
    scale = float(np.mean(rows[Granularity.STEP]))
    influence = {str(g): [round(float(value) / scale, 4) for value in row] for g, row in rows.items()}
    spread = ", ".join(f"{g} {min(row):.2f} to {max(row):.2f}" for g, row in influence.items())
    return {"influence": influence}, f"influence of an error, one number for each of {steps} steps: {spread}"


def _probed(steps: int) -> list[int]:
    return sorted({round(step) for step in np.linspace(1, steps - 1, min(PROBED, steps - 1))})


def _probe(
    once: Once, model: Model, prompt: str, seed: int, arguments: Mapping[str, Any], plain: Tensor, watch: Watch
) -> float | None:
    """The influence in one run; `None` where the model has no such point, or the reuse was exact."""
    try:
        session = Session(model.pipeline, make_plan(once, audit=True), None, None)
    except AttachError:  # no adapter lists this model's blocks
        return None
    with session:
        latents = _final(generate(model, prompt, seed, arguments, on_step=watch.step).latents)
    errors = [record.outcome.true_error for record in session.records if record.outcome.reused and record.point.leads]
    error = max((error for error in errors if error is not None), default=0.0)
    deviation = float(torch.linalg.vector_norm(latents - plain) / torch.linalg.vector_norm(plain))
    if not (math.isfinite(error) and math.isfinite(deviation)):
        raise ConfigurationError(
            f"reusing step {once.when} of {prompt!r}, seed {seed}, gives values that are not finite; try "
            "--dtype float32."
        )
    return deviation / error if error > 0.0 and deviation > 0.0 else None


def _final(latents: Tensor | None) -> Tensor:
    if latents is None:
        raise ConfigurationError("the pipeline has no `callback_on_step_end`, so its final latent cannot be read.")
    return latents.double()


def _row(logs: Mapping[int, Any], steps: int) -> list[float]:
    """One number a step: the logarithms interpolated; step 0, which is never reused, as the first probed."""
    places = sorted(logs)
    return np.exp(np.interp(np.arange(steps), places, [float(logs[place]) for place in places])).tolist()  # type: ignore[no-any-return]

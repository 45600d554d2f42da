"""How much an error at a point does to the result: one reuse in an otherwise computed run, and what became of it.

The deviation of the final latent over the error of that reuse is the influence of the point: how the model and its
noise scheduler carry an error from there to the end. A policy weighs the errors that it predicts by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor

from mixcache.bench.generation import generate
from mixcache.bench.watch import Watch
from mixcache.core import catalogue
from mixcache.core.points import Granularity, Point, Reading, Vote
from mixcache.core.policy import BranchMode, Policy
from mixcache.core.tables import Fit
from mixcache.errors import AttachError, ConfigurationError
from mixcache.recipe import Recipe
from mixcache.study.calibration import Calibrator, Job

PROBED = 16
"""Steps of a run at which the influence is measured; between them its logarithm is interpolated linearly."""


@frozen(kw_only=True)
class Once(Policy):
    """Reuse a single evaluation, where and as another policy would: its spans, its basis and its forecaster."""

    branches: ClassVar[BranchMode] = "leader"

    of: Policy
    when: int = field(default=1)

    def rebuilt(self, granularity: Granularity, span: tuple[int, int] | None = None) -> tuple[str | None, str | None]:
        """As the other policy rebuilds."""
        return self.of.rebuilt(granularity, span)

    def spans(self, blocks: int) -> tuple[tuple[int, int], ...]:
        """Those of the other policy."""
        return self.of.spans(blocks)

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Reuse at one step."""
        return Vote.reuse("probed") if point.step == self.when else Vote.compute("not probed")


@frozen(kw_only=True)
class Probing(Calibrator):
    """A calibrator that measures the influence by granularity, one number per step; the mean over "step" is 1.

    name: whose table it is. policy: the spec of the policy that is probed, by default `name`. For every prompt and seed
    one run is computed in full and one for every probed step and granularity, in which a single evaluation is reused as
    the policy would and computed beside (audit=True):

        influence = ||x' - x|| / ||x||  /  true relative L1 error of that reuse on the leading branch

    with x the final latent; geometric mean over the prompts and seeds. The table's entry is "influence".
    """

    name: str
    policy: str = field()
    summary: str = ""

    @policy.default
    def _policy(self) -> str:
        return self.name

    def runs(self, job: Job) -> int:
        """One run in full, and one for every probed step and granularity, if the model has blocks to skip."""
        return 1 + len(_probed(job.steps)) * len(Granularity)

    def measure(self, job: Job, watch: Watch) -> Fit:
        """The influence table. Raises `ConfigurationError` where nothing can be measured."""
        if job.steps < 2:
            raise ConfigurationError("there is no reuse to probe: the run has a single step; give --steps 2 or more.")
        probed = catalogue.build("policy", self.policy)
        found: dict[tuple[Granularity, int], list[float]] = {}
        for pair in job.pairs:
            plain = _final(generate(job.model, *pair, job.arguments, on_step=watch.step).latents)
            watch.call()
            for granularity in Granularity:
                for step in _probed(job.steps):
                    ratio = _probe(Once(of=probed, at=granularity, when=step), job, pair, plain, watch)
                    watch.call()
                    if ratio is not None:
                        found.setdefault((granularity, step), []).append(math.log(ratio))
        return _table(found, job.steps)


def _table(found: Mapping[tuple[Granularity, int], list[float]], steps: int) -> Fit:
    """Rows from logarithms by granularity and step, and a line about them."""
    rows = {g: _row({step: np.mean(logs) for (at, step), logs in found.items() if at is g}, steps) for g, _ in found}
    if Granularity.STEP not in rows:
        raise ConfigurationError("no reuse of a step changed the result, so there is no influence to measure.")
    scale = float(np.mean(rows[Granularity.STEP]))
    influence = {str(g): [round(float(value) / scale, 4) for value in row] for g, row in rows.items()}
    spread = ", ".join(f"{g} {min(row):.2f} to {max(row):.2f}" for g, row in influence.items())
    return Fit({"influence": influence}, f"influence of an error, one number for each of {steps} steps: {spread}")


def _probed(steps: int) -> list[int]:
    return sorted({round(step) for step in np.linspace(1, steps - 1, min(PROBED, steps - 1))})


def _probe(once: Once, job: Job, pair: tuple[str, int], plain: Tensor, watch: Watch) -> float | None:
    """The influence in one run; `None` where the model has no such point, or the reuse was exact."""
    try:
        made = generate(job.model, *pair, job.arguments, Recipe.of(once, audit=True), on_step=watch.step)
    except AttachError:  # no adapter lists this model's blocks
        return None
    latents = _final(made.latents)
    errors = [record.outcome.true_error for record in made.records if record.outcome.reused and record.point.leads]
    error = max((error for error in errors if error is not None), default=0.0)
    deviation = float(torch.linalg.vector_norm(latents - plain) / torch.linalg.vector_norm(plain))
    if not (math.isfinite(error) and math.isfinite(deviation)):
        raise ConfigurationError(
            f"reusing step {once.when} of {pair[0]!r}, seed {pair[1]}, gives values that are not finite; try "
            "--dtype float32."
        )
    return deviation / error if error > 0.0 and deviation > 0.0 else None


def _final(latents: Tensor | None) -> Tensor:
    if latents is None:
        raise ConfigurationError("the pipeline has no `callback_on_step_end`, so its final latent cannot be read.")
    return latents.double()


def _row(logs: Mapping[int, Any], steps: int) -> list[float]:
    """One number per step: the logarithms interpolated; step 0, which is never reused, as the first probed."""
    places = sorted(logs)
    return np.exp(np.interp(np.arange(steps), places, [float(logs[place]) for place in places])).tolist()  # type: ignore[no-any-return]

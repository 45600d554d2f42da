"""Tables from signals: what is measured in runs in which everything is computed, and a fit to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from attrs import evolve, frozen
from torch import Tensor

from mixcache.bench.generation import generate
from mixcache.bench.watch import Watch
from mixcache.core import catalogue
from mixcache.core.points import Granularity, Point
from mixcache.core.signals import Signal, Tensors
from mixcache.core.tables import Fit
from mixcache.errors import ConfigurationError, UnknownNameError
from mixcache.recipe import Recipe
from mixcache.study.calibration import Calibrator, Job
from mixcache.study.watching import observer


@frozen(kw_only=True)
class Observed:
    """One number: of which signal, in which run, at which visit; `None` where there was no earlier visit to compare.

    run: ordinals of the call of the pipeline and of the run within it.
    """

    signal: str
    run: tuple[int, int]
    point: Point
    value: float | None

    @property
    def call(self) -> tuple[tuple[int, int], int, str]:
        """The call of the transformer that it belongs to."""
        return self.run, self.point.step, self.point.branch


@frozen(kw_only=True)
class Observing(Calibrator):
    """A calibrator that reads signals in plain runs: one at each of these granularities, by name or as a `Signal`.

    name: whose table it is. fit: gets every number that was observed and makes the values of the table.
    """

    name: str
    signals: Mapping[Granularity, str | Signal]
    fit: Callable[[Sequence[Observed]], Fit]
    summary: str = ""

    def runs(self, job: Job) -> int:
        """One run gives all its numbers."""
        return 1

    def measure(self, job: Job, watch: Watch) -> Fit:
        """Observe every prompt and seed, and fit the table to all that was observed."""
        wanted = {granularity: _signal(one) for granularity, one in self.signals.items()}
        observed: list[Observed] = []
        for index, (prompt, seed) in enumerate(job.pairs):
            observed += _observe(job, wanted, index, prompt, seed, watch.step)
            watch.call()
        return self.fit(observed)


def _signal(wanted: str | Signal) -> Signal:
    if isinstance(wanted, Signal):
        return wanted
    known = catalogue.signals()
    if wanted not in known:
        raise UnknownNameError("signal", wanted, known)
    return known[wanted]


def _observe(
    job: Job,
    wanted: Mapping[Granularity, Signal],
    index: int,
    prompt: str,
    seed: int,
    on_step: Callable[[], None],
) -> list[Observed]:
    """The numbers of one call of the pipeline.

    No vote reads what was measured after the last compute, so every value is kept as it is measured, in the order of
    the visits, and brought to the host at the end.
    """
    taken: dict[Granularity, list[Tensor | None]] = {granularity: [] for granularity in wanted}
    observers = [observer(_kept(signal, taken[g]), g) for g, signal in wanted.items()]
    recipe = Recipe.of(observers, basis="residual", forecast="hold", samples="mean")
    made = generate(job.model, prompt, seed, job.arguments, recipe, on_step=on_step)
    found: list[Observed] = []
    for granularity, signal in wanted.items():
        visits = [record for record in made.records if record.point.granularity is granularity]
        for record, value in zip(visits, _to_host(taken[granularity]), strict=True):
            if value is not None and not math.isfinite(value):
                raise ConfigurationError(
                    f"{signal.name} is {value} at step {record.point.step} of {prompt!r}, seed {seed}: the model gives "
                    "values that are not finite; try --dtype float32."
                )
            found.append(Observed(signal=signal.name, run=(index, record.run), point=record.point, value=value))
    return found


def _kept(signal: Signal, taken: list[Tensor | None]) -> Signal:
    """The signal under another name, leaving what it measures in `taken`."""
    if signal.measure is None:
        raise ConfigurationError(f"signal {signal.name!r} is derived from others; observe one that measures tensors.")
    measuring = signal.measure

    def measure(tensors: Tensors) -> Tensor | None:
        value = measuring(tensors)
        taken.append(value)
        return value

    return evolve(signal, name=f"observed {signal.name}", measure=measure)


def _to_host(values: Sequence[Tensor | None]) -> list[float | None]:
    there = [value.mean() for value in values if value is not None]
    numbers = iter(torch.stack(there).tolist() if there else [])
    return [None if value is None else next(numbers) for value in values]

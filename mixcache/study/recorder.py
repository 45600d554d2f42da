"""Watching one uncached run from outside, and making a recording of what was seen."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from attrs import define, field
from torch import Tensor

from mixcache.bench.loading import Model
from mixcache.core.points import Granularity, Point
from mixcache.core.signals import Signal, Tensors
from mixcache.core.trace import Record
from mixcache.errors import ConfigurationError, NothingReusedWarning
from mixcache.host.bounds import response
from mixcache.host.diffusers import models_of
from mixcache.host.facts import fit
from mixcache.host.shown import once
from mixcache.host.watch import Listener, Stepped, Watch
from mixcache.recipe import Recipe
from mixcache.study.recording import Matrix, Recording, gram
from mixcache.study.watching import observer

UNEXPLAINED = 0.05
"""How much of what the solver was given may be left over by the branches, in L2 and relative."""

Pair = tuple[Tensor, Tensor]
"""The latent that a model was given, and its output."""


@define(eq=False)
class Recorder:
    """What is seen of one run: latents and outputs by the loop, what the solver is given by its noise scheduler.

    Tensors are kept in host memory, in their own dtype, as long as this lives.
    """

    model: Model
    _pairs: list[Pair] = field(factory=list)
    _steps: list[Tensor | None] = field(factory=list)
    _solvers: list[Any] = field(factory=list)

    @property
    def recipe(self) -> Recipe:
        """What shows the outputs of a run, and reuses none."""
        pairs = self._pairs

        def take(tensors: Tensors) -> None:
            if tensors.output is not None:
                pairs.append((_kept(tensors.anchor), _kept(tensors.output)))

        signal = Signal(name="recorded outputs", measure=take, when="after")

        return Recipe.of([observer(signal)], basis="output", forecast="hold")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the noise scheduler, and copy it as it is before the first evaluation."""
        pipeline = self.model.pipeline

        def called(*_: Any) -> None:
            if not self._solvers:
                self._solvers.append(copy.deepcopy(pipeline.scheduler))

        def told(step: Stepped) -> None:
            self._steps.append(_kept(once(step).model_output))

        listener = Listener(lambda: True, told)
        handles = [model.register_forward_pre_hook(called) for model in models_of(pipeline).values()]
        watch = Watch.join(pipeline.scheduler, listener)
        try:
            yield
        finally:
            watch.leave(listener)
            for handle in handles:
                handle.remove()

    def follow(self, make: Callable[[Recipe], Any], prompt: str, seed: int) -> tuple[Any, Callable[[], Recording]]:
        """What `make` makes with a recipe that reuses nothing, and what gives the numbers of it (`recording`)."""
        with self.watching(), warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingReusedWarning)
            made = make(self.recipe)
        notes = () if made.report is None else made.report.notes
        return made, lambda: self.recording(made.records, made.latents, notes, prompt, seed)

    def recording(
        self, records: Sequence[Record], latents: Tensor | None, notes: Sequence[str], prompt: str, seed: int
    ) -> Recording:
        """The numbers of the run that was seen. records, latents, notes: what the generation gave.

        Raises `ConfigurationError` where the run could not be followed.
        """
        visits = [one.point for one in records if one.point.granularity is Granularity.STEP]
        if not visits or not self._pairs or len(self._pairs) % len(visits):
            told = "; ".join(notes) or "nothing was seen"
            raise ConfigurationError(f"this run of {self.model.name!r} shows no outputs: {told}.")
        # of several streams (video and sound) the first counts
        table, points = _by_step(visits, self._pairs[:: len(self._pairs) // len(visits)])
        known = self._steps if len(self._steps) == len(table) else [None] * len(table)
        anchors, outputs, guidance = _split(table, known)
        final = anchors[-1] if latents is None else latents
        answer = response(self._solvers[0]) if self._solvers else None
        rows = [output for branch in zip(*outputs) for output in branch]
        return Recording(
            gram=gram([*rows, *anchors]),
            guidance=guidance,
            solver=answer[-1] if answer is not None and len(answer) == len(table) else None,
            scale=float(torch.linalg.vector_norm(final.double())),
            levels=tuple(point.level for point in points),
            components=tuple(point.component for point in points),
            dtype=str(anchors[0].dtype).removeprefix("torch."),
            model=self.model.name,
            prompt=prompt,
            seed=seed,
        )


def _kept(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _by_step(visits: Sequence[Point], pairs: Sequence[Pair]) -> tuple[list[list[Pair]], list[Point]]:
    """The calls of every evaluation, and where its first one stood."""
    steps: dict[int, list[tuple[Point, Pair]]] = {}
    for point, pair in zip(visits, pairs):
        steps.setdefault(point.step, []).append((point, pair))
    count = visits[0].num_steps
    if sorted(steps) != list(range(count)):
        missing = next(step for step in range(count) if step not in steps)
        raise ConfigurationError(f"evaluation {missing} of {count} was not seen, so this run cannot be priced.")
    ordered = [steps[step] for step in range(count)]
    return [[pair for _, pair in calls] for calls in ordered], [calls[0][0] for calls in ordered]


def _split(
    table: Sequence[Sequence[Pair]], given: Sequence[Tensor | None]
) -> tuple[list[Tensor], list[list[Tensor]], Matrix]:
    """The latent of every evaluation, its outputs by branch, and the weights with which they entered the solver."""
    anchors: list[Tensor] = []
    outputs: list[list[Tensor]] = []
    weights: list[Sequence[float]] = []
    for step, (calls, wanted) in enumerate(zip(table, given)):
        size = calls[0][0].numel() if wanted is None else wanted.numel()
        parts = [part for _, output in calls for part in output.chunk(max(output.numel() // size, 1))]
        anchors.append(calls[0][0].chunk(max(calls[0][0].numel() // size, 1))[0])
        outputs.append(parts)
        if len(parts) != len(outputs[0]):
            raise ConfigurationError(
                f"evaluation {step} has {len(parts)} guidance branches and the first has {len(outputs[0])}; such a run "
                "cannot be priced: keep guidance on at every step."
            )
        weights.append(_weights(step, parts, wanted))
    return anchors, outputs, np.array(weights, dtype=np.float64)


def _weights(step: int, parts: Sequence[Tensor], wanted: Tensor | None) -> Sequence[float]:
    if wanted is not None and all(part.numel() == wanted.numel() for part in parts):
        found = fit(wanted, parts)
        if found.misfit <= UNEXPLAINED:
            return found.values
    if len(parts) == 1:
        return (1.0,)
    raise ConfigurationError(
        f"the {len(parts)} guidance branches of evaluation {step} are combined in a way that is no weighted sum; only "
        "runs with plain guidance, or with none, can be priced."
    )

"""What one evaluation shows of a model, step by step of the solver; and the facts that are made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve, frozen
from torch import Tensor

from mixcache.host.facts import Combined, Fit
from mixcache.host.latents import Part, Source, equal_parts, rows_of
from mixcache.host.watch import Stepped


@frozen(kw_only=True)
class Facts:
    """What is known of one model in one run. why: for what reason nothing of it can be cached, if so.

    sources, parts: for each output, where its latent is, and which part of it is the prediction. watched: whether that
    was seen, not only declared. moved: (P, Q) with the latent after the first evaluation = P * latent + Q * output,
    where it was made of nothing else; the latent as the model was given it. rough: the rounding in that.
    sign: whether the solver was given the prediction or its negative, where nothing is mixed into it.
    """

    sources: tuple[Source, ...] = ()
    parts: tuple[Part | None, ...] = ()
    watched: bool = False
    moved: tuple[float, float] | None = None
    rough: float = 0.0
    sign: float | None = None
    solver: Any = None
    why: str = ""


@frozen(kw_only=True)
class Shown:
    """What one step of the solver showed."""

    sources: dict[str, Source]
    combined: Combined | None
    after: Fit | None
    rough: float
    solver: Any


def once(step: Stepped) -> Stepped:
    """A step without its repetitions: some pipelines keep the latents once for each guidance branch."""
    if step.sample.dim() == 0 or step.model_output.shape != step.sample.shape:
        return step
    copies = math.gcd(equal_parts(step.sample), equal_parts(step.model_output))
    rows = step.sample.shape[0] // max(copies, 1)
    after = step.after[:rows] if step.after.shape == step.sample.shape else step.after
    return evolve(step, sample=step.sample[:rows], model_output=step.model_output[:rows], after=after)


def possible_latents(old: Tensor, outputs: Sequence[tuple[Tensor, ...]]) -> list[Part | None]:
    """The parts of an argument that may be the latent: all of it, or as much as an output is large."""
    found: list[Part | None] = [None]
    for output in outputs[0]:
        if output.dim() == old.dim():
            differing = [d for d in range(1, old.dim()) if old.shape[d] != output.shape[d]]
            if len(differing) == 1 and old.shape[differing[0]] > output.shape[differing[0]]:
                dim, size = differing[0], output.shape[differing[0]]
                found += [Part(dim=dim, start=start, size=size) for start in (0, old.shape[dim] - size)]
    return found


def declared(arguments: Mapping[str, Any], stated: str | None, output: Tensor) -> Source | None:
    """Where the record of the model states that the latent is; else the one argument that is like the output."""
    told = None if stated is None else rows_of(arguments.get(stated))
    if stated is not None and told is not None and told.dim() == output.dim() and told.shape[0] == output.shape[0]:
        part = None
        larger = [d for d in range(told.dim()) if told.shape[d] > output.shape[d]]
        if len(larger) == 1 and all(told.shape[d] == output.shape[d] for d in range(told.dim()) if d not in larger):
            part = Part(dim=larger[0], start=0, size=output.shape[larger[0]])  # what is added stands behind the latent
        return Source(argument=stated, part=part, listed=not isinstance(arguments[stated], Tensor))
    like = []
    for name, value in arguments.items():
        tensor = rows_of(value)
        if tensor is not None and tensor.shape == output.shape and tensor.dtype == output.dtype:
            like.append(Source(argument=name, listed=not isinstance(value, Tensor)))
    return like[0] if len(like) == 1 else None


def unfound(count: int, index: int) -> str:
    which = "its latent" if count == 1 else f"the latent of its output {index} of {count}"
    return f"{which} was not found among the arguments; pass adapter=ModelAdapter(model=..., latent_argument=...)"


def moved(shown: Shown, component: str) -> tuple[float, float] | None:
    """(P, Q) of a step that is explained by the latent and the model's output."""
    after, combined, source = shown.after, shown.combined, shown.sources[component]
    if after is None or combined is None or not after.explained:
        return None
    p, q = after.values
    if shown.solver is None:
        return p, q
    return (p + q * combined.sample) / source.scale, q * combined.total

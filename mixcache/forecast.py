"""Forecasters: the history of a skip point -> what its z would be now.

All forecasters here are linear: they weigh the stored z with numbers that depend on when each was computed, never on
their values. The weights are those of polynomial interpolation through the stored points (Newton's form and
Lagrange's are the same polynomial), so a forecaster of order n is exact on polynomials up to degree n at any spacing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from attrs import field, frozen
from torch import Tensor

from mixcache.adapter import Calibrations
from mixcache.basis import Streams
from mixcache.errors import ConfigurationError
from mixcache.points import Point
from mixcache.policy import ge, one_of

Abscissa = Literal["step", "sigma"]


@frozen(kw_only=True)
class Entry:
    """One stored visit: z per stream, where it was computed, and whether it was `exact`: not downstream of a reuse.

    prefix: what the blocks before a span had added to the hidden states, where a forecaster reads it.
    """

    z: Streams
    point: Point
    exact: bool = True
    prefix: Tensor | None = None


@frozen
class Forecaster:
    """Base of the linear forecasters: subclasses give `depth` and `weights`, or override `forecast` itself."""

    name: ClassVar[str] = ""
    reads_prefix: ClassVar[bool] = False
    abscissa: Abscissa = field(default="step", validator=one_of("step", "sigma"), kw_only=True)

    @property
    def depth(self) -> int:
        """How many of the last computed visits are kept."""
        return 1

    def calibrated(self, tables: Calibrations) -> Forecaster:
        """This forecaster with the table of the model that it is enabled on; most need none."""
        return self

    def weights(self, nodes: Sequence[float], target: float) -> list[float]:
        """One weight a node (oldest first; all distinct; 1 to `depth` of them); the weights sum to 1."""
        raise NotImplementedError(f"{type(self).__name__} must define weights(nodes, target)")

    def forecast(self, history: Sequence[Entry], point: Point, prefix: Tensor | None = None) -> Streams:
        """z at `point` from `history` (oldest first, never empty). With a short history the order is lower.

        prefix: what the blocks before a span add now, if `reads_prefix` says that the forecaster compares with it.
        """
        target = self.position(point)
        nodes: dict[float, Entry] = {}
        for entry in history:  # a later visit at the same place replaces the earlier one
            where = self.position(entry.point)
            nodes.pop(where, None)
            nodes[where] = entry
        places = list(nodes)[-self.depth :]
        weights = self.weights(places, target)
        entries = [nodes[place] for place in places]
        return tuple(_combine(weights, [e.z[i] for e in entries]) for i in range(len(entries[-1].z)))

    def position(self, point: Point) -> float:
        """Where the point lies on the abscissa: its step index or its sigma."""
        if self.abscissa == "step":
            return float(point.step)
        if point.sigma is None:
            raise ConfigurationError(
                "abscissa='sigma' needs the sigma of every step, and this run has none: enable a pipeline, give "
                "sigma to `run.step(i, sigma=...)`, or use abscissa='step'."
            )
        return point.sigma


def _combine(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """Weighted sum in at least float32, newest last, in the dtype of the newest; never an alias of a stored tensor."""
    newest = tensors[-1]
    total = newest.to(torch.promote_types(newest.dtype, torch.float32)).clone().mul_(weights[-1])
    for weight, tensor in zip(weights[:-1], tensors[:-1]):
        if weight != 0.0:
            total.add_(tensor, alpha=weight)
    return total.to(newest.dtype)


def lagrange(nodes: Sequence[float], target: float) -> list[float]:
    """Weights of the polynomial through `nodes`, evaluated at `target`."""
    return [
        math.prod((target - other) / (node - other) for j, other in enumerate(nodes) if j != i)
        for i, node in enumerate(nodes)
    ]


@frozen
class Hold(Forecaster):
    """z stays what it was at the last computed visit: what EasyCache, TeaCache and FORA do."""

    name: ClassVar[str] = "hold"

    def weights(self, nodes: Sequence[float], target: float) -> list[float]:
        return [0.0] * (len(nodes) - 1) + [1.0]


@frozen
class Linear(Forecaster):
    """The straight line through the last two computed visits."""

    name: ClassVar[str] = "linear"

    @property
    def depth(self) -> int:
        return 2

    def weights(self, nodes: Sequence[float], target: float) -> list[float]:
        return lagrange(nodes, target)


@frozen
class Taylor(Forecaster):
    """The polynomial of degree `order` through the last order + 1 computed visits, in Newton's form.

    TaylorSeer (arXiv 2503.06923) divides plain differences by factorials, which is exact for equal steps only up to
    order 1; the interpolating polynomial used here is exact up to its order for any steps.
    """

    name: ClassVar[str] = "taylor"
    order: int = field(default=1, validator=ge(0))

    @property
    def depth(self) -> int:
        return int(self.order) + 1

    def weights(self, nodes: Sequence[float], target: float) -> list[float]:
        return lagrange(nodes, target)


FORECASTERS: tuple[type[Forecaster], ...] = (Hold, Linear, Taylor)

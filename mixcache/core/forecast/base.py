"""The seam of forecasters: the history of a place -> what its z would be now.

A stored visit is an `Entry`. Most forecasters are linear: they weigh the stored z with numbers that depend on when each
was computed, never on their values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from mixcache.core.points import Point
from mixcache.core.streams import Beside, Streams
from mixcache.core.tables import Calibrations
from mixcache.core.validators import one_of, tunable
from mixcache.errors import ConfigurationError, PluginError

Abscissa = Literal["step", "sigma"]


@frozen(kw_only=True)
class Entry:
    """One stored visit: z per stream, where it was computed, and whether it was `exact`: not downstream of a reuse.

    beside: the side inputs that the forecaster's `reads` names, as they were at that visit.
    """

    z: Streams
    point: Point
    exact: bool = True
    beside: Beside = field(factory=dict)

    def to(self, device: torch.device | str) -> Entry:
        """The entry with its tensors on `device`."""
        beside = {name: tuple(t.to(device) for t in streams) for name, streams in self.beside.items()}
        return evolve(self, z=tuple(z.to(device) for z in self.z), beside=beside)


@frozen
class Forecaster:
    """Base of the forecasters: subclasses give `depth` and `weights`, or override `forecast` itself.

    reads: side inputs that are kept with every entry, by name: "anchor", and any registered one ("prefix", ...).
    """

    name: ClassVar[str] = ""
    reads: ClassVar[frozenset[str]] = frozenset()
    abscissa: Abscissa = field(
        default="step",
        validator=one_of("step", "sigma"),
        kw_only=True,
        metadata=tunable(choices=("step", "sigma")),
    )

    @property
    def depth(self) -> int:
        """How many of the last computed visits are kept; 0 needs no history."""
        return 1

    def calibrated(self, tables: Calibrations) -> Forecaster:
        """This forecaster with the table of the model that it is enabled on; most need none."""
        return self

    def weights(self, nodes: Sequence[float], target: float) -> list[float]:
        """One weight per node (oldest first; all distinct; 1 to `depth` of them); the weights sum to 1."""
        raise NotImplementedError(f"{type(self).__name__} must define weights(nodes, target)")

    def forecast(self, history: Sequence[Entry], point: Point, beside: Beside) -> Streams:
        """z at `point` from `history` (oldest first, never empty). With a short history the order is lower.

        beside: the side inputs of this visit that `reads` names, as far as they are known.
        """
        nodes = self.nodes(history)
        weights: Any = self.weights(list(nodes), self.position(point))
        good = isinstance(weights, Sequence) and len(weights) == len(nodes)
        if not good or not all(isinstance(weight, (int, float)) and math.isfinite(weight) for weight in weights):
            raise PluginError(
                f"forecaster {self.name or type(self).__name__!r} must return {len(nodes)} finite weights, one per "
                f"node; it returned {weights!r}."
            )
        return tuple(combine(weights, streams) for streams in zip(*(entry.z for entry in nodes.values())))

    def nodes(self, history: Sequence[Entry]) -> dict[float, Entry]:
        """The last `depth` entries by place, oldest first; of two at one place the later."""
        nodes: dict[float, Entry] = {}
        for entry in history:
            where = self.position(entry.point)
            nodes.pop(where, None)
            nodes[where] = entry
        return dict(list(nodes.items())[-self.depth :])

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


def combine(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """Weighted sum in at least float32, newest last, in the dtype of the newest; never an alias of a stored tensor."""
    newest = tensors[-1]
    total = newest.to(torch.promote_types(newest.dtype, torch.float32)).clone().mul_(weights[-1])
    for weight, tensor in zip(weights[:-1], tensors[:-1]):
        if weight != 0.0:
            total.add_(tensor, alpha=weight)
    return total.to(newest.dtype)

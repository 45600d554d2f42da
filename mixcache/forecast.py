"""Forecasters: the history of a skip point -> what its z would be now.

All forecasters here are linear: they weigh the stored z with numbers that depend on when each was computed, never on
their values. Linear and Taylor interpolate (Newton's form and Lagrange's are the same polynomial): order n is exact on
polynomials up to degree n at any spacing. Adams and Hermite give that up for smaller weights; each says what is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from mixcache.basis import Streams
from mixcache.calibration import Calibrations
from mixcache.errors import ConfigurationError
from mixcache.points import Point
from mixcache.policy import ge, gt, none_or_ge, one_of

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

    def to(self, device: torch.device | str) -> Entry:
        """The entry with its tensors on `device`."""
        prefix = None if self.prefix is None else self.prefix.to(device)
        return evolve(self, z=tuple(z.to(device) for z in self.z), prefix=prefix)


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
        nodes = self.nodes(history)
        weights = self.weights(list(nodes), self.position(point))
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


def lagrange(nodes: Sequence[float], target: float) -> list[float]:
    """Weights of the polynomial through `nodes`, evaluated at `target`."""
    return [
        math.prod((target - other) / (node - other) for j, other in enumerate(nodes) if j != i)
        for i, node in enumerate(nodes)
    ]


def slope(nodes: Sequence[float], place: float) -> list[float]:
    """Weights of the first derivative, at `place`, of the polynomial through `nodes`."""
    return [
        sum(
            math.prod((place - nodes[k]) / (node - nodes[k]) for k in range(len(nodes)) if k not in (i, j))
            / (node - other)
            for j, other in enumerate(nodes)
            if j != i
        )
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

    reach: how far ahead orders above 1 are trusted, in intervals between the last two computed visits; further ahead it
    is the straight line through these two. `None` trusts them everywhere. A parabola one interval ahead adds the whole
    second difference and its noise, half an interval ahead three eighths of it. On tiny_wan order 2 with reach 0.6
    gained 1 to 2 dB over the line for EasyCache and MixCache; at a fixed interval of two one clip in 16 ran off.
    """

    name: ClassVar[str] = "taylor"
    order: int = field(default=1, validator=ge(0))
    reach: float | None = field(default=None, validator=none_or_ge(0))

    @property
    def depth(self) -> int:
        return int(self.order) + 1

    def weights(self, nodes: Sequence[float], target: float) -> list[float]:
        reach = math.inf if self.reach is None else self.reach
        if len(nodes) > 2 and abs(target - nodes[-1]) > reach * abs(nodes[-1] - nodes[-2]):
            return [0.0] * (len(nodes) - 2) + lagrange(nodes[-2:], target)
        return lagrange(nodes, target)


@frozen
class Adams(Forecaster):
    """Adams-Bashforth of 1 to 4 steps: the slopes at the stored places, extrapolated and integrated up to now.

    z(t) = z_c + integral from c to t of the polynomial through the slopes at the last `order` places (c is the last).
    A slope is that of the parabola through a place and its neighbours (at c: through the last three). No slopes of z
    are known, so unlike the integrator it cannot be exact up to `order`: order 1 is the straight line, and order 2 the
    parabola of `taylor:order=2`; orders 3 and 4 are exact up to degree 2 as well, at any spacing, and take less of the
    higher differences than a polynomial through all places does (one equal step ahead 5/24 of the third at order 3,
    where Taylor takes it whole), so they amplify noise less. Depth: order + 1 visits.

    AB-Cache (arXiv 2504.10540) arrives from the same method at the polynomial through equally spaced outputs, which is
    `taylor` in the basis `output`.
    """

    name: ClassVar[str] = "adams"
    order: int = field(default=2, validator=one_of(1, 2, 3, 4))

    @property
    def depth(self) -> int:
        return int(self.order) + 1

    def weights(self, nodes: Sequence[float], target: float) -> list[float]:
        weights = [0.0] * (len(nodes) - 1) + [1.0]
        half = (target - nodes[-1]) / 2.0
        for root in (-1.0, 1.0):  # Gauss' rule of two points integrates cubics exactly
            at = nodes[-1] + half * (1.0 + root / math.sqrt(3.0))
            for i, share in enumerate(lagrange(nodes[1:], at), start=1):
                first = max(0, min(i - 1, len(nodes) - 3))
                for j, weight in enumerate(slope(nodes[first : first + 3], nodes[i]), start=first):
                    weights[j] += half * share * weight
        return weights


@frozen
class Hermite(Forecaster):
    """HiCache: Taylor's series with contracted Hermite polynomials in the place of powers (arXiv 2508.16984).

    z(t) = sum over k = 0..order of D_k / k! * s^k H_k(s d) with d = t - c the steps since the last computed visit,
    s = `scale` (the paper's sigma), H_k the physicists' polynomials 1, 2x, 4x^2 - 2, ... and D_k / k! the divided
    difference of the last k + 1 visits. At equal distances D_k is the published difference quotient; at unequal ones,
    where the published one divides by the last distance alone, it remains a derivative.

    Exact on constants, at other scales than 1/sqrt(2) on nothing more: the leading part of the k-th term is that of
    Taylor's series times (2 s^2)^k, so on a straight line the default goes half as far. H_2, H_4, ... do not vanish at
    d = 0, so that the unit of d matters (abscissa "sigma" is refused); deviation: at d = 0 it gives z_c itself.
    Depth: order + 1 visits.
    """

    name: ClassVar[str] = "hermite"
    order: int = field(default=2, validator=ge(0))
    scale: float = field(default=0.5, validator=gt(0))
    abscissa: Abscissa = field(default="step", validator=one_of("step"), kw_only=True)

    @property
    def depth(self) -> int:
        return int(self.order) + 1

    def weights(self, nodes: Sequence[float], target: float) -> list[float]:
        weights = [0.0] * (len(nodes) - 1) + [1.0]
        x = self.scale * (target - nodes[-1])
        if x == 0.0:
            return weights
        before, now = 1.0, 2.0 * x
        for k in range(1, len(nodes)):
            places = nodes[-1 - k :]
            for i, place in enumerate(places):
                difference = 1.0 / math.prod(place - other for other in places if other != place)
                weights[len(nodes) - 1 - k + i] += self.scale**k * now * difference
            before, now = now, 2.0 * x * now - 2.0 * k * before
        return weights


FORECASTERS: tuple[type[Forecaster], ...] = (Hold, Linear, Taylor, Adams, Hermite)

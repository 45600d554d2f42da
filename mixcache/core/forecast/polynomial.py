"""Forecasters that weigh the stored z by when each was computed.

Linear and Taylor interpolate (Newton's form and Lagrange's are the same polynomial): order n is exact on polynomials up
to degree n at any spacing. Adams and Hermite give that up for smaller weights; each says what is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from attrs import field, frozen

from mixcache.core.forecast.base import Abscissa, Entry, Forecaster
from mixcache.core.points import Point
from mixcache.core.streams import Beside, Streams
from mixcache.core.validators import ge, gt, none_or, one_of, tunable


@frozen
class Nothing(Forecaster):
    """z = 0, from no history at all: the output is what its anchor says ("none").

    With an anchor that estimates the output this is sparse attention as published (DraftAttention, SVG); what it gives
    depends on the present input alone, so it is exact in the sense that no history went into it, but not dense.
    """

    name: ClassVar[str] = "none"

    @property
    def depth(self) -> int:
        return 0

    def forecast(self, history: Sequence[Entry], point: Point, beside: Beside) -> Streams:
        return tuple(torch.zeros_like(t) for t in beside["anchor"])


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
    order: int = field(default=1, validator=ge(0, whole=True), metadata=tunable(1, 3))
    reach: float | None = field(default=None, validator=none_or(ge(0)))

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
    order: int = field(default=2, validator=ge(0, whole=True))
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


FORECASTERS: tuple[type[Forecaster], ...] = (Nothing, Hold, Linear, Taylor, Adams, Hermite)

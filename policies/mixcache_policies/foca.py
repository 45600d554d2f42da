"""FoCa (arXiv 2508.16211): the slope of the computed visits corrects the slope of the visits before this one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from attrs import field, frozen

from mixcache import Forecaster, one_of


@frozen
class FoCa(Forecaster):
    """Forecast, then calibrate: a two-step predictor from visit to visit, and a corrector of Heun's form.

    F_k is what visit k gave, computed or rebuilt; c, b and a are the last three computed visits. A reused visit is

        F_k+1 = [2 F_k - F_k-1] + 1/2 [s - (F_k - F_k-1)] = F_k + 1/2 [s + (F_k - F_k-1)],    s = (F_c - F_b) / (c - b)

    so the slope of a visit is halfway between that of the visit before and that of the last two computed visits. It is
    linear in the computed visits, and unrolled here: with s' = (F_b - F_a) / (b - a) and g = c - b,

        F(c + e) = F_c + e s + (g - 1) (s - s') (1 - 2^-e)

    which is how far F_c was from the line forecast before it, given back little by little. Exact on straight lines;
    where every step was computed (g = 1), and with two visits, it is `linear`. It counts in steps (abscissa "sigma" is
    refused). Depth: 3 visits.

    Deviations: differences are divided by the steps between the visits; the code in use (cache-dit) takes F_c - F_b
    whole, which goes g times too far at an interval of g. What was rebuilt between b and c is taken for the line
    through a and b, as a forecaster sees computed visits alone.
    """

    name: ClassVar[str] = "foca"
    abscissa: Literal["step", "sigma"] = field(default="step", validator=one_of("step"), kw_only=True)

    @property
    def depth(self) -> int:
        return 3

    def weights(self, nodes: Sequence[float], target: float) -> list[float]:
        weights = [0.0] * (len(nodes) - 1) + [1.0]
        if len(nodes) == 1:
            return weights
        ahead, gap = target - nodes[-1], nodes[-1] - nodes[-2]
        given_back = (gap - 1.0) * (1.0 - 2.0**-ahead) if len(nodes) > 2 else 0.0
        for at, slope in ((-1, ahead + given_back), (-2, -given_back)):
            if slope != 0.0:
                share = slope / (nodes[at] - nodes[at - 1])
                weights[at] += share
                weights[at - 1] -= share
        return weights

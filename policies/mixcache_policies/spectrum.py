"""Spectrum (arXiv 2603.01623): z as a polynomial of the whole run, fitted to the last computed visits by ridge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from attrs import field, frozen

from mixcache import Forecaster, Point, ge, one_of


@frozen
class Spectrum(Forecaster):
    """Chebyshev polynomials over the whole run, fitted by ridge regression, mixed with a straight line.

    With tau = 2 step / num_steps - 1 in [-1, 1], phi = (T_0, ..., T_degree) and one row phi(tau_i) of Phi for every
    kept visit, the weights of the fit are

        w = phi(tau)^T (Phi^T Phi + ridge I)^-1 Phi^T;     z(t) = (1 - linear) w z + linear (line through the last two)

    degree: of the polynomials; published 4. ridge: published 0.1. linear: share of the straight line; the paper has 0,
    the authors' code recommends 0 to 0.5. visits: how many of the last computed visits are fitted; published 10.

    Deviations: T_0 is not penalised, so that the weights sum to 1 and a constant stays what it is (the paper penalises
    every coefficient, which pulls z towards 0). With n visits the degree is at most n - 1. At the step of the last
    computed visit z is that visit's: a fit does not pass through its points. Away from there it is exact on constants
    alone; with ridge=0 and linear=0 on polynomials of the step up to `degree`. The interval that Spectrum lets grow
    from compute to compute belongs to a policy (`schedule`).
    """

    name: ClassVar[str] = "spectrum"
    degree: int = field(default=4, validator=ge(0, whole=True))
    ridge: float = field(default=0.1, validator=ge(0))
    linear: float = field(default=0.5, validator=ge(0))
    visits: int = field(default=10, validator=ge(1, whole=True))
    abscissa: Literal["step", "sigma"] = field(default="step", validator=one_of("step"), kw_only=True)

    @property
    def depth(self) -> int:
        return int(self.visits)

    def position(self, point: Point) -> float:
        """tau: where the step lies in the run, from -1 to 1."""
        return 2.0 * point.step / point.num_steps - 1.0

    def weights(self, nodes: Sequence[float], target: float) -> list[float]:
        hold = np.eye(len(nodes))[-1]
        if target == nodes[-1]:
            return [float(weight) for weight in hold]
        degree = min(self.degree, len(nodes) - 1)
        *rows, now = np.polynomial.chebyshev.chebvander(np.array([*nodes, target]), degree)[:, 1:]
        middle = np.mean(rows, axis=0)  # a free T_0 is the same as fitting what is left of the means
        penalty = np.sqrt(self.ridge) * np.eye(degree)
        slopes = (now - middle) @ np.linalg.pinv(np.vstack([rows - middle, penalty]))[:, : len(nodes)]
        fitted = 1.0 / len(nodes) + slopes - np.mean(slopes)
        line = hold
        if len(nodes) > 1:
            ahead = (target - nodes[-1]) / (nodes[-1] - nodes[-2])
            line = hold + ahead * (hold - np.eye(len(nodes))[-2])
        mixed = (1.0 - self.linear) * fitted + self.linear * line
        return [float(weight) for weight in mixed]

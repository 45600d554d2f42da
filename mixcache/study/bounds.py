"""How far a forecast can be off: bounds from Lipschitz constants, and from Peano's kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from mixcache.core.forecast.base import Forecaster
from mixcache.errors import ConfigurationError


def hold_error(moved: float, sigma_moved: float, *, K: float, M: float, basis: str = "residual") -> float:
    """The largest error of `hold`, if the model is K-Lipschitz in its anchor and M-Lipschitz in sigma (in one norm).

    moved: ||a_t - a_c||, sigma_moved: |sigma_t - sigma_c|, c the last computed visit. Residual: (K + 1) moved + M
    sigma_moved, as y_t = a_t + (o_c - a_c); output: K moved + M sigma_moved. Raises `ConfigurationError` otherwise.
    """
    if basis not in ("residual", "output"):
        raise ConfigurationError(f"`hold_error(basis=...)` must be 'residual' or 'output', got {basis!r}.")
    return (K + (basis == "residual")) * moved + M * sigma_moved


def remainder(forecaster: Forecaster, nodes: Sequence[float], target: float, degree: int) -> float | None:
    """C such that the forecast of z is off by at most C * max |z^(degree + 1)|, between the nodes and the target.

    nodes: where z was computed, oldest first. `None` if the forecaster is not exact on polynomials of that degree
    (then no such C exists). Peano: C = integral of |K|, K(s) = [(t - s)_+^degree - sum of w_i (t_i - s)_+^degree] /
    degree!, w_i its weights. For a polynomial through degree + 1 nodes it is |product of (t - t_i)| / (degree + 1)!.
    """
    kept = list(nodes)[-forecaster.depth :]
    weights = forecaster.weights(kept, target)
    span = max(*kept, target) - min(*kept, target)
    for power in range(degree + 1):
        exact = sum(w * (t - target) ** power for w, t in zip(weights, kept))
        if abs(exact - (power == 0)) > 1e-9 * max(1.0, span**power) * sum(map(abs, weights)):
            return None
    order = [(t, w) for t, w in zip([target, *kept], [1.0, *(-w for w in weights)])]
    cuts = sorted({t for t, _ in order})
    total = 0.0
    for a, b in pairwise(cuts):
        kernel = np.polynomial.Polynomial([0.0])
        for t, w in order:
            if t >= b:
                kernel = kernel + w * np.polynomial.Polynomial([t, -1.0]) ** degree
        roots = [r.real for r in kernel.roots() if abs(r.imag) < 1e-9 and a < r.real < b]
        antiderivative = kernel.integ()
        stops = [a, *sorted(roots), b]
        total += sum(abs(antiderivative(q) - antiderivative(p)) for p, q in pairwise(stops))
    return float(total / math.factorial(degree))

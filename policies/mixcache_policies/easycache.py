"""EasyCache (arXiv 2507.02860): reuse while the accumulated predicted change of the output stays below a threshold."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen

from mixcache import Point, Policy, Reading, Vote, ge, tunable


@frozen(kw_only=True)
class EasyCache(Policy):
    """Runtime-adaptive caching by the transformation rate K.

    The change of the output between evaluations is predicted from the change of the input. With x the latent, v the
    output and c the last computed evaluation (section 3 of the paper):

        eps_t = K * mean|x_t - x_(t-1)| / mean|v_c|     K = mean|v_c - v_b| / mean|x_c - x_b|, b computed before c
        E    += eps_t;   reuse while E < threshold, otherwise compute and set E = 0

    The first `first_steps` evaluations and the last are computed. The decision is made on the first guidance branch of
    a step (cond) and holds for the others. Reuse is v_c - x_c added to x_t: basis "residual", forecast "hold".

    threshold: accumulated predicted relative change (relative L1, dimensionless); published values 0.025 to 0.1.
    first_steps: 10 of 50 for Wan 2.1 and 5 for HunyuanVideo in the authors' code.

    Deviations: the paper defines K between neighbouring steps. Here, as in the authors' code, it is the secant between
    the last two computed ones. The worst sample of a batch decides (`samples="mean"` pools them, as published).
    """

    signals = ("sum(predicted_change)",)
    branches = "leader"

    threshold: float = field(default=0.05, validator=ge(0), metadata=tunable(0.01, 1.0, log=True))
    first_steps: int = field(default=10, validator=ge(0, whole=True), metadata=tunable(1, 12))
    last_steps: int = field(default=1, validator=ge(0, whole=True))

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Reuse while E + eps_t stays below the threshold."""
        total = reading["sum(predicted_change)"]
        if total is None:
            return Vote.compute("no transformation rate yet")
        if total < self.threshold:
            return Vote.reuse(f"accumulated change below {self.threshold:g}", error=total)
        return Vote.compute(f"accumulated change reached {self.threshold:g}", error=total)

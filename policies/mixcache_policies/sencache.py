"""SenCache (arXiv 2602.24208): reuse while the model's sensitivity says that its output has changed little."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from attrs import define, evolve, field, frozen
from torch import Tensor

from mixcache import (
    Calibrations,
    ConfigurationError,
    Outcome,
    Point,
    Policy,
    Reading,
    RunInfo,
    Signal,
    Tensors,
    Vote,
    ge,
    none_or,
    tunable,
)

ROWS = ("sigma", "x", "t", "output")
"""What the table holds by step: noise level, |J_x|, |J_t|, and the root mean square of the output."""

Sensitivity = tuple[tuple[float, ...], ...]

_MISSING = (
    "SenCache needs the sensitivity of this model, and none is known: measure it with `mixcache calibrate sencache "
    "--model ... --prompts ... --out TABLE.json` and give SenCache(table='TABLE.json')."
)


def rms(tensor: Tensor) -> Tensor:
    """Root mean square per sample, [S], accumulated in float32."""
    flat = tensor.detach().float().square()
    return (flat.flatten(1).mean(1) if flat.dim() > 1 else flat.reshape(-1)).sqrt()


def _distance(t: Tensors) -> Tensor | None:
    before = t.computed("anchor")
    if before is None:
        return None
    apart = rms(t.anchor - before)
    return apart.square().mean().sqrt().reshape(1) if t.samples == "mean" else apart


DISTANCE = Signal(
    name="anchor_rms_since_compute",
    measure=_distance,
    reads=frozenset({"computed:anchor"}),
    summary="root mean square of a - a_last: how far what enters has moved since the last computed visit",
)


def _rows(given: Any) -> Sensitivity | None:
    """The rows of `ROWS` in their order, from a mapping or from what this function returned before."""
    if given is None:
        return None
    try:
        rows = [given[name] for name in ROWS] if isinstance(given, Mapping) else given
        found = tuple(tuple(float(value) for value in row) for row in rows)
    except (KeyError, TypeError, ValueError):
        found = ()
    lengths = {len(row) for row in found}
    whole = len(found) == len(ROWS) and len(lengths) == 1 and 0 not in lengths
    if not whole or not all(math.isfinite(value) and value >= 0 for row in found for value in row):
        raise ConfigurationError(
            f"`SenCache(sensitivity=...)` must map {', '.join(ROWS)} to as many finite numbers >= 0 each, got "
            f"{given!r:.80}."
        )
    return found


@frozen(kw_only=True)
class SenCache(Policy):
    """Reuse while |J_x| dx + |J_t| dt, the change of the output that the model's sensitivity predicts, is small.

    With x_c and sigma_c the latent and noise level of the last computed step, and |J_x|, |J_t| how strongly the output
    follows each of the two there (measured once per checkpoint, at the nearest noise level of the table):

        S_t = |J_x| rms(x_t - x_c) + |J_t| |sigma_t - sigma_c|
        reuse while S_t < threshold (in the first `early_share` of the run: `early`), at most `longest_run` in a row

    Nothing is accumulated: S_t is measured from the last compute. It bounds, to first order, the error of holding the
    output, so that is how a reuse is rebuilt. The decision is made on the first guidance branch (cond) and holds for
    the others. Raises `ConfigurationError` if no sensitivity is known. It needs noise levels.

    threshold, early: root mean square of the output's change. The authors' 0.07 and 0.005 for Wan 2.1 are multiplied by
    7093.6 for an L2 norm over a latent of 2 096 640 numbers, which makes 0.34 and 0.024. early_share: published 0.2.
    longest_run: published 10. sensitivity: the rows sigma, x, t and output by step. table: a JSON file of `mixcache
    calibrate sencache`.

    Deviations: root mean squares in the place of L2 norms, so that thresholds hold at every size; the noise level in
    the place of the timestep, in which |J_t| dt is the same. The paper reuses the output, as here; its code for Wan
    adds what all blocks added. The worst sample of a batch decides (`samples="mean"` pools them).
    """

    name: ClassVar[str] = "sencache"
    signals = (DISTANCE,)
    branches = "leader"

    threshold: float = field(default=0.34, validator=ge(0), metadata=tunable(0.03, 3.0, log=True))
    early: float = field(default=0.024, validator=ge(0))
    early_share: float = field(default=0.2, validator=ge(0))
    first_steps: int = field(default=1, validator=ge(0, whole=True))
    last_steps: int = field(default=1, validator=ge(0, whole=True))
    longest_run: int | None = field(default=10, validator=none_or(ge(0, whole=True)))
    sensitivity: Mapping[str, tuple[float, ...]] | Sensitivity | None = field(default=None, converter=_rows, repr=False)
    table: str | None = None

    @define
    class State:
        """The noise level of the last computed step."""

        sigma: float | None = None

    def rebuilt(self, granularity: Any, span: tuple[int, int] | None = None) -> tuple[str | None, str | None]:
        """The output, held."""
        return "output", "hold"

    def calibrated(self, tables: Calibrations) -> Policy:
        """Itself with the sensitivity that was given, or that of the table that was named."""
        if self.sensitivity is not None:
            return self
        found = tables.read("sencache", "sensitivity", self.table, lambda rows: evolve(self, sensitivity=rows))
        if found is None:
            raise ConfigurationError(_MISSING)
        return found

    def started(self, run: RunInfo) -> None:
        """Refuse to run without sensitivity."""
        if self.sensitivity is None:
            raise ConfigurationError(_MISSING)

    def predicted(self, distance: float, sigma: float, since: float) -> tuple[float, float]:
        """S_t and its share of the output, for a latent that has moved by `distance` since noise level `since`."""
        levels, by_x, by_t, size = _rows(self.sensitivity) or ((0.0,),) * 4
        at = min(range(len(levels)), key=lambda i: abs(levels[i] - since))
        score = by_x[at] * distance + by_t[at] * abs(sigma - since)
        return score, score / size[at] if size[at] > 0 else score

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Reuse while S_t stays below the threshold."""
        distance = reading[DISTANCE.name]
        if distance is None or point.sigma is None or state.sigma is None:
            return Vote.compute("no noise level" if point.sigma is None else "no computed step yet")
        early = point.step < round(self.early_share * point.num_steps)
        limit = min(self.early, self.threshold) if early else self.threshold
        score, error = self.predicted(distance, point.sigma, state.sigma)
        if score < limit:
            return Vote.reuse(f"predicted change below {limit:g}", error=error)
        return Vote.compute(f"predicted change reached {limit:g}", error=error)

    def observe(self, point: Point, outcome: Outcome, state: Any) -> None:
        """Keep the noise level of a compute."""
        if not outcome.reused:
            state.sigma = point.sigma

"""L2P (arXiv 2604.26365): a weight for every earlier step, fitted to recorded runs of the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from attrs import evolve, field, frozen

from mixcache import Beside, Calibrations, ConfigurationError, Entry, Forecaster, Point, Streams, combine, ge

Grams = Mapping[str, tuple[tuple[float, ...], ...]]
"""By branch, the lower triangle of the inner products of z between the steps of a run: row s has s + 1 numbers."""

_MISSING = (
    "forecast='l2p' needs the inner products of this model's outputs, and none are known: measure them with `mixcache "
    "calibrate l2p --model ... --prompts ... --out TABLE.json` and give the file, forecast='l2p:table=TABLE.json'."
)


def _grams(given: Any) -> Grams:
    """Lower triangles by branch; empty if there are none."""
    if not given:
        return {}
    try:
        found = {str(branch): tuple(tuple(float(x) for x in row) for row in rows) for branch, rows in given.items()}
    except (AttributeError, TypeError, ValueError):
        raise ConfigurationError(f"`L2P(grams=...)` must map branches to rows of numbers, got {given!r:.80}.") from None
    for branch, rows in found.items():
        whole = bool(rows) and all(len(row) == s + 1 and all(map(math.isfinite, row)) for s, row in enumerate(rows))
        if not whole or any(row[-1] < 0 for row in rows):
            raise ConfigurationError(
                f"`L2P(grams=...)` must have s + 1 finite numbers in row s, the last one >= 0; {branch!r} has not."
            )
    if "cond" not in found:
        raise ConfigurationError(f"`L2P(grams=...)` must have rows for 'cond', got only {', '.join(found)}.")
    return found


@frozen
class L2P(Forecaster):
    """The linear combination of the last computed visits that came nearest to this step in recorded runs.

    z(t) = sum over i of w_i z_i, and w minimises, over the recorded runs,

        mean ||z_t - sum of w_i z_i||^2 + ridge s ||w - w_hold||^2

    with s the mean of ||z_i||^2. w_hold, all weight on the last visit, is where the authors' fit starts. The weights
    follow from the inner products of z between all steps of a run, which is what the table holds; so they are those of
    the very steps that were computed, whichever policy chose them. Raises `ConfigurationError` if no table is known.

    visits: how many of the last computed visits are weighed. basis: in which z was measured, which must be the basis of
    the recipe ("output" as published, "residual", "noise" or "clean"). table: a JSON file of `mixcache calibrate l2p`.
    grams: its numbers by branch ("cond" stands in for a branch that has none). For a run of another length, the nearest
    step counts.

    Deviations: the authors fit one row of weights for every step by 201 steps of Adam, over all earlier features,
    those included that were rebuilt; a rebuilt one is a combination of computed ones, so none is needed here. Their
    ridge is the number of these steps. They weigh the feature before the model's head; here it is the model's output.
    Exact on what the recorded runs did alone, so not on constants; at the step of a computed visit it is that visit.
    """

    name: ClassVar[str] = "l2p"
    table: str | None = None
    basis: str = "output"
    visits: int = field(default=3, validator=ge(1, whole=True))
    ridge: float = field(default=1e-6, validator=ge(0))
    grams: Mapping[str, tuple[tuple[float, ...], ...]] | tuple[float, ...] = field(
        default=(), converter=_grams, hash=False, repr=False
    )

    @property
    def depth(self) -> int:
        return int(self.visits)

    def calibrated(self, tables: Calibrations) -> Forecaster:
        if self.grams:
            return self
        found = tables.read("l2p", "grams", self.table, self._of)
        if found is None:
            raise ConfigurationError(_MISSING)
        return found

    def _of(self, by_basis: Any) -> L2P:
        """Itself with the rows of its basis."""
        if not isinstance(by_basis, Mapping) or self.basis not in by_basis:
            known = ", ".join(by_basis) if isinstance(by_basis, Mapping) else repr(by_basis)[:80]
            raise ConfigurationError(f"it has no inner products for basis={self.basis!r}, only for: {known}.")
        return evolve(self, grams=by_basis[self.basis])

    def forecast(self, history: Sequence[Entry], point: Point, beside: Beside) -> Streams:
        entries = list(self.nodes(history).values())
        weights = self.fitted([entry.point.step for entry in entries], point)
        return tuple(combine(weights, streams) for streams in zip(*(entry.z for entry in entries)))

    def fitted(self, steps: Sequence[int], point: Point) -> list[float]:
        """The weights of the visits at these steps, for `point`."""
        known = dict(self.grams) if isinstance(self.grams, Mapping) else {}
        rows = known.get(point.branch) or known.get("cond")
        if not rows:
            raise ConfigurationError(_MISSING)
        scale = (len(rows) - 1) / max(point.num_steps - 1, 1)
        at = [min(round(step * scale), len(rows) - 1) for step in (*steps, point.step)]
        gram = np.array([[rows[max(i, j)][min(i, j)] for j in at] for i in at])
        return fit(gram, self.ridge)


def fit(gram: Any, ridge: float) -> list[float]:
    """The weights of all but the last of the vectors with these inner products, for the last; of the newest near 1."""
    past, cross = gram[:-1, :-1], gram[:-1, -1]
    hold = np.eye(len(past))[-1]
    size = float(np.mean(np.diag(past)))
    weights = hold + np.linalg.pinv(past + ridge * size * np.eye(len(past)), hermitian=True) @ (cross - past @ hold)
    return [float(weight) for weight in weights]

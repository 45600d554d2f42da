"""Prices of masks in open loop: what every reuse would be off by if the run went on as it was recorded.

With z = p x + q o (the basis) and weights w_k over the stored evaluations k (the forecaster), a reuse at t is off by

    e_t = o_t - o'_t,    o'_t = (sum over k of w_k (p_k x_k + q_k o_k) - p_t x_t) / q_t

so e_t is a sum of recorded vectors, ||e_t||^2 = v' G v, and a mask's final deviation is a sum over its reuses. A table
of all (stored evaluations, t) is made once; after that a mask is priced by looking up.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import combinations
from typing import Any, Literal

import numpy as np
import torch
from attrs import define, field
from numpy.typing import ArrayLike, NDArray

from mixcache.core import catalogue
from mixcache.core.basis import LOST, ROUNDING, SINGULAR, Basis
from mixcache.core.forecast.base import Forecaster
from mixcache.core.tables import Calibrations, resample
from mixcache.errors import ConfigurationError, called
from mixcache.study.recording import Matrix, Recording

Masks = NDArray[np.bool_]
Total = Literal["vector", "rss", "sum"]
Weights = Literal["solver", "even"] | ArrayLike

DEEPEST = 3
"""Stored evaluations that a forecaster may weigh here: the table has n^(depth + 1) / (depth + 1)! rows."""

_CHUNK = 4096


def as_masks(masks: str | Sequence[str] | ArrayLike, steps: int) -> Masks:
    """Masks as booleans [K, steps], True where computed, from strings such as "1101001" or from an array.

    Raises `ConfigurationError` for another length, another character, and a mask that does not compute first.
    """
    if isinstance(masks, str):
        masks = [masks]
    given: Any = masks
    if isinstance(given, Sequence) and given and isinstance(given[0], str):
        wrong = next((m for m in given if len(m) != steps or set(m) - {"0", "1"}), None)
        if wrong is not None:
            raise ConfigurationError(f"a mask must be {steps} characters of 1 (compute) and 0 (reuse), got {wrong!r}.")
        table = np.array([[character == "1" for character in mask] for mask in given])
    else:
        table = np.atleast_2d(np.asarray(given, dtype=bool))
    if table.ndim != 2 or table.shape[1] != steps or not table[:, 0].all():
        raise ConfigurationError(
            f"masks must be of shape (masks, {steps}) and begin with a computed evaluation, got {table.shape}."
        )
    return table


def as_text(mask: Any) -> str:
    """A mask as `schedule` takes it."""
    return "".join("1" if computed else "0" for computed in mask)


def _basis(spec: Any) -> Basis:
    found: Basis = catalogue.build("basis", spec)
    return found


def _forecaster(spec: Any) -> Forecaster:
    found: Forecaster = catalogue.build("forecaster", spec).calibrated(Calibrations())
    return found


@define(eq=False)
class Pricing:
    """Every mask of one recorded run, with one basis and one forecaster (as specs or objects).

    Raises `ConfigurationError` for a forecaster that is not linear, or weighs more than three stored evaluations.
    """

    recording: Recording
    basis: Basis = field(converter=_basis)
    forecast: Forecaster = field(converter=_forecaster)

    def __attrs_post_init__(self) -> None:
        name = self.forecast.name or type(self.forecast).__name__
        if type(self.forecast).forecast is not Forecaster.forecast:
            raise ConfigurationError(f"forecast={name!r} is not linear in what was stored, so it cannot be priced.")
        if not 1 <= self.forecast.depth <= DEEPEST:
            raise ConfigurationError(
                f"forecast={name!r} weighs {self.forecast.depth} stored evaluations; 1 to {DEEPEST} can be priced."
            )

    @cached_property
    def reusable(self) -> Masks:
        """[n]: whether an evaluation can be rebuilt; elsewhere the loop computes, and a reuse has no price (inf)."""
        eps = float(torch.finfo(getattr(torch, self.recording.dtype)).eps)
        lost = [pair is None or abs(pair[1]) < SINGULAR for pair in self._pairs]
        found = [not gone and abs(p[0] / p[1]) * ROUNDING * eps <= LOST for p, gone in zip(self._told, lost)]
        return np.array(found, dtype=bool)

    @cached_property
    def stored(self) -> Masks:
        """[n]: whether a computed evaluation can be stored."""
        return np.array([pair is not None for pair in self._pairs], dtype=bool)

    @cached_property
    def _pairs(self) -> list[tuple[float, float] | None]:
        points = [self.recording.point(step) for step in range(self.recording.steps)]
        return [called(("basis", self.basis), self.basis.checked, point) for point in points]

    @property
    def _told(self) -> list[tuple[float, float]]:
        return [(0.0, 1.0) if pair is None or pair[1] == 0.0 else pair for pair in self._pairs]

    @cached_property
    def _rows(self) -> _Rows:
        return _rows(self)

    @cached_property
    def table(self) -> Matrix:
        """[n + 1, ..., n + 1, n]: ||e_t|| by the last `depth` stored evaluations, oldest first, and by t.

        n stands for no evaluation (a short history). inf where nothing can be rebuilt from there.
        """
        found: Matrix = self._rows.errors[self._rows.index]
        return found

    def errors(self, masks: str | Sequence[str] | ArrayLike) -> Matrix:
        """[K, n]: relative L2 error of what the solver gets, at every evaluation; 0 where it is computed."""
        table = as_masks(masks, self.recording.steps)
        found: Matrix = self._rows.errors[self._looked_up(table)] / self.sizes
        found[table] = 0.0
        return found

    def deviations(
        self, masks: str | Sequence[str] | ArrayLike, weights: Weights = "even", total: Total = "rss"
    ) -> Matrix:
        """[K]: the estimate of ||x' - x|| / ||x|| at the end, in open loop; inf where a reuse has no price.

        weights: what an error does to the final latent, by evaluation. "even" takes a relative error for as bad at
        every one; "solver" is the noise scheduler's own answer, as if the model did not react; or one number each, the
        relative deviation of the final latent over the relative error, such as the influence that
        `mixcache.study.Probing` measures. With "solver" the price is in the units of the deviation, else up to a
        factor. total: "rss" is the root of the sum of the squared errors, "sum" the sum of their norms, "vector" the
        norm of their weighted sum, in which they cancel. On tiny_wan masks searched with the defaults do best.

        Raises `ConfigurationError` where the solver has no answer.
        """
        table = as_masks(masks, self.recording.steps)
        each = self.weights(weights)
        found = np.empty(len(table))
        for start in range(0, len(table), _CHUNK):
            part = slice(start, start + _CHUNK)
            found[part] = self._deviations(table[part], each, total)
        return found / self.recording.scale

    def weights(self, weights: Weights) -> Matrix:
        """[n]: by how much an error, in absolute units, moves the final latent; checked."""
        rec = self.recording
        if isinstance(weights, str) and weights == "even":
            weights = np.ones(rec.steps)
        if isinstance(weights, str):
            if weights != "solver":
                raise ConfigurationError(f"`weights` must be 'solver', 'even' or one number each, got {weights!r}.")
            if rec.solver is None:
                raise ConfigurationError(
                    "this run's noise scheduler is not affine in the model's outputs, so it has no weights of its own; "
                    "give weights='even', or one number for each evaluation."
                )
            return rec.solver
        given = np.asarray(weights, dtype=np.float64)
        if given.ndim != 1 or not len(given) or not np.isfinite(given).all():
            raise ConfigurationError(f"`weights` must be finite numbers, one each, got an array of {given.shape}.")
        each = given if len(given) == rec.steps else np.array(resample(given.tolist(), rec.steps))
        signs = 1.0 if rec.solver is None else np.where(rec.solver < 0.0, -1.0, 1.0)
        return each * signs * rec.scale / self.sizes

    @cached_property
    def grams(self) -> Matrix:
        """[n, 2n, 2n]: the Gram matrix of the outputs as guidance combines them at t, and of the latents."""
        n, branches = self.recording.guidance.shape
        found = np.empty((n, 2 * n, 2 * n))
        for t, weights in enumerate(self.recording.guidance):
            if t and np.allclose(weights, self.recording.guidance[t - 1], rtol=1e-6, atol=0.0):
                found[t] = found[t - 1]
                continue
            cut = np.zeros(((branches + 1) * n, 2 * n))
            for b, weight in enumerate((*weights, weights.sum())):
                places = np.arange(n)
                cut[b * n + places, (n if b == branches else 0) + places] = weight
            found[t] = cut.T @ self.recording.gram @ cut
        return found

    @cached_property
    def sizes(self) -> Matrix:
        """[n]: L2 norm of what the solver got, by evaluation."""
        return np.array([np.sqrt(g[t, t]) for t, g in enumerate(self.grams)])

    def _looked_up(self, table: Masks) -> NDArray[np.int32]:
        """[K, n]: the row of every reuse; 0 has no price."""
        count, n = table.shape
        held = np.where(table & self.stored, np.arange(n), -1)
        last = np.full((count, n + 1), n)  # the last stored evaluation before t; the last column is "none before none"
        found = np.maximum.accumulate(held, axis=1)[:, :-1]
        last[:, 1:n] = np.where(found < 0, n, found)
        nodes = [last[:, :n]]
        while len(nodes) < self.forecast.depth:
            nodes.append(np.take_along_axis(last, nodes[-1], axis=1))
        at = (*reversed(nodes), np.arange(n))
        index: NDArray[np.int32] = self._rows.index[at]
        return index

    def _deviations(self, table: Masks, weights: Matrix, total: Total) -> Matrix:
        looked = np.where(table, 1, self._looked_up(table))  # row 1: nothing is off
        if total in ("rss", "sum"):
            parts = self._rows.errors[looked] * np.abs(weights)
            added: Matrix = parts.sum(axis=1) if total == "sum" else np.sqrt((parts**2).sum(axis=1))
            return added
        if total != "vector":
            raise ConfigurationError(f"`total` must be 'vector', 'rss' or 'sum', got {total!r}.")
        rec = self.recording
        branches = rec.guidance.shape[1]
        size = (branches + 1) * rec.steps
        which, when = np.nonzero(~table)
        rows = looked[which, when]
        nodes, weighed = self._rows.nodes[rows], self._rows.coefficients[rows] * weights[when, None, None]
        share = rec.guidance[when]
        summed = np.zeros(len(table) * size)
        for b in range(branches + 1):
            factor = share.sum(axis=1) if b == branches else share[:, b]
            places = which[:, None] * size + b * rec.steps + nodes
            values = weighed[:, int(b == branches)] * factor[:, None]
            summed += np.bincount(places.ravel(), values.ravel(), len(summed))
        vectors = summed.reshape(len(table), size)
        squared = np.maximum(((vectors @ rec.gram) * vectors).sum(axis=1), 0.0)
        priced = (looked != 0).all(axis=1)
        return np.where(priced, np.sqrt(squared), np.inf)


@define(eq=False)
class _Rows:
    """Every reuse there can be. index: [n + 1, ..., n]: its row by stored evaluations and t. errors: [R].

    nodes, coefficients: [R, depth + 1] and [R, 2, depth + 1]: the evaluations that the error is made of (t first), and
    how much of their outputs and of their latents. Row 0 has no price, row 1 is no reuse.
    """

    index: NDArray[np.int32]
    nodes: NDArray[np.int64]
    coefficients: Matrix
    errors: Matrix


def _rows(pricing: Pricing) -> _Rows:
    rec, forecast = pricing.recording, pricing.forecast
    n, depth = rec.steps, forecast.depth
    p, q = np.array(pricing._told).T
    points = [rec.point(step) for step in range(n)]
    where = [forecast.position(point) for point in points]
    index = np.zeros((n + 1,) * depth + (n,), dtype=np.int32)
    nodes: list[list[int]] = [[0] * (depth + 1)] * 2
    weighed: list[list[float]] = [[0.0] * (depth + 1)] * 2
    for t in np.flatnonzero(pricing.reusable).tolist():
        before = np.flatnonzero(pricing.stored[:t]).tolist()
        for count in range(1, min(depth, len(before)) + 1):
            for chosen in combinations(before, count):
                kept = [step for step in chosen if rec.components[step] == rec.components[t]]
                if not kept or kept[-1] != chosen[-1]:
                    continue
                weights = called(("forecaster", forecast), forecast.weights, [where[k] for k in kept], where[t])
                index[(n,) * (depth - count) + (*chosen, t)] = len(nodes)
                spare = depth - len(kept)
                nodes.append([t, *kept, *[0] * spare])
                weighed.append([-1.0, *weights, *[0.0] * spare])
    held = np.array(nodes)
    shares = np.array(weighed)
    target = held[:, 0]
    coefficients = -np.stack([shares * q[held], shares * p[held]], axis=1) / q[target, None, None]
    errors = np.zeros(len(held))
    places = np.concatenate([held, held + n], axis=1)
    flat = coefficients.reshape(len(held), -1)
    for start in range(0, len(held), _CHUNK):
        part = slice(start, start + _CHUNK)
        at = places[part]
        blocks = pricing.grams[target[part, None, None], at[:, :, None], at[:, None, :]]
        errors[part] = np.sqrt(np.maximum(np.einsum("ra,rab,rb->r", flat[part], blocks, flat[part]), 0.0))
    errors[:2] = np.inf, 0.0
    return _Rows(index=index, nodes=held, coefficients=coefficients, errors=errors)

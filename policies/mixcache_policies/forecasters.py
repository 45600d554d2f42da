"""Forecasters of published algorithms that need more than points in time: a table, an image plane, the first blocks.

As with the polynomial ones, z keeps its dtype, is computed in at least float32, and is never an alias of a stored
tensor. None of them waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from mixcache import Beside, Calibrations, ConfigurationError, Entry, Forecaster, Point, Streams, combine, ge, resample

Ratios = Mapping[str, tuple[float, ...]]
"""MagCache's ratios by branch."""


def _ratios(given: Any) -> Ratios:
    """Ratios by branch, from one sequence for all branches or from a mapping; empty if there are none."""
    tables = given if isinstance(given, Mapping) else {"cond": given or ()}
    read: dict[str, tuple[float, ...]] = {}
    for branch, values in tables.items():
        try:
            read[branch] = tuple(float(value) for value in values)
        except (TypeError, ValueError):
            read[branch] = (math.nan,)
        if not all(math.isfinite(value) and value > 0 for value in read[branch]):
            raise ConfigurationError(
                f"`Scaled(ratios=...)` must hold finite numbers > 0, one per evaluation, got {values!r} for {branch!r}."
            )
    if read and "cond" not in read:
        raise ConfigurationError(f"`Scaled(ratios=...)` must have ratios for 'cond', got only {', '.join(read)}.")
    return {} if not read.get("cond") else read


@frozen
class Scaled(Forecaster):
    """The last z, scaled by how much its norm is known to have grown since: MagCache's ratios (arXiv 2506.09045).

    z(t) = z_c * gamma_{c+1} * ... * gamma_t, where c is the step of the last computed visit. gamma_i is the mean over
    tokens of |z_i| / |z_{i-1}| (L2 over channels) at evaluation i, measured once per model. The published tables are of
    what all blocks add: the residual at BLOCK. Raises `ConfigurationError` if no table is known.

    ratios: gamma of every evaluation of a run, by branch ("cond" stands in for a branch that has none) or one sequence
    for all branches. The first is never used. For a run of another length the table is resampled to the nearest
    entries, as published. table: a JSON file of `mixcache calibrate magcache`. Without table and ratios, the table of
    the model is used.

    Deviation: MagCache decides with this product and reuses z_c unscaled, which is `hold`.
    """

    name: ClassVar[str] = "scaled"
    table: str | None = None
    ratios: Mapping[str, tuple[float, ...]] | tuple[float, ...] = field(
        default=(), converter=_ratios, hash=False, repr=False
    )

    def calibrated(self, tables: Calibrations) -> Forecaster:
        if self.ratios:
            return self
        found = tables.read("magcache", "ratios", self.table, lambda ratios: evolve(self, ratios=ratios))
        if found is None:
            raise _no_ratios()
        return found

    def forecast(self, history: Sequence[Entry], point: Point, beside: Beside) -> Streams:
        last = history[-1]
        growth = self.growth(point, last.point.step)
        return tuple(combine([growth], [z]) for z in last.z)

    def growth(self, point: Point, since: int) -> float:
        """The product of the ratios of the evaluations after `since` up to that of `point`."""
        known = dict(self.ratios) if isinstance(self.ratios, Mapping) else {}
        ratios = known.get(point.branch) or known.get("cond")
        if not ratios:
            raise _no_ratios()
        if len(ratios) != point.num_steps:
            ratios = tuple(resample(ratios, point.num_steps))
        return math.prod(ratios[since + 1 : point.step + 1])


def _no_ratios() -> ConfigurationError:
    return ConfigurationError(
        "forecast='scaled' needs the ratios of this model, and mixcache knows none: measure them with "
        "`mixcache calibrate magcache --model ... --prompts ... --out TABLE.json` and give the file, "
        "forecast='scaled:table=TABLE.json'."
    )


@frozen
class Split(Forecaster):
    """FasterCache's CFG-Cache: the last z with its low or high frequencies emphasised (arXiv 2410.19355, section 3.3).

    z(t) = Re IFFT2((w_low on LOW, w_high elsewhere) * FFT2(z_c)) over the last two dimensions, height and width.
    LOW is the disc of radius min(height, width) // 5 around frequency 0. It is meant for the residual at CFG, u - c.
    Raises `ConfigurationError` for z of fewer than 4 dimensions: packed tokens have no height and width.

    low: w_low while the part of the run that is done, (step + 1) / num_steps, is at most `low_until`; 1 after it.
    high: w_high where that part is at least `high_from`; 1 before. The defaults are the published ones for CogVideoX.

    The published code weights the stored z anew at every reuse, so its weights compound (1.1, 1.21, ...) until the next
    compute. The paper does not, and neither does this. Deviation: at the step where z_c was computed it stays as it is.
    """

    name: ClassVar[str] = "split"
    low: float = field(default=1.1, validator=ge(0))
    high: float = field(default=1.1, validator=ge(0))
    low_until: float = field(default=0.8, validator=ge(0))
    high_from: float = field(default=0.6, validator=ge(0))

    def forecast(self, history: Sequence[Entry], point: Point, beside: Beside) -> Streams:
        last = history[-1]
        for z in last.z:
            if z.dim() < 4:
                raise ConfigurationError(
                    "forecast='split' weights frequencies over height and width, the last two of 4 or more dimensions, "
                    f"and at {point.granularity} this model has z of shape {tuple(z.shape)}, such as packed tokens; "
                    "use forecast='hold' or 'linear' there."
                )
        low, high = (1.0, 1.0) if last.point.step == point.step else self.weights_at(point)
        return tuple(_weighted(z, low, high) for z in last.z)

    def weights_at(self, point: Point) -> tuple[float, float]:
        """(w_low, w_high) at a point."""
        done = (point.step + 1) / point.num_steps
        return self.low if done <= self.low_until else 1.0, self.high if done >= self.high_from else 1.0


def _weighted(z: Tensor, low: float, high: float) -> Tensor:
    """z with its frequency bands weighted, in its dtype, as a new tensor."""
    if low == high:
        return combine([low], [z])
    height, width = z.shape[-2:]
    y = (torch.arange(height, device=z.device) + height // 2) % height - height // 2
    x = torch.arange(width // 2 + 1, device=z.device)  # z is real: the other half of the frequencies mirrors this one
    is_low = y[:, None] ** 2 + x**2 <= (min(height, width) // 5) ** 2
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    bands = torch.fft.rfft2(wide) * (high + (low - high) * is_low.to(wide.dtype))
    weighted: Tensor = torch.fft.irfft2(bands, s=(height, width))
    return weighted.to(z.dtype)


@frozen
class Aligned(Forecaster):
    """DiCache's trajectory alignment: the change of the first blocks tells how far to extrapolate (arXiv 2508.17356).

    z(t) = z_-2 + g (z_-1 - z_-2), g = clip(mean|q - q_-2| / mean|q_-1 - q_-2|, 1, limit). Here q is what the blocks
    before the span add to the hidden states now; z_-1, q_-1, z_-2 and q_-2 belong to the last two computed visits. The
    means are over the whole batch, as published, so all samples and streams share one g. It stays on the device. Where
    nothing moved (0/0) it is 1. As g >= 1, the result never lies between z_-2 and z_-1.

    With fewer than two visits, or at a span with no blocks before it, it is `hold`.

    limit: the largest g; published 1.5 for FLUX and HunyuanVideo, 2 for Wan.
    """

    name: ClassVar[str] = "aligned"
    reads: ClassVar[frozenset[str]] = frozenset({"prefix"})
    limit: float = field(default=1.5, validator=ge(1))

    @property
    def depth(self) -> int:
        return 2

    def forecast(self, history: Sequence[Entry], point: Point, beside: Beside) -> Streams:
        *earlier, last = self.nodes(history).values()
        known = [entry.beside.get("prefix") for entry in (*earlier[:1], last)]
        now = beside.get("prefix")
        if not earlier or now is None or None in known:
            return tuple(combine([1.0], [z]) for z in last.z)
        before, since = (streams[0] for streams in known if streams is not None)
        g = (_distance(now[0], before) / _distance(since, before)).nan_to_num(nan=1.0).clamp(1.0, self.limit)
        return tuple(_go_on(a, b, g) for a, b in zip(earlier[0].z, last.z))


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """mean|a - b| over everything, in at least float32, as a 0-d tensor."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return (a.to(wide) - b.to(wide)).abs().mean()


def _go_on(a: Tensor, b: Tensor, g: Tensor) -> Tensor:
    """a + g (b - a) in b's dtype; exactly b where g = 1."""
    wide = b.to(torch.promote_types(b.dtype, torch.float32))
    return torch.lerp(a.to(wide), wide, g.to(wide)).to(b.dtype)


PUBLISHED: tuple[type[Forecaster], ...] = (Scaled, Split, Aligned)

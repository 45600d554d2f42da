"""Dynamic mode decomposition: z as a sum of exponentials of the step (Schmid 2010; HiCache++, engrXiv 7309)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from attrs import field, frozen
from torch import Tensor

from mixcache import Beside, Entry, Forecaster, Point, Streams, combine, ge, gt, one_of

FEWEST = 4
"""Snapshots for a fit: two modes take two of them, and as many show how fast they grow."""

ROUNDS = 40
"""Of the root finder: simple roots need a dozen, double ones one for each bit."""


@frozen
class DMD(Forecaster):
    """Exponentials through the last evenly spaced computed visits (snapshots z_1 ... z_n, h steps apart).

        z(t_n + k h) = sum over j of phi_j lambda_j^k,     k a fraction between computed steps

    The lambda_j are the eigenvalues of the linear map that takes each snapshot to the next (in its companion form: c
    minimises ||z_n - sum c_i z_i||, the lambda_j are the roots of x^(n-1) - sum c_i x^(i-1)). The forecast is linear in
    z_2 ... z_n, with weights that interpolate lambda^(n-2+k) at the lambda_j. It is exact on sums of fewer than n
    exponentials of independent shapes, damped, growing or oscillating by less than half a turn in h steps. Every sample
    and every stream is fitted by itself, in float64 on its own device, which is never waited for and must know float64.

    With fewer than four evenly spaced snapshots it is the straight line, with one it is `hold`; also where the fit is
    not finite, sample by sample. It counts in steps.

    snapshots: n at most, published 6. ridge: added to the Gram matrix of the snapshots, relative to its mean diagonal.

    Deviation: the code in use (cache-dit) drops singular values below 1e-4 of the largest; a ridge of the square of
    that has the same effect without reading the values.
    """

    name: ClassVar[str] = "dmd"
    snapshots: int = field(default=6, validator=ge(FEWEST, whole=True))
    ridge: float = field(default=1e-8, validator=gt(0))
    abscissa: Literal["step", "sigma"] = field(default="step", validator=one_of("step"), kw_only=True)

    @property
    def depth(self) -> int:
        return int(self.snapshots)

    def forecast(self, history: Sequence[Entry], point: Point, beside: Beside) -> Streams:
        nodes = self.nodes(history)
        places, entries = list(nodes), list(nodes.values())
        ahead = self.position(point) - places[-1]
        if ahead == 0.0 or len(places) == 1:
            return tuple(combine([1.0], [z]) for z in entries[-1].z)
        gap = places[-1] - places[-2]
        even = 2
        while even < len(places) and places[-even] - places[-even - 1] == gap:
            even += 1
        kept, ahead = list(zip(*(entry.z for entry in entries[-even:]))), ahead / gap
        if even < FEWEST:
            return tuple(combine([-ahead, 1.0 + ahead], streams[-2:]) for streams in kept)
        return tuple(_weighed(exponential(streams, ahead, self.ridge), streams[1:]) for streams in kept)


def exponential(snapshots: Sequence[Tensor], ahead: float, ridge: float) -> Tensor:
    """Weights [S, n - 1] of all snapshots but the first, `ahead` distances after the last; float64, on the device."""
    seen = torch.stack([_rows(one).double() for one in snapshots], dim=1)
    gram = seen @ seen.mT
    order = len(snapshots) - 1
    past, cross = gram[:, :-1, :-1], gram[:, :-1, -1]
    scale = past.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    eye = torch.eye(order, dtype=gram.dtype, device=gram.device)
    steps = torch.linalg.solve_ex(past + ridge * scale * eye, cross)[0]
    roots = _roots(steps)
    powers = roots[:, :, None] ** torch.arange(order, device=gram.device)
    weights = torch.linalg.solve_ex(powers, roots ** (order - 1 + ahead))[0].real
    return torch.where(weights.isfinite().all(-1, keepdim=True), weights, eye[-1])


def _roots(steps: Tensor) -> Tensor:
    """The roots [S, r] of x^r - sum of steps[i] x^i, all at once (Durand and Kerner), complex."""
    order = steps.shape[-1]
    powers = torch.arange(order, device=steps.device)
    found = torch.full((len(steps), 1), 0.4 + 0.9j, dtype=torch.complex128, device=steps.device) ** powers
    eye = torch.eye(order, dtype=found.dtype, device=steps.device)
    for _ in range(ROUNDS):
        value = torch.ones_like(found)
        for i in range(order - 1, -1, -1):
            value = value * found - steps[:, i, None]
        apart = found[:, :, None] - found[:, None, :] + eye
        found = found - value / apart.prod(-1)
    return found


def _rows(z: Tensor) -> Tensor:
    """[S, elements]; a number without a batch is one sample."""
    return z.flatten(1) if z.dim() > 1 else z.reshape(len(z) if z.dim() else 1, 1)


def _weighed(weights: Tensor, snapshots: Sequence[Tensor]) -> Tensor:
    """Weights [S, n] of snapshots, in at least float32, in the dtype of the newest."""
    newest = snapshots[-1]
    wide = torch.promote_types(newest.dtype, torch.float32)
    total = torch.zeros_like(_rows(newest), dtype=wide)
    for i, one in enumerate(snapshots):
        total = total + weights[:, i, None].to(wide) * _rows(one)
    return total.reshape(newest.shape).to(newest.dtype)

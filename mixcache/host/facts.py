"""How the outputs of a model enter the solver: model_output = a * sample + sum of b_i * o_i over guidance branches.

Fitted by least squares to one step of the solver, without any extra call. Only what explains the numbers to rounding is
used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from attrs import evolve, frozen
from torch import Tensor

from mixcache.host.latents import ROUNDINGS, SAMPLED, Part, eps_of, places

ENOUGH = 4
"""How many elements there must be for every column: fewer can be explained by anything."""


@frozen(kw_only=True)
class Fit:
    """wanted = sum of c_i * column_i by least squares. misfit: what is left of it, in L2 and relative."""

    values: tuple[float, ...]
    misfit: float
    explained: bool
    unique: bool


def fit(wanted: Tensor, columns: Sequence[Tensor], roundings: float = ROUNDINGS) -> Fit:
    """How a tensor is made of others of its size; at most 4096 elements are looked at, in one transfer."""
    every = max(wanted.numel() // SAMPLED, 1)
    device = wanted.device
    picked = [t.detach().flatten()[::every].to(device, torch.float64) for t in (wanted, *columns)]
    rough = roundings / ROUNDINGS * eps_of(wanted, *columns)
    return _explained(torch.stack(picked, dim=1).cpu().numpy(), rough)


def _explained(table: np.ndarray, eps: float) -> Fit:
    """How the first column is made of the others. eps: the rounding of what they were."""
    target, matrix = table[:, 0], table[:, 1:]
    count = matrix.shape[1]
    size = float(np.linalg.norm(target))
    if not np.isfinite(table).all() or not size > 0.0 or len(target) < ENOUGH * count:
        return Fit(values=(0.0,) * count, misfit=1.0, explained=False, unique=False)
    found, terms, unique = _solved(target, matrix)
    misfit = float(np.linalg.norm(matrix @ found - target)) / size
    limit = ROUNDINGS * eps * max(1.0, terms / size)
    return Fit(values=tuple(found.tolist()), misfit=misfit, explained=misfit <= min(limit, 0.2), unique=unique)


def _solved(target: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, float, bool]:
    """x with matrix @ x = target by least squares; the size of the largest of its terms, in L2; whether there is but
    one such x. Columns count by their direction, however large they are."""
    sizes = np.maximum(np.linalg.norm(matrix, axis=0), 1e-30)
    found, _, rank, _ = np.linalg.lstsq(matrix / sizes, target, rcond=1e-6)
    return found / sizes, float(np.abs(found).max()), int(rank) == matrix.shape[1]


@frozen(kw_only=True)
class Combined:
    """How one output of the branches entered the solver: model_output = sample * x + sum of weights_i * o_i.

    field: which of the model's outputs. parts: by call, the part of it that is the prediction; `None` for all. weights:
    one per branch, in the order of the calls and of the parts of a batch; `None` where every sample or token has its
    own, as after rescaling. sign: of the sum of the weights. conditional: the branch that guidance goes towards, if one
    is. unique: whether no other weights, of the latent too, would explain it as well.
    """

    field: int = 0
    parts: tuple[Part | None, ...] = ()
    sample: float = 0.0
    weights: tuple[float, ...] | None = None
    sign: float = 1.0
    conditional: int | None = None
    unique: bool = True

    @property
    def total(self) -> float:
        """What the solver was given of the guided output: all of it, with its sign, unless the latent is mixed in."""
        return self.sign if self.sample == 0.0 or self.weights is None else sum(self.weights)

    @property
    def affine(self) -> bool:
        """Whether the branches were combined with weights that sum up to one, as plain guidance does."""
        return self.sample == 0.0 and self.weights is not None and abs(abs(sum(self.weights)) - 1.0) < 1e-3


def combine(
    wanted: Tensor, sample: Tensor, outputs: Sequence[tuple[Tensor, ...]], hint: Part | None
) -> Combined | None:
    """How the solver's `wanted` is made of the sample and of one field of the outputs; `None` if it is not.

    outputs: the fields of every call of the step. hint: the part of the argument that holds the latent.
    """
    if wanted.shape != sample.shape:
        return None
    for index in range(max(map(len, outputs), default=0)):
        tensors = [fields[index] for fields in outputs if index < len(fields)]
        likely = [list(_predictions(tensor.shape, wanted.shape, hint)) for tensor in tensors]
        for parts in zip(*(found if len(found) > 1 else found * 3 for found in likely)):
            branches = _branches(tensors, parts, wanted)
            if branches:
                found = _combined(wanted, sample, branches)
                if found is not None:
                    return evolve(found, field=index, parts=parts)
    return None


def _predictions(shape: Sequence[int], wanted: Sequence[int], hint: Part | None) -> Iterator[Part | None]:
    """The parts of an output that may be the prediction."""
    found = [part for _, part in places(shape, wanted)]
    if None in found:
        yield None
        return
    inner = [part for part in found if part is not None]
    likely = [p for p in inner if hint is not None and (p.dim, p.start) == (hint.dim, hint.start)]
    yield from dict.fromkeys([*likely, *inner[:2]])


def _branches(tensors: Sequence[Tensor], parts: Sequence[Part | None], wanted: Tensor) -> list[Tensor]:
    """The branches that the outputs of one step hold, each of the size of `wanted`; none if they cannot be cut so."""
    found: list[Tensor] = []
    for tensor, part in zip(tensors, parts):
        if part is not None and not part.fits(tensor):
            return []
        cut = tensor if part is None else part.of(tensor)
        if cut.numel() % wanted.numel() or not cut.numel() or cut.shape[0] % wanted.shape[0]:
            return []
        found += list(cut.chunk(cut.numel() // wanted.numel()))
    return found


def _combined(wanted: Tensor, sample: Tensor, branches: Sequence[Tensor]) -> Combined | None:
    """The weights of the branches in `wanted`; `None` if they do not explain it."""
    plain, whole = fit(wanted, branches), fit(wanted, (sample, *branches))
    if plain.explained or whole.explained:
        a, weights = (0.0, plain.values) if plain.explained else (whole.values[0], whole.values[1:])
        off = max(1e-3, ROUNDINGS * eps_of(wanted, *branches))
        if len(weights) > 1 and a == 0.0 and sum(weights) < -1e-6 and abs(sum(weights) + 1.0) > off:
            return None  # a projection may have turned the sum: nothing tells it from the negative prediction, rescaled
        towards = conditional(weights) if (plain if plain.explained else whole).unique else None
        sign = 1.0 if sum(weights) >= 0 else -1.0
        return Combined(sample=a, weights=weights, sign=sign, conditional=towards, unique=whole.unique)
    if len(branches) < 2:
        return _most(wanted, sample, branches)
    return _most(wanted, sample, branches) or _grouped(wanted, branches)


def _most(wanted: Tensor, sample: Tensor, branches: Sequence[Tensor]) -> Combined | None:
    """The weights that explain most elements: of the others the prediction is thrown away, as of a given frame."""
    every = max(wanted.numel() // SAMPLED, 1)
    columns = (*branches, sample)
    table = torch.stack([t.detach().flatten()[::every].to(wanted.device, torch.float64) for t in (wanted, *columns)])
    numbers = table.cpu().numpy().T
    numbers = numbers[numbers[:, 0] != 0.0]  # what is set to zero says nothing of the weights
    if not np.isfinite(numbers).all():
        return None
    limit = ROUNDINGS * 4 * eps_of(wanted, *columns)
    draw = np.random.default_rng(0)
    count = len(columns)
    for _ in range(32):
        rows = numbers[draw.choice(len(numbers), size=min(count, len(numbers)), replace=False)]
        found = _solved(rows[:, 0], rows[:, 1:])[0]
        off = np.abs(numbers[:, 1:] @ found - numbers[:, 0])
        near = off <= 100 * limit * (np.abs(numbers[:, 1:]) @ np.abs(found))
        if near.sum() >= max(len(numbers) / 4, 16 * count):
            one = _explained(numbers[near], 4 * eps_of(wanted, *columns))
            if one.explained:
                weights, mixed = one.values[:-1], one.values[-1]
                a = 0.0 if abs(mixed) <= 1e-4 * max(map(abs, one.values)) else mixed
                sign = 1.0 if sum(weights) >= 0 else -1.0
                towards = conditional(weights) if one.unique else None
                return Combined(sample=a, weights=weights, sign=sign, conditional=towards, unique=one.unique)
    return None


def _grouped(wanted: Tensor, branches: Sequence[Tensor]) -> Combined | None:
    """Branches with weights of their own for every sample, token or channel, as after rescaling or projecting."""
    groups = [(wanted.shape[0], -1), *((wanted.numel() // wanted.shape[d], d) for d in range(wanted.dim() - 1, 0, -1))]
    for rows, dim in groups:
        moved = [t if dim == -1 else t.reshape(wanted.shape).movedim(dim, -1) for t in (wanted, *branches)]
        cut = [t.reshape(rows, -1)[:: max(rows // 64, 1)] for t in moved]
        if rows < 2 or cut[0].shape[1] < ENOUGH * len(branches):
            continue
        every, eps = max(cut[0].shape[1] // SAMPLED, 1), eps_of(*cut)
        numbers = torch.stack([t[:, ::every].to(wanted.device, torch.float64) for t in cut], dim=2).cpu().numpy()
        fits = [_explained(table, eps) for table in numbers]
        signs = {sum(one.values) > 0 for one in fits}
        ratios = np.array([one.values for one in fits]) / np.array([[sum(one.values) or 1.0] for one in fits])
        if signs == {False} and np.ptp(ratios, axis=0).max() > 1e-2 * np.abs(ratios).max():
            return None  # not rescaled alone: what is projected may have turned the sum
        if all(one.explained and one.unique for one in fits) and len(signs) == 1:
            found = {conditional(one.values) for one in fits}
            towards = found.pop() if len(found) == 1 else None
            return Combined(sign=1.0 if signs.pop() else -1.0, conditional=towards)
    return None


def conditional(weights: Sequence[float]) -> int | None:
    """The branch that guidance goes towards: the one that weighs more than all of them together."""
    total = sum(weights)
    if len(weights) < 2 or abs(total) < 1e-6:
        return None
    above = [i for i, weight in enumerate(weights) if weight / total > 1.0 + 1e-3]
    return above[0] if len(above) == 1 else None

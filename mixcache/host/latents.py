"""Where the latent is among the arguments of a model: found by comparing them with what the solver steps from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor

SAMPLED = 4096
"""How many elements of a tensor are looked at."""

ROUNDINGS = 4.0
"""How many roundings, of the coarsest dtype that took part, an explanation may be off."""


@frozen(kw_only=True)
class Part:
    """A part of a tensor along one dimension. within: the part along another dimension that it is a part of."""

    dim: int
    start: int
    size: int
    within: Part | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """That part, a view."""
        whole = tensor if self.within is None else self.within.of(tensor)
        return whole.narrow(self.dim, self.start, self.size)

    def fits(self, tensor: Tensor) -> bool:
        """Whether the tensor has that part."""
        inside = self.within is None or self.within.fits(tensor)
        return inside and tensor.dim() > self.dim and tensor.shape[self.dim] >= self.start + self.size


@frozen(kw_only=True)
class Source:
    """Where a model call holds the latent: in which argument, and as what part of it.

    part: the part of it, `None` for all. copies: how often the latent is repeated along the batch, once per guidance
    branch. scale: what it was multiplied by. listed: whether the argument is a list with one tensor per sample. item:
    which one of a sample's tensors it is, where each sample has a list of them, counted from the end (-1).
    """

    argument: str
    part: Part | None = None
    copies: int = 1
    scale: float = 1.0
    listed: bool = False
    item: int | None = None

    def of(self, arguments: Mapping[str, Any]) -> Tensor | None:
        """The latent in a call's arguments, with its copies, a row per sample; `None` if it is not there."""
        value = dict(columns_of(arguments.get(self.argument))).get(self.item)
        if value is None or (self.part is not None and not self.part.fits(value)):
            return None
        return value if self.part is None else self.part.of(value)


def rows_of(value: Any) -> Tensor | None:
    """A tensor with a row per sample: the value itself, or a list of tensors of one shape on top of each other."""
    if isinstance(value, Tensor):
        return value
    listed = isinstance(value, (list, tuple)) and bool(value) and all(isinstance(one, Tensor) for one in value)
    if not listed or any(one.shape != value[0].shape or one.dtype != value[0].dtype for one in value):
        return None
    return torch.stack(tuple(value))


def columns_of(value: Any) -> Iterator[tuple[int | None, Tensor]]:
    """The tensors with a row per sample that an argument holds, and which of a sample's list each is: a picture to go
    by, then the latent."""
    whole = rows_of(value)
    if whole is not None:
        yield None, whole
    elif isinstance(value, (list, tuple)) and value and all(isinstance(one, (list, tuple)) for one in value):
        for item in range(-1, -1 - min(map(len, value)), -1):
            rows = rows_of([one[item] for one in value])
            if rows is not None:
                yield item, rows


def find_source(arguments: Mapping[str, Any], sample: Tensor) -> Source | None:
    """Where `sample`, which the solver steps from, is among the arguments of a call; `None` if it is nowhere."""
    found = []
    for name, value in arguments.items():
        for item, tensor in columns_of(value):
            source = _source(tensor, sample)
            if source is not None:
                found.append(evolve(source, argument=name, listed=not isinstance(value, Tensor), item=item))
                break
    plain = [source for source in found if source.scale == 1.0] or found
    return plain[0] if plain else None


def _source(tensor: Tensor, sample: Tensor) -> Source | None:
    """How a tensor holds a sample, if it does."""
    if not tensor.is_floating_point():
        return None
    for copies, part in (*places(tensor.shape, sample.shape), *corners(tensor.shape, sample.shape)):
        scale = _scale(tensor if part is None else part.of(tensor), sample, copies)
        if scale is not None:
            return Source(argument="", part=part, copies=copies, scale=scale)
    return None


def places(shape: Sequence[int], wanted: Sequence[int]) -> Iterator[tuple[int, Part | None]]:
    """How a tensor of one shape may hold copies of one of another, along the batch: as a whole, or as a part."""
    copies, rest = divmod(shape[0] if shape else 0, wanted[0] if wanted else 1)
    if rest or not copies:
        return
    if _bare(shape[1:]) == _bare(wanted[1:]):
        yield copies, None
    elif len(shape) == len(wanted):
        differing = [d for d in range(1, len(shape)) if shape[d] != wanted[d]]
        if len(differing) == 1 and shape[differing[0]] > wanted[differing[0]]:
            dim, size = differing[0], wanted[differing[0]]
            room = shape[dim] - size
            for start in dict.fromkeys((0, room, *range(min(room, 512)))):
                yield copies, Part(dim=dim, start=start, size=size)


def corners(shape: Sequence[int], wanted: Sequence[int]) -> Iterator[tuple[int, Part | None]]:
    """The same along two dimensions: some frames of the first channels, where an image is given and stands first."""
    differing = [d for d in range(1, len(shape)) if len(shape) == len(wanted) and shape[d] > wanted[d]]
    if len(differing) != 2 or shape[0] % wanted[0] or _others(shape, differing) != _others(wanted, differing):
        return
    one, other = differing
    for begin in dict.fromkeys((0, shape[other] - wanted[other])):
        within = Part(dim=other, start=begin, size=wanted[other])
        for start in dict.fromkeys((0, shape[one] - wanted[one])):
            yield shape[0] // wanted[0], Part(dim=one, start=start, size=wanted[one], within=within)


def _others(shape: Sequence[int], but: Sequence[int]) -> list[int]:
    return [size for d, size in enumerate(shape) if d and d not in but]


def _bare(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]


def _scale(held: Tensor, sample: Tensor, copies: int) -> float | None:
    """c with held = c * sample, in every copy; `None` if there is none. Some elements first, then all."""
    wanted, given = sample.detach().flatten(), held.detach().reshape(copies, -1)
    if given.shape[1] != len(wanted):
        return None
    every = max(len(wanted) // SAMPLED, 1)
    some = torch.stack([t[::every].to(held.device, torch.float64) for t in (given[0], wanted)]).cpu().numpy()
    norm = float(some[1] @ some[1])
    scale = float(some[0] @ some[1]) / norm if norm > 0.0 else 0.0
    if not abs(scale) > 1e-9:
        return None
    limit = ROUNDINGS * eps_of(held) * abs(scale)
    if not abs(some[0] - scale * some[1]).max() <= limit * abs(some[1]).max():
        return None
    scale = 1.0 if abs(scale - 1.0) <= ROUNDINGS * eps_of(held) else scale
    whole = wanted.to(held.device, torch.float64)
    off = (given.to(torch.float64) - scale * whole).abs().amax() - limit * whole.abs().amax()
    return scale if bool(off <= 0) else None


def eps_of(*tensors: Tensor) -> float:
    """The coarsest rounding among floating tensors."""
    return max(float(torch.finfo(t.dtype).eps) for t in tensors if t.is_floating_point())


def arguments_of(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name."""
    if not args:
        return kwargs
    return {**dict(zip(_parameters(type(model).forward), args)), **kwargs}


@cache
def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the arguments of a class's forward; read once, as every block of every step asks."""
    return tuple(inspect.signature(forward).parameters)[1:]


def equal_parts(latent: Tensor) -> int:
    """How many equal parts the batch of latents has; 1 if they are all different. Reads the device."""
    rows = latent.shape[0]
    for count in range(rows, 1, -1):
        if rows % count == 0:
            parts = latent.reshape(count, rows // count, *latent.shape[1:])
            if bool((parts == parts[:1]).all()):
                return count
    return 1

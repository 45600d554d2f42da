"""What a model returns, as streams, and back again into the form that its caller expects.

Streams are the predictions, one for each output, each of the size of its latent; after them comes what stands beside
the predictions (a learned variance, tokens of the prompt), which is stored and rebuilt as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from mixcache.errors import AttachError
from mixcache.host.latents import Part, rows_of

Streams = tuple[Tensor, ...]


class NotCacheable(AttachError):
    """A call that cannot be cached; `result` is what the model returned, and is passed on as it is."""

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result


@frozen(kw_only=True)
class Packing:
    """How a model returns its outputs.

    kind: the type of what it returned. names: the fields of a record; the places in a tuple that hold an output.
    length: how long a tuple is. listed: which outputs are lists with a tensor per sample. parts: which part of an
    output is its prediction, `None` for all of it.
    """

    kind: type[Any]
    names: tuple[Any, ...]
    length: int
    listed: tuple[type[Any] | None, ...]
    parts: tuple[Part | None, ...]

    def pack(self, streams: Streams) -> Any:
        """Streams in the form that the model returned."""
        beside = iter(streams[len(self.parts) :])
        made: list[Any] = []
        for stream, part, listed in zip(streams, self.parts, self.listed):
            whole = stream if part is None else torch.cat([next(beside), stream, next(beside)], dim=part.dim)
            made.append(whole if listed is None else listed(whole.unbind(0)))
        if issubclass(self.kind, dict):
            return self.kind(**dict(zip(self.names, made)))
        if self.names == (None,):
            return made[0]
        values: list[Any] = [None] * self.length
        for place, value in zip(self.names, made):
            values[place] = value
        return self.kind(values)


def outputs_of(result: Any, model: Any) -> tuple[tuple[Tensor, ...], tuple[Any, ...], tuple[type[Any] | None, ...]]:
    """The outputs in a result, each a tensor with a row per sample; where they stand; and which of them are lists.

    Raises `NotCacheable` where something in it is no tensor.
    """
    if isinstance(result, dict):
        named: list[tuple[Any, Any]] = list(result.items())
    elif isinstance(result, (Tensor, list)):
        named = [(None, result)]
    elif isinstance(result, tuple):
        named = list(enumerate(result))
    else:
        named = [(None, result)]
    named = [(name, value) for name, value in named if value is not None]
    tensors = [rows_of(value) for _, value in named]
    if not tensors or any(tensor is None for tensor in tensors):
        kinds = ", ".join(type(value).__name__ for _, value in named)
        seen = f"{type(model).__name__} returned what is no tensor or list of equal ones ({kinds})"
        raise NotCacheable(f"{seen}; use policies at 'block'", result)
    listed = tuple(None if isinstance(value, Tensor) else type(value) for _, value in named)
    return tuple(t for t in tensors if t is not None), tuple(name for name, _ in named), listed


def unpack(result: Any, model: Any, parts: Sequence[Part | None]) -> tuple[Streams, Packing]:
    """The streams in a result whose predictions stand in these parts of its outputs, and how to pack them again."""
    outputs, names, listed = outputs_of(result, model)
    if len(outputs) != len(parts) or any(part is not None and not part.fits(o) for o, part in zip(outputs, parts)):
        shapes = ", ".join(str(tuple(output.shape)) for output in outputs)
        raise NotCacheable(f"{type(model).__name__} returned something else than before: tensors of {shapes}", result)
    streams = [output if part is None else part.of(output) for output, part in zip(outputs, parts)]
    for output, part in zip(outputs, parts):
        if part is not None:
            end = part.start + part.size
            streams += [
                output.narrow(part.dim, 0, part.start),
                output.narrow(part.dim, end, output.shape[part.dim] - end),
            ]
    length = len(result) if isinstance(result, tuple) else 0
    return tuple(streams), Packing(kind=type(result), names=names, length=length, listed=listed, parts=tuple(parts))

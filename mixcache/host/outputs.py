"""What a model returns, as streams: its prediction first, and back again into the form that its caller expects."""

from __future__ import annotations

from typing import Any

import torch
from attrs import frozen
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from mixcache.core.streams import Streams
from mixcache.errors import AttachError


class NotCacheable(AttachError):
    """A model returned more than one tensor; `result` is what it returned, and is passed on as it is."""

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result


@frozen(kw_only=True)
class Packing:
    """How a model returns its streams.

    kind: the type of what it returned. names: the fields of a record. cut: the dimension along which the first tensor
    was cut into the prediction (of the latent's size) and what stands beside it, such as a variance; `None` if it was
    not. By default the record that diffusers' transformers return.
    """

    kind: type[Any] = Transformer2DModelOutput
    names: tuple[str, ...] = ("sample",)
    cut: int | None = None

    def pack(self, streams: Streams, return_dict: bool | None) -> Any:
        """Streams in the form that the caller asked for with `return_dict`, or that the model returned last."""
        tensors = list(streams)
        if self.cut is not None:
            tensors[:2] = [torch.cat(tensors[:2], dim=self.cut)]
        if issubclass(self.kind, Tensor):
            return tensors[0]
        as_record = return_dict if return_dict is not None else not issubclass(self.kind, (tuple, list))
        if not as_record:
            return tuple(tensors)
        if issubclass(self.kind, dict):
            return self.kind(**dict(zip(self.names, tensors)))
        return Transformer2DModelOutput(sample=tensors[0])


def unpack(result: Any, model: Any, latent: Tensor) -> tuple[Streams, Packing]:
    """The streams in what a model returned for this latent, and how to pack them again.

    Raises `NotCacheable` where there is more than one tensor: nothing tells yet what the others are rebuilt around.
    """
    names: tuple[str, ...] = ()
    if isinstance(result, Tensor):
        tensors: list[Any] = [result]
    elif isinstance(result, dict):
        names = tuple(name for name, value in result.items() if value is not None)
        tensors = [result[name] for name in names]
    elif isinstance(result, (tuple, list)):
        tensors = [value for value in result if value is not None]
    else:
        tensors = []
    if len(tensors) != 1 or not isinstance(tensors[0], Tensor):
        kinds = ", ".join(type(tensor).__name__ for tensor in tensors) or type(result).__name__
        raise NotCacheable(f"{type(model).__name__} returned more than one tensor ({kinds})", result)
    cut = _cut(tensors[0], latent)
    if cut is not None:
        size = latent.shape[cut]
        tensors[:1] = [tensors[0].narrow(cut, 0, size), tensors[0].narrow(cut, size, tensors[0].shape[cut] - size)]
    return tuple(tensors), Packing(kind=type(result), names=names, cut=cut)


def _cut(output: Tensor, latent: Tensor) -> int | None:
    """The one dimension in which an output is larger than the latent, if it is alike in all others."""
    if output.dim() != latent.dim():
        return None
    differing = [d for d in range(output.dim()) if output.shape[d] != latent.shape[d]]
    if len(differing) != 1 or output.shape[differing[0]] < latent.shape[differing[0]]:
        return None
    return differing[0]

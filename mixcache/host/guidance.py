"""Guidance branches in one batch: one call of a model, whole or for some of its samples."""

from __future__ import annotations

from typing import Any

import torch
from attrs import define
from torch import Tensor

from mixcache.core.streams import Streams
from mixcache.host.adapter import ModelAdapter
from mixcache.host.patch import arguments_of, unpack
from mixcache.host.protocol import Forward


@define
class ModelCall:
    """One call of a model: its arguments, and its result once it was computed in full.

    truth: what the model gives without any reuse, once somebody asked for it.
    """

    model: Any
    forward: Forward
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    adapter: ModelAdapter
    result: Any = None
    output: Tensor | None = None
    truth: Streams | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments by name."""
        return arguments_of(self.model, self.args, self.kwargs)

    def compute(self) -> Streams:
        """The whole forward, exactly as it was called."""
        self.result = self.forward(*self.args, **self.kwargs)
        self.output = unpack(self.result, self.model)
        return (self.output,)

    def plain(self) -> Streams:
        """What the model gives without any reuse: the whole forward once more, on the first call."""
        if self.truth is None:
            self.truth = (unpack(self.forward(*self.args, **self.kwargs), self.model),)
        return self.truth

    def repeats(self, latent: Tensor) -> bool:
        """Whether the batch holds the same latents once for every branch. Reads the device."""
        count = len(self.adapter.doubled_order)
        parts = latent.chunk(count)
        return latent.shape[0] % count == 0 and all(torch.equal(part, parts[0]) for part in parts[1:])

    def compute_rows(self, rows: slice, batch: int) -> Streams:
        """The forward of some samples of a batch: every tensor with one row per sample is cut."""
        kept = self.adapter.unbatched

        def cut(name: str, value: Any) -> Any:
            batched = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == batch and name not in kept
            return value[rows] if batched else value

        result = self.forward(**{name: cut(name, value) for name, value in self.arguments.items()})
        return (unpack(result, self.model),)

"""Guidance branches in one batch: one call of a model, whole or for some of its samples."""

from __future__ import annotations

from typing import Any

from attrs import define
from torch import Tensor

from mixcache.core.streams import Streams
from mixcache.host.adapter import ModelAdapter
from mixcache.host.outputs import Packing, unpack
from mixcache.host.patch import arguments_of
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
    latent: Tensor
    result: Any = None
    streams: Streams | None = None
    packing: Packing | None = None
    again: Streams | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments by name."""
        return arguments_of(self.model, self.args, self.kwargs)

    def compute(self) -> Streams:
        """The whole forward, exactly as it was called."""
        self.result = self.forward(*self.args, **self.kwargs)
        self.streams, self.packing = unpack(self.result, self.model, self.latent)
        return self.streams

    def plain(self) -> Streams:
        """The whole forward beside the call, once: what the model gives by itself."""
        if self.again is None:
            self.again = unpack(self.forward(*self.args, **self.kwargs), self.model, self.latent)[0]
        return self.again

    def parts(self, latent: Tensor) -> int:
        """How many equal parts the batch of latents has; 1 if they are all different. Reads the device."""
        rows = latent.shape[0]
        for count in range(rows, 1, -1):
            if rows % count == 0:
                parts = latent.reshape(count, rows // count, *latent.shape[1:])
                if bool((parts == parts[:1]).all()):
                    return count
        return 1

    def compute_rows(self, rows: slice, batch: int) -> Streams:
        """The forward of some samples of a batch: every tensor with one row per sample is cut,
        wherever it is nested."""
        kept = self.adapter.unbatched

        def cut(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[rows] if value.dim() > 0 and value.shape[0] == batch else value
            if isinstance(value, dict):
                return {name: one if name in kept else cut(one) for name, one in value.items()}
            if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
                return type(value)(cut(one) for one in value)
            return value

        result = self.forward(**cut(self.arguments))
        return unpack(result, self.model, self.latent[rows])[0]

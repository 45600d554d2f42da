"""One call of a model: its arguments, its result, and the forward of some of its samples alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from attrs import define, field
from torch import Tensor
from torch.utils._pytree import tree_map

from mixcache.core.streams import Streams
from mixcache.host.latents import Part, Source, arguments_of, columns_of
from mixcache.host.outputs import NotCacheable, Packing, outputs_of, unpack


class Record(Protocol):
    """What is asked of the record of a model (a `ModelAdapter`)."""

    @property
    def stated(self) -> str | None: ...

    @property
    def branches(self) -> str: ...

    @property
    def doubled_order(self) -> tuple[str, ...]: ...

    @property
    def unbatched(self) -> tuple[str, ...]: ...


@define
class ModelCall:
    """One call of a model, and what it gave once it was computed in full.

    sources, parts: for each output, where its latent is among the arguments, and which part of it is the prediction;
    known once the first evaluation of the run was seen. anchors: the latents. seconds: how long computing took.
    exact, dense: of what was computed. again: what the model gives without any reuse, once somebody asked for it.
    """

    model: Any
    forward: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    adapter: Record
    sources: Sequence[Source] = ()
    parts: Sequence[Part | None] = ()
    anchors: Streams = ()
    result: Any = None
    done: bool = False
    seconds: float = 0.0
    exact: bool = True
    dense: bool = True
    streams: Streams | None = None
    packing: Packing | None = None
    again: Streams | None = field(default=None)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments by name."""
        return arguments_of(self.model, self.args, self.kwargs)

    @property
    def form(self) -> Any:
        """What the caller asks for: with another `return_dict` the result has another form."""
        return self.arguments.get("return_dict")

    def run(self) -> Any:
        """The whole forward, exactly as it was called; once."""
        if not self.done:
            again = self._again()
            began = time.perf_counter()
            self.result = self.forward(*self.args, **self.kwargs)
            self.seconds, self.done = time.perf_counter() - began, True
            self.args, self.kwargs = again
        return self.result

    def _again(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments for another call."""
        return tuple(map(_own, self.args)), {name: _own(value) for name, value in self.kwargs.items()}

    def compute(self) -> Streams:
        """The whole forward, as streams. Raises `NotCacheable`."""
        result = self.run()
        if self.streams is None:
            self.streams, self.packing = unpack(result, self.model, self.parts)
        return self.streams

    def outputs(self) -> Streams:
        """The outputs of the whole forward, each with a row per sample. Raises `NotCacheable`."""
        return outputs_of(self.run(), self.model)[0]

    def keep(self) -> None:
        """The caller may write into its latents and results from here on: keep what a visit still needs."""
        self.result = tree_map(lambda t: t.detach().clone() if isinstance(t, Tensor) else t, self.result)
        shapes = [one.shape for one in self.outputs()]
        self.args, self.kwargs = (
            (),
            {
                name: _copied(value) if any(may_hold(value, shape) for shape in shapes) else value
                for name, value in self.arguments.items()
            },
        )

    def plain(self) -> Streams:
        """The whole forward beside the call, once: what the model gives by itself."""
        if self.again is None:
            args, kwargs = self._again()
            self.again = unpack(self.forward(*args, **kwargs), self.model, self.parts)[0]
        return self.again

    def see(self, sources: Sequence[Source], parts: Sequence[Part | None]) -> None:
        """Take the facts of the run. Raises `NotCacheable` where the latents are not among the arguments."""
        arguments = self.arguments
        found = [source.of(arguments) for source in sources]
        anchors = tuple([one for one in found if one is not None])
        if len(anchors) < len(found):
            missing = next(source.argument for source, one in zip(sources, found) if one is None)
            raise NotCacheable(f"{type(self.model).__name__} was called without a latent in `{missing}`", self.run())
        self.sources, self.parts, self.anchors = sources, parts, anchors

    def compute_rows(self, rows: slice, *, deep: bool) -> Streams:
        """The forward of some samples of a batch: whatever has one row per sample is cut, wherever it is nested.

        deep: also where the samples are counted by the second dimension, as in the states of all layers of an encoder.
        """
        batch, kept = self.anchors[0].shape[0], self.adapter.unbatched
        listed = {source.argument for source in self.sources if source.listed}

        def cut(value: Any, name: str = "") -> Any:
            if isinstance(value, Tensor):
                if value.dim() > 0 and value.shape[0] == batch:
                    return value[rows]
                return value[:, rows] if deep and value.dim() > 2 and value.shape[1] == batch else value
            if isinstance(value, dict):
                return {key: one if key in kept else cut(one, key) for key, one in value.items()}
            if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
                if listed and len(value) == batch:
                    return value[rows]
                return type(value)(cut(one) for one in value)
            return value

        return unpack(self.forward(**cut(self.arguments)), self.model, self.parts)[0]


def may_hold(value: Any, shape: Sequence[int]) -> bool:
    """Whether an argument may hold a latent of this shape: it is no smaller, and has as many dimensions."""
    return any(
        tensor.is_floating_point()
        and tensor.dim() == len(shape)
        and sum(have != wanted for have, wanted in zip(tensor.shape, shape)) <= 1
        for _, tensor in columns_of(value)
    )


def _own(value: Any) -> Any:
    """Another list in the place of a list: some models take residuals out of the one that they are given."""
    return list(value) if type(value) is list else value


def _copied(value: Any) -> Any:
    return tree_map(lambda one: one.detach().clone() if isinstance(one, Tensor) else one, value)

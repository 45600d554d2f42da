"""The blocks of one call of a model: a visit opens where a span begins, and closes where it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor

from mixcache.core.points import Point
from mixcache.core.store import Ticket
from mixcache.core.streams import Input, Streams, Value
from mixcache.host.adapter import BlockList
from mixcache.host.patch import arguments_of
from mixcache.host.protocol import Forward, Visits
from mixcache.host.sites import Layout, SideInputs, pack, read_result, read_streams

_walking: ContextVar[Walk | None] = ContextVar("mixcache_walk", default=None)


@contextmanager
def walking(walk: Walk | None) -> Iterator[None]:
    """The blocks that run inside belong to this walk; with `None` they run as they are."""
    token = _walking.set(walk)
    try:
        yield
    finally:
        _walking.reset(token)


def on_block(module: Any, forward: Forward, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One block of a model: part of the call in progress in this thread or task, if that is cached."""
    walk = _walking.get()
    return forward(*args, **kwargs) if walk is None else walk.block(module, forward, index, args, kwargs)


class Walk:
    """The blocks of one call in progress.

    exact, dense: whether history, or an estimate, has gone into the streams so far. broken: the blocks before which
    something entered a span from elsewhere (a ControlNet's residual, say), which skipping the span would lose. invalid:
    whether a span was skipped that lost something.
    """

    def __init__(self, loop: Visits, point: Point, layout: Layout, *, audit: bool) -> None:
        self.exact = True
        self.dense = True
        self.broken: set[int] = set()
        self.invalid = False
        self._loop = loop
        self._point = point
        self._layout = layout
        self._audit = audit
        self._beside = SideInputs(layout)
        self._ticket: Ticket | None = None
        self._passed_on: dict[str, tuple[Tensor, int]] = {}
        self._lost = False

    def block(self, module: Any, forward: Forward, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One block: run, or passed over because its span was rebuilt at the span's first block."""
        layout = self._layout
        kind, span = layout.kinds[index], layout.begins.get(index)
        if index not in layout.inside and index != 0:
            return forward(*args, **kwargs)
        arguments = arguments_of(module, args, kwargs)
        streams = read_streams(kind, arguments)
        if index == 0:
            self._beside.begin(module, arguments, streams)
        if span is not None:
            entering = Input(streams, exact=self.exact)
            point = layout.point(self._point, span, self._loop.store)
            self._ticket = self._loop.open(point, entering, self._beside.at(span, streams))
            self._lost = False
            if self._ticket.output is not None and not self._audit:
                value, self._ticket = self._ticket.output, None
                self.exact, self.dense = value.exact, self.dense and value.dense
                return self._give(kind, value.streams)
        elif index in layout.inside:
            self._check(kind, index, streams)
            if self._ticket is None:
                return self._give(kind, streams)
        result = forward(*args, **kwargs)
        if self._ticket is None:
            return result
        made = read_result(kind, result)
        self._note(kind, made)
        return self._leave(kind, made, result) if index in layout.ends else result

    def _leave(self, kind: BlockList, made: Streams, result: Any) -> Any:
        """The span that was visited ends here."""
        ticket, self._ticket = self._ticket, None
        assert ticket is not None
        if ticket.output is not None:  # audited: what was rebuilt goes on
            self._loop.audit(ticket, made)
            self.exact, self.dense = ticket.output.exact, self.dense and ticket.output.dense
            return pack(kind, ticket.output.streams)
        value = self._loop.close(ticket, Value(made, self.exact, self.dense))
        self.exact, self.dense = value.exact, self.dense and value.dense
        if self._lost:
            self._loop.store.release(ticket.point.address)
        return result

    def _give(self, kind: BlockList, streams: Streams) -> Any:
        """Streams that a block which is passed over hands on."""
        self._note(kind, streams)
        return pack(kind, streams)

    def _note(self, kind: BlockList, streams: Streams) -> None:
        self._passed_on = {name: (stream, _version(stream)) for name, stream in zip(kind.streams, streams)}

    def _check(self, kind: BlockList, index: int, streams: Streams) -> None:
        """What enters a block within a span must be what the block before it gave."""
        for name, entering in zip(kind.streams, streams):
            stream, version = self._passed_on.get(name, (entering, _version(entering)))
            if not _same(entering, stream) or _version(entering) != version:
                self.broken.add(index)
                self._lost = True
                self.invalid = self.invalid or self._ticket is None


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same values in the same places."""
    if one is other:
        return True
    return one.shape == other.shape and one.stride() == other.stride() and one.data_ptr() == other.data_ptr()


def _version(tensor: Tensor) -> int:
    """How often it was written into; not counted in inference mode."""
    return 0 if tensor.is_inference() else tensor._version

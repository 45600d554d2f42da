"""The store: what one run remembers of every skip point. It belongs to one run, so runs cannot see each other's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import torch
from attrs import define, field
from torch import Tensor

from mixcache.basis import Streams
from mixcache.forecast import Entry
from mixcache.points import Granularity, Point

Key = tuple[Granularity, str, str]
Form = tuple[tuple[tuple[int, ...], torch.dtype, torch.device], ...]
"""Shape, dtype and device of every stream: what must not change between storing and reusing."""


@define
class Slot:
    """The memory of one point (granularity, site, branch): its history, and the tensors that signals compare with."""

    history: deque[Entry]
    form: Form | None = None
    previous_anchor: Tensor | None = None
    computed_anchor: Tensor | None = None
    computed_output: Tensor | None = None
    previous_prefix: Tensor | None = None
    computed_prefix: Tensor | None = None
    after: dict[str, Tensor] = field(factory=dict)
    last_computed: int | None = None

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor that the slot holds."""
        for entry in self.history:
            yield from entry.z
        yield from (tensor for tensor in (*self._remembered(), *self.after.values()) if tensor is not None)

    def _remembered(self) -> tuple[Tensor | None, ...]:
        anchors = (self.previous_anchor, self.computed_anchor, self.computed_output)
        return (*anchors, self.previous_prefix, self.computed_prefix)

    def admit(self, form: Form) -> str | None:
        """Take an anchor of this form; if it is not that of the history, drop all and say what changed."""
        before, self.form = self.form, form
        if before is None or before == form:
            return None
        self.history.clear()
        self.after.clear()
        self.previous_anchor = self.computed_anchor = self.computed_output = None
        self.previous_prefix = self.computed_prefix = None
        return f"shape changed from {_shapes(before)} to {_shapes(form)}"


class Store:
    """Slots by (granularity, site, branch)."""

    def __init__(self, depths: dict[Granularity, int]) -> None:
        self._depths = depths
        self._slots: dict[Key, Slot] = {}
        self.peak_bytes = 0

    def slot(self, point: Point) -> Slot:
        """The slot of a point, made empty on its first visit."""
        key = (point.granularity, point.site, point.branch)
        if key not in self._slots:
            self._slots[key] = Slot(history=deque(maxlen=self._depths[point.granularity]))
        return self._slots[key]

    def nbytes(self) -> int:
        """Bytes of all tensors held, each storage counted once."""
        storages = [t.untyped_storage() for slot in self._slots.values() for t in slot.tensors()]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    def note_peak(self) -> None:
        """Remember the largest size so far."""
        self.peak_bytes = max(self.peak_bytes, self.nbytes())

    def clear(self) -> None:
        """Drop every tensor."""
        self._slots.clear()


class Deferred:
    """An anchor that costs something to know, made only if a signal or a reuse needs it.

    form: the form it will have. make: computes it; called at most once.
    """

    def __init__(self, form: Form, make: Callable[[], Streams]) -> None:
        self.form = form
        self._make = make
        self._streams: Streams | None = None

    def get(self) -> Streams:
        """The streams, made on the first call."""
        if self._streams is None:
            self._streams = self._make()
        return self._streams


Anchor = Streams | Deferred


def streams_of(anchor: Anchor) -> Streams:
    """The tensors of an anchor, made now if they were deferred."""
    return anchor.get() if isinstance(anchor, Deferred) else anchor


def form_of(anchor: Anchor) -> Form:
    """The form of the streams that enter or leave a point."""
    streams = anchor
    if isinstance(streams, Deferred):
        return streams.form
    return tuple((tuple(t.shape), t.dtype, t.device) for t in streams)


def _shapes(form: Form) -> str:
    return ", ".join(f"{shape} {dtype} on {device}" for shape, dtype, device in form)

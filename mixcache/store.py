"""The store: what one run remembers of every skip point. It belongs to one run, so runs cannot see each other's."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from attrs import define, field
from torch import Tensor

from mixcache.basis import Streams
from mixcache.errors import PluginError
from mixcache.forecast import Entry
from mixcache.points import Granularity, Point
from mixcache.signals import Memory

Key = tuple[Granularity, str, str]
Form = tuple[tuple[tuple[int, ...], torch.dtype, torch.device], ...]
"""Shape, dtype and device of every stream: what must not change between storing and reusing."""


@define
class Slot:
    """The memory of one point (granularity, site, branch): its history, and the tensors that signals compare with.

    memory: those tensors by name, such as "previous_anchor". after: signals measured after the last compute.
    made: the form of the last computed output. total: the sum over what was stored last, until it is known that it is
    finite. trouble: what was found wrong with it at this visit.
    """

    history: deque[Entry]
    form: Form | None = None
    memory: dict[Memory, Tensor] = field(factory=dict)
    after: dict[str, Tensor] = field(factory=dict)
    last_computed: int | None = None
    counted: dict[int, int] = field(factory=dict)
    no_room: bool = False
    made: Form | None = None
    total: Tensor | None = None
    trouble: str | None = None

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor that the slot holds."""
        for entry in self.history:
            yield from entry.z
            if entry.prefix is not None:
                yield entry.prefix
        yield from self.memory.values()
        yield from self.after.values()
        if self.total is not None:
            yield self.total

    def remember(self, names: Iterable[Memory], tensors: Mapping[Memory, Tensor | None]) -> None:
        """Keep those of `tensors` that `names` asks for; what is not there now is forgotten."""
        for name in names:
            if name in tensors:
                self.memory.pop(name, None)
                value = tensors[name]
                if value is not None:
                    self.memory[name] = value

    def drop(self) -> None:
        """Forget every tensor."""
        self.history.clear()
        self.after.clear()
        self.memory.clear()
        self.total = None

    def broken(self, total: float) -> str | None:
        """Forget everything if the sum over what was stored last is not finite, and say so."""
        self.total = None
        if math.isfinite(total):
            return None
        self.drop()
        return "the model gave values that are not finite"

    def admit(self, form: Form) -> str | None:
        """Take an anchor of this form; if it is not that of the history, drop all and say what changed."""
        before, self.form = self.form, form
        if before is None or before == form:
            return None
        self.drop()
        return f"shape changed from {_shapes(before)} to {_shapes(form)}"


class Store:
    """Slots by (granularity, site, branch). `limit`: the most bytes to hold."""

    def __init__(self, depths: dict[Granularity, int], limit: int | None = None) -> None:
        self._depths = depths
        self._limit = limit
        self._slots: dict[Key, Slot] = {}
        self._holders: Counter[int] = Counter()
        self._held = 0
        self.peak_bytes = 0

    def slot(self, point: Point) -> Slot:
        """The slot of a point, made empty on its first visit."""
        key = (point.granularity, point.site, point.branch)
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = Slot(history=deque(maxlen=self._depths[point.granularity]))
        return slot

    def keep(self, slot: Slot) -> None:
        """A slot has changed: count what it holds; where that is more than there is room for, it stays empty."""
        self._count(slot)
        if self._limit is not None and self._held > self._limit:
            slot.drop()
            slot.no_room = True
            self._count(slot)
        self.peak_bytes = max(self.peak_bytes, self._held)

    def _count(self, slot: Slot) -> None:
        now = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in slot.tensors())}
        for place, size in slot.counted.items():
            self._holders[place] -= 1
            if not self._holders[place]:
                del self._holders[place]
                self._held -= size
        for place, size in now.items():
            self._holders[place] += 1
            self._held += size * (self._holders[place] == 1)
        slot.counted = now

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
    return tuple([(tuple(t.shape), t.dtype, t.device) for t in streams])


def check_form(who: tuple[str, object], streams: Any, form: Form | None) -> None:
    """Raise `PluginError` if what a plugin made is not streams of this form."""
    good = isinstance(streams, tuple) and all(isinstance(stream, Tensor) for stream in streams)
    if not good or (form is not None and form_of(streams) != form):
        made = _shapes(form_of(streams)) if good else repr(streams)[:80]
        raise PluginError(
            f"{who[0]} {who[1]!r} must return a tuple of tensors of {_shapes(form or ())}; it returned {made}."
        )


def total_of(streams: Streams) -> Tensor:
    """One number that is finite if and only if every element is (and their sum within float32)."""
    sums = [s.sum(dtype=torch.promote_types(s.dtype, torch.float32)) for s in streams]
    return (sums[0] if len(sums) == 1 else torch.stack([one.to(sums[0].dtype) for one in sums]).sum()).detach()


def on_host(tensor: Tensor) -> bool:
    """Whether reading it makes no device wait."""
    return tensor.is_cpu


def _shapes(form: Form) -> str:
    return ", ".join(f"{shape} {dtype} on {device}" for shape, dtype, device in form)

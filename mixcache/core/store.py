"""The store: what one run remembers of every place (`Slot`), and one visit of a place under way (`Ticket`).

It belongs to one run, so no run can see another's.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
from attrs import define, field
from torch import Tensor

from mixcache.core.forecast.base import Entry
from mixcache.core.points import Address, Point, Reading, Verdict, Vote
from mixcache.core.signals import Tensors
from mixcache.core.streams import Beside, Form, Input, Streams, Value, on_host, shapes, total_of
from mixcache.core.trace import Learned, Record, StreamRecord

NOT_YET = Verdict(reuse=False, reason="")


@define
class Track:
    """What signals remember of one stream of a place, apart from its other streams.

    memory: tensors that signals compare with, by name ("previous:anchor"). own: tensors that a signal keeps for itself,
    by signal. after: signals measured after the last compute, still on the device.
    """

    memory: dict[str, Tensor] = field(factory=dict)
    own: dict[str, dict[str, Tensor]] = field(factory=dict)
    after: dict[str, Tensor] = field(factory=dict)

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor that it holds."""
        yield from self.memory.values()
        yield from self.after.values()
        for kept in self.own.values():
            yield from kept.values()

    def clear(self) -> None:
        """Forget every tensor."""
        for kept in (self.memory, self.own, self.after):
            kept.clear()

    def note(self, kept: tuple[tuple[str, str], ...], known: Tensors, *, computed: bool) -> None:
        """Keep the tensors of this visit that signals compare with later: (name, "when:name") of each.

        computed: whether the visit was. What is not there now is forgotten.
        """
        memory = self.memory
        for name, key in kept:
            if name == "anchor":
                same = memory.get("previous:anchor") if computed else None
                tensor: Tensor | None = known.anchor.detach().clone() if same is None else same
            elif name == "output":
                tensor = None if known.output is None else known.output.detach().clone()
            else:
                tensor = known.now(name)
            if tensor is None:
                memory.pop(key, None)
            else:
                memory[key] = tensor


@define
class Slot:
    """The memory of one place: its history, and what signals and anchors keep.

    site: how the place is measured and rebuilt (a `Site` of the plan). histories: stored visits by the spec of the
    anchor that they are told around. last, gap: the evaluation of the last stored compute, and evaluations since the
    one before. run_length: reuses in a row. sums: signals summed since the last compute.
    tracks: what signals remember, by stream that they are measured on. states: what anchors remember. unfit: why the
    last computed output could not be stored, by the spec of the anchor. made: its form. total: the sum over what was
    stored last, until it is known to be finite. trouble: what was found wrong with it at this visit.
    """

    site: Any
    histories: dict[str | None, deque[Entry]] = field(factory=dict)
    form: Form | None = None
    last: int | None = None
    gap: int | None = None
    run_length: int = 0
    sums: dict[str, float] = field(factory=dict)
    tracks: list[Track] = field(factory=list)
    states: dict[str | None, Any] = field(factory=dict)
    made: Form | None = None
    total: Tensor | None = None
    trouble: str | None = None
    no_room: bool = False
    unfit: dict[str | None, str] = field(factory=dict)
    counted: dict[int, int] = field(factory=dict)

    def tensors(self) -> list[Tensor]:
        """Every tensor that the slot holds."""
        found = [z for history in self.histories.values() for entry in history for z in entry.z]
        if self.site.keeps:
            entries = [entry for history in self.histories.values() for entry in history]
            found += [t for entry in entries for streams in entry.beside.values() for t in streams]
        for track in self.tracks:
            found += track.tensors()
        for state in self.states.values():
            found += _tensors_in(state)
        if self.total is not None:
            found.append(self.total)
        return found

    def tracked(self, count: int) -> list[Track]:
        """What signals remember of the first `count` streams."""
        tracks = self.tracks
        if len(tracks) < count:
            tracks.extend(Track() for _ in range(count - len(tracks)))
        return tracks if len(tracks) == count else tracks[:count]

    def counts(self, step: int) -> tuple[int | None, int | None, int]:
        """What a point of evaluation `step` is told: age, gap and run_length."""
        return None if self.last is None else step - self.last, self.gap, self.run_length

    def computed(self, step: int) -> None:
        """A compute at this evaluation was stored."""
        if self.last is not None:
            self.gap = step - self.last
        self.last = step

    def visited(self, reading: Reading, *, reused: bool) -> None:
        """Count a visit that has ended: reuses in a row, and the sums since the last compute."""
        self.run_length = self.run_length + 1 if reused else 0
        if reused:
            told = ((name, reading.get(f"sum({name})")) for name in self.site.gauge.sums)
            self.sums.update({name: total for name, total in told if total is not None})
        else:
            self.sums.clear()

    def sound(self, z: Streams, *, at_once: bool) -> bool:
        """Whether `z` may be stored: it is finite. On other devices, and for several ranks (not `at_once`), the next
        signals tell it, if any do."""
        total = total_of(z)
        self.total = total if self.total is None else self.total + total
        if on_host(total) and at_once:
            self.trouble = self.broken(float(total.numpy()))
        return self.trouble is None

    def drop(self) -> None:
        """Forget every tensor, and what was counted since the last compute."""
        for kept in (self.histories, self.states, self.sums, self.unfit):
            kept.clear()
        for track in self.tracks:
            track.clear()
        self.made = self.total = self.last = self.gap = None

    def broken(self, total: float) -> str | None:
        """Forget everything if the sum over what was stored last is not finite, and say so."""
        self.total = None
        if math.isfinite(total):
            return None
        self.drop()
        return "the model gave values that are not finite"

    def admit(self, form: Form) -> str | None:
        """Take what enters, in this form; if it is not the form of the history, drop all and say what changed."""
        before, self.form = self.form, form
        if before is None or before == form:
            return None
        self.drop()
        return f"shape changed from {shapes(before)} to {shapes(form)}"


def _tensors_in(state: Any) -> Iterator[Tensor]:
    """The tensors in the fields of an anchor's state, also in lists, tuples and mappings."""
    if isinstance(state, Tensor):
        yield state
    elif attrs.has(type(state)):
        for one in attrs.fields(type(state)):
            yield from _tensors_in(getattr(state, one.name))
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from _tensors_in(value)
    elif isinstance(state, (list, tuple, deque)):
        for value in state:
            yield from _tensors_in(value)


@define
class Ticket:
    """One visit under way: where, what is known there, what was decided, and what came of it.

    output: the rebuilt value if the verdict was to reuse and could be carried out; `None` where the caller computes.
    reading: what policies see. streams: what was measured of each stream, where there are several. anchors: those made
    so far. failures: what the reason will say beside the verdict's. record: of a visit that has ended.
    """

    point: Point
    slot: Slot
    site: Any
    entering: Input
    beside: Beside
    reading: Reading = field(factory=dict)
    streams: tuple[StreamRecord, ...] = ()
    votes: tuple[Vote, ...] = ()
    verdict: Verdict = NOT_YET
    output: Value | None = None
    changed: str | None = None
    obstacle: str | None = None
    failures: list[str] = field(factory=list)
    anchors: dict[str | None, Streams] = field(factory=dict)
    spent: float = 0.0
    learned: tuple[Learned, ...] = ()
    started: float = 0.0
    record: Record | None = None


class Store:
    """Slots by address. `limit`: the most bytes to hold."""

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._slots: dict[Address, Slot] = {}
        self._within: dict[tuple[Address, str], Address] = {}
        self._holders: Counter[int] = Counter()
        self._held = 0
        self.peak_bytes = 0

    def get(self, address: Address) -> Slot | None:
        """The slot of a place, if it was visited before."""
        return self._slots.get(address)

    def within(self, address: Address, path: str) -> Address:
        """The address of a place inside of the same call; one object for each, so that finding its slot is quick."""
        found = self._within.get((address, path))
        if found is None:
            inside = Address(address.request, address.component, address.branch, path)
            found = self._within[address, path] = inside
        return found

    def counts(self, address: Address, step: int) -> tuple[int | None, int | None, int]:
        """What a point there is told: age, gap and run_length; of a new place, nothing."""
        slot = self._slots.get(address)
        return (None, None, 0) if slot is None else slot.counts(step)

    def entered(self, path: str) -> tuple[int, ...] | None:
        """The shape, without the batch, of what entered a place of this path; `None` if none was visited."""
        forms = [slot.form for address, slot in self._slots.items() if address.path == path and slot.form]
        return tuple(forms[0][0][0])[1:] if forms and forms[0] else None

    def add(self, address: Address, slot: Slot) -> Slot:
        """Take the slot of a place that is visited for the first time."""
        self._slots[address] = slot
        return slot

    def keep(self, slot: Slot) -> None:
        """A slot has changed: count what it holds; where that is more than there is room for, it stays empty."""
        self._count(slot)
        if self._limit is not None and self._held > self._limit:
            slot.drop()
            slot.no_room = True
            self._count(slot)
        self.peak_bytes = max(self.peak_bytes, self._held)

    def release(self, address: Address) -> None:
        """Drop every tensor of one place."""
        slot = self._slots[address]
        slot.drop()
        self._count(slot)

    def forget(self) -> None:
        """Drop every tensor of every place."""
        for slot in self._slots.values():
            slot.drop()
            self._count(slot)

    @property
    def held_bytes(self) -> int:
        """Bytes held now."""
        return self._held

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
        self._holders.clear()
        self._held = 0

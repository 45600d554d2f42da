"""The readout: signals measured on the device, and brought to the host in one transfer; alike on all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor
from torch import distributed as dist

from mixcache.core.points import Point
from mixcache.core.signals import Samples, Signal, Tensors
from mixcache.core.store import Ticket, Track
from mixcache.core.streams import NOTHING_BESIDE, Streams, Value
from mixcache.core.trace import Learned, StreamRecord
from mixcache.errors import PluginError, called

NOTHING_OWN: Any = NOTHING_BESIDE
Readings = dict[str, "float | None"]


class Readout:
    """What the visits of one run measure. Every stream that is measured has memory of its own (a `Track`).

    Policies see the worst stream, by the sign of each signal.
    """

    def __init__(self, samples: Samples, group: Any) -> None:
        self._samples = samples
        self._group = group
        self._unread: list[Late] = []

    def clear(self) -> None:
        """Drop every tensor."""
        self._unread.clear()

    def read(self, ticket: Ticket) -> Readings:
        """All signals asked for at this visit, in one transfer to the host; `None` where there is no history yet."""
        gauge, slot = ticket.site.gauge, ticket.slot
        measures = gauge.measures(ticket.point)
        if not measures and not self._unread:
            return {}
        reading: Readings = dict.fromkeys(gauge.names) if measures else {}
        streams = self.before(ticket) if measures and not slot.no_room else []
        known = (*gauge.before, *gauge.after)
        wanted = [(i, s, values[s.name]) for i, values in enumerate(streams) for s in known if s.name in values]
        numbers = [called(("signal", s.name), s.reduce, value) for _, s, value in wanted]
        signs = [s.sign for _, s, _ in wanted]
        checked = slot.total is not None and bool(wanted)
        if slot.total is not None and wanted:
            numbers.append(slot.total)
            signs.append(1.0)
        later, self._unread = [one for one in self._unread if one.stands], []
        device = numbers[0].device if numbers else later[0].value.device if later else None
        numbers += [one.signal.reduce(one.value).to(device) for one in later]
        signs += [one.signal.sign for one in later]
        if not numbers:
            return reading
        found = read(numbers, signs, self._group)
        ticket.learned = learned(later, found[len(found) - len(later) :])
        slot.trouble = slot.broken(found[len(wanted)]) if checked else None
        if measures and slot.trouble is None:
            readings = [reading] if len(streams) < 2 else [dict(reading) for _ in streams]
            for (i, signal, _), number in zip(wanted, found):
                readings[i][signal.name] = number
            for each in readings:
                derive(gauge.derived, each)
            if len(readings) > 1:
                ticket.streams = tuple([StreamRecord(reading=each) for each in readings])
                reading = worst(readings, (*known, *gauge.derived))
            add(gauge.sums, reading, slot.sums)
        return reading

    def before(self, ticket: Ticket) -> list[dict[str, Tensor]]:
        """The signals that are known before the vote, by stream: per sample and on the device."""
        gauge, found = ticket.site.gauge, []
        for i, track in enumerate(ticket.slot.tracked(ticket.entering.measured)):
            values = dict(track.after)
            known = self._tensors(ticket, i, track, values)
            measure(gauge.before, known, values, track.own)
            track.note(gauge.kept["previous"], known, computed=False)
            found.append(values)
        return found

    def after(self, ticket: Ticket, output: Value, storing: bool, rebuild: Callable[[], Value | None]) -> None:
        """Measure what is known only after computing; it stays on the device and is read at the next measured visit.

        storing: whether the output is stored. rebuild: makes what the cache would have given.
        """
        gauge, slot = ticket.site.gauge, ticket.slot
        signals = tuple([s for s in gauge.after if (storing if s.when == "after" else not output.exact)])
        if not signals and not storing:
            return
        rebuilt = rebuild() if any("rebuilt" in s.reads for s in signals) else None
        for i, track in enumerate(slot.tracked(ticket.entering.measured)):
            values: dict[str, Tensor] = {}
            instead = None if rebuilt is None else rebuilt.streams[i]
            known = self._tensors(ticket, i, track, values, output.streams[i], instead)
            measure(signals, known, values, track.own)
            track.after = values if storing else {**track.after, **values}
            if gauge.learns:
                self.learn(ticket, track, values)
            if storing:
                track.note(gauge.kept["computed"], known, computed=True)

    def learn(self, ticket: Ticket, track: Track, values: Mapping[str, Tensor]) -> None:
        """What was measured after this compute will be told to the policies, once it is on the host."""
        known = [signal for signal in ticket.site.gauge.after if signal.name in values]
        self._unread += [Late(ticket.point, signal, values[signal.name], track) for signal in known]

    def _tensors(
        self,
        ticket: Ticket,
        stream: int,
        track: Track,
        values: Mapping[str, Tensor],
        output: Tensor | None = None,
        rebuilt: Tensor | None = None,
    ) -> Tensors:
        """What signals look at; `values` is filled as they are measured."""
        return Tensors(
            anchor=ticket.entering.get()[stream],
            output=output,
            rebuilt=rebuilt,
            level=ticket.point.level,
            beside=ticket.beside,
            memory=track.memory,
            values=values,
            own=NOTHING_OWN,
            samples=self._samples,
        )


@frozen
class Late:
    """What was measured of one stream after the compute at `point`, and still is on the device."""

    point: Point
    signal: Signal
    value: Tensor
    track: Track

    @property
    def stands(self) -> bool:
        """Whether it is still the last that is known."""
        return self.track.after.get(self.signal.name) is self.value


def measure(
    signals: Sequence[Signal], known: Tensors, values: dict[str, Tensor], own: dict[str, dict[str, Tensor]]
) -> None:
    """Measure signals in order into `values`, each seeing those before it, and its own tensors in `own`."""
    for signal in signals:
        seen = evolve(known, own=own.setdefault(signal.name, {})) if signal.keeps else known
        value = called(("signal", signal.name), signal.measured, seen)
        if value is not None:
            values[signal.name] = value


def read(numbers: Sequence[Tensor], signs: Sequence[float], group: Any) -> list[float]:
    """The values of 0-d tensors on one device, worst over the ranks of `group` if there is one; one transfer.

    signs: for each number 1 if a larger one is worse, -1 if a smaller one is.
    """
    stacked = torch.stack(list(numbers))  # in the dtype that holds them all
    if not stacked.is_floating_point():
        stacked = stacked.float()
    if group is not None:
        stacked = worst_of_ranks(stacked, signs, group)
    return stacked.tolist()


def worst_of_ranks(numbers: Tensor, signs: Sequence[float], group: Any) -> Tensor:
    """Readings [N] of the ranks that hold shards of one model -> the worst of them, the same on every rank.

    What is not finite on one rank is not on any.
    """
    sign = numbers.new_tensor(list(signs))
    worst = (numbers * sign).nan_to_num(nan=math.inf, posinf=math.inf, neginf=math.inf)
    dist.all_reduce(worst, op=dist.ReduceOp.MAX, group=group)
    return worst * sign


def worst(readings: Sequence[Readings], signals: Sequence[Signal]) -> Readings:
    """The readings of several streams -> the worst of each signal, of the streams that have one."""
    found: Readings = dict.fromkeys(readings[0])
    for signal in signals:
        told = [value for each in readings if (value := each[signal.name]) is not None]
        found[signal.name] = signal.worst_of(told) if told else None
    return found


def learned(values: Sequence[Late], numbers: Sequence[float]) -> tuple[Learned, ...]:
    """Late readings that have come to the host, one per place: the worst stream of each signal."""
    streams: dict[Point, dict[Signal, list[float]]] = {}
    for one, number in zip(values, numbers):
        streams.setdefault(one.point, {}).setdefault(one.signal, []).append(number)
    return tuple(
        [
            Learned(point=point, reading={signal.name: signal.worst_of(each) for signal, each in found.items()})
            for point, found in streams.items()
        ]
    )


def derive(signals: Sequence[Signal], reading: Readings) -> None:
    """Add the readings that need no tensor."""
    for signal in signals:
        assert signal.derive is not None
        value = called(("signal", signal.name), signal.derive, reading)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise PluginError(f"signal {signal.name!r} must derive a number or None, it returned {value!r}.")
        reading[signal.name] = value


def add(summed: Sequence[str], reading: Readings, sums: Mapping[str, float]) -> None:
    """Add the signals that are summed since the last compute: this visit's readings on top of `sums` so far."""
    for name in summed:
        value = reading.get(name)
        reading[f"sum({name})"] = None if value is None else sums.get(name, 0.0) + value


def true_errors(truth: Streams, rebuilt: Streams, samples: Samples) -> list[float]:
    """mean|truth - rebuilt| / mean|truth| of every stream, worst over its samples."""
    scale = Tensors(anchor=truth[0], samples=samples)
    errors = [(scale.norm(a - b) / scale.norm(a)).amax() for a, b in zip(truth, rebuilt)]
    return torch.stack(errors).tolist()

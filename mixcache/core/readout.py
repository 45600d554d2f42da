"""The readout: signals measured on the device, and brought to the host in one transfer; alike on all ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor
from torch import distributed as dist

from mixcache.core.points import Point
from mixcache.core.signals import Signal, Tensors
from mixcache.core.trace import Learned
from mixcache.errors import PluginError, called


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


@frozen
class Late:
    """What was measured after the compute at `point`, and still is on the device."""

    point: Point
    signal: Signal
    value: Tensor


def late(unread: Sequence[tuple[Point, Any, Mapping[str, Tensor]]]) -> list[Late]:
    """What was measured at these computes and is still known to the `Slot` of its place."""
    found = [
        (p, s, slot.after, values[s.name])
        for p, slot, values in unread
        for s in slot.site.gauge.after
        if s.name in values
    ]
    return [Late(point, signal, value) for point, signal, after, value in found if after.get(signal.name) is value]


def learned(values: Sequence[Late], numbers: Sequence[float]) -> tuple[Learned, ...]:
    """Late readings that have come to the host, one per place."""
    found: dict[Point, dict[str, float | None]] = {}
    for one, number in zip(values, numbers):
        found.setdefault(one.point, {})[one.signal.name] = number
    return tuple([Learned(point=point, reading=reading) for point, reading in found.items()])


def derive(
    signals: Sequence[Signal], summed: Sequence[str], reading: dict[str, float | None], sums: Mapping[str, float]
) -> None:
    """Add the readings that need no tensor: derived signals, and those of `summed` added to their `sums` so far."""
    for signal in signals:
        assert signal.derive is not None
        value = called(("signal", signal.name), signal.derive, reading)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise PluginError(f"signal {signal.name!r} must derive a number or None, it returned {value!r}.")
        reading[signal.name] = value
    for name in summed:
        value = reading.get(name)
        reading[f"sum({name})"] = None if value is None else sums.get(name, 0.0) + value

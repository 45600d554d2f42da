"""Telling mixcache's own work from that of the model and of the loop: a meter that charges whoever is at work.

A clock gives seconds, a counter of waits the times that the host waited for the device.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

OWN, MODEL, LOOP = "mixcache", "model", "loop"
"""Who can be at work."""


class Gauge(Protocol):
    """What a meter reads. `watch` is told at every change whether mixcache is at work now."""

    def read(self) -> float:
        """A number that only grows."""

    def watch(self, own: bool) -> None:
        """mixcache begins to work, or stops."""


class Clock:
    """Seconds. The device is waited for at every reading, so nobody is charged for what another has begun.

    In a run that nobody meters, the host's part of mixcache's work goes on while the device computes. So what this
    clock finds is the most that it can cost.
    """

    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait = wait

    def read(self) -> float:
        """Now."""
        self._wait()
        return time.perf_counter()

    def watch(self, own: bool) -> None:
        """Nothing to do."""


READS = frozenset(
    ("tolist", "item", "cpu", "nonzero", "equal", "allclose", "is_nonzero")
    + ("__bool__", "__float__", "__int__", "__index__", "__contains__")
)
"""Functions of torch that bring values of a tensor to the host. `numpy` is none: on an accelerator it is an error."""


class Reads(TorchFunctionMode):
    """Counts, while mixcache is at work, the calls of torch that would wait for a device, whatever the device is."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._on = False

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += getattr(func, "__name__", "") in READS
        return func(*args, **(kwargs or {}))

    def read(self) -> float:
        """How many so far."""
        return self.count

    def watch(self, own: bool) -> None:
        """Count from here on, or stop."""
        if own != self._on:
            self._on = own
            if own:
                self.__enter__()  # type: ignore[no-untyped-call]
            else:
                self.__exit__(None, None, None)  # type: ignore[no-untyped-call]


class Waits:
    """Counts, while mixcache is at work, what CUDA itself calls a synchronising operation (see its sync debug mode).

    Transfers in either direction are among them, unless they are pinned and not waited for.
    """

    def __init__(self, told: Sequence[warnings.WarningMessage]) -> None:
        self._told = told

    def read(self) -> float:
        """How many so far."""
        return sum("called a synchronizing" in str(one.message) for one in self._told)

    def watch(self, own: bool) -> None:
        """Count from here on, or stop."""
        torch.cuda.set_sync_debug_mode("warn" if own else "default")


@contextmanager
def counter(device: torch.device) -> Iterator[Gauge]:
    """What counts waits on this device; to be used inside."""
    if device.type != "cuda":
        yield Reads()
        return
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            yield Waits(told)
        finally:
            torch.cuda.set_sync_debug_mode("default")


class Meter:
    """Charges what a gauge goes forward by to whoever is at work. own: mixcache's part, by step."""

    def __init__(self, gauge: Gauge, steps: int) -> None:
        self.own = [0.0] * steps
        self.step = 0
        self._gauge = gauge
        self._at_work = [LOOP]
        self._before = 0.0

    def begin(self, who: str) -> None:
        """Somebody takes over from whoever was at work, until `end`."""
        self._change(lambda: self._at_work.append(who))

    def end(self) -> None:
        """Whoever was at work before goes on."""
        self._change(self._at_work.pop)

    @contextmanager
    def at(self, who: str) -> Iterator[None]:
        """Somebody is at work inside."""
        self.begin(who)
        try:
            yield
        finally:
            self.end()

    def _change(self, how: Callable[[], object]) -> None:
        now = self._gauge.read()
        if self._at_work[-1] == OWN:
            self.own[self.step] += now - self._before
        how()
        self._gauge.watch(self._at_work[-1] == OWN)
        self._before = now


@contextmanager
def metered(meter: Meter, module: nn.Module, *, inside: bool = False) -> Iterator[None]:
    """The forward of a module is the model's work. To be entered before mixcache is enabled, and left after it.

    inside: the module is part of another that is metered, and mixcache may be at work around it.
    """
    before = vars(module).get("forward")
    forward = module.forward

    def computed(*args: Any, **kwargs: Any) -> Any:
        with meter.at(MODEL):
            return forward(*args, **kwargs)

    with ExitStack() as stack:
        if inside:
            begun = module.register_forward_pre_hook(lambda *_: meter.begin(OWN))
            stack.callback(begun.remove)
            ended = module.register_forward_hook(lambda *_: meter.end())
            stack.callback(ended.remove)
        module.forward = computed
        try:
            yield
        finally:
            del module.forward
            if before is not None:
                module.forward = before

"""Streams: the tensors that enter or leave a place, their form, and whether history went into them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from mixcache.errors import PluginError

Streams = tuple[Tensor, ...]
"""The latent at STEP, the image and text hidden states at BLOCK."""

Beside = Mapping[str, Streams]
"""Side inputs by name, such as "prefix"; "anchor" is what the place is rebuilt around."""

NOTHING_BESIDE: Beside = MappingProxyType({})
"""No side inputs."""

Form = tuple[tuple[tuple[int, ...], torch.dtype, torch.device], ...]
"""Shape, dtype and device of every stream: what must not change between storing and reusing."""


@frozen
class Value:
    """Streams, and how they came about.

    exact: no history went into them. dense: nothing was left out either (an estimate from the present input alone is
    exact, but not dense).
    """

    streams: Streams
    exact: bool = True
    dense: bool = True


class Input:
    """What enters a place. It may cost something to know, and is then made when it is first needed.

    make: the streams, or a function that computes them. form: the form they have. exact: whether no history went into
    them. done: whether the place was computed already, so that nothing can be rebuilt there. measured: on how many of
    the streams, the first ones, signals are measured, each by itself: those that leave the place in the same order, and
    whose worst is what policies see. paid: what making them cost in addition to computing the place, as a share of a
    whole model call; set by who makes them.
    """

    __slots__ = ("_make", "_streams", "done", "exact", "form", "measured", "paid")

    def __init__(
        self,
        make: Streams | Callable[[], Streams],
        form: Form | None = None,
        *,
        exact: bool = True,
        done: bool = False,
        measured: int = 1,
    ) -> None:
        known = None if callable(make) else make
        self._streams = known
        self._make = make
        self.form = form_of(known) if form is None and known is not None else form or ()
        self.exact = exact
        self.done = done
        self.measured = measured
        self.paid = 0.0

    def get(self) -> Streams:
        """The streams, made on the first call."""
        if self._streams is None:
            assert callable(self._make)
            self._streams = self._make()
        return self._streams


def form_of(streams: Streams) -> Form:
    """The form of streams."""
    return tuple([(t.shape, t.dtype, t.device) for t in streams])


def check_form(who: tuple[str, object], streams: Any, form: Form | None) -> None:
    """Raise `PluginError` if what a plugin made is not streams of this form; without a form, not streams at all."""
    good = isinstance(streams, tuple) and all(isinstance(stream, Tensor) for stream in streams)
    if not good or (form is not None and form_of(streams) != form):
        made = shapes(form_of(streams)) if good else repr(streams)[:80]
        wanted = "tensors" if form is None else f"tensors of {shapes(form)}"
        raise PluginError(f"{who[0]} {who[1]!r} must return a tuple of {wanted}; it returned {made}.")


def in_form(who: tuple[str, object], streams: Any, form: Form | None) -> Streams:
    """Streams of a wider dtype in the dtype of this form; checked as by `check_form`."""
    if form is not None and isinstance(streams, tuple) and len(streams) == len(form):
        streams = tuple([s.to(dtype) if isinstance(s, Tensor) else s for s, (_, dtype, _) in zip(streams, form)])
    check_form(who, streams, form)
    return streams  # type: ignore[no-any-return]


def shapes(form: Form) -> str:
    """A form in words."""
    return ", ".join(f"{tuple(shape)} {dtype} on {device}" for shape, dtype, device in form)


def total_of(streams: Streams) -> Tensor:
    """One number that is finite if and only if every element is (and their sum within float32)."""
    sums = [s.sum(dtype=torch.promote_types(s.dtype, torch.float32)) for s in streams]
    return (sums[0] if len(sums) == 1 else torch.stack([one.to(sums[0].dtype) for one in sums]).sum()).detach()


def on_host(tensor: Tensor) -> bool:
    """Whether reading it makes no device wait."""
    return tensor.is_cpu

"""Callbacks of a measurement under way, for whoever shows its progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import field, frozen


def _never(*_: Any) -> None:
    """The default of a callback."""


@frozen(kw_only=True)
class Watch:
    """What is called while a comparison or a calibration runs.

    started: with the number of calls and the steps of each. step, call: after each. case: with each finished `Case`.
    """

    started: Callable[[int, int], None] = field(default=_never)
    step: Callable[[], None] = field(default=_never)
    call: Callable[[], None] = field(default=_never)
    case: Callable[[Any], None] = field(default=_never)

"""Which walk along the blocks of a model is in progress, in this thread or task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_walking: ContextVar[Any] = ContextVar("mixcache_walk", default=None)


def present() -> Any:
    """The walk in progress; `None` if blocks run as they are."""
    return _walking.get()


@contextmanager
def walking(walk: Any) -> Iterator[None]:
    """The blocks that run inside belong to this walk; with `None` they run as they are."""
    token = _walking.set(walk)
    try:
        yield
    finally:
        _walking.reset(token)

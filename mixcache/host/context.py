"""Where a call is made from: the thread or asyncio task, and the `with` blocks around it that say whose it is.

Blocks are kept in a ContextVar, so that threads and tasks see their own. They may be left in any order, and from
another thread or task than they were entered in: a block that is no longer open, or whose outer block is not, does not
count.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import Hashable
from contextvars import ContextVar
from typing import Any

from mixcache.errors import RunError

AMBIGUOUS = (
    "calls of two denoisings were mixed on a model whose calls do not tell them apart, so they were all computed; put "
    "each into `with session.request(key):`"
)


STUCK = (
    "a branch was called again before the noise scheduler went on: several denoisings use it at once, or it does not "
    "tell the steps of this pipeline (each frame may have its own, as in diffusion forcing); such calls were computed. "
    "Put each denoising into `with session.request(key):`, or `session.run(num_steps=...)` around a loop of your own"
)
"""What a report says where calls could not be told apart."""


class Entered:
    """One `with` block that says whose the calls inside are: request `key` of `owner`, and `run` if there is one."""

    __slots__ = ("carrier", "key", "open", "outer", "owner", "run")

    def __init__(self, owner: object, key: Hashable, run: Any) -> None:
        self.owner = owner
        self.key = key
        self.run = run
        self.open = True

    def __enter__(self) -> None:
        self.carrier = weakref.ref(carrier())
        self.outer = innermost()
        _entered.set(self)

    def __exit__(self, *_: object) -> None:
        self.open = False
        _entered.set(innermost())

    @property
    def holds(self) -> bool:
        """Whether this block and those around it are still open."""
        here: Entered | None = self
        while here is not None:
            if not here.open:
                return False
            here = here.outer
        return True


_entered: ContextVar[Entered | None] = ContextVar("mixcache_request", default=None)


class _Thread(threading.local):
    """`alive` is an object of each thread's own that goes with it, also where somebody still holds the `Thread`."""

    class Alive:
        """Stands for one thread."""

    def __init__(self) -> None:
        self.alive = _Thread.Alive()


_thread = _Thread()


def carrier() -> Any:
    """What runs the present code: the asyncio task, else what stands for the thread."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return task if task is not None else _thread.alive


def innermost() -> Entered | None:
    """The innermost block that is still open in this thread or task."""
    here = _entered.get()
    while here is not None and not here.holds:
        here = here.outer
    return here


def innermost_of(owner: object) -> Entered | None:
    """The innermost open block of one session."""
    here = innermost()
    while here is not None and here.owner is not owner:
        here = here.outer
    return here


class Claims:
    """Whose a noise scheduler's run is: the thread's or task's that used it first. Two on one corrupt each other's."""

    def __init__(self) -> None:
        self._owners: deque[tuple[object, weakref.ref[Any] | None]] = deque(maxlen=16)
        self._lock = threading.RLock()  # a run may end while it is held: when a dead task is collected

    def claim(self, token: object) -> None:
        """The present thread or task uses `token`. Raises `RunError` if another one does, for both from then on."""
        now = carrier()
        with self._lock:
            for i, (known, owner) in enumerate(self._owners):
                if known is not token:
                    continue
                if owner is None or owner() is not now:
                    self._owners[i] = (token, None)
                    raise RunError(
                        "two threads drive one noise scheduler, which mixes up their denoising; give each thread a "
                        "pipeline with a noise scheduler of its own and enable the transformer that they share."
                    )
                return
            self._owners.append((token, weakref.ref(now)))

    def owned_by_another(self, token: object) -> bool:
        """Whether another thread or task uses `token`."""
        now = carrier()
        with self._lock:
            return any(known is token and (owner is None or owner() is not now) for known, owner in self._owners)

    def release(self, token: object) -> None:
        """The run of `token` is over."""
        with self._lock:
            self._owners = deque([owner for owner in self._owners if owner[0] is not token], maxlen=16)

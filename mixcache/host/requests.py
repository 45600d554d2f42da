"""Whose call this is: every denoising is a request, and every request has a run and a memory of its own.

In order of trust: `session.request(key)` and `run.step(i)`, which hold for the thread or task that they are written in;
the noise scheduler of the pipeline; the thread or task itself. What cannot be told apart is refused or computed.
"""

from __future__ import annotations

import asyncio
import copy
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic

from mixcache.core.points import NoiseLevel, Prediction, RunInfo
from mixcache.errors import ConfigurationError, RunError
from mixcache.host.bounds import Ledger
from mixcache.host.context import AMBIGUOUS, STUCK, Claims, Entered, carrier, innermost_of
from mixcache.host.own_loop import M, Run
from mixcache.host.protocol import Call, Host, Place, Schedule

LEDGERS_KEPT = 100
"""Of how many audited runs a session keeps the ledger, the last ones."""


class Requests(Generic[M]):
    """The runs of one session by request key.

    host: what tells where a denoising stands that the session did not open. new_memory: makes what a run remembers.
    predictions: what the model of each component returns, where that is known. ended: is told of every run that is
    over, before its memory goes.
    """

    def __init__(
        self,
        host: Host,
        new_memory: Callable[[RunInfo], M],
        predictions: Mapping[str, Prediction | None],
        ended: Callable[[Run[M]], None],
        *,
        audit: bool,
    ) -> None:
        self.count = 0
        self.calls = 0
        self.foreign_calls = 0
        self.notes: set[str] = set()
        self.ledgers: deque[Ledger] = deque(maxlen=LEDGERS_KEPT)
        self._host = host
        self._new_memory = new_memory
        self._predictions = predictions
        self._told_end = ended
        self._audited = audit
        self._runs: dict[Hashable, Run[M]] = {}
        self._carriers: dict[Hashable, weakref.ref[Any]] = {}
        self._anonymous: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        self._latest: weakref.WeakKeyDictionary[Any, Hashable] = weakref.WeakKeyDictionary()
        self._mixed: weakref.WeakSet[Any] = weakref.WeakSet()
        self._unnamed = 0
        self._claims = Claims()
        self._ended: object | None = None
        self._lock = threading.RLock()

    def current(self) -> Run[M] | None:
        """The run of this thread's or task's last call, or of the block around it; `None` if it has ended."""
        here = innermost_of(self)
        key = self._latest.get(carrier()) if here is None else here.key
        told: Run[M] | None = None if here is None else here.run
        return self._runs.get(key) if told is None else told

    @property
    def open_runs(self) -> tuple[Run[M], ...]:
        """Those that have not ended."""
        return tuple(self._runs.values())

    @contextmanager
    def request(self, key: Hashable) -> Iterator[None]:
        """The calls inside, of this thread or task, belong to request `key`; see `Session.request`."""
        try:
            hash(key)
        except TypeError:
            raise ConfigurationError(f"`session.request(key)` must be hashable, got {key!r}.") from None
        outer = innermost_of(self)
        if outer is not None and outer.key != key and outer.carrier() is carrier():
            raise RunError(
                f"request {key!r} is opened inside of request {outer.key!r}, in one thread and task; leave that first. "
                "A generator shares the context of whoever drives it: inside one, open the request around each call."
            )
        with Entered(self, key, None):
            yield

    @contextmanager
    def explicit(self, num_steps: int, prediction: Prediction, noise_scheduler: Any = None) -> Iterator[Run[M]]:
        """A run that the caller's own loop tells about; see `Session.run`."""
        if not isinstance(num_steps, int) or isinstance(num_steps, bool) or num_steps < 1:
            raise ConfigurationError(f"`session.run(num_steps=...)` must be an integer >= 1, got {num_steps!r}.")
        here = innermost_of(self)
        if here is not None and here.run is not None and here.carrier() is carrier():
            raise RunError(
                "this thread or task has a run open; leave its `with session.run(...)` block first, or give each "
                "denoising a request of its own: `with session.request(key), session.run(...)`."
            )
        key = self._fresh_key() if here is None else here.key
        known = self._runs.get(key)
        if known is not None and known.told:
            raise RunError(f"request {key!r} has a run open; leave its `with session.run(...)` block first.")
        self.end(key)
        run = Run(key, num_steps, self._open_memory(key, num_steps, None), None, prediction, self._inside)
        self._runs[key] = run
        self._audit(run, noise_scheduler)
        try:
            with self._inside(run):
                yield run
        finally:
            self.end(key, only=run)

    def _inside(self, run: Run[M]) -> Entered:
        """The calls inside belong to a run. Blocks may be left in any order, and from another thread or task."""
        return Entered(self, run.key, run)

    def _fresh_key(self) -> Hashable:
        with self._lock:
            self._unnamed += 1
            return f"unnamed {self._unnamed}"

    def _carrier_key(self) -> Hashable:
        """The key of calls that nobody named: one per thread or task."""
        now = carrier()
        with self._lock:
            key = self._anonymous.get(now)
            if key is None:
                key = self._anonymous[now] = str(self._fresh_key())
        return key

    def end(self, key: Hashable | None = None, *, only: Run[M] | None = None) -> None:
        """The run of a request is over, if it has one; without a key, that of this thread's or task's last call."""
        if key is None:
            here = innermost_of(self)
            key = self._latest.get(carrier()) if here is None else here.key
            known = self._runs.get(key)
            if known is not None and known.told:
                return  # its `with session.run` block ends it
        with self._lock:
            run = self._runs.get(key)
            if run is None or (only is not None and run is not only):
                return
            del self._runs[key]
            self._carriers.pop(key, None)
            if run.schedule is not None:
                token = run.schedule.token
                self._ended = token
                self._claims.release(token)
        if run.ledger is not None:
            run.ledger.close()
        try:
            self._told_end(run)
        finally:
            run.memory.end()

    def end_all(self) -> None:
        """Close the runs of every request."""
        for key in tuple(self._runs):
            self.end(key)

    def locate(self, call: Call) -> tuple[Run[M], Place] | None:
        """The run that a call belongs to, opened if it is the first, and its place there.

        `None` for a call that is not part of a run we can follow: it is computed, counted and reported, never cached.
        """
        self._host.called()
        found = self._found(call)
        with self._lock:
            self.calls += found is not None
            self.foreign_calls += found is None
        return found

    def _found(self, call: Call) -> tuple[Run[M], Place] | None:
        """The run of a call: that of the block around it, else the one it can be seen to belong to."""
        here = innermost_of(self)
        if here is not None and here.run is not None:
            return here.run, here.run.place(call)
        key = self._carrier_key() if here is None else here.key
        run = self._runs.get(key)
        if run is not None and run.told:
            return run, run.place(call)
        return self._followed(key, call, named=here is not None)

    def _followed(self, key: Hashable, call: Call, *, named: bool) -> tuple[Run[M], Place] | None:
        """The run of a call that a host tells about, or the call itself."""
        run = self._runs.get(key)
        schedule = self._schedule(run, call, named=named)
        if schedule is not None and not schedule.fits(call.num_steps, call.step, call.sigma):
            schedule = None  # another pipeline, which shares the model and tells where it stands itself
        if schedule is None and not named:
            key = f"{key}, by its calls"
            run = self._runs.get(key)
        step = call.step
        if step is None and schedule is not None:
            goes_on = run is not None and run.schedule is schedule
            step = schedule.relative(self._host.position(call.timestep) if goes_on else schedule.begin) or 0
        num_steps = call.num_steps if schedule is None else schedule.num_steps
        if step is None or num_steps is None:
            if self._host.solver() is not None:
                return None
            raise RunError(
                "cannot tell which step this call is: enable the pipeline instead of its transformer, or open "
                "`session.run(num_steps=...)` around the loop."
            )
        if schedule is None and not named and self._is_mixed(run, call, step):
            return None
        if not 0 <= step < num_steps:  # a warm-up, a reference image
            return None
        if run is None or run.schedule is not schedule or run.num_steps != num_steps:
            run = self._open(key, num_steps, schedule, call)
        elif run.repeats(call, step):
            if schedule is not None and not run.complete:  # a denoising begins with timesteps of its own
                self.notes.add(STUCK)
                self.end(key)
                return None
            if 0 < step == run.step_now:
                return None  # not the loop that this run follows
            run = self._open(key, num_steps, schedule, call)
        self._hold(key)
        self._latest[carrier()] = key
        return run, run.advance(call, step)

    def _is_mixed(self, run: Run[M] | None, call: Call, step: int) -> bool:
        """Whether the calls of this thread or task can no longer be told apart: nothing but they says whose they are.

        A run that begins before the last one has ended, or goes on where it did not stand, may be one that broke off,
        or one of several under way. From then on nothing of this thread or task is cached without a key.
        """
        now = carrier()
        if now in self._mixed:
            return True
        if run is None:
            return False
        other = call.num_steps is not None and call.num_steps != run.num_steps
        restarts = (other or run.repeats(call, step)) and not run.complete
        jumps = step > run.step_now + 1
        if restarts or jumps:
            self._mixed.add(now)
            self.notes.add(AMBIGUOUS)
            self.end(run.key)
            return True
        return False

    def _schedule(self, run: Run[M] | None, call: Call, *, named: bool) -> Schedule | None:
        """The host's present schedule if it is the one this call belongs to."""
        token = self._host.token()
        if token is None or (named and self._claims.owned_by_another(token)):
            return None  # with a key, what the call itself tells is enough
        if run is not None and run.schedule is not None and run.schedule.token is token:
            self._claims.claim(token)
            return run.schedule
        if self._ended is token:
            return None
        self._claims.claim(token)
        return self._host.schedule(self._predictions[call.component], call.timestep)

    def _open(self, key: Hashable, num_steps: int, schedule: Schedule | None, call: Call) -> Run[M]:
        self.end(key)
        told = schedule.levels[schedule.begin :] if schedule is not None else ()
        levels = tuple(level for level in told if level is not None)
        memory = self._open_memory(key, num_steps, levels if len(levels) == num_steps else None)
        run = self._runs[key] = Run(key, num_steps, memory, schedule, self._predictions[call.component])
        self._audit(run, None if schedule is None else self._host.solver())
        return run

    def _open_memory(self, key: Hashable, num_steps: int, levels: tuple[NoiseLevel, ...] | None) -> M:
        with self._lock:
            info = RunInfo(index=self.count, num_steps=num_steps, levels=levels, request=key)
            self.count += 1
        return self._new_memory(info)

    def _hold(self, key: Hashable) -> None:
        """The run of `key` goes with the thread or task that drives it: if that ends, so does what it remembers."""
        here = innermost_of(self)
        now = carrier() if here is None else here.carrier() or carrier()
        held = self._carriers.get(key)
        if held is None or held() is not now:
            this = weakref.ref(self)

            def over(_: Any) -> None:
                alive = this()
                if alive is not None and alive._carriers.get(key) is mine:
                    alive.end(key)

            mine = self._carriers[key] = weakref.ref(now, over)
            if isinstance(now, asyncio.Task):
                now.add_done_callback(over)

    def _audit(self, run: Run[M], noise_scheduler: Any) -> None:
        """Open the run's ledger, with the noise scheduler as it is before its first step."""
        if self._audited:
            solver = copy.deepcopy(noise_scheduler)
            run.ledger = Ledger(solver=solver, num_steps=run.num_steps, watched=run.schedule is not None)
            self.ledgers.append(run.ledger)

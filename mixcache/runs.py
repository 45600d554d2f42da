"""Which run a call of a transformer belongs to: opened when a denoising begins, closed when it ends, one a thread."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from attrs import evolve
from torch import Tensor

from mixcache.adapter import ModelAdapter
from mixcache.bounds import Ledger
from mixcache.errors import ConfigurationError, RunError
from mixcache.plan import Plan
from mixcache.points import NoiseLevel, Prediction, RunInfo
from mixcache.scheduler import CacheScheduler
from mixcache.steps import Call, Place, Progress, Schedule, is_set, position
from mixcache.trace import Record

RUNS_KEPT = 100
"""Of how many runs a session keeps the details, the last ones; sums are of all."""


class Run:
    """One denoising run of one thread. Made by the session; a loop of one's own opens it with `session.run`."""

    def __init__(self, scheduler: CacheScheduler, schedule: Schedule | None, prediction: Prediction | None) -> None:
        self.scheduler = scheduler
        self.schedule = schedule
        self.progress = Progress(num_steps=scheduler.run.num_steps)
        self.ledger: Ledger | None = None
        self.templates: dict[str, Any] = {}
        self.leading: tuple[int, Tensor, bool] | None = None
        self.doubled: tuple[int, bool] | None = None
        self._prediction = prediction
        self._step: int | None = None
        self._sigma: float | None = None
        self._branch: str | None = None

    @contextmanager
    def step(self, index: int, sigma: float | None = None) -> Iterator[None]:
        """The calls inside belong to evaluation `index` (0-based), at noise level `sigma` (0 to 1) if it is known.

        sigma is the noise in the latent: x = (1 - sigma) clean + sigma noise for flow matching, otherwise
        x = sqrt(1 - sigma^2) clean + sigma noise.
        """
        if not isinstance(index, int) or not 0 <= index < self.progress.num_steps:
            raise ConfigurationError(
                f"`run.step({index!r})` must be an integer from 0 to {self.progress.num_steps - 1}, the run has "
                f"{self.progress.num_steps} steps."
            )
        if sigma is not None and not 0.0 <= float(sigma) <= 1.0:
            raise ConfigurationError(f"`run.step(sigma=...)` must be from 0 (clean) to 1 (noise), got {sigma!r}.")
        before = self._step, self._sigma
        self._step, self._sigma = index, None if sigma is None else float(sigma)
        try:
            yield
        finally:
            self._step, self._sigma = before

    @contextmanager
    def branch(self, name: str) -> Iterator[None]:
        """The calls inside are guidance branch `name`."""
        before, self._branch = self._branch, name
        try:
            yield
        finally:
            self._branch = before

    def place(self, call: Call) -> Place:
        """Where a call stands: what `step` and `branch` were told, else what the pipeline or its timestep tells."""
        step = call.step if self._step is None else self._step
        if step is None:
            step = self.progress.step_by_timestep(call.timestep)
        level = self.level(step, call.sigma if self._sigma is None else self._sigma)
        return self.progress.advance(evolve(call, branch=self._branch or call.branch), step, level)

    def level(self, step: int, sigma: float | None) -> NoiseLevel | None:
        """The noise level of an evaluation: from the schedule, else from its sigma."""
        if self.schedule is not None and self._sigma is None:
            return self.schedule.levels[self.schedule.begin + step]
        if sigma is None:
            return None
        if self._prediction in (None, "flow"):
            return NoiseLevel.flow(sigma)
        return NoiseLevel(sigma=sigma, alpha=math.sqrt(1.0 - sigma**2), prediction=self._prediction)


class Runs:
    """The runs of one session, each with its own memory; every thread has its own run.

    pipeline: the one whose noise scheduler tells where a run stands, or `None` for a bare transformer.
    """

    def __init__(
        self, plan: Plan, pipeline: Any, adapters: Mapping[str, ModelAdapter], keep: Callable[[Record], None]
    ) -> None:
        self.count = 0
        self.calls = 0
        self.foreign_calls = 0
        self._plan = plan
        self._pipeline = pipeline
        self._adapters = adapters
        self._keep = keep
        self.ledgers: deque[Ledger] = deque(maxlen=RUNS_KEPT)
        self._peak_bytes = 0
        self._runs: dict[int, Run] = {}
        self._explicit: dict[int, Run] = {}
        self._owners: list[tuple[object, int | None]] = []
        self._ended: list[object] = []

    @property
    def peak_bytes(self) -> int:
        """The largest size that the cache of any run has had."""
        running = [run.scheduler.store.peak_bytes for run in (*self._runs.values(), *self._explicit.values())]
        return max([self._peak_bytes, *running])

    @contextmanager
    def explicit(self, num_steps: int, prediction: Prediction, noise_scheduler: Any = None) -> Iterator[Run]:
        """A run that the caller's own loop tells about; see `Session.run`."""
        if not isinstance(num_steps, int) or num_steps < 1:
            raise ConfigurationError(f"`session.run(num_steps=...)` must be an integer >= 1, got {num_steps!r}.")
        if get_ident() in self._explicit:
            raise RunError("this thread has a run open; leave its `with session.run(...)` block first.")
        self.end()
        run = self._explicit[get_ident()] = Run(self._new_scheduler(num_steps, None), None, prediction)
        self._audit(run, noise_scheduler)
        try:
            yield run
        finally:
            self._close(self._explicit.pop(get_ident(), None))

    def end(self) -> None:
        """This thread's run is over, if it has one that was not opened explicitly."""
        run = self._runs.pop(get_ident(), None)
        if run is not None and run.schedule is not None:
            self._ended = [run.schedule.token]
            self._owners = [owner for owner in self._owners if owner[0] is not run.schedule.token]
        self._close(run)

    def end_all(self) -> None:
        """Close the runs of every thread."""
        for runs in (self._runs, self._explicit):
            while runs:
                self._close(runs.popitem()[1])

    def _new_scheduler(self, num_steps: int, sigmas: tuple[float, ...] | None) -> CacheScheduler:
        info = RunInfo(index=self.count, num_steps=num_steps, sigmas=sigmas)
        scheduler = CacheScheduler(self._plan, info, self._keep)
        self.count += 1
        return scheduler

    def _audit(self, run: Run, noise_scheduler: Any) -> None:
        """Open the run's ledger, with the noise scheduler as it is before its first step."""
        if self._plan.audit:
            run.ledger = Ledger(solver=copy.deepcopy(noise_scheduler), num_steps=run.progress.num_steps)
            self.ledgers.append(run.ledger)

    def _close(self, run: Run | None) -> None:
        if run is not None:
            self._peak_bytes = max(self._peak_bytes, run.scheduler.store.peak_bytes)
            if run.ledger is not None:
                run.ledger.close()
            run.scheduler.end()

    def locate(self, call: Call) -> tuple[Run, Place] | None:
        """The run that a call belongs to, opened if it is the first, and its place there; `None` if it is not ours."""
        explicit = self._explicit.get(get_ident())
        if explicit is not None:
            self.calls += 1
            return explicit, explicit.place(call)
        run = self._runs.get(get_ident())
        schedule = self._schedule(call, run)
        if schedule is not None and not schedule.fits(call):
            schedule = None  # another pipeline, which shares the transformer and tells where it stands itself
        step = call.step
        if step is None and schedule is not None:
            step = schedule.relative(position(self._pipeline))
        if step is None or (schedule is None and call.num_steps is None):
            self._count_foreign()
            return None
        if run is None or run.schedule is not schedule:
            run = self._open(schedule, call)
        elif run.progress.repeats(call, step):
            if 0 < step == run.progress.step:
                self._count_foreign()  # the same branch twice in one step: not the loop that this run follows
                return None
            run = self._open(schedule, call)
        self.calls += 1
        return run, run.progress.advance(call, step, run.level(step, call.sigma))

    def _schedule(self, call: Call, run: Run | None) -> Schedule | None:
        """The pipeline's current schedule if it is the one this call belongs to."""
        if self._pipeline is None or not is_set(self._pipeline.scheduler):
            return None
        token = self._pipeline.scheduler.timesteps
        if run is not None and run.schedule is not None and run.schedule.token is token:
            self._claim(token)
            return run.schedule
        if any(ended is token for ended in self._ended):
            return None
        self._claim(token)
        return Schedule.of(self._pipeline.scheduler, self._adapters[call.component].prediction)

    def _claim(self, token: object) -> None:
        """A schedule belongs to the thread that used it first; two threads on one corrupt each other's, so refuse."""
        thread = get_ident()
        for i, (known, owner) in enumerate(self._owners):
            if known is not token:
                continue
            if owner != thread:
                self._owners[i] = (token, None)  # from now on neither thread may go on with it
                raise RunError(
                    "two threads drive one noise scheduler, which mixes up their denoising; give each thread a "
                    "pipeline with a noise scheduler of its own and enable the transformer that they share."
                )
            return
        self._owners = [*self._owners[-15:], (token, thread)]

    def _open(self, schedule: Schedule | None, call: Call) -> Run:
        self.end()
        num_steps = schedule.num_steps if schedule is not None else call.num_steps
        assert num_steps is not None  # _locate has made sure
        levels = schedule.levels[schedule.begin :] if schedule is not None else ()
        sigmas = tuple(level.sigma for level in levels if level is not None)
        scheduler = self._new_scheduler(num_steps, sigmas if len(sigmas) == num_steps else None)
        run = self._runs[get_ident()] = Run(scheduler, schedule, self._adapters[call.component].prediction)
        self._audit(run, None if schedule is None else self._pipeline.scheduler)
        return run

    def _count_foreign(self) -> None:
        """A call that is not part of a run we can follow is computed, counted and reported, never cached."""
        if self._pipeline is None:
            raise RunError(
                "cannot tell which step this call is: enable the pipeline instead of its transformer, or open "
                "`session.run(num_steps=...)` around the loop."
            )
        self.foreign_calls += 1

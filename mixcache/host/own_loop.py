"""One denoising run: how far it has come, and what a loop of one's own tells about it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Generic, Protocol, TypeVar

from attrs import evolve
from torch import Tensor

from mixcache.core.points import Address, NoiseLevel, Prediction
from mixcache.errors import ConfigurationError, RunError
from mixcache.host.bounds import Ledger
from mixcache.host.outputs import Packing
from mixcache.host.protocol import Call, Place, Schedule


class Memory(Protocol):
    """What is remembered of a run."""

    def end(self) -> None: ...


M = TypeVar("M", bound=Memory)


class Told:
    """One `with` block of a loop of one's own: what it tells about the calls inside holds until it is left."""

    def __init__(self, run: Run[Any], inside: AbstractContextManager[None] | None, **told: Any) -> None:
        self._run = run
        self._inside = inside
        self._told = told
        self._before: dict[str, Any] = {}

    def __enter__(self) -> None:
        self._before = {name: getattr(self._run, name) for name in self._told}
        for name, value in self._told.items():
            setattr(self._run, name, value)
        if self._inside is not None:
            self._inside.__enter__()

    def __exit__(self, *error: Any) -> None:
        for name, value in self._before.items():
            setattr(self._run, name, value)
        if self._inside is not None:
            self._inside.__exit__(*error)


class Run(Generic[M]):
    """One denoising run of one request. A loop of one's own opens it with `session.run`.

    memory: what is remembered of it (its `Loop`). schedule: its noise levels, where a host tells them. told: whether a
    loop of one's own opened it. sight: what its calls have shown (a `Sight`, made by who takes them). levels, signs: by
    component, the noise levels under which its first evaluation is right, or the sign of the prediction. verified: such
    levels, and the sign with which the solver was given the outputs under them.
    """

    def __init__(
        self,
        key: Any,
        num_steps: int,
        memory: M,
        schedule: Schedule | None = None,
        prediction: Prediction | None = None,
        inside: Callable[[Run[M]], AbstractContextManager[None]] | None = None,
    ) -> None:
        self.key = key
        self.num_steps = num_steps
        self.memory = memory
        self.schedule = schedule
        self.told = inside is not None
        self.ledger: Ledger | None = None
        self.packings: dict[tuple[Any, str], Packing] = {}
        self.sight: Any = None
        self.levels: dict[str, tuple[NoiseLevel | None, ...]] = {}
        self.signs: dict[str, float | None] = {}
        self.verified: tuple[tuple[NoiseLevel | None, ...], float] | None = None
        self.step_now = -1
        self._prediction = prediction
        self._inside = inside
        self._seen: list[tuple[str, str]] = []
        self._before: list[tuple[str, str]] = []
        self._addresses: dict[tuple[str, str], Address] = {}
        self._timestep: Any = None
        self._step: int | None = None
        self._sigma: float | None = None
        self._branch: str | None = None

    def step(self, index: int, sigma: float | None = None) -> Told:
        """The calls inside belong to evaluation `index` (0-based), at noise level `sigma` (0 to 1) if it is known.

        sigma is the noise in the latent: x = (1 - sigma) clean + sigma noise for flow matching, otherwise
        x = sqrt(1 - sigma^2) clean + sigma noise. The calls belong to this run, whatever else is open.
        """
        if not isinstance(index, int) or not 0 <= index < self.num_steps:
            raise ConfigurationError(
                f"`run.step({index!r})` must be an integer from 0 to {self.num_steps - 1}, the run has "
                f"{self.num_steps} steps."
            )
        if sigma is not None and not 0.0 <= float(sigma) <= 1.0:
            raise ConfigurationError(f"`run.step(sigma=...)` must be from 0 (clean) to 1 (noise), got {sigma!r}.")
        assert self._inside is not None
        return Told(self, self._inside(self), _step=index, _sigma=None if sigma is None else float(sigma))

    def branch(self, name: str) -> Told:
        """The calls inside are guidance branch `name`."""
        return Told(self, None, _branch=name)

    def place(self, call: Call) -> Place:
        """Where a call stands: what `step` and `branch` were told, else what its host or its timestep tells."""
        step = call.step if self._step is None else self._step
        if step is None:
            step = self._step_by_timestep(call.timestep)
        sigma = call.sigma if self._sigma is None else self._sigma
        return self.advance(evolve(call, branch=self._branch or call.branch, sigma=sigma), step)

    def level(self, component: str, step: int, sigma: float | None) -> NoiseLevel | None:
        """The noise level of an evaluation: from the schedule, else from its sigma."""
        if self.schedule is not None and self._sigma is None:
            return self.levels.get(component, self.schedule.levels)[self.schedule.begin + step]
        if sigma is None:
            return None
        sign = self.signs.get(component, 1.0)
        if self._prediction in (None, "flow"):
            return evolve(NoiseLevel.flow(sigma), sign=sign)
        alpha = math.sqrt(1.0 - sigma**2)
        return NoiseLevel(sigma=sigma, alpha=alpha, prediction=self._prediction, sign=sign)

    @property
    def told_sigma(self) -> float | None:
        """The noise level that a loop of one's own tells for the calls inside of its block."""
        return self._sigma

    def leveled(self, place: Place) -> Place:
        """A place with the noise level that is known by now."""
        sigma = None if place.level is None else place.level.sigma
        return evolve(place, level=self.level(place.address.component, place.step, sigma))

    def repeats(self, call: Call, step: int) -> bool:
        """Whether a call at `step` can only be the start of something new: a step back, or a branch seen already."""
        named = call.branch is not None and (call.component, call.branch) in self._seen
        return step < self.step_now or (step == self.step_now and named)

    @property
    def complete(self) -> bool:
        """Whether the last evaluation was seen, with every branch of the one before, of each model called there."""
        if self.step_now != self.num_steps - 1:  # asked after every call
            return False
        before, seen = (Counter(branch for _, branch in calls) for calls in (self._before, self._seen))
        return before <= seen

    def advance(self, call: Call, step: int) -> Place:
        """Take the call. A branch without a name gets its ordinal within the step ("call0", "call1", ...)."""
        if not 0 <= step < self.num_steps:
            raise RunError(
                f"step {step} is outside a run of {self.num_steps} steps (0 to {self.num_steps - 1}); open the run "
                "with `session.run(num_steps=...)` as long as the loop is."
            )
        if step != self.step_now:
            self.step_now, self._before, self._seen = step, self._seen, []
        earlier = sum(component == call.component for component, _ in self._seen)
        branch = call.branch or f"call{earlier}"
        place = Place(
            address=self._address(call.component, branch),
            step=step,
            num_steps=self.num_steps,
            ordinal=len(self._seen),
            leads=earlier == 0,
            level=self.level(call.component, step, call.sigma),
        )
        self._seen.append((call.component, branch))
        return place

    def _address(self, component: str, branch: str) -> Address:
        """The STEP address of a model and branch; one object for each."""
        found = self._addresses.get((component, branch))
        if found is None:
            found = self._addresses[component, branch] = Address(self.key, component, branch, "step")
        return found

    def _step_by_timestep(self, timestep: Any) -> int:
        """The step of a loop that tells nothing but the timestep: a new one is the next step. Reads it on the host."""
        now = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else timestep
        if now is None:
            raise RunError(
                "cannot tell the step of this call: wrap it in `run.step(i)` of `session.run(num_steps=...)`."
            )
        step = self.step_now if now == self._timestep and self.step_now >= 0 else self.step_now + 1
        self._timestep = now
        return step

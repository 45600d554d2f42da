"""What a host tells the loop: which call this is, where it stands, and how its branches are combined.

A host is whatever drives the model: a diffusers pipeline, a denoising loop of one's own, another repository.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from attrs import field, frozen

from mixcache.core.points import Address, Granularity, NoiseLevel, Point, Prediction

Forward = Callable[..., Any]


@frozen(kw_only=True)
class Call:
    """One call of a model, as the hook sees it. Fields that nobody tells are `None`."""

    component: str
    branch: str | None = None
    step: int | None = None
    num_steps: int | None = None
    sigma: float | None = None
    timestep: Any = None


@frozen
class Schedule:
    """The noise levels of a run, one an evaluation, read from a diffusers noise scheduler with one transfer a run.

    token: the scheduler's own timesteps tensor. `set_timesteps` makes a new one, so another token is another run.
    begin: the first evaluation that the run makes of them (image-to-image starts late).
    """

    token: object
    levels: tuple[NoiseLevel | None, ...]
    begin: int = 0

    @property
    def num_steps(self) -> int:
        """Evaluations in the run."""
        return len(self.levels) - self.begin

    def relative(self, index: int | None) -> int | None:
        """The evaluation of this run that an index into the noise scheduler's timesteps is."""
        return None if index is None else index - self.begin

    def fits(self, num_steps: int | None, step: int | None, sigma: float | None) -> bool:
        """Whether what a call tells about itself is true of this run; a call that tells nothing fits."""
        if num_steps is not None and num_steps != self.num_steps:
            return False
        if step is None or sigma is None:
            return True
        level = self.levels[self.begin + step] if step < self.num_steps else None
        return level is None or abs(level.sigma - sigma) < 1e-6


@frozen(kw_only=True)
class Place:
    """Where a call stands in its run; `ordinal` counts the calls of its step. leads: whether it is the first of its
    model, which other branches of that model follow (Ideogram 4 has a model for each branch)."""

    address: Address
    step: int
    num_steps: int
    ordinal: int
    leads: bool = True
    level: NoiseLevel | None = field(default=None)

    def point(self, counts: tuple[int | None, int | None, int]) -> Point:
        """The STEP point of a call that stands here. counts: its age, gap and run_length."""
        age, gap, run_length = counts
        return Point(
            granularity=Granularity.STEP,
            step=self.step,
            num_steps=self.num_steps,
            address=self.address,
            leads=self.leads,
            level=self.level,
            age=age,
            gap=gap,
            run_length=run_length,
        )


class Host(Protocol):
    """What tells a session about denoisings that it did not open itself. Nothing here may wait for a device."""

    def listen(self, wanted: Callable[[], bool], told: Callable[[Any], None]) -> None:
        """From now on, `told` gets every step of the noise scheduler, if `wanted`."""

    def hush(self) -> None:
        """Stop telling; leave the noise scheduler as it was found."""

    def called(self) -> None:
        """A model is called."""

    def token(self) -> object | None:
        """What is another object for another denoising (a noise scheduler's timesteps); `None` if nothing tells."""

    def schedule(self, prediction: Prediction | None, timestep: Any) -> Schedule:
        """The noise levels of the denoising in progress, from the evaluation that its first call makes.

        prediction: what the adapter says the model returns. timestep: what the call was given.
        """

    def position(self, timestep: Any) -> int | None:
        """The index of the evaluation in progress in the schedule, or `None` if nothing tells it yet.

        timestep: what the call was given.
        """

    def solver(self) -> Any:
        """The noise scheduler, for `Session.bound`; `None` if there is none."""

"""The seam most users write: a policy decides from scalars whether a place may be reused."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from attrs import define, field, frozen

from mixcache.core.points import Granularity, Outcome, Point, Reading, RunInfo, Vote, parse_granularity
from mixcache.core.tables import Calibrations
from mixcache.core.validators import ge, none_or

BranchMode = Literal["joint", "leader", "independent"]


@frozen(kw_only=True)
class Policy:
    """Base of every policy: an immutable configuration with pure methods.

    A subclass is decorated with `@attrs.frozen`, adds its parameters as attrs fields and overrides `vote`. One that
    remembers something nests a small `@attrs.define` class `State`, made afresh for every run, and overrides `observe`.

    signals: what it reads; only that is measured. A name, "sum(NAME)" for a signal summed since the last compute (this
    visit included), or a `Signal` of its own. forecasts, anchors: specs that its votes may name (`Vote.reuse(forecast=
    ...)`).

    The window belongs to every policy and is enforced for it: the `first_steps` and `last_steps` evaluations always
    compute, and never more than `longest_run` reuses follow each other (`None`: no limit).

    branches: how the guidance branches of one step are decided. "joint" and "leader": once, on the first branch
    visited, and every other branch of that step follows ("leader" says that the signals of that branch are meant to
    stand for all). "independent": each branch on its own signals, with its own state.

    exact_history: nothing computed downstream of a reuse (of the same call, at a finer granularity) is stored where it
    decides. one_state: all that it decides about shares one state, across spans and granularities. guard: it stands
    beside other policies and is asked wherever they decide; it makes no place visited by itself.
    """

    name: ClassVar[str] = ""
    signals: ClassVar[tuple[Any, ...]] = ()
    forecasts: ClassVar[tuple[str, ...]] = ()
    anchors: ClassVar[tuple[str, ...]] = ()
    branches: ClassVar[BranchMode] = "joint"
    exact_history: ClassVar[bool] = False
    one_state: ClassVar[bool] = False
    guard: ClassVar[bool] = False

    at: Granularity = field(default=Granularity.STEP, converter=parse_granularity)
    first_steps: int = field(default=0, validator=ge(0, whole=True))
    last_steps: int = field(default=0, validator=ge(0, whole=True))
    longest_run: int | None = field(default=None, validator=none_or(ge(0, whole=True)))

    @define
    class State:
        """What the policy remembers within one run; nothing by default."""

    @classmethod
    def policy_name(cls) -> str:
        """The name in specs such as "easycache:threshold=0.05": `name`, or the class name in lower case."""
        return cls.name or cls.__name__.lower()

    @property
    def granularities(self) -> frozenset[Granularity]:
        """Where it decides; `at` alone, unless a policy says otherwise."""
        return frozenset((self.at,))

    def rebuilt(self, granularity: Granularity, span: tuple[int, int] | None = None) -> tuple[str | None, str | None]:
        """The basis and the forecaster that the algorithm was published with, as specs; `None`: no wish of its own.

        It holds where the caller of `mixcache.enable` chooses nothing else. span: at BLOCK, which blocks.
        """
        return None, None

    def calibrated(self, tables: Calibrations) -> Policy:
        """Called when it is enabled: itself with the table of the model, by policy name; most need none.

        Raises `ConfigurationError` where it needs a table and there is none.
        """
        return self

    def spans(self, blocks: int) -> tuple[tuple[int, int], ...]:
        """At BLOCK: the spans of the model's `blocks` blocks that it decides about, as (first, one past the last).

        Raises `ConfigurationError` if they do not fit the model. By default all blocks are one span.
        """
        return ((0, blocks),)

    def covers(self, point: Point) -> bool:
        """Whether it decides at this point: its granularity, and at BLOCK within one of its spans.

        Asked once per run for each place, so it must depend on nothing else.
        """
        if point.granularity not in self.granularities:
            return False
        if point.span is None:
            return True
        first, last = point.span
        return any(a <= first and last <= b for a, b in self.spans(point.blocks))

    def started(self, run: RunInfo) -> None:
        """Called once per run before its first visit; raise `ConfigurationError` if the run cannot be served."""

    def begin(self, run: RunInfo) -> Any:
        """What it remembers of a run, made anew for each; override it where that depends on the run's noise levels."""
        return self.State()

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Whether the point may be reused. Pure: changes nothing, `state` included."""
        raise NotImplementedError(f"{type(self).__name__} must define vote(point, reading, state)")

    def observe(self, point: Point, outcome: Outcome, state: Any) -> None:
        """What came of the point (`outcome.reading`: what was measured before the vote). `state` may change here."""

    def learn(self, point: Point, reading: Reading, state: Any) -> None:
        """What was measured after the compute at `point` is known now, before the next vote of the run.

        The same numbers are part of the reading at the next visit of that place; a policy that decides elsewhere by
        them (the next step, after its last block was verified) takes them here. `state` may change.
        """

    def warm_up(self, num_steps: int) -> int:
        """How many of the first of `num_steps` evaluations are computed; override it for a share of the run."""
        return self.first_steps

    def guard_vote(self, point: Point, reading: Reading) -> Vote | None:
        """The vetoes that hold whatever the signals say, or `None`."""
        first = self.warm_up(point.num_steps)
        if point.step < first:
            return Vote.compute(f"first {first} steps", veto=True)
        if point.step >= point.num_steps - self.last_steps:
            return Vote.compute(f"last {self.last_steps} steps", veto=True)
        if self.longest_run is not None and point.run_length >= self.longest_run:
            return Vote.compute(f"longest run of {self.longest_run} reached", veto=True)
        for name in self.signal_names:
            value = reading.get(name)
            if value is not None and not math.isfinite(value):
                return Vote.compute(f"{name} is {value}", veto=True)
        return None

    @property
    def signal_names(self) -> tuple[str, ...]:
        """The names under which a reading holds what it asked for."""
        return tuple([one if isinstance(one, str) else str(one.name) for one in self.signals])

    @property
    def learns(self) -> bool:
        """Whether it overrides `learn`."""
        return type(self).learn is not Policy.learn

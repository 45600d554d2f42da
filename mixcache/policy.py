"""The seam most users write: a policy decides from scalars whether a point may be reused."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from attrs import Attribute, define, field, frozen

from mixcache.calibration import Calibrations
from mixcache.errors import ConfigurationError
from mixcache.points import Granularity, Outcome, Point, Reading, RunInfo, Vote, parse_granularity

BranchMode = Literal["joint", "leader", "independent"]


WHOLE = (int, int | None, "int", "int | None")
"""How an attribute is annotated that holds whole numbers."""


def _validator(test: Callable[[Any], bool], text: str) -> Callable[[Any, Attribute[Any], Any], None]:
    def validate(instance: Any, attribute: Attribute[Any], value: Any) -> None:
        whole = attribute.type in WHOLE
        try:
            good = test(value) and (not whole or value is None or _is_whole(value))
        except TypeError:
            good = False
        if not good:
            kind, wanted = type(instance).__name__, text.replace(">", "a whole number >") if whole else text
            raise ConfigurationError(f"`{kind}({attribute.name}=...)` must be {wanted}, got {value!r}.")

    return validate


def _is_whole(value: Any) -> bool:
    """Raises `TypeError` for what is no integer, of Python's or another's."""
    return not isinstance(value, bool) and operator.index(value) == value


def ge(bound: float) -> Callable[[Any, Attribute[Any], Any], None]:
    """attrs validator: a finite number >= `bound`, and a whole one where the attribute is annotated as `int`."""
    return _validator(lambda value: math.isfinite(value) and value >= bound, f">= {bound}")


def gt(bound: float) -> Callable[[Any, Attribute[Any], Any], None]:
    """attrs validator: a finite number > `bound`, and a whole one where the attribute is annotated as `int`."""
    return _validator(lambda value: math.isfinite(value) and value > bound, f"> {bound}")


def one_of(*values: Any) -> Callable[[Any, Attribute[Any], Any], None]:
    """attrs validator: one of `values`."""
    return _validator(lambda value: value in values, f"one of {', '.join(map(repr, values))}")


def none_or_ge(bound: float) -> Callable[[Any, Attribute[Any], Any], None]:
    """attrs validator: `None` or a finite number >= `bound`, and a whole one where the attribute is `int | None`."""
    return _validator(lambda value: value is None or (math.isfinite(value) and value >= bound), f"None or >= {bound}")


@frozen(kw_only=True)
class Policy:
    """Base of every policy: an immutable configuration with two pure methods.

    A subclass is decorated with `@attrs.frozen`, adds its parameters as attrs fields and overrides `vote`; one that
    remembers something nests a small `@attrs.define` class `State`, made afresh for every run, and overrides
    `observe`. `signals` names what it reads: only that is measured.

    The window belongs to every policy and is enforced for it: the `first_steps` and `last_steps` evaluations always
    compute, and never more than `longest_run` reuses follow each other (`None`: no limit).

    `branches` says how the guidance branches of one step are decided. "joint" and "leader": once, on the first branch
    visited, and every other branch of that step follows ("leader" says that the signals of that branch are meant to
    stand for all). "independent": each branch on its own signals, with its own state.

    `exact_history` asks that nothing computed downstream of a reuse (of the same call, at a finer granularity) is ever
    stored where it decides. `one_state`: all that it decides about shares one state, across spans and granularities.

    `rebuilt` says how the published algorithm rebuilds what it skips; it holds where the caller of `mixcache.enable`
    chooses nothing else.
    """

    name: ClassVar[str] = ""
    signals: ClassVar[tuple[str, ...]] = ()
    branches: ClassVar[BranchMode] = "joint"
    exact_history: ClassVar[bool] = False
    one_state: ClassVar[bool] = False

    at: Granularity = field(default=Granularity.STEP, converter=parse_granularity)
    first_steps: int = field(default=0, validator=ge(0))
    last_steps: int = field(default=0, validator=ge(0))
    longest_run: int | None = field(default=None, validator=none_or_ge(0))

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

    def rebuilt(self, granularity: Granularity) -> tuple[str | None, str | None]:
        """The basis and the forecaster that the algorithm was published with, as specs; `None`: no wish of its own."""
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

        Asked once a run for each granularity and span, so it must depend on nothing else.
        """
        if point.granularity not in self.granularities:
            return False
        if point.span is None:
            return True
        first, last = point.span
        return any(a <= first and last <= b for a, b in self.spans(point.blocks))

    def started(self, run: RunInfo) -> None:
        """Called once a run before its first visit; raise `ConfigurationError` if the run cannot be served."""

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Whether the point may be reused. Pure: changes nothing, `state` included."""
        raise NotImplementedError(f"{type(self).__name__} must define vote(point, reading, state)")

    def observe(self, point: Point, outcome: Outcome, state: Any) -> None:
        """What came of the point (`outcome.reading`: what was measured); the only place where `state` changes."""

    def warm_up(self, num_steps: int) -> int:
        """How many of the first of `num_steps` evaluations are computed; override it for a share of the run."""
        return self.first_steps

    def guard(self, point: Point, reading: Reading, run_length: int) -> Vote | None:
        """The vetoes that hold whatever the signals say, or `None`. `run_length`: reuses in a row so far here."""
        first = self.warm_up(point.num_steps)
        if point.step < first:
            return Vote.compute(f"first {first} steps", veto=True)
        if point.step >= point.num_steps - self.last_steps:
            return Vote.compute(f"last {self.last_steps} steps", veto=True)
        if self.longest_run is not None and run_length >= self.longest_run:
            return Vote.compute(f"longest run of {self.longest_run} reached", veto=True)
        for signal in self.signals:
            value = reading.get(signal)
            if value is not None and not math.isfinite(value):
                return Vote.compute(f"{signal} is {value}", veto=True)
        return None

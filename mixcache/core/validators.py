"""Validators for attrs fields: `attrs.validators`, with errors that name the class, the argument and the value.

A field says what it takes:

    every: int = field(default=2, validator=ge(1, whole=True))
    longest_run: int | None = field(default=None, validator=none_or(ge(0, whole=True)))

and, if `mixcache tune` may vary it, within which bounds:

    threshold: float = field(default=0.05, validator=ge(0), metadata=tunable(0.01, 0.5, log=True))
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from attrs import Attribute, frozen, validators

from mixcache.errors import ConfigurationError


@frozen
class Check:
    """A validator of attrs and what it asks for, in the words of an error: ">= 1"."""

    test: Callable[[Any, Attribute[Any], Any], Any]
    wanted: str

    def __call__(self, instance: Any, attribute: Attribute[Any], value: Any) -> None:
        """Raise `ConfigurationError` if `value` fails the test."""
        try:
            self.test(instance, attribute, value)
        except (TypeError, ValueError, OverflowError):
            name = f"{type(instance).__name__}({attribute.name}=...)"
            raise ConfigurationError(f"`{name}` must be {self.wanted}, got {value!r}.") from None


TUNED = "tuned"
"""The key of `Tunable` in the metadata of a field."""


@frozen
class Tunable:
    """The values of a field that a search tries: from `low` to `high` (whole ones, if both are), or `choices`."""

    low: float = 0
    high: float = 0
    log: bool = False
    choices: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are tried."""
        return isinstance(self.low, int) and isinstance(self.high, int)


def tunable(low: float = 0, high: float = 0, *, log: bool = False, choices: Sequence[str] = ()) -> dict[str, Tunable]:
    """Metadata of a field whose values `mixcache tune` may choose: between two bounds, both included, or by name.

    log: whether a search steps by ratios. Raises `ConfigurationError` for bounds that are none.
    """
    if not choices and not (low < high and (low > 0 or not log)):
        raise ConfigurationError(f"`tunable({low!r}, {high!r})` must rise, and begin above 0 with `log`.")
    return {TUNED: Tunable(low, high, log, tuple(choices))}


def ge(bound: float, whole: bool = False) -> Check:
    """A finite number >= `bound`; with `whole`, an integer of Python's or NumPy's. A bool is no number."""
    return _number(validators.ge(bound), f">= {bound}", whole)


def gt(bound: float, whole: bool = False) -> Check:
    """A finite number > `bound`; with `whole`, an integer of Python's or NumPy's. A bool is no number."""
    return _number(validators.gt(bound), f"> {bound}", whole)


def one_of(*values: Any) -> Check:
    """One of `values`. A bool is none of the numbers."""

    def test(instance: Any, attribute: Attribute[Any], value: Any) -> None:
        alike = [known for known in values if isinstance(known, bool) == isinstance(value, bool)]
        validators.in_(alike)(instance, attribute, value)

    return Check(test, f"one of {', '.join(map(repr, values))}")


def none_or(check: Check) -> Check:
    """`None`, or what `check` asks for."""
    return Check(validators.optional(check.test), f"None or {check.wanted}")


def _number(limit: Callable[[Any, Attribute[Any], Any], Any], words: str, whole: bool) -> Check:
    def kind(instance: Any, attribute: Attribute[Any], value: Any) -> None:
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not is_number or not (whole or math.isfinite(value)):
            raise ValueError
        if whole:
            operator.index(value)

    return Check(validators.and_(kind, limit), f"a whole number {words}" if whole else words)

"""TeaCache (arXiv 2411.19108): reuse while the change that a polynomial predicts from the first block stays small."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from typing import Any, ClassVar

from attrs import Attribute, evolve, field, frozen

from mixcache import (
    Calibrations,
    ConfigurationError,
    Granularity,
    Point,
    Policy,
    Reading,
    RunInfo,
    Signal,
    Vote,
    ge,
    parse_granularity,
    tunable,
)

_MISSING = (
    "TeaCache needs the coefficients of its polynomial for this model, and none are known: measure them with "
    "`mixcache calibrate teacache --model ... --prompts ... --out TABLE.json` and give TeaCache(table='TABLE.json'), "
    "or give TeaCache(coefficients=(c4, c3, c2, c1, c0))."
)


def _numbers(values: Iterable[Any] | None) -> tuple[float, ...] | None:
    try:
        return None if values is None else tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise ConfigurationError(
            f"`TeaCache(coefficients=...)` must be numbers, highest power first, got {values!r}."
        ) from None


@frozen
class Polynomial:
    """P(change of the probe): the relative change of the output that goes with it. Highest power first."""

    coefficients: tuple[float, ...]

    def __call__(self, reading: Reading) -> float | None:
        change = reading["probe_change"]
        if change is None:
            return None
        total = 0.0
        for coefficient in self.coefficients:
            total = total * change + coefficient
        return total


@cache
def _estimated(coefficients: tuple[float, ...]) -> Signal:
    """The signal of one polynomial."""
    return Signal(
        name="teacache_estimate",
        requires=("probe_change",),
        derive=Polynomial(coefficients),
        summary="TeaCache's polynomial of the probe's change",
    )


@frozen(kw_only=True)
class TeaCache(Policy):
    """Reuse all blocks while the accumulated, calibrated change of the first block's input stays below `threshold`.

    With m_t the model's probe (the modulated input of the first block, or the time embedding that modulates it), and P
    a polynomial of degree 4 that is fitted once per checkpoint:

        r_t = mean|m_t - m_(t-1)| / mean|m_(t-1)|     over all visits, computed or not
        E  += P(r_t);   reuse while E < threshold, otherwise compute and set E = 0

    P is not clamped: where it is negative, E falls. The first and the last evaluation are computed, and each guidance
    branch decides on its own. A reuse adds what all blocks added at the last computed evaluation. Raises
    `ConfigurationError` if no coefficients are known.

    threshold: accumulated estimate of the relative L1 change of the output; published 0.05 to 0.3 for Wan 2.1, 0.03 to
    0.3 for other video models, 0.25 to 0.8 for FLUX. first_steps: published 5 for Wan 2.1 with the probe used here
    (last_steps is 0 there), otherwise 1 and 1. coefficients: of P, highest power first, as `numpy.polyval` takes them.
    table: a JSON file of `mixcache calibrate teacache`. Without table and coefficients, the model's published
    coefficients are used.

    Deviation: the worst sample of a batch decides (`samples="mean"` pools them, as published).
    """

    name: ClassVar[str] = "teacache"
    branches = "independent"

    at: Granularity = field(default=Granularity.BLOCK, converter=parse_granularity)
    threshold: float = field(default=0.1, validator=ge(0), metadata=tunable(0.02, 1.0, log=True))
    first_steps: int = field(default=1, validator=ge(0, whole=True))
    last_steps: int = field(default=1, validator=ge(0, whole=True))
    coefficients: tuple[float, ...] | None = field(default=None, converter=_numbers)
    table: str | None = None

    @coefficients.validator
    def _check(self, _attribute: Attribute[Any], value: tuple[float, ...] | None) -> None:
        if value is not None and (len(value) != 5 or not all(map(math.isfinite, value))):
            raise ConfigurationError(f"`TeaCache(coefficients=...)` must be 5 finite numbers, got {value!r}.")

    def calibrated(self, tables: Calibrations) -> Policy:
        """Itself with the coefficients that were given, those of the table that was named, or the published ones."""
        if self.coefficients is not None:
            return self
        found = tables.read("teacache", "coefficients", self.table, lambda numbers: evolve(self, coefficients=numbers))
        if found is None:
            raise ConfigurationError(_MISSING)
        return found

    def started(self, run: RunInfo) -> None:
        """Refuse to run without coefficients."""
        if self.coefficients is None:
            raise ConfigurationError(_MISSING)

    @property
    def signals(self) -> tuple[Any, ...]:  # type: ignore[override]
        """P(r_t), and its sum."""
        return (_estimated(self.coefficients or ()), "sum(teacache_estimate)")

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Reuse while E + P(r_t) stays below the threshold."""
        total = reading["sum(teacache_estimate)"]
        if total is None:
            return Vote.compute("no earlier probe")
        if total < self.threshold:
            return Vote.reuse(f"accumulated change below {self.threshold:g}", error=max(total, 0.0))
        return Vote.compute(f"accumulated change reached {self.threshold:g}", error=total)

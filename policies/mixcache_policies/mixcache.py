"""MixCache (arXiv 2508.12691): skip whole steps, guidance branches or blocks, and choose anew at every step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from attrs import Attribute, define, evolve, field, frozen

from mixcache import (
    Calibrations,
    ConfigurationError,
    Granularity,
    Outcome,
    Point,
    Policy,
    Reading,
    Vote,
    ge,
    nearest,
    none_or,
    one_of,
    parse_granularity,
    tunable,
)

STEP, CFG, BLOCK = Granularity.STEP, Granularity.CFG, Granularity.BLOCK
Influence = tuple[tuple[Granularity, tuple[float, ...]], ...]


def _influence(values: Mapping[str, Sequence[float]] | Sequence[Any] | None) -> Influence | None:
    """Influence by granularity in a hashable form, from a mapping or from what this function returned before."""
    try:
        pairs = None if values is None else dict(values)
        return None if pairs is None else tuple((parse_granularity(g), tuple(map(float, pairs[g]))) for g in pairs)
    except (TypeError, ValueError):
        raise ConfigurationError(
            f"`MixCache(influence=...)` must map granularities to numbers, got {values!r}."
        ) from None


@frozen(kw_only=True)
class Known:
    """What is known when a step begins. Steps are evaluations.

    full: the last step of which nothing was reused. spent: the sum of E since then. used: the granularity that was
    reused last. reused: whether something of its last step was reused. interval, settled: of the published rule.

    By granularity, absent if it was never visited: last, its last computed step; gap, steps between that one and the
    one before; error, change, the `forecast_error` and `increment_change` measured there; saved, the part of a step
    that it skips.
    """

    full: int | None = None
    spent: float = 0.0
    used: Granularity | None = None
    reused: bool = False
    interval: int = 2
    settled: bool = False
    last: Mapping[Granularity, int] = field(factory=dict)
    gap: Mapping[Granularity, int] = field(factory=dict)
    error: Mapping[Granularity, float | None] = field(factory=dict)
    change: Mapping[Granularity, float | None] = field(factory=dict)
    saved: Mapping[Granularity, float] = field(factory=dict)


@frozen(kw_only=True)
class MixCache(Policy):
    """Skip a whole step, a guidance branch or blocks: of those whose error is small enough, what saves most.

    A reuse of granularity psi at step t is predicted to add this much to the relative deviation of the final latent:

        E_psi = I_psi(t) * D_psi * (a / g)^2

    D_psi is the error of its forecast, measured at its last computed step (`forecast_error`); it is 1 before there is
    one. a counts the steps since that compute, g those between it and the compute before. I_psi(t) is the influence of
    an error at step t on the final latent. It is measured once per model, by reusing a single step of a run.

    Let w_psi be the part of the step's work that psi skips. A psi may be reused if

        P_psi = E_psi / w_psi + (the E of all reuses since the last full step) <= threshold

    and of those that may, the one with the largest w_psi is. A full step is one of which nothing was reused. So
    intervals are short where errors have influence, and long elsewhere. What was computed is continued by a line,
    for whole steps as noise.

    choice="paper" is the published rule. Nothing is reused until the change between full steps has come down to
    `settle`. From then on, one full step is followed by n - 1 cached ones. n shrinks by one if the forecast of a full
    step was off by more than `threshold` (delta_2), and grows by one if it was off by less than half of that (delta_1).
    A cached step reuses the psi with the smallest

        P_psi = D_psi * I_psi * (5 if psi is what was reused last, else 1)

    where D_psi is the relative L1 change of psi's increment between its last two computed steps. The increment is held.

    threshold: the largest P of a reuse; what it gives depends on the model and on the number of steps. It is delta_2 of
    the published rule.

    choice: "saved" for the rule described first, "paper" for the published one. settle: for the published rule, the
    change between full steps at which reuse begins.

    among: the granularities to choose from, such as "step/cfg/block". The default is "step" for choice="saved" and all
    three for choice="paper". "step" alone measured best on tiny_wan: a guidance branch saves half a step for nearly the
    error of a whole one. last_blocks: blocks at the end of the model that are always computed at BLOCK; by default a
    quarter of them, since the back of the model takes up what is new.

    influence: I by granularity, one number per step of a run, with mean 1 for "step". A run of another length takes the
    nearest step. table: a JSON file of `mixcache calibrate mixcache`. Without table and influence, the table of the
    model is used, and I = 1 if there is none.

    Deviations: the paper gives no values for delta_1, delta_2, the trigger and the blocks; those here were chosen by
    measurement. The paper measures I with Gaussian noise of the size of the error; here psi is reused, since the model
    removes noise: on tiny_wan noise in the first third of a run has a seventh of the influence of a reuse that is as
    far off.
    """

    name: ClassVar[str] = "mixcache"
    signals = ("forecast_error", "increment_change")
    branches = "leader"
    exact_history = True
    one_state = True

    at: Granularity = field(default=STEP, init=False, repr=False)  # no choice: `among` says where
    threshold: float = field(default=0.3, validator=ge(0), metadata=tunable(0.02, 2.0, log=True))
    choice: Literal["saved", "paper"] = field(default="saved", validator=one_of("saved", "paper"))
    among: str | None = field(default=None)
    last_steps: int = field(default=1, validator=ge(0, whole=True))
    longest_run: int | None = field(default=7, validator=none_or(ge(0, whole=True)))
    settle: float = field(default=0.15, validator=ge(0))
    last_blocks: int | None = field(default=None, validator=none_or(ge(0, whole=True)))
    influence: Mapping[str, tuple[float, ...]] | Influence | None = field(
        default=None, converter=_influence, repr=False
    )
    table: str | None = None

    @define
    class State:
        """The step in progress: what was known when it began, and what will be known when it ends."""

        step: int = -1
        known: Known = field(factory=Known)
        coming: Known = field(factory=Known)

    @among.validator
    def _check_among(self, _attribute: Attribute[Any], value: object) -> None:
        names = value.split("/") if isinstance(value, str) else []
        if value is not None and ("step" not in names or not {"step", "cfg", "block"}.issuperset(names)):
            raise ConfigurationError(
                f"`MixCache(among=...)` must be 'step', or 'step/cfg', 'step/block', 'step/cfg/block', got {value!r}."
            )

    @influence.validator
    def _check_influence(self, _attribute: Attribute[Any], value: Influence | None) -> None:
        numbers = [number for _, row in value or () for number in row or (math.nan,)]
        if value is not None and (STEP not in dict(value) or not all(math.isfinite(n) and n >= 0 for n in numbers)):
            raise ConfigurationError(
                f"`MixCache(influence=...)` must hold finite numbers >= 0 for 'step' at least, got {dict(value)!r}."
            )

    @property
    def granularities(self) -> frozenset[Granularity]:
        """Those of `among`."""
        among = self.among or ("step" if self.choice == "saved" else "step/cfg/block")
        return frozenset(map(parse_granularity, among.split("/")))

    def rebuilt(self, granularity: Granularity, span: tuple[int, int] | None = None) -> tuple[str | None, str | None]:
        """The paper holds the increment; ours continues it, for whole steps as noise."""
        if self.choice == "paper":
            return "residual", "hold"
        return "noise" if granularity is STEP else "residual", "linear"

    def calibrated(self, tables: Calibrations) -> Policy:
        """Itself with the influence that was given, that of the table that was named, or that of the model."""
        if self.influence is not None:
            return self
        return tables.read("mixcache", "influence", self.table, lambda found: evolve(self, influence=found)) or self

    def spans(self, blocks: int) -> tuple[tuple[int, int], ...]:
        """All blocks before the last ones."""
        last = round(blocks / 4) if self.last_blocks is None else self.last_blocks
        if last >= blocks:
            raise ConfigurationError(
                f"`MixCache(last_blocks={last})` leaves nothing to skip: the model has {blocks} blocks; give fewer, or "
                "among='step/cfg'."
            )
        return ((0, blocks - last),)

    def weight(self, psi: Granularity, point: Point) -> float:
        """I_psi(t). In a run of more steps than the table has, each step is smaller and counts for less."""
        rows = dict(self.influence or ())
        row = rows.get(psi) or rows.get(STEP)
        return nearest(row, point.num_steps, point.step) * len(row) / point.num_steps if row else 1.0

    def off(self, psi: Granularity, point: Point, known: Known, reading: Reading | None = None) -> float | None:
        """D_psi * (a / g)^2: the predicted relative L1 error of reusing psi here; `None` where nothing was computed."""
        error = known.error.get(psi) if reading is None else reading["forecast_error"]
        if psi not in known.last or (error is None and self.choice == "paper"):
            return None
        error = 1.0 if error is None else error
        ages = (point.step - known.last[psi]) / known.gap[psi]
        return error * (ages if self.choice == "paper" else ages**2)

    def effect(self, psi: Granularity, point: Point, known: Known, reading: Reading | None = None) -> float | None:
        """E_psi: what reusing psi here is predicted to add to the deviation of the final latent."""
        off = self.off(psi, point, known, reading)
        return None if off is None else self.weight(psi, point) * off

    def price(self, psi: Granularity, point: Point, known: Known, reading: Reading | None = None) -> float | None:
        """P_psi, from the signals measured now (`reading`), or from those known when the step began."""
        if self.choice == "paper":
            change = known.change.get(psi) if reading is None else reading["increment_change"]
            penalty = 5.0 if known.used is psi else 1.0
            return None if change is None else change * self.weight(psi, point) * penalty
        effect = self.effect(psi, point, known, reading)
        saved = 1.0 if psi is STEP else known.saved.get(psi, 1.0)
        return None if effect is None else effect / saved + known.spent

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Reuse what the rule chooses. A step is decided before its branches and blocks, and is no rival of theirs."""
        known = state.known if state.step == point.step else _ended(state.coming, state.step)
        wait = self._must_compute(point, known)
        if wait is not None:
            return Vote.compute(wait)
        here = point.granularity
        off = self.off(here, point, known, reading if here is STEP else None)
        prices = {psi: self.price(psi, point, known, reading if psi is here is STEP else None) for psi in Granularity}
        rivals = {psi: p for psi, p in prices.items() if p is not None and (here is STEP or psi is not STEP)}
        told = ", ".join(f"P({psi})={price:.3g}" for psi, price in prices.items() if price is not None)
        if self.choice == "saved":
            rivals = {psi: -known.saved.get(psi, 1.0) for psi, p in rivals.items() if p <= self.threshold}
        if not rivals:
            return Vote.compute(f"{told}: all above {self.threshold:g}" if told else "nothing measured yet", error=off)
        best = min(rivals, key=lambda psi: rivals[psi])
        why = f"{told}: {best} {'saves most' if self.choice == 'saved' else 'costs least'}"
        return (Vote.reuse if best is here else Vote.compute)(why, error=off)

    def _must_compute(self, point: Point, known: Known) -> str | None:
        """Why this step is computed, whatever the prices are; `None` if they decide."""
        if known.full is None:
            return "no full step yet"
        if self.choice == "paper":
            if not known.settled:
                return f"change between steps not yet below {self.settle:g}"
            if point.step - known.full >= known.interval:
                return f"interval of {known.interval} steps is over"
        return None

    def observe(self, point: Point, outcome: Outcome, state: Any) -> None:
        """Note what this step tells; it counts from the next step on."""
        if point.step != state.step:
            state.known = _ended(state.coming, state.step)
            state.coming, state.step = evolve(state.known, reused=False), point.step
        state.coming = self._told(point, outcome, state.known, state.coming)

    def _told(self, point: Point, outcome: Outcome, known: Known, coming: Known) -> Known:
        psi, reading = point.granularity, outcome.reading
        error, change = reading.get("forecast_error"), reading.get("increment_change")
        if psi is STEP and known.full == point.step - 1:
            coming = self._adapted(coming, error, change)
        saved = point.share if psi is BLOCK else 0.5 if psi is CFG else 1.0
        coming = evolve(
            coming,
            error={**coming.error, psi: error},
            change={**coming.change, psi: change},
            saved={**coming.saved, psi: saved},
        )
        if not outcome.reused:
            gap = 1 if point.age is None else point.age
            return evolve(coming, last={**coming.last, psi: point.step}, gap={**coming.gap, psi: gap})
        effect = self.effect(psi, point, known, reading if psi is STEP else None)
        added = 0.0 if coming.reused or effect is None else effect
        return evolve(coming, used=psi, reused=True, spent=coming.spent + added)

    def _adapted(self, coming: Known, error: float | None, change: float | None) -> Known:
        """The paper's trigger and interval, from what was measured at a full step."""
        interval = coming.interval
        if coming.settled and error is not None:
            interval += (error < self.threshold / 2) - (error > self.threshold)
        longest = 8 if self.longest_run is None else self.longest_run + 1
        settled = coming.settled or (change is not None and change <= self.settle)
        return evolve(coming, settled=settled, interval=min(max(interval, 2), max(longest, 2)))


def _ended(coming: Known, step: int) -> Known:
    """What is known after `step`. If nothing of it was reused, it was a full step and `spent` begins anew."""
    return evolve(coming, full=step, spent=0.0) if step >= 0 and not coming.reused else coming

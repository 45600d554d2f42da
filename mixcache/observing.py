"""Tables from signals: what MagCache and TeaCache read, observed in runs in which everything is computed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from attrs import evolve, frozen
from torch import Tensor

from mixcache.basis import Residual
from mixcache.calibration import Fit
from mixcache.compare import Watch
from mixcache.errors import ConfigurationError
from mixcache.forecast import Hold
from mixcache.generation import generate
from mixcache.plan import Plan
from mixcache.points import Granularity, Point, Reading, Vote
from mixcache.policy import Policy
from mixcache.session import Session
from mixcache.signals import SIGNALS, Signal, Tensors
from mixcache.voting import unanimous

if TYPE_CHECKING:
    from mixcache.calibrate import Job

DEGREE = 4
"""Of TeaCache's polynomial."""


@frozen(kw_only=True)
class Observed:
    """One number: which signal, in which run, at which visit; `None` where there was no earlier visit to compare."""

    signal: str
    run: tuple[int, int]
    point: Point
    value: float | None

    @property
    def call(self) -> tuple[tuple[int, int], int, str]:
        """The call of the transformer that it belongs to."""
        return self.run, self.point.step, self.point.branch


@frozen(kw_only=True)
class Observing:
    """Signals of runs as they are, in which everything is computed: one at each of these granularities."""

    signals: Mapping[Granularity, Signal]
    fit: Callable[[Sequence[Observed]], Fit]

    def runs(self, job: Job) -> int:
        """One run gives all its numbers."""
        return 1

    def measure(self, job: Job, watch: Watch) -> Fit:
        """Observe every prompt and seed, and fit the table to all that was observed."""
        observed: list[Observed] = []
        for index, (prompt, seed) in enumerate(job.pairs):
            observed += _observe(job, self.signals, index, prompt, seed, watch.step)
            watch.call()
        return self.fit(observed)


def _observe(
    job: Job,
    wanted: Mapping[Granularity, Signal],
    index: int,
    prompt: str,
    seed: int,
    on_step: Callable[[], None],
) -> list[Observed]:
    """The numbers of one call of the pipeline.

    A signal's value after the last compute is read by no vote, so each is kept as it is measured, in the order of the
    visits, and brought to the host at the end.
    """
    taken: dict[Granularity, list[Tensor | None]] = {granularity: [] for granularity in wanted}
    signals = {g: _kept(signal, taken[g]) for g, signal in wanted.items()}
    plan = Plan(
        policies=tuple(_observer(g, signal) for g, signal in signals.items()),
        rule=unanimous,
        bases=dict.fromkeys(Granularity, Residual()),
        forecasters=dict.fromkeys(Granularity, Hold()),
        signals={signal.name: signal for signal in signals.values()},
        samples="mean",
    )
    with Session(job.model.pipeline, plan, None, None) as session:
        generate(job.model, prompt, seed, job.arguments, on_step=on_step)
    found: list[Observed] = []
    for granularity, signal in signals.items():
        visits = [record for record in session.records if record.point.granularity is granularity]
        for record, value in zip(visits, _to_host(taken[granularity]), strict=True):
            if value is not None and not math.isfinite(value):
                raise ConfigurationError(
                    f"{signal.name} is {value} at step {record.point.step} of {prompt!r}, seed {seed}: the model gives "
                    "values that are not finite; try --dtype float32."
                )
            found.append(Observed(signal=signal.name, run=(index, record.run), point=record.point, value=value))
    return found


def _kept(signal: Signal, taken: list[Tensor | None]) -> Signal:
    """The signal, leaving what it measured in `taken`."""

    def measure(tensors: Tensors) -> Tensor | None:
        value = signal.measure(tensors)
        taken.append(value)
        return value

    return evolve(signal, measure=measure)


def _observer(granularity: Granularity, signal: Signal) -> Policy:
    @frozen(kw_only=True)
    class Observer(Policy):
        """Has one signal measured on every branch, and computes."""

        signals = (signal.name,)
        branches = "independent"

        def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
            return Vote.compute("observed")

    return Observer(at=granularity)


def _to_host(values: Sequence[Tensor | None]) -> list[float | None]:
    there = [value.mean() for value in values if value is not None]
    numbers = iter(torch.stack(there).tolist() if there else [])
    return [None if value is None else next(numbers) for value in values]


def _magnitude_ratio(t: Tensors) -> Tensor | None:
    if t.output is None or t.computed_output is None or t.computed_anchor is None:
        return None
    now = torch.linalg.vector_norm((t.output - t.anchor).float(), dim=-1)
    before = torch.linalg.vector_norm((t.computed_output - t.computed_anchor).float(), dim=-1)
    ratio: Tensor = (now / (before + 1e-8)).mean()
    return ratio.reshape(1)


def _fit_magcache(observed: Sequence[Observed]) -> Fit:
    """The mean ratio of every step by branch, over all runs; 1 where there is none. The leading branch is "cond"."""
    names = {o.point.branch for o in observed}
    leading = {o.point.branch for o in observed if o.point.leads} if "cond" not in names else set()
    ratios: dict[str, list[float]] = {}
    for branch in sorted(names):
        found: dict[int, list[float]] = {}
        for o in observed:
            if o.point.branch == branch and o.value is not None:
                found.setdefault(o.point.step, []).append(o.value)
        steps = range(observed[0].point.num_steps)
        means = [math.fsum(found[step]) / len(found[step]) if step in found else 1.0 for step in steps]
        ratios["cond" if branch in leading else branch] = [round(mean, 6) for mean in means]
    if not ratios or not any(o.value is not None for o in observed):
        raise ConfigurationError("there is no ratio to measure: the run has a single step; give --steps 2 or more.")
    low, high = (extreme(value for row in ratios.values() for value in row) for extreme in (min, max))
    count = len(next(iter(ratios.values())))
    return Fit({"ratios": ratios}, f"{count} ratios for {', '.join(ratios)}, from {low:.3f} to {high:.3f}")


def _fit_teacache(observed: Sequence[Observed]) -> Fit:
    """The least-squares polynomial from the change of the probe to that of the output, highest power first."""
    probe = {o.call: o.value for o in observed if o.signal == "probe_change" and o.value is not None}
    output = {o.call: o.value for o in observed if o.signal == "output_change" and o.value is not None}
    pairs = [(probe[call], output[call]) for call in probe if call in output]
    x, y = (np.array([pair[i] for pair in pairs], dtype=np.float64) for i in (0, 1))
    too_few = ConfigurationError(
        f"the probe took {len(set(x.tolist()))} different value(s), too few for a polynomial of degree {DEGREE}; give "
        "more --steps or more prompts."
    )
    if len(set(x.tolist())) <= DEGREE:
        raise too_few
    with warnings.catch_warnings():
        warnings.simplefilter("error", np.exceptions.RankWarning)
        try:
            fitted = np.polynomial.Polynomial.fit(x, y, DEGREE)
        except np.exceptions.RankWarning:
            raise too_few from None
    rising = [*fitted.convert().coef.tolist(), *[0.0] * DEGREE][: DEGREE + 1]
    spread = float(((y - y.mean()) ** 2).sum())
    explained = 1 - float(((y - fitted(x)) ** 2).sum()) / spread if spread else 1.0
    return Fit(
        {"coefficients": rising[::-1]}, f"{len(pairs)} pairs, of whose spread the polynomial explains {explained:.0%}"
    )


_SHIPPED = {signal.name: signal for signal in SIGNALS}

_MAGNITUDE_RATIO = Signal(
    name="magnitude_ratio",
    measure=_magnitude_ratio,
    when="after",
    reads=frozenset({"computed_anchor", "computed_output"}),
    summary="mean over tokens of ||r_t|| / ||r_last||, r = output - anchor: MagCache's gamma",
)

MAGCACHE = Observing(signals={Granularity.BLOCK: _MAGNITUDE_RATIO}, fit=_fit_magcache)
"""Growth of the residual from step to step."""

TEACACHE = Observing(
    signals={Granularity.BLOCK: _SHIPPED["probe_change"], Granularity.STEP: _SHIPPED["output_change"]},
    fit=_fit_teacache,
)
"""From the change of the probe to that of the output."""

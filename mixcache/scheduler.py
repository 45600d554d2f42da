"""The cache scheduler: the one loop that every skip point of every granularity goes through.

One `CacheScheduler` serves one denoising run and is thrown away with it, so no run can see another's history.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from mixcache.basis import Basis, Streams
from mixcache.forecast import Entry, Forecaster
from mixcache.plugins import new_manager
from mixcache.points import Granularity, Outcome, Point, Reading, RunInfo, Vote
from mixcache.policy import Policy
from mixcache.signals import Samples, Signal, Tensors, resolve
from mixcache.store import Anchor, Slot, Store, form_of, streams_of
from mixcache.trace import Record
from mixcache.voting import Rule, decide, voters

Visit = Generator[None, Streams, Streams]


@frozen(kw_only=True)
class Plan:
    """What a session decided before the first run: who votes, by which rule, and how skipped outputs are rebuilt."""

    policies: tuple[Policy, ...]
    rule: Rule
    bases: Mapping[Granularity, Basis]
    forecasters: Mapping[Granularity, Forecaster]
    signals: Mapping[str, Signal]
    samples: Samples = "worst"
    plugins: Sequence[tuple[str, Any]] = ()
    gauges: Mapping[Granularity, Gauge] = field(init=False)

    @gauges.default
    def _gauges(self) -> Mapping[Granularity, Gauge]:
        return {g: Gauge.of([p for p in self.policies if p.at is g], self.signals) for g in Granularity}

    def uses(self, granularity: Granularity) -> bool:
        """Whether any policy decides there; where none does, nothing is visited."""
        return any(policy.at is granularity for policy in self.policies)


@frozen
class Gauge:
    """What is measured at one granularity: the union of what its policies read."""

    before: tuple[Signal, ...]
    after: tuple[Signal, ...]
    reads: frozenset[str]
    every_branch: bool
    exact_only: bool

    @classmethod
    def of(cls, policies: Sequence[Policy], known: Mapping[str, Signal]) -> Gauge:
        """The gauge for these policies; raises `UnknownNameError` for a signal nobody registered."""
        needed = resolve([name for policy in policies for name in policy.signals], known)
        return cls(
            tuple(s for s in needed if s.when == "before"),
            tuple(s for s in needed if s.when == "after"),
            frozenset(memory for s in needed for memory in s.reads),
            any(policy.branches == "independent" for policy in policies),
            any(policy.exact_history for policy in policies),
        )

    def measures(self, point: Point) -> bool:
        """Whether anybody reads signals at this visit; branches that follow are not measured."""
        return bool(self.before or self.after) and (point.leads or self.every_branch)


class CacheScheduler:
    """The loop, and the memory of one run."""

    def __init__(self, plan: Plan, run: RunInfo, keep: Callable[[Record], None]) -> None:
        self.plan = plan
        self.run = run
        self.store = Store({g: forecaster.depth for g, forecaster in plan.forecasters.items()})
        self._keep = keep
        self.reuses = 0
        self._manager = new_manager([*plan.plugins, *((f"policy:{v.label}", v) for v in voters(plan.policies))])
        self._manager.hook.mixcache_run_started(run=run)

    def visit(self, point: Point, anchor: Anchor, prefix: Tensor | None = None, exact: bool = True) -> Visit:
        """Decide about one point. Yields where the caller must compute and send the output; returns the output.

        measure -> vote -> verdict -> rebuild from the cache, or compute and store -> observe. `drive` runs it around
        a function; a caller whose computation is not one function (a span of blocks) advances it itself.
        prefix: what the blocks before a span added. exact: whether the anchor itself is downstream of no reuse.
        """
        slot = self.store.slot(point)
        changed = slot.admit(form_of(anchor))
        reading = self._measure(slot, point, anchor, prefix)
        votes = self._votes(point, reading)
        verdict = decide(votes, self.plan.rule)
        age = None if slot.last_computed is None else point.step - slot.last_computed
        output, obstacle, seconds = None, None, None
        if verdict.reuse:
            output, obstacle = self._rebuild(slot, point, anchor)
        reused = output is not None
        if output is None:
            reuses, started = self.reuses, time.perf_counter()
            output = yield
            seconds = time.perf_counter() - started if output[0].device.type == "cpu" else None
            exact = exact and self.reuses == reuses
            self._remember(slot, point, anchor, output, prefix, exact)
        self.reuses += reused
        reason = "; ".join(filter(None, [changed, obstacle and f"{obstacle} to reuse", verdict.reason]))
        error = verdict.error if reused else None
        outcome = Outcome(reused=reused, reason=reason, reading=reading, predicted_error=error, age=age)
        self._manager.hook.mixcache_observe(point=point, outcome=outcome)
        record = Record(
            run=self.run.index,
            point=point,
            reading=reading,
            votes=votes,
            verdict=verdict,
            outcome=outcome,
            exact=exact and not reused,
            seconds=seconds,
        )
        self._keep(record)
        return output

    def _votes(self, point: Point, reading: Reading) -> tuple[Vote, ...]:
        votes = self._manager.hook.mixcache_vote(point=point, reading=reading)
        return tuple(sorted(votes, key=lambda vote: vote.policy))

    def _measure(self, slot: Slot, point: Point, anchor: Anchor, prefix: Tensor | None) -> Reading:
        """All signals asked for at this visit, in one transfer to the host; `None` where there is no history yet."""
        gauge = self.plan.gauges[point.granularity]
        if not gauge.measures(point):
            return {}
        values = dict(slot.after)
        known = self._tensors(slot, streams_of(anchor)[0], prefix, None)
        for signal in gauge.before:
            value = signal.measure(evolve(known, values=values))
            if value is not None:
                values[signal.name] = value
        if "previous_anchor" in gauge.reads:
            slot.previous_anchor = known.anchor.detach().clone()
        if "previous_prefix" in gauge.reads:
            slot.previous_prefix = prefix
        wanted = [signal for signal in (*gauge.before, *gauge.after) if signal.name in values]
        reading: dict[str, float | None] = {signal.name: None for signal in (*gauge.before, *gauge.after)}
        if wanted:
            numbers = torch.stack([signal.reduce(values[signal.name]) for signal in wanted]).tolist()
            reading.update(zip((signal.name for signal in wanted), numbers))
        return reading

    def _tensors(self, slot: Slot, anchor: Tensor, prefix: Tensor | None, output: Tensor | None) -> Tensors:
        return Tensors(
            anchor=anchor,
            output=output,
            previous_anchor=slot.previous_anchor,
            computed_anchor=slot.computed_anchor,
            computed_output=slot.computed_output,
            prefix=prefix,
            previous_prefix=slot.previous_prefix,
            computed_prefix=slot.computed_prefix,
            samples=self.plan.samples,
        )

    def _rebuild(self, slot: Slot, point: Point, anchor: Anchor) -> tuple[Streams | None, str | None]:
        """The output from the cache, or `None` and why there is none."""
        if not slot.history:
            return None, "no history"
        z = self.plan.forecasters[point.granularity].forecast(tuple(slot.history), point)
        output = self.plan.bases[point.granularity].decode(z, streams_of(anchor), point)
        return output, None if output is not None else "singular basis"

    def _remember(
        self, slot: Slot, point: Point, anchor: Anchor, output: Streams, prefix: Tensor | None, exact: bool
    ) -> None:
        """Store a computed output, and measure what is known only after computing (it is read at the next vote)."""
        gauge = self.plan.gauges[point.granularity]
        if not exact and gauge.exact_only:
            return
        streams = streams_of(anchor)
        if gauge.measures(point):
            values: dict[str, Tensor] = {}
            known = self._tensors(slot, streams[0], prefix, output[0])
            for signal in gauge.after:
                value = signal.measure(evolve(known, values=values))
                if value is not None:
                    values[signal.name] = value
            slot.after = values
            if "computed_anchor" in gauge.reads:
                same = slot.previous_anchor
                slot.computed_anchor = same if same is not None else streams[0].detach().clone()
            if "computed_output" in gauge.reads:
                slot.computed_output = output[0].detach().clone()
            if "computed_prefix" in gauge.reads:
                slot.computed_prefix = prefix
        z = self.plan.bases[point.granularity].encode(output, streams, point)
        if z is not None:
            slot.history.append(Entry(z=z, point=point, exact=exact))
        slot.last_computed = point.step
        self.store.note_peak()

    def end(self) -> None:
        """The run is over: tell the plugins and drop every tensor."""
        self._manager.hook.mixcache_run_ended(run=self.run)
        self.store.clear()


def drive(visit: Visit, compute: Callable[[], Streams]) -> Streams:
    """Run a visit around `compute`, which is called only if the verdict is to compute."""
    try:
        next(visit)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    try:
        output = compute()
    except BaseException:
        visit.close()
        raise
    try:
        visit.send(output)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    raise RuntimeError("a visit yields once")

"""The cache scheduler: the one loop that every skip point of every granularity goes through.

One `CacheScheduler` serves one denoising run and is thrown away with it, so no run can see another's history.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import torch
from attrs import evolve, frozen
from torch import Tensor

from mixcache.basis import Streams
from mixcache.errors import PluginError, called
from mixcache.forecast import Entry
from mixcache.plan import Plan
from mixcache.plugins import new_manager
from mixcache.points import Outcome, Point, Reading, RunInfo, Verdict, Vote
from mixcache.signals import Memory, Tensors, worst_of_ranks
from mixcache.store import Anchor, Slot, Store, check_form, form_of, on_host, streams_of, total_of
from mixcache.trace import Record
from mixcache.voting import decide, voters

Visit = Generator[None, Streams, Streams]
T = TypeVar("T")
NOTHING: tuple[Streams | None, str | None] = (None, None)
UNDECIDED: tuple[Reading, tuple[Vote, ...], Verdict] = ({}, (), Verdict(reuse=False, reason=""))


@frozen(kw_only=True)
class Around:
    """What else is known at a visit beside its anchor.

    prefix: what the blocks before a span added. probe: the tensor that the model's adapter names. exact: whether the
    anchor is downstream of no reuse.
    """

    prefix: Tensor | None = None
    probe: Tensor | None = None
    exact: bool = True


class CacheScheduler:
    """The loop, and the memory of one run."""

    def __init__(self, plan: Plan, run: RunInfo, keep: Callable[[Record], None]) -> None:
        self.plan = plan
        self.run = run
        self.store = Store({g: f.depth for g, f in plan.forecasters.items()}, plan.max_cache_bytes)
        self._keep = keep
        self.reuses = 0
        self._auditing = False
        self._failures: list[str] = []
        self._manager = new_manager([*plan.plugins, *((f"policy:{v.label}", v) for v in voters(plan.policies))])
        self._manager.hook.mixcache_run_started(run=run)

    def visit(self, point: Point, anchor: Anchor, around: Around = Around()) -> Visit:
        """Decide about one point. Yields where the caller must compute and send the output; returns the output.

        measure -> vote -> verdict -> rebuild from the cache, or compute and store -> observe. `drive` runs it around
        a function; a caller whose computation is not one function (a span of blocks) advances it itself.
        """
        if self._auditing:  # within the computation that a reuse is compared with: nothing is decided or remembered
            return (yield)
        slot = self.store.slot(point)
        changed, slot.trouble = slot.admit(form_of(anchor)), None
        reading, votes, verdict = self._surviving(UNDECIDED, self._decide, slot, point, anchor, around)
        age = None if slot.last_computed is None else point.step - slot.last_computed
        output, obstacle, seconds, exact = None, None, None, around.exact
        if verdict.reuse:
            output, obstacle = self._surviving(NOTHING, self._rebuild, slot, point, anchor, around.prefix)
        reused = output is not None
        if output is None:
            reuses, started = self.reuses, time.perf_counter()
            output = yield
            seconds = time.perf_counter() - started if on_host(output[0]) else None
            exact = exact and self.reuses == reuses
            self._surviving(None, self._remember, slot, point, anchor, output, around, exact)
        true_error = (yield from self._audit(output)) if reused and self.plan.audit else None
        self.reuses += reused
        told = (changed or slot.trouble, obstacle and f"{obstacle} to reuse", *self._failures, verdict.reason)
        outcome = Outcome(
            reused=reused,
            reason="; ".join([one for one in told if one]),
            reading=reading,
            predicted_error=verdict.error if reused else None,
            true_error=true_error,
            age=age,
        )
        self._failures.clear()
        self._surviving(None, self._observe, point, outcome)
        if self._failures:
            outcome = evolve(outcome, reason="; ".join([outcome.reason, *self._failures]))
            self._failures.clear()
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

    def _audit(self, output: Streams) -> Generator[None, Streams, float]:
        """The relative L1 error of a rebuilt output, worst over the samples: the model is computed beside it."""
        self._auditing = True
        try:
            truth = yield
        finally:
            self._auditing = False
        scale = Tensors(anchor=truth[0], samples=self.plan.samples)
        return float((scale.norm(truth[0] - output[0]) / scale.norm(truth[0])).amax())

    def _surviving(self, otherwise: T, function: Callable[..., T], *args: Any) -> T:
        """`function(*args)`; with on_error="compute" a plugin that fails is noted, and `otherwise` stands instead."""
        try:
            return function(*args)
        except PluginError as error:
            if self.plan.on_error == "raise":
                raise
            self._failures.append(f"failed: {error}")
            return otherwise

    def _decide(
        self, slot: Slot, point: Point, anchor: Anchor, around: Around
    ) -> tuple[Reading, tuple[Vote, ...], Verdict]:
        """What is measured, what is voted, and the verdict."""
        reading = self._measure(slot, point, anchor, around)
        found = called(("hook", "mixcache_vote"), self._manager.hook.mixcache_vote, point=point, reading=reading)
        votes = tuple(sorted(found, key=lambda vote: vote.policy))
        return reading, votes, called(("rule", self.plan.rule), decide, votes, self.plan.rule)

    def _observe(self, point: Point, outcome: Outcome) -> None:
        """Tell the plugins what came of the point."""
        called(("hook", "mixcache_observe"), self._manager.hook.mixcache_observe, point=point, outcome=outcome)

    def _measure(self, slot: Slot, point: Point, anchor: Anchor, around: Around) -> Reading:
        """All signals asked for at this visit, in one transfer to the host; `None` where there is no history yet."""
        gauge = self.plan.gauges[point.granularity]
        if not gauge.measures(point):
            return {}
        reading: dict[str, float | None] = {signal.name: None for signal in (*gauge.before, *gauge.after)}
        if slot.no_room:
            return reading
        values = dict(slot.after)
        known = self._tensors(slot, values, anchor, around)
        for signal in gauge.before:
            value = called(("signal", signal.name), signal.measure, known)
            if value is not None:
                values[signal.name] = value
        now: dict[Memory, Tensor | None] = {"previous_prefix": around.prefix, "previous_probe": around.probe}
        if "previous_anchor" in gauge.reads:
            now["previous_anchor"] = known.anchor.detach().clone()
        slot.remember(gauge.reads, now)
        wanted = [signal for signal in (*gauge.before, *gauge.after) if signal.name in values]
        if wanted:
            numbers = [called(("signal", signal.name), signal.reduce, values[signal.name]) for signal in wanted]
            total = [] if slot.total is None else [slot.total.to(numbers[0].dtype)]
            found = torch.stack([*numbers, *total])
            read = (found if self.plan.group is None else worst_of_ranks(found, wanted, self.plan.group)).tolist()
            slot.trouble = slot.broken(read[-1]) if total else None
            if slot.trouble is None:
                reading.update(zip((signal.name for signal in wanted), read))
        return reading

    def _tensors(self, slot: Slot, values: dict[str, Tensor], anchor: Anchor, around: Around) -> Tensors:
        """What signals look at; `values` is filled as they are measured."""
        return Tensors(
            anchor=streams_of(anchor)[0],
            prefix=around.prefix,
            probe=around.probe,
            samples=self.plan.samples,
            values=values,
            **slot.memory,
        )

    def _rebuild(
        self, slot: Slot, point: Point, anchor: Anchor, prefix: Tensor | None
    ) -> tuple[Streams | None, str | None]:
        """The output from the cache, or `None` and why there is none."""
        if not slot.history:
            return None, "no room in the cache" if slot.no_room else "no history"
        history = tuple(slot.history)
        if self.plan.offload is not None:
            history = tuple(entry.to(streams_of(anchor)[0].device) for entry in history)
        forecaster, basis = self.plan.forecasters[point.granularity], self.plan.bases[point.granularity]
        z = called(("forecaster", forecaster), forecaster.forecast, history, point, prefix)
        check_form(("forecaster", forecaster), z, form_of(history[-1].z))
        output = called(("basis", basis), basis.decode, z, streams_of(anchor), point)
        if output is None:
            return None, "singular basis"
        check_form(("basis", basis), output, slot.made)
        return output, None

    def _remember(self, slot: Slot, point: Point, anchor: Anchor, output: Streams, around: Around, exact: bool) -> None:
        """Store a computed output for later reuse."""
        gauge = self.plan.gauges[point.granularity]
        if slot.no_room or (gauge.exact_only and not exact):
            return
        if gauge.measures(point):
            self._measure_after(slot, point, anchor, output[0], around)
        basis = self.plan.bases[point.granularity]
        z = called(("basis", basis), basis.encode, output, streams_of(anchor), point)
        slot.made = form_of(output)
        if z is not None and self._finite(slot, z):
            prefix = around.prefix if self.plan.forecasters[point.granularity].reads_prefix else None
            entry = Entry(z=z, point=point, exact=exact, prefix=prefix)
            slot.history.append(entry if self.plan.offload is None else entry.to(self.plan.offload))
        slot.last_computed = point.step
        self.store.keep(slot)

    def _finite(self, slot: Slot, z: Streams) -> bool:
        """Whether `z` may be stored. On other devices, and for several ranks, the next signals tell it, if any do."""
        slot.total = total_of(z)
        if on_host(slot.total) and self.plan.group is None:
            slot.trouble = slot.broken(float(slot.total.numpy()))
        return slot.trouble is None

    def _measure_after(self, slot: Slot, point: Point, anchor: Anchor, output: Tensor, around: Around) -> None:
        """Measure what is known only after computing; it stays on the device and is read at the next vote."""
        gauge = self.plan.gauges[point.granularity]
        rebuilt = self._rebuild(slot, point, anchor, around.prefix)[0] if "rebuilt" in gauge.reads else None
        values: dict[str, Tensor] = {}
        known = evolve(
            self._tensors(slot, values, anchor, around),
            output=output,
            rebuilt=None if rebuilt is None else rebuilt[0],
        )
        for signal in gauge.after:
            value = called(("signal", signal.name), signal.measure, known)
            if value is not None:
                values[signal.name] = value
        slot.after = values
        now: dict[Memory, Tensor | None] = {"computed_prefix": around.prefix}
        if "computed_anchor" in gauge.reads:
            same = slot.memory.get("previous_anchor")
            now["computed_anchor"] = same if same is not None else known.anchor.detach().clone()
        if "computed_output" in gauge.reads:
            now["computed_output"] = output.detach().clone()
        slot.remember(gauge.reads, now)

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
    return drive_end(visit, output)


def drive_end(visit: Visit, computed: Streams) -> Streams:
    """Send a visit what was computed; that ends it, and gives what the caller goes on with."""
    try:
        visit.send(computed)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    raise RuntimeError("a visit yields once")

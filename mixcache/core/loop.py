"""The one loop that every place of every granularity goes through.

    ticket = loop.open(point, entering, beside)      # measure -> votes -> verdict; on a reuse: rebuild
    if ticket.output is None:
        output = loop.close(ticket, <what the caller computes>)

Tickets nest (a span inside a step) and interleave (two requests): nothing is "the current visit". One `Loop` serves one
run and is thrown away with it, so no run sees another's history.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, TypeVar

from attrs import evolve

from mixcache.core.basis import encoded
from mixcache.core.forecast.base import Entry
from mixcache.core.panel import Panel
from mixcache.core.plan import Plan
from mixcache.core.points import Outcome, Point, Reading, RunInfo, Verdict, Vote
from mixcache.core.readout import Readout, true_errors
from mixcache.core.rules import decide
from mixcache.core.store import NOT_YET, Slot, Store, Ticket
from mixcache.core.streams import NOTHING_BESIDE, Beside, Input, Streams, Value, check_form, form_of, in_form, on_host
from mixcache.core.trace import Record, StreamRecord
from mixcache.errors import PluginError, called

T = TypeVar("T")
UNDECIDED: tuple[Reading, tuple[Vote, ...], Verdict] = ({}, (), NOT_YET)
NO_OUTPUT: tuple[Value | None, str | None] = (None, None)


class Loop:
    """The loop, and the memory of one run. `keep` gets the record of every visit that has ended.

    reuses: how many visits were reused. why: how often each reason was given.
    """

    def __init__(self, plan: Plan, run: RunInfo, keep: Callable[[Record], None]) -> None:
        self.plan = plan
        self.run = run
        self.store = Store(plan.max_cache_bytes)
        self.panel = Panel(plan.policies, run, plan.hooks)
        self.readout = Readout(plan.samples, plan.group)
        self._keep = keep
        self.reuses = 0
        self._levels = run.levels or ()  # for the first record
        self.why: Counter[str] = Counter()
        self.panel.started()

    def open(self, point: Point, entering: Input, beside: Beside = NOTHING_BESIDE) -> Ticket:
        """Decide about one point. The ticket has an output if it was reused; otherwise compute and `close` it.

        entering: what enters the place. beside: the side inputs that its site asks for.
        """
        slot = self.store.get(point.address)
        if slot is None:
            site = self.plan.site(point.granularity, point.span, point.blocks)
            slot = self.store.add(point.address, Slot(site))
        changed, slot.trouble = slot.admit(entering.form), None
        if (counts := slot.counts(point.step)) != (point.age, point.gap, point.run_length):
            point = point.counted(*counts)
        ticket = Ticket(point, slot, slot.site, entering, beside, changed=changed)
        ticket.reading, ticket.votes, ticket.verdict = self._surviving(ticket, UNDECIDED, self._decide, ticket)
        if ticket.verdict.reuse:
            named = ticket.verdict.forecast, ticket.verdict.anchor
            ticket.output, ticket.obstacle = self._surviving(ticket, NO_OUTPUT, self._rebuild, ticket, *named)
        if ticket.output is None:
            ticket.started = time.perf_counter()
        else:
            self._end(ticket, ticket.output, None)
        return ticket

    def close(self, ticket: Ticket, output: Value) -> Value:
        """Take what the caller computed: store it, and end the visit. Returns it with what is known of its history."""
        seconds = time.perf_counter() - ticket.started if on_host(output.streams[0]) else None
        exact = output.exact and ticket.entering.exact
        value = output if exact == output.exact else Value(output.streams, exact, output.dense)
        self._surviving(ticket, None, self._remember, ticket, value)
        self._end(ticket, value, seconds)
        return value

    def audit(self, ticket: Ticket, truth: Streams) -> float:
        """Beside a reuse its place was computed: the relative L1 error of what was rebuilt, worst over the samples and
        over the streams that are measured there.

        The visit's record is kept again, with that error, and with that of each stream where there are several.
        """
        record = ticket.record
        assert ticket.output is not None
        assert record is not None
        count = ticket.entering.measured
        errors = true_errors(truth[:count], ticket.output.streams[:count], self.plan.samples)
        error = max(errors, key=lambda one: (one != one, one))
        if count > 1:
            streams = record.streams or (StreamRecord(),) * count
            record = evolve(record, streams=tuple(evolve(one, true_error=e) for one, e in zip(streams, errors)))
        self._keep(evolve(record, outcome=evolve(record.outcome, true_error=error)))
        return error

    def end(self) -> None:
        """The run is over: drop every tensor, and tell the plugins."""
        self.readout.clear()
        self.store.clear()
        self.panel.ended()

    def _surviving(self, ticket: Ticket, otherwise: T, function: Callable[..., T], *args: Any) -> T:
        """`function(*args)`; with on_error="compute" a plugin that fails is noted, and `otherwise` stands instead."""
        try:
            return function(*args)
        except PluginError as error:
            if self.plan.on_error == "raise":
                raise
            ticket.failures.append(f"failed: {error}")
            return otherwise

    def _decide(self, ticket: Ticket) -> tuple[Reading, tuple[Vote, ...], Verdict]:
        """What is measured, what is voted, and the verdict."""
        reading = self.readout.read(ticket)
        for one in ticket.learned:
            self.panel.learn(one.point, one.reading)
        votes = self.panel.vote(ticket.point, reading)
        return reading, votes, called(("rule", self.plan.rule), decide, votes, self.plan.rule)

    def _anchor(self, ticket: Ticket, spec: str | None) -> Streams:
        """An anchor of this visit, made once; its cost is noted."""
        if spec is None and ticket.site.plain:
            return ticket.entering.get()
        kind, made = ticket.site.anchors[spec], ticket.anchors.get(spec)
        if made is None:
            state = ticket.slot.states.get(spec)
            if state is None and kind.stateful:
                state = ticket.slot.states[spec] = called(("anchor", kind), kind.State)
            entering, form = ticket.entering.get(), ticket.slot.made
            made = called(("anchor", kind), kind.make, entering, ticket.point, state, ticket.beside)
            check_form(("anchor", kind), made, None)
            if form is not None and made is not entering:  # what enters may have streams that do not leave
                check_form(("anchor", kind), made[: len(form)], form)
            ticket.anchors[spec] = made
            ticket.spent += kind.cost
        return made

    def _rebuild(self, ticket: Ticket, forecast: str | None, anchor: str | None) -> tuple[Value | None, str | None]:
        """The output from the cache, or `None` and why there is none."""
        slot, site, point = ticket.slot, ticket.site, ticket.point
        forecaster, anchor = site.forecaster(forecast), site.key(anchor)
        stateful = site.anchors[anchor].stateful
        history = tuple(slot.histories.get(anchor, ())) if forecaster.depth else ()
        if ticket.entering.done or (not history and (forecaster.depth or (stateful and slot.no_room))):
            return None, "no room in the cache" if slot.no_room else slot.unfit.get(anchor) or "no history"
        around = self._anchor(ticket, anchor)
        if self.plan.offload is not None:
            history = tuple(entry.to(around[0].device) for entry in history)
        beside = {**ticket.beside, "anchor": around} if forecaster.reads or not history else ticket.beside
        z = called(("forecaster", forecaster), forecaster.forecast, history, point, beside)
        check_form(("forecaster", forecaster), z, form_of(history[-1].z) if history else None)
        output = called(("basis", site.basis), site.basis.decode, z, around, point)
        if output is None:
            return None, "singular basis"
        output = in_form(("basis", site.basis), output, slot.made)
        exact = not history and not stateful and ticket.entering.exact
        return Value(output, exact, False), None

    def _remember(self, ticket: Ticket, output: Value) -> None:
        """Measure what a compute tells, and store it for later reuse."""
        slot, site, point = ticket.slot, ticket.site, ticket.point
        storing = not (slot.no_room or (site.gauge.exact_only and not output.exact))
        if site.gauge.measures(point) and not slot.no_room:
            self.readout.after(ticket, output, storing, lambda: self._rebuild(ticket, None, None)[0])
        if not storing or point.last:
            return
        slot.made, slot.total = form_of(output.streams), None
        if site.depth:
            for spec in dict.fromkeys(site.keys.values()):
                self._store(ticket, output, spec)
        slot.computed(point.step)
        self.store.keep(slot)

    def _store(self, ticket: Ticket, output: Value, spec: str | None) -> None:
        """One entry of the history that is told around this anchor."""
        slot, site, point = ticket.slot, ticket.site, ticket.point
        around = self._anchor(ticket, spec)
        z, unfit = encoded(site.basis, output.streams, around, point)
        if unfit is not None:
            slot.unfit[spec] = unfit
        else:
            slot.unfit.pop(spec, None)
        if z is None or not slot.sound(z, at_once=self.plan.group is None):
            return
        beside = NOTHING_BESIDE
        if site.keeps:
            own = {"anchor": tuple([s.detach().clone() for s in around])} if "anchor" in site.keeps else {}
            beside = {name: ticket.beside[name] for name in site.keeps if name in ticket.beside} | own
        entry = Entry(z=z, point=point, exact=output.exact, beside=beside)
        history = slot.histories.setdefault(spec, deque(maxlen=site.depth))
        history.append(entry if self.plan.offload is None else entry.to(self.plan.offload))

    def _end(self, ticket: Ticket, value: Value, seconds: float | None) -> None:
        """Tell the plugins what came of the visit, count it, and keep its record."""
        slot, point, verdict, reused = ticket.slot, ticket.point, ticket.verdict, ticket.output is not None
        told = (ticket.changed or slot.trouble, ticket.obstacle and f"{ticket.obstacle} to reuse", *ticket.failures)
        outcome = Outcome(
            reused=reused,
            reason="; ".join([one for one in (*told, verdict.reason) if one]),
            reading=ticket.reading,
            predicted_error=verdict.error if reused else None,
            saved=point.share * (reused - ticket.spent) - (0.0 if reused else ticket.entering.paid),
        )
        ticket.failures = []
        named = verdict.forecast, verdict.anchor
        self._surviving(ticket, None, self.panel.observe, point, outcome, named)
        if ticket.failures:
            outcome = evolve(outcome, reason="; ".join([outcome.reason, *ticket.failures]))
        self.reuses += reused
        self.why[outcome.reason] += 1
        slot.visited(ticket.reading, reused=reused)
        if reused and (slot.states or any(track.own for track in slot.tracks)):
            self.store.keep(slot)
        ticket.record = Record(
            run=self.run.index,
            point=point,
            reading=ticket.reading,
            votes=ticket.votes,
            verdict=verdict,
            outcome=outcome,
            exact=value.exact,
            dense=value.dense,
            seconds=seconds,
            learned=ticket.learned,
            streams=ticket.streams,
            levels=self._levels,
        )
        self._levels = ()
        self._keep(ticket.record)

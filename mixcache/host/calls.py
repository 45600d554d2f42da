"""What one call of a model visits: its STEP point, around its CFG points, around its spans of blocks.

Each level is a visit of the one loop; this file only says what enters a place and how it is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mixcache.core.loop import Loop
from mixcache.core.plan import Plan
from mixcache.core.points import Granularity, Point
from mixcache.core.streams import Input, Streams, Value
from mixcache.core.trace import Record
from mixcache.host.adapter import ModelAdapter
from mixcache.host.blocks import Layouts
from mixcache.host.guidance import ModelCall
from mixcache.host.guided import Guided, Produce, visited
from mixcache.host.levels import know
from mixcache.host.outputs import NotCacheable
from mixcache.host.own_loop import Run
from mixcache.host.protocol import Call, Forward, Host, Place
from mixcache.host.ranks import check_sharding
from mixcache.host.requests import Requests
from mixcache.host.sight import Made, Sight
from mixcache.host.walks import walking
from mixcache.host.watch import Stepped

UNGUIDED = (
    "guidance branches were not skipped: what the noise scheduler was given is no combination of them that is known, "
    "so nothing tells which of them is the conditional one; use policies at 'step' or 'block'"
)


class Calls:
    """All calls of the models of one session: placed in their runs, and taken through the loop.

    seen: the last run that is over, by model.
    """

    def __init__(
        self,
        plan: Plan,
        host: Host,
        adapters: Mapping[str, ModelAdapter],
        keep: Callable[[Record], None],
        ended: Callable[[Run[Loop]], None],
    ) -> None:
        self.plan = plan
        self.adapters = adapters
        self.notes: set[str] = set()
        self.layouts = Layouts(plan, self.notes)
        self.seen: dict[str, Run[Loop]] = {}
        self._host = host
        self._told_end = ended
        predictions = {name: adapter.prediction for name, adapter in adapters.items()}
        self.requests: Requests[Loop] = Requests(
            host, lambda run: Loop(plan, run, keep), predictions, self._ended, audit=plan.audit
        )
        host.listen(lambda: self.requests.current() is not None, self._stepped)

    def finished(self) -> None:
        """A pipeline says that it is done."""
        self.requests.end()

    def forward(self, model: Any, forward: Forward, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call of a model: place it in its run, and let the loop decide about it."""
        found = self.requests.locate(call)
        if found is None:
            return forward(*args, **kwargs)
        run, place = found
        if run.sight is None:
            check_sharding(model, self.plan.group)
            run.sight = Sight(group=self.plan.group)
        model_call = ModelCall(model, forward, args, kwargs, self.adapters[call.component])
        try:
            if place.ordinal == 0:
                self._settle(run, place, model_call)
                place = run.leveled(place)
            facts = run.sight.facts.get(call.component)
            if facts is None:
                return self._first(run, place, model_call)
            if facts.why:  # what its blocks hand on can be skipped all the same
                self.notes.add(f"calls were computed and not cached: {type(model).__name__}: {facts.why}")
                return self._walked(run, place, model_call)
            return self._later(run, place, model_call)
        except BaseException:
            run.sight.made.clear()
            if not run.told:
                self.requests.end(run.key, only=run)
            raise

    def _first(self, run: Run[Loop], place: Place, call: ModelCall) -> Any:
        """A call of a model's first evaluation in a run: computed, and visited when the evaluation is over."""
        result = self._walked(run, place, call)
        outputs: Streams = ()
        try:
            outputs = call.outputs()
        except NotCacheable as more:
            self.notes.add(f"calls were computed and not cached: {more}")
        if outputs:
            call.keep()
            outputs = call.outputs()
        run.sight.called(Made(place.address.component, place, call, outputs, pending=True))
        if run.complete:  # there is no next call
            self._settle(run, None, None)
            run.memory.store.forget()
        return result

    def _walked(self, run: Run[Loop], place: Place, call: ModelCall) -> Any:
        """A call with its spans of blocks visited, where a policy decides about them, and nothing else."""
        if self.plan.uses(Granularity.BLOCK):
            point = self._point(run, place)
            self.layouts.run(call, self.adapters[point.component], run.memory, point, audit=self.plan.audit)
        result = call.run()
        if run.complete:
            run.memory.store.forget()
        return result

    def _later(self, run: Run[Loop], place: Place, call: ModelCall) -> Any:
        """Any other call."""
        try:
            value = self._visit(run, place, call)
        except NotCacheable as more:
            self.notes.add(f"calls were computed and not cached: {more}")
            run.sight.doubt(place.address.component)
            return more.result
        if run.complete:  # nothing comes after it, and the decoder wants the room
            run.sight.leading = None
            run.memory.store.forget()
            if run.ledger is None:
                run.sight.made.clear()
        if call.streams is value.streams:
            return call.result
        return run.packings[call.form, place.address.component].pack(value.streams)

    def _settle(self, run: Run[Loop], place: Place | None, following: ModelCall | None) -> None:
        """The evaluation before is over: visit what was pending of it, with what it showed."""
        sight = run.sight
        if sight.pending:
            made = [one for one in sight.made if one.pending]
            for component in dict.fromkeys(one.component for one in made):
                same = following is not None and place is not None and place.address.component == component
                arguments = following.arguments if following is not None and same else None
                first = next(one.place for one in made if one.component == component)
                facts = sight.settle(component, arguments, over=following is None)
                if facts is None:
                    why = sight.doubts.get(component, "")
                    self.notes.add(f"calls were computed and not cached: {type(made[0].call.model).__name__}: {why}")
                else:
                    self.notes |= know(run, component, facts, first, place, self.plan)
            for i, one in enumerate(made):
                if one.outputs and one.component in sight.facts and not sight.facts[one.component].why:
                    self._visited_late(run, one, made[: i + 1])
        sight.begin()

    def _visited_late(self, run: Run[Loop], one: Made, so_far: list[Made]) -> None:
        """Visit a call that was computed before it could be."""
        sight, now = run.sight, run.sight.made
        try:
            sight.made = so_far
            self._visit(run, run.leveled(one.place), one.call, late=True)
        except NotCacheable as more:
            self.notes.add(f"calls were computed and not cached: {more}")
        finally:
            sight.made = now

    def _visit(self, run: Run[Loop], place: Place, call: ModelCall, *, late: bool = False) -> Value:
        """Take a call through the loop."""
        component = place.address.component
        facts = run.sight.facts[component]
        call.see(facts.sources, facts.parts)
        if not late:
            # what it gives is known only afterwards; guidance asks for its number of rows
            run.sight.called(Made(component, place, call, call.anchors, pending=False))
        if not call.done and (call.form, component) not in run.packings:
            call.compute()  # the caller asks for a form that nobody has seen yet
        guided = None
        if self.plan.uses(Granularity.CFG) or run.ledger is not None:
            guided = Guided(run, run.sight, place, self._point(run, place), call, self.plan.audit, self.notes)
        value = self._nest(run, place, call, guided)()
        if call.packing is not None:
            run.packings[call.form, component] = call.packing
        if not late:
            run.sight.made[-1].outputs = value.streams[: len(call.parts)]
        if run.ledger is not None and guided is not None:
            self._note(run, place, call, value, guided.names)
        return value

    def _point(self, run: Run[Loop], place: Place) -> Point:
        return place.point(run.memory.store.counts(place.address, place.step))

    def _nest(self, run: Run[Loop], place: Place, call: ModelCall, guided: Guided | None) -> Produce:
        """The call's points, each around the next, where a policy decides: STEP around CFG around spans of blocks."""
        plan, loop = self.plan, run.memory
        point = self._point(run, place) if guided is None else guided.point
        leads = False
        produce: Produce = _whole(call)
        if plan.uses(Granularity.BLOCK) and not call.done:
            produce = self._spanned(loop, point, call)
        if guided is not None and plan.uses(Granularity.CFG):
            leads = guided.leads
            produce = guided.around(produce)
        if plan.uses(Granularity.STEP):
            entering = Input(call.anchors, done=call.done, measured=len(call.anchors))
            produce = visited(loop, point, entering, produce, call, audit=plan.audit)
        if not leads:
            return produce

        def lead() -> Value:
            value = produce()
            run.sight.leading = place.step, value
            return value

        return lead

    def _spanned(self, loop: Loop, point: Point, call: ModelCall) -> Produce:
        """The call with its spans of blocks visited."""

        def run() -> Value:
            self.layouts.run(call, self.adapters[point.component], loop, point, audit=self.plan.audit)
            return Value(call.compute(), call.exact, call.dense)

        return run

    def _note(self, run: Run[Loop], place: Place, call: ModelCall, value: Value, branches: Sequence[str]) -> None:
        """Write the call into the run's ledger: what the run goes on with beside what the model gives."""
        assert run.ledger is not None
        used = true = value.streams[0]
        if not (value.exact and value.dense):
            with walking(None):
                true = call.plain()[0]
        run.ledger.note(place.step, branches, latent=call.anchors[0], used=used, true=true)

    def _stepped(self, step: Stepped) -> None:
        """The noise scheduler of the run in progress has taken a step."""
        run = self.requests.current()
        if run is None or run.sight is None:
            return
        run.sight.stepped(step, always=run.ledger is not None)
        if run.ledger is not None:
            run.ledger.weigh(run.step_now, run.sight.weights)
        if run.complete:
            run.sight.made.clear()

    def _ended(self, run: Run[Loop]) -> None:
        """A run is over: visit what is pending, and tell the session."""
        if run.sight is None:  # it had no calls
            self._told_end(run)
            return
        self._settle(run, None, None)
        if self.plan.uses(Granularity.CFG) and run.sight.unexplained:
            self.notes.add(UNGUIDED)
        run.sight.leading = None
        self.seen |= dict.fromkeys(run.sight.components, run)
        self._told_end(run)


def _whole(call: ModelCall) -> Produce:
    return lambda: Value(call.compute(), call.exact, call.dense)

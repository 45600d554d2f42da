"""What one call of a model visits: its STEP point, around its CFG points, around its spans of blocks.

Each level is a visit of the one loop; this file only says what enters a place and how it is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from attrs import evolve
from torch import Tensor

from mixcache.core.loop import Loop
from mixcache.core.plan import Plan
from mixcache.core.points import Granularity, Point
from mixcache.core.store import Ticket
from mixcache.core.streams import Input, Streams, Value, form_of
from mixcache.core.trace import Record
from mixcache.host.adapter import ModelAdapter
from mixcache.host.guidance import ModelCall
from mixcache.host.outputs import NotCacheable, Packing
from mixcache.host.own_loop import Run
from mixcache.host.patch import arguments_of
from mixcache.host.protocol import Call, Forward, Host, Place
from mixcache.host.requests import Requests
from mixcache.host.sites import Layout, SideInputs, pack, read_result, read_streams

Produce = Callable[[], Value]
_walking: ContextVar[Walk | None] = ContextVar("mixcache_walk", default=None)


class Calls:
    """All calls of the models of one session: placed in their runs, and taken through the loop."""

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
        self._host = host
        self._layouts: dict[int, Layout] = {}
        predictions = {name: adapter.prediction for name, adapter in adapters.items()}
        self.requests: Requests[Loop] = Requests(
            host, lambda run: Loop(plan, run, keep), predictions, ended, audit=plan.audit
        )

    def finished(self) -> None:
        """A pipeline says that it is done."""
        self.requests.end()

    def lay_out(self, component: str, model: Any) -> Layout:
        """The spans of blocks that the plan's policies decide about."""
        layout = Layout.of(model, self.adapters[component], self.plan)
        self._layouts[id(model)] = layout
        return layout

    def forward(self, model: Any, forward: Forward, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call of a model: place it in its run, and let the loop decide about it."""
        found = self.requests.locate(call)
        if found is None:
            return forward(*args, **kwargs)
        run, place = found
        adapter = self.adapters[call.component]
        latent = adapter.latent(model, arguments_of(model, args, kwargs))
        model_call = ModelCall(model, forward, args, kwargs, adapter, latent)
        try:
            value = self._nest(run, place, model_call, latent)()
        except NotCacheable as more:
            self.notes.add(f"calls were computed and not cached: {more}")
            return more.result
        except BaseException:
            if not run.told:
                self.requests.end(run.key, only=run)
            raise
        if place.ordinal == 0 and self.plan.uses(Granularity.CFG):
            run.leading = (place.step, value)
        if run.complete:  # nothing comes after it, and the decoder wants the room
            run.leading = None
            run.memory.store.forget()
        if run.ledger is not None:
            self._note(run, place, call.component, model_call, latent, value)
        if model_call.packing is not None:
            run.packings[call.component] = model_call.packing
        if model_call.streams is value.streams:
            return model_call.result
        packing = run.packings.get(call.component, Packing())
        return packing.pack(value.streams, model_call.arguments.get("return_dict"))

    def block(self, module: Any, forward: Forward, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One block of a model: part of the call in progress in this thread or task, if that is cached."""
        walk = _walking.get()
        return forward(*args, **kwargs) if walk is None else walk.block(module, forward, index, args, kwargs)

    def _nest(self, run: Run[Loop], place: Place, call: ModelCall, latent: Tensor) -> Produce:
        """The call's points, each around the next, where a policy decides: STEP around CFG around spans of blocks."""
        plan, loop = self.plan, run.memory
        point = place.point(loop.store.counts(place.address, place.step))
        produce: Produce = self._spanned(loop, point, call) if plan.uses(Granularity.BLOCK) else _whole(call)
        if plan.uses(Granularity.CFG):
            if call.adapter.branches == "doubled":
                if self._doubled(run, place, call, latent):
                    produce = self._guided_in_one_batch(loop, point, call, latent, produce)
            elif place.ordinal > 0 and place.address.branch != "cond" and run.leading is not None:
                step, value = run.leading
                if step == place.step:
                    entering = Input(value.streams, exact=value.exact)
                    address = loop.store.within(point.address, "cfg")
                    here = evolve(point, granularity=Granularity.CFG, address=address, leads=place.ordinal == 1)
                    produce = self._visited(loop, here, entering, produce, call.plain)
        if plan.uses(Granularity.STEP):
            produce = self._visited(loop, point, Input((latent,)), produce, call.plain)
        return produce

    def _visited(
        self, loop: Loop, point: Point, entering: Input, produce: Produce, plain: Callable[[], Streams]
    ) -> Produce:
        """`produce` with a visit of the loop around it. plain: computes what is reused, to audit it."""

        def visit() -> Value:
            ticket = loop.open(point, entering)
            if ticket.output is None:
                return loop.close(ticket, produce())
            if self.plan.audit:
                with _walk(None):
                    loop.audit(ticket, plain())
            return ticket.output

        return visit

    def _guided_in_one_batch(
        self, loop: Loop, point: Point, call: ModelCall, latent: Tensor, produce: Produce
    ) -> Produce:
        """One call over all branches: on a reuse only the conditional part is computed, the caller sees the whole.

        Computing runs the whole batch in one call, so that it stays exact; the conditional part is known beforehand
        only if a signal asks for it (which then costs a computed step that part twice).
        """
        order = call.adapter.doubled_order
        rows = latent.shape[0] // len(order)
        part = {name: slice(i * rows, (i + 1) * rows) for i, name in enumerate(order)}
        whole: list[Value] = []

        def conditional() -> Streams:
            if whole:
                return _rows(whole[0].streams, part["cond"])
            entering.paid = 1 / len(order)
            return call.compute_rows(part["cond"], latent.shape[0])

        entering = Input(conditional, form_of((latent[part["cond"]],)))

        def computed(name: str) -> Value:
            if not whole:
                whole.append(produce())
            value = whole[0]
            return Value(_rows(value.streams, part[name]), value.exact, value.dense)

        def run() -> Value:
            values: dict[str, Value] = {}
            done: set[str] = set()
            for i, name in enumerate(n for n in order if n != "cond"):
                address = evolve(point.address, branch=name, path="cfg")
                here = evolve(point, granularity=Granularity.CFG, address=address, leads=i == 0, share=1 / len(order))

                def compute(name: str = name) -> Value:
                    done.add(name)
                    return computed(name)

                def plain(name: str = name) -> Streams:
                    return _rows(call.plain(), part[name])

                values[name] = self._visited(loop, here, entering, compute, plain)()
            clean = not whole or (whole[0].exact and whole[0].dense)
            if len(done) == len(values) and clean:
                return whole[0]
            alone = clean or entering.paid > 0.0  # computed by itself
            values["cond"] = Value(entering.get(), alone, alone)
            joined = tuple(map(torch.cat, zip(*(values[name].streams for name in order))))
            return Value(joined, all(v.exact for v in values.values()), all(v.dense for v in values.values()))

        return run

    def _doubled(self, run: Run[Loop], place: Place, call: ModelCall, latent: Tensor) -> bool:
        """Whether one call holds all guidance branches: its parts hold the same latents, once for each branch."""
        size, count = latent.shape[0], len(call.adapter.doubled_order)
        if run.parts is None or run.parts[0] != size:  # read from the device once per run
            run.parts = size, call.parts(latent)
        found = run.parts[1]
        if found % count and found > 1:
            self.notes.add(f"guidance branches were not skipped: one call holds {found} of them, not {count}")
        return found % count == 0

    def _spanned(self, loop: Loop, point: Point, call: ModelCall) -> Produce:
        """The call with its spans of blocks visited, unless it adds something between its blocks."""
        injected = [name for name in call.adapter.injected if call.arguments.get(name) is not None]
        if injected:
            self.notes.add(f"spans of blocks were not skipped: `{injected[0]}` is added between blocks")
            return _whole(call)

        def run() -> Value:
            walk = Walk(loop, point, self._layouts[id(call.model)], audit=self.plan.audit)
            with _walk(walk):
                streams = call.compute()
            return Value(streams, walk.exact, walk.dense)

        return run

    def _note(
        self, run: Run[Loop], place: Place, component: str, call: ModelCall, latent: Tensor, value: Value
    ) -> None:
        """Write the call into the run's ledger: what the run goes on with beside what the model gives."""
        assert run.ledger is not None
        used = true = value.streams[0]
        if not (value.exact and value.dense):
            with _walk(None):
                true = call.plain()[0]
        doubled = call.adapter.branches == "doubled" and self._doubled(run, place, call, latent)
        branches = call.adapter.doubled_order if doubled else (place.address.branch,)
        guidance = self._host.guidance(component, call.model)
        run.ledger.note(place.step, branches, guidance, latent=latent, used=used, true=true)


def _rows(streams: Streams, rows: slice) -> Streams:
    return tuple([stream[rows] for stream in streams])


def _whole(call: ModelCall) -> Produce:
    return lambda: Value(call.compute())


@contextmanager
def _walk(walk: Walk | None) -> Any:
    """The blocks that run inside belong to this walk; with `None` they run as they are."""
    token = _walking.set(walk)
    try:
        yield
    finally:
        _walking.reset(token)


class Walk:
    """The blocks of one call in progress: opens a visit where a span begins, closes it where the span ends.

    exact, dense: whether history, or an estimate, has gone into the streams so far.
    """

    def __init__(self, loop: Loop, point: Point, layout: Layout, *, audit: bool) -> None:
        self.exact = True
        self.dense = True
        self._loop = loop
        self._point = point
        self._layout = layout
        self._audit = audit
        self._beside = SideInputs(layout)
        self._ticket: Ticket | None = None

    def block(self, module: Any, forward: Forward, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One block: run, or passed over because its span was rebuilt at the span's first block."""
        layout = self._layout
        kind, span = layout.kinds[index], layout.begins.get(index)
        skipped = span is None and self._ticket is None and index in layout.inside
        if span is not None or skipped or index == 0:
            arguments = arguments_of(module, args, kwargs)
            streams = read_streams(kind, arguments)
            if index == 0:
                self._beside.begin(module, arguments, streams)
            if skipped:
                return pack(kind, streams)
            if span is not None:
                entering = Input(streams, exact=self.exact)
                ticket = self._ticket = self._loop.open(
                    layout.point(self._point, span, self._loop.store), entering, self._beside.at(span, streams)
                )
                if ticket.output is not None and not self._audit:
                    self._ticket = None
                    self._passed(ticket.output)
                    return pack(kind, ticket.output.streams)
        result = forward(*args, **kwargs)
        if self._ticket is not None and index in layout.ends:
            ticket, self._ticket = self._ticket, None
            made = read_result(kind, result)
            if ticket.output is not None:
                self._loop.audit(ticket, made)
                self._passed(ticket.output)
                return pack(kind, ticket.output.streams)
            self._passed(self._loop.close(ticket, Value(made, self.exact, self.dense)))
        return result

    def _passed(self, value: Value) -> None:
        self.exact, self.dense = value.exact, self.dense and value.dense

"""The blocks of a model: where they are, by its record or by watching a call; and a call that walks along them.

A visit opens where a span of blocks begins, and closes where it ends.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from attrs import evolve
from torch import Tensor

from mixcache.core.plan import Plan
from mixcache.core.points import Granularity, Point
from mixcache.core.policy import Policy
from mixcache.core.store import Store, Ticket
from mixcache.core.streams import Beside, Input, Streams, Value
from mixcache.errors import AttachError, ConfigurationError, PluginError, called
from mixcache.host.adapter import ModelAdapter
from mixcache.host.guidance import ModelCall
from mixcache.host.inspect import find_row, watched
from mixcache.host.latents import arguments_of
from mixcache.host.protocol import Forward
from mixcache.host.rows import BlockList, Row
from mixcache.host.sites import Asked, Layout, SideInputs, Span, Spans, pack, read_result, read_streams
from mixcache.host.walks import present, walking


class Visits(Protocol):
    """The loop, as who visits places knows it."""

    store: Store

    def open(self, point: Point, entering: Input, beside: Beside = ...) -> Ticket: ...

    def close(self, ticket: Ticket, output: Value) -> Value: ...

    def audit(self, ticket: Ticket, truth: Streams) -> float: ...


def on_block(module: Any, forward: Forward, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One block of a model: part of the call in progress in this thread or task, if that is cached."""
    walk = present()
    return forward(*args, **kwargs) if walk is None else walk.block(module, forward, index, args, kwargs)


class Walk:
    """The blocks of one call in progress.

    exact, dense: whether history, or an estimate, has gone into the streams so far. broken: the blocks before which
    something entered a span from elsewhere (a ControlNet's residual, say), which skipping the span would lose. invalid:
    whether a span was skipped that lost something.
    """

    def __init__(self, loop: Visits, point: Point, layout: Layout, *, audit: bool) -> None:
        self.exact = True
        self.dense = True
        self.broken: set[int] = set()
        self.invalid = False
        self._loop = loop
        self._point = point
        self._layout = layout
        self._audit = audit
        self._beside = SideInputs(layout)
        self._ticket: Ticket | None = None
        self._passed_on: dict[str, tuple[Tensor, int]] = {}
        self._lost = False
        self._span: Span | None = None

    def block(self, module: Any, forward: Forward, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One block: run, or passed over because its span was rebuilt at the span's first block."""
        layout = self._layout
        kind, span = layout.kinds[index], layout.begins.get(index)
        if index not in layout.inside and index != 0:
            return forward(*args, **kwargs)
        arguments = arguments_of(module, args, kwargs)
        streams = read_streams(kind, arguments)
        if index == 0:
            self._beside.begin(module, arguments, streams)
        if span is not None:
            entering = Input(streams, exact=self.exact)
            store = self._loop.store
            address = store.within(self._point.address, layout.paths[span])
            point = layout.point(self._point, span, address, store.counts(address, self._point.step))
            self._ticket = self._loop.open(point, entering, self._beside.at(span, streams))
            self._lost, self._span = False, span
            if self._ticket.output is not None and not self._audit:
                value, self._ticket = self._ticket.output, None
                self.exact, self.dense = value.exact, self.dense and value.dense
                return self._give(kind, value.streams)
        elif index in layout.inside and layout.inside[index] == self._span:  # some calls leave out blocks
            self._check(kind, index, streams)
            if self._ticket is None:
                return self._give(kind, streams)
        result = forward(*args, **kwargs)
        if self._ticket is None or layout.inside.get(index) != self._span:
            return result
        made = read_result(kind, result)
        self._note(kind, made)
        return self._leave(kind, made, result) if index in layout.ends else result

    def _leave(self, kind: BlockList, made: Streams, result: Any) -> Any:
        """The span that was visited ends here."""
        ticket, self._ticket, self._span = self._ticket, None, None
        assert ticket is not None
        if ticket.output is not None:  # audited: what was rebuilt goes on
            self._loop.audit(ticket, made)
            self.exact, self.dense = ticket.output.exact, self.dense and ticket.output.dense
            return pack(kind, ticket.output.streams)
        value = self._loop.close(ticket, Value(made, self.exact, self.dense))
        self.exact, self.dense = value.exact, self.dense and value.dense
        if self._lost:
            self._loop.store.release(ticket.point.address)
        return result

    def _give(self, kind: BlockList, streams: Streams) -> Any:
        """Streams that a block which is passed over hands on."""
        self._note(kind, streams)
        return pack(kind, streams)

    def _note(self, kind: BlockList, streams: Streams) -> None:
        self._passed_on = {name: (stream, _version(stream)) for name, stream in zip(kind.streams, streams)}

    def _check(self, kind: BlockList, index: int, streams: Streams) -> None:
        """What enters a block within a span must be what the block before it gave."""
        for name, entering in zip(kind.streams, streams):
            stream, version = self._passed_on.get(name, (entering, _version(entering)))
            if not _same(entering, stream) or _version(entering) != version:
                self.broken.add(index)
                self._lost = True
                self.invalid = self.invalid or self._ticket is None


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same values in the same places."""
    if one is other:
        return True
    return one.shape == other.shape and one.stride() == other.stride() and one.data_ptr() == other.data_ptr()


def _version(tensor: Tensor) -> int:
    """How often it was written into; not counted in inference mode."""
    return 0 if tensor.is_inference() else tensor._version


_found: weakref.WeakKeyDictionary[Any, Row] = weakref.WeakKeyDictionary()
"""What watching found, by model: it need not be found again."""


class Layouts:
    """Where the blocks of each model are, and the calls that walk along them.

    attach: puts hooks on the blocks of a layout. notes: gets what was seen and cannot be skipped.
    """

    def __init__(self, plan: Plan, notes: set[str]) -> None:
        self.attach: Callable[[Layout], None] = lambda layout: None
        self._plan = plan
        self._notes = notes
        self._layouts: dict[int, Layout | None] = {}
        self._rows: dict[int, Row] = {}

    def row(self, model: Any) -> Row | None:
        """The blocks of a model, with what was seen of them so far; `None` if nothing was."""
        layout = self._layouts.get(id(model))
        return self._rows.get(id(model)) if layout is None else layout.row

    def known(self, model: Any, adapter: ModelAdapter) -> Row | None:
        """The blocks of a model, if they are described or were found before."""
        if adapter.blocks:
            return Row.of(model, adapter.blocks)
        row = _found.get(model)
        alive = set(map(id, model.modules())) if row is not None else set()
        return row if row is not None and all(id(block) in alive for block in row.modules) else None

    def lay_out(self, models: Sequence[tuple[Any, ModelAdapter]]) -> None:
        """Lay out the models whose blocks are known; the others are watched at their first call.

        Raises `AttachError` where none of them has any list of blocks.
        """
        for model, adapter in models:
            row = self.known(model, adapter)
            if row is not None:
                self._lay(model, self._layout(model, adapter, row))
            elif not any(isinstance(one, torch.nn.ModuleList) and len(one) for one in model.modules()):
                self._layouts[id(model)] = None
        if all(self._layouts.get(id(model), ...) is None for model, _ in models):
            self._layout(*models[0], Row((), ()))  # says what is missing

    def run(self, call: ModelCall, adapter: ModelAdapter, loop: Visits, point: Point, *, audit: bool) -> None:
        """Compute a call, with its spans of blocks visited where they are known."""
        model = call.model
        if id(model) not in self._layouts:
            self._watch(call, adapter)
            return
        layout = self._layouts[id(model)]
        walk = None if layout is None else Walk(loop, point, layout, audit=audit)
        with walking(walk):
            call.run()
        if walk is None or layout is None:
            return
        call.exact, call.dense = walk.exact, walk.dense
        if walk.broken:
            self._cut(layout, walk.broken)
        if walk.invalid:  # what entered within a span that was passed over is lost: compute
            call.done = False
            with walking(None):
                call.run()
            call.exact = call.dense = True

    def _watch(self, call: ModelCall, adapter: ModelAdapter) -> None:
        """Compute a call, and find the blocks of the model by it."""
        seen: list[Any] = []
        with watched(call.model, seen):
            call.run()
        row = self._rows[id(call.model)] = find_row(call.model, seen)
        try:
            layout = self._layout(call.model, adapter, row)
            self._lay(call.model, layout)
        except AttachError as error:
            self._layouts[id(call.model)] = None
            self._notes.add(f"spans of blocks were not skipped: {error}")
        else:
            _found[call.model] = row

    def _layout(self, model: Any, adapter: ModelAdapter, row: Row) -> Layout:
        """Raises `AttachError`, and `ConfigurationError` for a span outside of the blocks."""
        plan, blocks = self._plan, len(row.kinds)
        deciding = plan.deciding(Granularity.BLOCK) if blocks else []
        wanted = tuple(span for policy in deciding for span in _spans(policy, model, blocks))

        def beside(span: Span, count: int) -> Asked:
            site = plan.site(Granularity.BLOCK, span, count)
            return tuple(plan.side_inputs[name] for name in sorted(site.side_inputs))

        return Layout.of(model, adapter, row, wanted, beside)

    def _lay(self, model: Any, layout: Layout) -> None:
        self.attach(layout)
        self._layouts[id(model)] = layout

    def _cut(self, layout: Layout, broken: set[int]) -> None:
        """Something enters within a span: no span may reach over that place any more."""
        row = evolve(layout.row, seams=layout.row.seams | broken)
        self._layouts[id(layout.model)] = self._layout(layout.model, layout.adapter, row)
        places = ", ".join(map(str, sorted(broken)))
        self._notes.add(f"something enters {type(layout.model).__name__} before block {places}; spans end there")


def _spans(policy: Policy, model: Any, blocks: int) -> Spans:
    """The spans that a policy asks for, checked."""
    label = policy.policy_name()
    spans = called(("policy", label), policy.spans, blocks)
    for span in spans:
        if not (isinstance(span, tuple) and len(span) == 2 and all(isinstance(i, int) for i in span)):
            raise PluginError(f"policy {label!r} must return pairs of whole numbers from spans(), got {span!r}.")
        if not 0 <= span[0] < span[1] <= blocks:
            raise ConfigurationError(
                f"policy {label!r} asks for blocks {span[0]} to {span[1]}, but {type(model).__name__} has {blocks}."
            )
    return tuple(spans)

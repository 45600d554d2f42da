"""The block layouts of the models of one session: from their records, or found by watching a first call."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from attrs import evolve

from mixcache.core.plan import Plan
from mixcache.core.points import Point
from mixcache.errors import AttachError
from mixcache.host.adapter import ModelAdapter
from mixcache.host.blocks import Walk, walking
from mixcache.host.guidance import ModelCall
from mixcache.host.inspect import Row, find_row, watched
from mixcache.host.protocol import Visits
from mixcache.host.sites import Layout

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
                self._lay(model, Layout.of(model, adapter, self._plan, row))
            elif not any(isinstance(one, torch.nn.ModuleList) and len(one) for one in model.modules()):
                self._layouts[id(model)] = None
        if all(self._layouts.get(id(model), ...) is None for model, _ in models):
            Layout.of(*models[0], self._plan, Row((), ()))  # says what is missing

    def run(self, call: ModelCall, loop: Visits, point: Point, *, audit: bool) -> None:
        """Compute a call, with its spans of blocks visited where they are known."""
        model = call.model
        if id(model) not in self._layouts:
            self._watch(call)
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

    def _watch(self, call: ModelCall) -> None:
        """Compute a call, and find the blocks of the model by it."""
        seen: list[Any] = []
        with watched(call.model, seen):
            call.run()
        row = find_row(call.model, seen)
        try:
            layout = Layout.of(call.model, call.adapter, self._plan, row)
            self._lay(call.model, layout)
        except AttachError as error:
            self._layouts[id(call.model)] = None
            self._notes.add(f"spans of blocks were not skipped: {error}")
        else:
            _found[call.model] = row

    def _lay(self, model: Any, layout: Layout) -> None:
        self.attach(layout)
        self._layouts[id(model)] = layout

    def _cut(self, layout: Layout, broken: set[int]) -> None:
        """Something enters within a span: no span may reach over that place any more."""
        row = evolve(layout.row, seams=layout.row.seams | broken)
        self._layouts[id(layout.model)] = Layout.of(layout.model, layout.adapter, self._plan, row)
        places = ", ".join(map(str, sorted(broken)))
        self._notes.add(f"something enters {type(layout.model).__name__} before block {places}; spans end there")

"""The guidance branches of one call of a model, as visits of the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor

from mixcache.core.points import Granularity, Point
from mixcache.core.streams import Input, Streams, Value, form_of
from mixcache.host.guidance import ModelCall
from mixcache.host.latents import equal_parts
from mixcache.host.own_loop import Run
from mixcache.host.protocol import Place
from mixcache.host.ranks import alike
from mixcache.host.sight import Branch, Sight
from mixcache.host.walks import walking

Produce = Callable[[], Value]

OFF = 1e-4
"""How far the conditional samples computed alone may be from those of the whole batch: relative, in L2."""


def visited(
    loop: Any,
    point: Point,
    entering: Input,
    produce: Produce,
    call: ModelCall,
    plain: Callable[[], Streams] | None = None,
    *,
    audit: bool,
) -> Produce:
    """`produce` with a visit of the loop around it. plain: computes what is reused, to audit it."""

    def visit() -> Value:
        ticket = loop.open(point, entering)
        if ticket.output is None:
            if call.done:
                ticket.started -= call.seconds
            closed: Value = loop.close(ticket, produce())
            return closed
        if audit:
            with walking(None):
                loop.audit(ticket, (plain or call.plain)())
        rebuilt: Value = ticket.output
        return rebuilt

    return visit


@frozen
class Guided:
    """One call of a model in a run, with its guidance branches. notes: gets why none of them can be skipped."""

    run: Run[Any]
    sight: Sight
    place: Place
    point: Point
    call: ModelCall
    audit: bool
    notes: set[str]

    @property
    def _towards(self) -> Branch | None:
        """The conditional branch: as it was seen, else as the host and the record of the model say."""
        sight, here = self.sight, len(self.sight.made) - 1
        known, towards = sight.guided(here)
        if known:
            return towards
        order = self.call.adapter.doubled_order
        if self.call.adapter.branches == "doubled" and self.run.schedule is None:
            return Branch(call=here, part=order.index("cond"), parts=len(order))
        if self.place.address.branch == "cond":
            return Branch(call=here, part=0, parts=1)
        named = sight.leading is not None and sight.leading[0] == self.place.step
        return Branch(call=here - 1, part=0, parts=1) if named else None  # a name that the host gave, no order of calls

    @property
    def leads(self) -> bool:
        """Whether the call is the conditional branch, with which others of its evaluation are compared."""
        towards = self._towards
        return towards is not None and towards.parts == 1 and towards.call == len(self.sight.made) - 1

    @property
    def names(self) -> list[str]:
        """The branches that the call holds, by name."""
        towards = self._towards
        if towards is None or towards.parts == 1 or towards.call != len(self.sight.made) - 1:
            return [self.place.address.branch]
        if equal_parts(self.call.anchors[0]) % towards.parts:
            return [self.place.address.branch]
        return ["cond" if i == towards.part else "uncond" for i in range(towards.parts)]

    def around(self, produce: Produce) -> Produce:
        """The call with visits of its guidance branches, where it is known which is the conditional one."""
        towards = self._towards
        if towards is None or self.leads:
            return produce
        if towards.call == len(self.sight.made) - 1:
            return self._in_one_batch(towards, produce)
        return self._beside(produce)

    def _visited(
        self, point: Point, entering: Input, produce: Produce, plain: Callable[[], Streams] | None = None
    ) -> Produce:
        return visited(self.run.memory, point, entering, produce, self.call, plain, audit=self.audit)

    def _beside(self, produce: Produce) -> Produce:
        """Another branch than the conditional one, in a call of its own."""
        step, value = self.sight.leading or (-1, None)
        if value is None or step != self.place.step or value.streams[0].shape[0] != self.call.anchors[0].shape[0]:
            return produce
        measured = len(self.call.anchors)  # not what stands beside the predictions
        entering = Input(value.streams, exact=value.exact, done=self.call.done, measured=measured)
        address = self.run.memory.store.within(self.point.address, "cfg")
        here = evolve(self.point, granularity=Granularity.CFG, address=address, leads=self.place.ordinal == 1)
        return self._visited(here, entering, produce)

    def _in_one_batch(self, towards: Branch, produce: Produce) -> Produce:
        """One call over all branches: on a reuse only the conditional part is computed, the caller sees the whole.

        Computing runs the whole batch in one call, so that it stays exact; the conditional part is known beforehand
        only if a signal asks for it (which then costs a computed step that part twice). The first time in a run that
        part is computed alone as well, and must be what the whole call gave: else the level is refused.
        """
        sight, call, point = self.sight, self.call, self.point
        latent = call.anchors[0]
        count = towards.parts
        if sight.parts is None or sight.parts[0] != latent.shape[0]:  # read from the device once per run
            sight.parts = latent.shape[0], equal_parts(latent)
            sight.proven = None if all(alike([sight.parts[1] % count], sight.group, latent)) else False
        if sight.parts[1] % count or sight.proven is False:
            return produce
        rows = latent.shape[0] // count
        cuts = [slice(i * rows, (i + 1) * rows) for i in range(count)]
        others = [i for i in range(count) if i != towards.part]
        whole: list[Value] = []

        def conditional() -> Streams:
            if whole:
                return _rows(whole[0].streams, cuts[towards.part])
            entering.paid = 1 / count
            return call.compute_rows(cuts[towards.part], deep=sight.deep)

        form = form_of(_rows(call.anchors, cuts[towards.part]))
        entering = Input(conditional, form, done=call.done, measured=len(call.anchors))

        def computed(i: int) -> Value:
            if not whole:
                whole.append(produce())
            value = whole[0]
            return Value(_rows(value.streams, cuts[i]), value.exact, value.dense)

        def run_all() -> Value:
            if sight.proven is None:
                entering.paid = 1 / count
                if not self._proven(cuts[towards.part], produce, whole):
                    return whole[0]
            values: dict[int, Value] = {}
            done: set[int] = set()
            for place_of, i in enumerate(others):
                name = "uncond" if count == 2 else f"branch{i}"
                address = evolve(point.address, branch=name, path="cfg")
                here = evolve(point, granularity=Granularity.CFG, address=address, leads=place_of == 0, share=1 / count)

                def compute(i: int = i) -> Value:
                    done.add(i)
                    return computed(i)

                def plain(i: int = i) -> Streams:
                    return _rows(call.plain(), cuts[i])

                values[i] = self._visited(here, entering, compute, plain)()
            clean = not whole or (whole[0].exact and whole[0].dense)
            if len(done) == len(values) and clean:
                return whole[0]
            alone = clean or entering.paid > 0.0  # computed by itself
            values[towards.part] = Value(entering.get(), alone, alone)
            joined = tuple(map(torch.cat, zip(*(values[i].streams for i in range(count)))))
            return Value(joined, all(v.exact for v in values.values()), all(v.dense for v in values.values()))

        return run_all

    def _proven(self, cut: slice, produce: Produce, whole: list[Value]) -> bool:
        """Whether the conditional samples alone give what they give in the whole batch; the whole is computed."""
        sight = self.sight
        whole.append(produce())
        if not (whole[0].exact and whole[0].dense):
            return False  # nothing to compare with in this evaluation
        sight.proven, off = False, ""
        for deep in (False, True):
            right = False
            try:
                with walking(None):
                    alone = self.call.compute_rows(cut, deep=deep)
            except Exception as error:  # whatever the model says to a batch that it does not expect
                off = off or f"the model fails on them: {type(error).__name__}: {error}"
            else:
                errors = [_off(a, b) for a, b in zip(alone, _rows(whole[0].streams, cut))]
                right = max(errors) <= max(OFF, 4 * torch.finfo(alone[0].dtype).eps)
                off = f"they are off by {max(errors):.2g}"
            if all(alike([right], sight.group, self.call.anchors[0])) and right:
                sight.proven, sight.deep = True, deep
                break
        if not sight.proven:
            self.notes.add(
                f"guidance branches were not skipped: the conditional samples computed alone are not what the whole "
                f"batch gives ({off})"
            )
        return bool(sight.proven)


def _rows(streams: Streams, rows: slice) -> Streams:
    return tuple([stream[rows] for stream in streams])


def _off(alone: Tensor, whole: Tensor) -> float:
    if alone.shape != whole.shape:
        return float("inf")
    norm = float(torch.linalg.vector_norm(whole.double()))
    return float(torch.linalg.vector_norm(alone.double() - whole.double())) / max(norm, 1e-30)

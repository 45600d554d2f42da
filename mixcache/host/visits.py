"""A visit of the loop around whatever computes its place."""

from __future__ import annotations

from collections.abc import Callable

from mixcache.core.points import Point
from mixcache.core.streams import Input, Streams, Value
from mixcache.host.blocks import walking
from mixcache.host.guidance import ModelCall
from mixcache.host.protocol import Visits

Produce = Callable[[], Value]


def visited(
    loop: Visits,
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
            return loop.close(ticket, produce())
        if audit:
            with walking(None):
                loop.audit(ticket, (plain or call.plain)())
        return ticket.output

    return visit

"""The real loop without a model: what policies decide if their signals have the values they are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from mixcache.core import catalogue
from mixcache.core.basis import Residual
from mixcache.core.forecast.polynomial import Hold
from mixcache.core.loop import Loop
from mixcache.core.plan import Plan
from mixcache.core.points import Address, Granularity, NoiseLevel, Point, Reading, RunInfo
from mixcache.core.policy import Policy
from mixcache.core.readout import Readout
from mixcache.core.rules import Rule, unanimous
from mixcache.core.signals import Signal, summed
from mixcache.core.store import Ticket
from mixcache.core.streams import Input, Value
from mixcache.core.trace import Record
from mixcache.errors import ConfigurationError

BLOCKS = 12
"""How many blocks the pretended model has."""

_ZERO = (torch.zeros(1),)


class _Told(Readout):
    """Signals that have the values they are told in the place of measured ones."""

    now: Reading = MappingProxyType({})

    def before(self, ticket: Ticket) -> list[dict[str, Tensor]]:
        gauge = ticket.site.gauge
        return [self._told([signal for signal in (*gauge.before, *gauge.after) if signal.when != "reused"])]

    def _told(self, signals: Sequence[Signal]) -> dict[str, Tensor]:
        found = {signal.name: self.now.get(signal.name) for signal in signals}
        return {n: torch.tensor([v], dtype=torch.float64) for n, v in found.items() if v is not None}

    def after(self, ticket: Ticket, output: Value, storing: bool, rebuild: Callable[[], Value | None]) -> None:
        gauge = ticket.site.gauge
        if not output.exact:
            track = ticket.slot.tracked(1)[0]
            track.after = self._told([signal for signal in gauge.after if signal.when == "reused"])
            if gauge.learns:
                self.learn(ticket, track, track.after)


def asked(policy: Policy) -> tuple[str, ...]:
    """The names of the signals that are measured for a policy: what `simulate` takes values of."""
    names: dict[str, None] = {}
    for one in policy.signals:
        if isinstance(one, Signal):
            names.update(dict.fromkeys(one.requires if one.derive is not None else (one.name,)))
        else:
            inner = summed(one) or one
            if not any(isinstance(own, Signal) and own.name == inner for own in policy.signals):
                names[inner] = None
    return tuple(names)


def simulate(
    policies: Sequence[Policy],
    readings: Sequence[Reading],
    *,
    branches: Sequence[str] = ("cond",),
    rule: Rule = unanimous,
    index: int = 0,
    blocks: int = BLOCKS,
) -> list[Record]:
    """The records of one run in which the signals had these values: the real loop without a model.

    readings: one per call of the model, that is one for every branch of every step in turn; a signal left out, or
    `None`, has no value there. The run has `len(readings) / len(branches)` evaluations, which must be a whole number.
    A call visits its step, around its guidance branch (of several, all but the first; one alone is taken for the
    unconditional one), around the spans of `blocks` blocks, wherever a policy decides. What is reused is not visited
    inside.
    """
    num_steps, rest = divmod(len(readings), len(branches))
    if rest or not num_steps:
        raise ConfigurationError(f"`readings` must hold {len(branches)} for every step, got {len(readings)} in all.")
    plan = Plan(
        policies=tuple(policies),
        rule=rule,
        build=catalogue.build,
        signals=catalogue.signals(),
        side_inputs=catalogue.side_inputs(),
        basis=dict.fromkeys(Granularity, Residual()),
        forecast=dict.fromkeys(Granularity, Hold()),
    )
    records: list[Record] = []
    levels = tuple([NoiseLevel.flow(1.0 - step / num_steps) for step in range(num_steps)])
    loop = Loop(plan, RunInfo(index=index, num_steps=num_steps, levels=levels), records.append)
    loop.readout = told = _Told(plan.samples, plan.group)
    deciding = [policy for policy in policies if not policy.guard] or policies  # guards alone are tried everywhere
    used = frozenset(granularity for policy in deciding for granularity in policy.granularities)
    spans = _pieces([policy for policy in deciding if Granularity.BLOCK in policy.granularities], blocks)
    for call, reading in enumerate(readings):
        step, branch = divmod(call, len(branches))
        told.now = dict(reading)
        _call(loop, used, spans, blocks, step, num_steps, branches, branch)
    loop.end()
    return records


def _pieces(policies: Sequence[Policy], blocks: int) -> tuple[tuple[int, int], ...]:
    """The blocks, cut wherever a policy asks for it."""
    asked_for = [span for policy in policies for span in policy.spans(blocks)]
    cuts = sorted({cut for span in asked_for for cut in span})
    return tuple((a, b) for a, b in pairwise(cuts) if any(x <= a and b <= y for x, y in asked_for))


def _call(
    loop: Loop,
    used: frozenset[Granularity],
    spans: Sequence[tuple[int, int]],
    blocks: int,
    step: int,
    num_steps: int,
    branches: Sequence[str],
    branch: int,
) -> None:
    """One call of the pretended model, visit by visit, from the outside in."""

    def point(granularity: Granularity, path: str, **more: Any) -> Point:
        leads = branch == (granularity is Granularity.CFG and len(branches) > 1)
        return Point(
            granularity=granularity,
            step=step,
            num_steps=num_steps,
            address=Address(branch=branches[branch], path=path),
            level=loop.run.levels[step] if loop.run.levels else None,
            **{"leads": leads, **more},
        )

    tickets: list[Ticket] = []
    outer = [(Granularity.STEP, "step"), (Granularity.CFG, "cfg")]
    for granularity, path in outer:
        if granularity in used and (granularity is Granularity.STEP or branch > 0 or len(branches) == 1):
            tickets.append(loop.open(point(granularity, path), Input(_ZERO)))
            if tickets[-1].output is not None:
                tickets.pop()
                break
    else:
        exact = True
        for span in spans:
            here = point(Granularity.BLOCK, f"blocks[{span[0]}:{span[1]}]", span=span, blocks=blocks)
            ticket = loop.open(here, Input(_ZERO, exact=exact))
            exact = (ticket.output or loop.close(ticket, Value(_ZERO, exact))).exact
        for ticket in reversed(tickets):
            exact = loop.close(ticket, Value(_ZERO, exact)).exact
        return
    for ticket in reversed(tickets):
        loop.close(ticket, Value(_ZERO, exact=False))

"""Replay: what policies would have decided on the visits of a recorded trace, without the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve

from mixcache.core.panel import Panel, Seat
from mixcache.core.points import Granularity, Verdict
from mixcache.core.policy import Policy
from mixcache.core.rules import decide
from mixcache.core.tables import Calibrations
from mixcache.core.trace import Record, Trace, read
from mixcache.errors import TraceError
from mixcache.recipe import Recipe


def replay(trace: Trace | str | Path, policies: Any = None, rule: Any = None) -> Iterator[Verdict]:
    """The verdicts that policies reach on the recorded readings, one per record.

    trace: as read, or its file. policies: in any form that `mixcache.enable` takes; by default the recipe that the
    trace's header names. That recipe is replayed as it was calibrated; any other has to bring its tables
    (`teacache:table=FILE`). rule: by default the recipe's.

    What the policies observe is what happened when the trace was recorded. So the policies that made the trace reach
    the recorded verdicts (law 8), and others are judged on the path that it took. Raises `TraceError` for a policy that
    decides where the trace holds no visits, and for a signal that it lacks.
    """
    if not isinstance(trace, Trace):
        trace = read(trace)
    recipe = None if policies is None else Recipe.of(policies)
    own = recipe is None or _made(trace, recipe)
    if own and trace.header is not None:
        recipe = Recipe.parse(trace.header.calibrated)
    if recipe is None:
        raise TraceError("the trace has no header that names its recipe; say which policies to replay.")
    if not own:
        _check_places(recipe.policies, trace.records)
    plan = (recipe if rule is None else evolve(recipe, rule=rule)).plan().calibrated(Calibrations())
    return _verdicts(trace.records, plan.policies, plan.rule, own)


def _made(trace: Trace, recipe: Recipe) -> bool:
    """Whether the trace's header names this recipe."""
    return trace.header is not None and str(recipe) in (trace.header.recipe, trace.header.calibrated)


def _check_places(policies: Iterable[Policy], records: Sequence[Record]) -> None:
    """Every policy that is no guard must find its granularities, and at least one of its places, in the trace."""
    held = {record.point.granularity for record in records}
    places = list({record.point.address: record.point for record in records}.values())
    for policy in policies:
        if policy.guard or not records:
            continue
        missing = sorted(set(policy.granularities) - held, key=list(Granularity).index)
        if missing:
            raise TraceError(
                f"policy {policy.policy_name()!r} decides at {', '.join(map(str, missing))}; the trace holds visits at "
                f"{', '.join(sorted(map(str, held)))} alone. Record one with a policy that decides there."
            )
        if not any(policy.covers(point) for point in places):
            raise TraceError(
                f"policy {policy.policy_name()!r} decides about none of the places in the trace: "
                f"{', '.join(sorted({point.path for point in places}))}."
            )


def _verdicts(records: Sequence[Record], policies: Sequence[Policy], rule: Any, own: bool) -> Iterator[Verdict]:
    panels: dict[int, Panel] = {}
    names: set[str] = set()
    for record in records:
        panel = panels.get(record.run)
        if panel is None:
            panel = panels[record.run] = Panel(policies, record.run_info)
            panel.started()
        seats = panel.seats(record.point)
        for seat in seats:
            _check_signals(seat, record)
        names.update(seat.label for seat in seats)
        for late in record.learned:
            panel.learn(late.point, late.reading)
        votes = panel.vote(record.point, record.reading)
        # what plugins voted through a hook is not asked again: their recorded votes stand
        hooked = [vote for vote in record.votes if own and vote.policy not in names]
        verdict = decide([*votes, *hooked], rule)
        yield verdict
        panel.observe(record.point, record.outcome, (verdict.forecast, verdict.anchor))
        if verdict.reuse != record.verdict.reuse and record.point.leads:
            for seat in seats:  # the other branches of this step follow the verdict that was reached here
                seat.reused = verdict.reuse


def _check_signals(seat: Seat, record: Record) -> None:
    """A policy that leads here must find in the trace all that it reads."""
    if not record.point.leads and seat.policy.branches != "independent":
        return
    lacking = [name for name in seat.policy.signal_names if name not in record.reading]
    if lacking:
        raise TraceError(f"the trace lacks signals that {seat.label!r} reads: {', '.join(lacking)}.")

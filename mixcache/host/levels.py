"""What the first evaluation of a model showed about its noise levels."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from mixcache.core.plan import Plan
from mixcache.core.points import Granularity
from mixcache.host.noise import agreed, implied, unsigned
from mixcache.host.own_loop import Run
from mixcache.host.protocol import Place
from mixcache.host.shown import Facts

UNLEVELED = (
    "nothing was reused in a basis that needs noise levels: the first step that the noise scheduler took is not the "
    "one that its noise levels imply. It draws fresh noise, or what the model returns is combined in a way that is not "
    "known; use basis='residual' or 'output', or a deterministic noise scheduler"
)
"""What a report says where a basis such as `noise` has no ground to stand on."""


def know(run: Run[Any], component: str, facts: Facts, first: Place, now: Place | None, plan: Plan) -> set[str]:
    """Take what the first evaluation of a model showed about its noise levels; returns what is to be noted.

    first, now: the place of that evaluation, and of the one that follows it.
    """
    if run.schedule is not None and run.told_sigma is None:
        index, told = run.schedule.begin + first.step, run.schedule.levels
        found = None
        if facts.moved is not None and facts.solver is not None:
            found = agreed(facts.solver, index, facts.moved, facts.rough, told)
        elif facts.sign is not None and run.verified is not None:  # a second expert, in the middle of a run
            levels, sign = run.verified
            turn = 1.0 if sign == facts.sign else -1.0
            found = tuple(None if one is None else evolve(one, sign=turn * (one.sign or 0.0)) for one in levels)
        run.levels[component] = unsigned(told) if found is None else found
        wanted = found is None
        if found is not None and facts.sign is not None:
            run.verified = found, facts.sign
    else:
        level, after = first.level, None if now is None else now.level
        wanted = False
        if facts.moved is not None and level is not None and after is not None:
            run.signs[component] = next(
                (
                    sign
                    for sign in (1.0, -1.0)
                    if implied(evolve(level, sign=sign), (after.alpha, after.sigma), facts.moved, facts.rough)
                ),
                None,
            )
            wanted = run.signs[component] is None
    return {UNLEVELED} if wanted and plan.needs_level(Granularity.STEP, Granularity.CFG) else set()

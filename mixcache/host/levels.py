"""What the first evaluation of a model showed about its noise levels."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from mixcache.core.plan import Plan
from mixcache.core.points import Granularity
from mixcache.host.noise import agreed, implied, unsigned
from mixcache.host.own_loop import Run
from mixcache.host.protocol import Place
from mixcache.host.ranks import alike
from mixcache.host.shown import Facts

UNLEVELED = (
    "nothing was reused in a basis that needs noise levels: the first step that the noise scheduler took is not the "
    "one that its noise levels imply. It draws fresh noise, or what the model returns is combined in a way that is not "
    "known; use basis='residual' or 'output', or a deterministic noise scheduler"
)
"""What a report says where a basis such as `noise` has no ground to stand on."""


def know(run: Run[Any], component: str, facts: Facts, first: Place, now: Place | None, plan: Plan) -> set[str]:
    """Take what the first evaluation of a model showed about its noise levels; returns what is to be noted.

    first, now: the place of that evaluation, and of the one that follows it. Ranks that share the model take only what
    all of them could make out.
    """
    known = _known(run, component, facts, first, now)
    like = next((one.outputs[0] for one in run.sight.made if one.outputs), None)
    if now is not None and like is not None and not all(alike([known], plan.group, like)):
        known = False
    if not known and run.schedule is not None and run.told_sigma is None:
        run.levels[component] = unsigned(run.schedule.levels)
    elif not known:
        run.signs[component] = None
    return set() if known or not plan.needs_level(Granularity.STEP, Granularity.CFG) else {UNLEVELED}


def _known(run: Run[Any], component: str, facts: Facts, first: Place, now: Place | None) -> bool:
    """Whether the noise levels, or the sign of the prediction, could be made out; unless there was nothing to see."""
    if run.schedule is not None and run.told_sigma is None:
        index, told = run.schedule.begin + first.step, run.schedule.levels
        found = None
        if facts.moved is not None and facts.solver is not None:
            found = agreed(facts.solver, index, facts.moved, facts.rough, told)
        elif facts.sign is not None and run.verified is not None:  # a second expert, in the middle of a run
            levels, sign = run.verified
            turn = 1.0 if sign == facts.sign else -1.0
            found = tuple(None if one is None else evolve(one, sign=turn * (one.sign or 0.0)) for one in levels)
        if found is None:
            return False
        run.levels[component] = found
        if facts.sign is not None:
            run.verified = found, facts.sign
        return True
    level, after = first.level, None if now is None else now.level
    if facts.moved is None or level is None or after is None:
        return True
    run.signs[component] = next(
        (
            sign
            for sign in (1.0, -1.0)
            if implied(evolve(level, sign=sign), (after.alpha, after.sigma), facts.moved, facts.rough)
        ),
        None,
    )
    return run.signs[component] is not None

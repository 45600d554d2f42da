"""Run a model once with mixcache on, to see where its latent is, how its branches are combined, and its blocks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from attrs import frozen

from mixcache.bench.found import Evaluation, Found
from mixcache.bench.loading import Model, first_line
from mixcache.core.points import Granularity, Point, Reading, Vote
from mixcache.core.policy import Policy
from mixcache.errors import AttachError, ConfigurationError, MixcacheError, NothingReusedWarning
from mixcache.host.adapter import ModelAdapter
from mixcache.host.levels import UNLEVELED
from mixcache.session import Session, enable

EXPECTED = ("nothing was reused", "'watching' decided nothing", "spans of blocks were not skipped")
"""How notes begin that say what this run is for, or what is told beside them."""


@frozen(kw_only=True)
class Watching(Policy):
    """Visits every level and never reuses. levels: which."""

    levels: frozenset[Granularity] = frozenset((Granularity.STEP, Granularity.CFG, Granularity.BLOCK))

    @property
    def granularities(self) -> frozenset[Granularity]:
        """All of them."""
        return self.levels

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Compute."""
        return Vote.compute("only watched")


def inspect(target: Any, denoise: Callable[[Session], Any]) -> tuple[Found, ...]:
    """What watching shows of every denoiser of a pipeline, or of a model, in one run.

    denoise: makes the run; it is given the session, for `session.run` in a loop of one's own. At least three
    evaluations show most. Nothing is reused, and no record of a plugin is asked. Raises `AttachError` as `enable` does.
    """
    try:
        session = _enabled(target, Watching())
    except AttachError:  # no list of blocks anywhere
        session = _enabled(target, Watching(levels=frozenset((Granularity.STEP, Granularity.CFG))))
    with session, warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingReusedWarning)
        denoise(session)
    notes = tuple(note for note in session.report().notes if not note.startswith(EXPECTED) and note != UNLEVELED)
    return tuple(_found(session, name, notes) for name in session.seen())


def inspect_pipeline(model: Model, prompt: str, seed: int = 0, **arguments: Any) -> tuple[Found, ...]:
    """What watching shows of every denoiser of a loaded pipeline, in one call of it; nothing is decoded.

    arguments: of the pipeline's call. Raises `ConfigurationError` for a call that it refuses.
    """
    call = {"prompt": prompt, "generator": torch.Generator("cpu").manual_seed(seed), "output_type": "latent"}
    taken = signature(model.pipeline.__call__).parameters
    call = {name: value for name, value in call.items() if name in taken} | arguments

    def denoise(_: Session) -> None:
        try:
            model.pipeline(**call)
        except MixcacheError:
            raise
        except (TypeError, ValueError) as error:
            kind = type(model.pipeline).__name__
            raise ConfigurationError(f"{kind} refused the call: {first_line(error)}") from error

    return inspect(model.pipeline, denoise)


def _enabled(target: Any, policy: Policy) -> Session:
    return enable(target, policy, adapter=ModelAdapter(model="watched", generic=True))


def _found(session: Session, component: str, notes: tuple[str, ...]) -> Found:
    model, run, row = session.seen()[component]
    if run is None:
        return Found(component=component, model=model, row=row, notes=notes)
    facts = run.sight.facts.get(component)
    seen = [record.point.level for record in session.records if record.point.component == component]
    return Found(
        component=component,
        model=model,
        called=True,
        facts=facts,
        how=tuple(Evaluation(calls, how) for calls, how in run.sight.how.items() if component in dict(calls)),
        proven=run.sight.proven,
        level=run.level(component, 0, None) if run.schedule is not None else next(iter(seen), None),
        solver=None if facts is None or facts.solver is None else type(facts.solver).__name__,
        watched=run.schedule is not None,
        row=row,
        notes=notes,
    )

"""Every hook of mixcache, in one place.

Set-up hooks return what a plugin contributes, by name; they are called once a plugin is registered. Run-time hooks are
called while a model runs. A plugin is a module or an object whose methods carry `@mixcache.hookimpl`; installed
packages announce theirs in the entry-point group `mixcache`, a script calls `mixcache.register(...)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from mixcache.adapter import ModelAdapter, PipelineFolder
    from mixcache.basis import Basis
    from mixcache.forecast import Forecaster
    from mixcache.points import Outcome, Point, Reading, RunInfo, Vote
    from mixcache.policy import Policy
    from mixcache.signals import Signal
    from mixcache.voting import Rule

hookspec = pluggy.HookspecMarker("mixcache")
hookimpl = pluggy.HookimplMarker("mixcache")


@hookspec
def mixcache_policies() -> list[type[Policy]]:  # type: ignore[empty-body]
    """Policy classes this plugin offers; each is known by its `policy_name()`."""


@hookspec
def mixcache_bases() -> list[type[Basis]]:  # type: ignore[empty-body]
    """Basis classes, known by their `name`."""


@hookspec
def mixcache_forecasters() -> list[type[Forecaster]]:  # type: ignore[empty-body]
    """Forecaster classes, known by their `name`."""


@hookspec
def mixcache_rules() -> dict[str, Rule]:  # type: ignore[empty-body]
    """Voting rules by name."""


@hookspec
def mixcache_signals() -> list[Signal]:  # type: ignore[empty-body]
    """Signals that policies may name in their `signals`."""


@hookspec
def mixcache_models() -> list[ModelAdapter | PipelineFolder]:  # type: ignore[empty-body]
    """Adapters of transformer classes, and pipeline folders that can be loaded by name."""


@hookspec
def mixcache_run_started(run: RunInfo) -> None:
    """A denoising run begins; nothing of an earlier one is remembered."""


@hookspec
def mixcache_vote(point: Point, reading: Reading) -> Vote | None:
    """What this plugin wants at `point`, given the scalars measured there; `None` where it has nothing to say."""


@hookspec
def mixcache_observe(point: Point, outcome: Outcome) -> None:
    """What came of `point`."""


@hookspec
def mixcache_run_ended(run: RunInfo) -> None:
    """The run is over: it reached its end, another began, it failed, or the session was disabled."""

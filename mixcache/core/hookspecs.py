"""Every hook of mixcache, in one place.

Set-up hooks return what a plugin contributes, by name; they are called once per plugin. Run-time hooks are called while
a model runs. A plugin is a module or an object whose methods carry `@mixcache.hookimpl`; installed packages announce
theirs in the entry-point group `mixcache`, a script calls `mixcache.register(...)`.
"""

from __future__ import annotations

from typing import Any

from mixcache.core.anchors import Anchor
from mixcache.core.basis import Basis
from mixcache.core.forecast.base import Forecaster
from mixcache.core.hooks import hookspec
from mixcache.core.metrics import Metric
from mixcache.core.points import Outcome, Point, Reading, RunInfo, Vote
from mixcache.core.policy import Policy
from mixcache.core.rules import Rule
from mixcache.core.signals import SideInput, Signal


@hookspec
def mixcache_policies() -> list[type[Policy]]:  # type: ignore[empty-body]
    """Policy classes this plugin offers; each is known by its `policy_name()`.

    What `mixcache tune` may vary of one, its fields say: `metadata=tunable(0.01, 0.5, log=True)`.
    """


@hookspec
def mixcache_bases() -> list[type[Basis]]:  # type: ignore[empty-body]
    """Basis classes, known by their `name`."""


@hookspec
def mixcache_forecasters() -> list[type[Forecaster]]:  # type: ignore[empty-body]
    """Forecaster classes, known by their `name`."""


@hookspec
def mixcache_anchors() -> list[type[Anchor]]:  # type: ignore[empty-body]
    """Anchor classes, known by their `name`."""


@hookspec
def mixcache_rules() -> dict[str, Rule]:  # type: ignore[empty-body]
    """Voting rules by name."""


@hookspec
def mixcache_signals() -> list[Signal]:  # type: ignore[empty-body]
    """Signals that policies may name in their `signals`."""


@hookspec
def mixcache_side_inputs() -> list[SideInput]:  # type: ignore[empty-body]
    """Tensors that signals and forecasters may ask for beside what enters a place, by name."""


@hookspec
def mixcache_models() -> list[Any]:  # type: ignore[empty-body]
    """`ModelAdapter`s of transformer classes, and `PipelineFolder`s that can be loaded by name."""


@hookspec
def mixcache_calibrators() -> list[Any]:  # type: ignore[empty-body]
    """`mixcache.study.Calibrator`s: how the tables that policies and forecasters read are measured."""


@hookspec
def mixcache_metrics() -> list[Metric]:  # type: ignore[empty-body]
    """What `mixcache compare` measures of every clip, beside the speed; each is a column of its table."""


@hookspec
def mixcache_recipe() -> str:  # type: ignore[empty-body]
    """The recipe, as text, by which `mixcache.enable(pipe)` caches if it is given none; the latest plugin's holds."""


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

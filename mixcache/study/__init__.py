"""Thinking: what a recorded run says about other policies, and what a model says about a policy's table.

    from mixcache import bench, study

    trace = mixcache.trace.read("run.jsonl")
    for verdict in study.replay(trace, "easycache:threshold=0.1"):  # no model is needed
        print(verdict.reuse, verdict.reason)

    model = bench.load("tiny_wan")
    table, summary = study.calibrate(study.Job(calibrator="magcache", model=model))
    study.save_calibration("magcache.json", table)

Whoever brings a policy that reads a table brings a `Calibrator` with it: `Observing` fits the table to signals,
`Probing` measures how much an error at each step does to the result. Importing this room is cheap: a name is loaded
when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixcache.core.tables import Fit
    from mixcache.study.calibration import Calibrator, Job, calibrate, find_calibrator
    from mixcache.study.influence import Probing
    from mixcache.study.observing import Observed, Observing
    from mixcache.study.replaying import replay
    from mixcache.study.tables import save_calibration

_NAMES = {
    "Calibrator": "mixcache.study.calibration",
    "Fit": "mixcache.core.tables",
    "Job": "mixcache.study.calibration",
    "Observed": "mixcache.study.observing",
    "Observing": "mixcache.study.observing",
    "Probing": "mixcache.study.influence",
    "calibrate": "mixcache.study.calibration",
    "find_calibrator": "mixcache.study.calibration",
    "replay": "mixcache.study.replaying",
    "save_calibration": "mixcache.study.tables",
}

__all__ = [
    "Calibrator",
    "Fit",
    "Job",
    "Observed",
    "Observing",
    "Probing",
    "calibrate",
    "find_calibrator",
    "replay",
    "save_calibration",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return __all__

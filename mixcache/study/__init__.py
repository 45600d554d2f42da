"""Thinking: what a recorded run says about other policies, and what a model says about a policy's table.

    from mixcache import bench, study

    trace = mixcache.trace.read("run.jsonl")
    for verdict in study.replay(trace, "easycache:threshold=0.1"):  # no model is needed
        print(verdict.reuse, verdict.reason)

    model = bench.load("tiny_wan")
    table, summary = study.calibrate(study.Job(calibrator="magcache", model=model))
    study.save_calibration("magcache.json", table)

    runs = [study.record(model, prompt) for prompt in model.tuning[:6]]  # one uncached run each, as numbers
    masks = study.search(runs, evaluations=18, basis="noise", forecast="linear")  # priced without any further run
    best = study.check(model, masks, model.tuning[:6])[0]  # and run for real

    found = study.tune(model, "psnr>=40", folder="tuning")  # searched on tuning prompts, tried on held-out ones
    print(*found.lines(), sep="\n")
    found.save("tuned.toml")  # mixcache.enable(pipe, "tuned.toml")

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
    from mixcache.study.oracles import Best, Regret, budgets, regret
    from mixcache.study.pricing import Pricing
    from mixcache.study.recording import Recording
    from mixcache.study.replaying import replay
    from mixcache.study.running import check, oracle, record
    from mixcache.study.searching import Found, price, search
    from mixcache.study.tables import save_calibration
    from mixcache.study.trying import Checked, Trial, rank_correlation
    from mixcache.study.tuning import tune
    from mixcache.study.verdicts import Tuning
    from mixcache.study.watching import observer

_NAMES = {
    "Best": "mixcache.study.oracles",
    "Calibrator": "mixcache.study.calibration",
    "Checked": "mixcache.study.trying",
    "Fit": "mixcache.core.tables",
    "Found": "mixcache.study.searching",
    "Job": "mixcache.study.calibration",
    "Observed": "mixcache.study.observing",
    "Observing": "mixcache.study.observing",
    "Pricing": "mixcache.study.pricing",
    "Probing": "mixcache.study.influence",
    "Recording": "mixcache.study.recording",
    "Regret": "mixcache.study.oracles",
    "Trial": "mixcache.study.trying",
    "Tuning": "mixcache.study.verdicts",
    "budgets": "mixcache.study.oracles",
    "calibrate": "mixcache.study.calibration",
    "check": "mixcache.study.running",
    "find_calibrator": "mixcache.study.calibration",
    "observer": "mixcache.study.watching",
    "oracle": "mixcache.study.running",
    "price": "mixcache.study.searching",
    "rank_correlation": "mixcache.study.trying",
    "record": "mixcache.study.running",
    "regret": "mixcache.study.oracles",
    "replay": "mixcache.study.replaying",
    "save_calibration": "mixcache.study.tables",
    "search": "mixcache.study.searching",
    "tune": "mixcache.study.tuning",
}

__all__ = [
    "Best",
    "Calibrator",
    "Checked",
    "Fit",
    "Found",
    "Job",
    "Observed",
    "Observing",
    "Pricing",
    "Probing",
    "Recording",
    "Regret",
    "Trial",
    "Tuning",
    "budgets",
    "calibrate",
    "check",
    "find_calibrator",
    "observer",
    "oracle",
    "price",
    "rank_correlation",
    "record",
    "regret",
    "replay",
    "save_calibration",
    "search",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return __all__

"""Measure a policy's table on a model.

What is measured for a policy, and what becomes of it, is its `Method`; `METHODS` holds them by policy name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from attrs import field, frozen

import mixcache
from mixcache import influence
from mixcache.adapter import Calibration
from mixcache.attach import transformers_of
from mixcache.calibration import Fit
from mixcache.compare import Watch
from mixcache.errors import ConfigurationError, UnknownNameError
from mixcache.loading import Model
from mixcache.media import writable
from mixcache.observing import MAGCACHE, TEACACHE

MATCHED = ("num_layers", "num_attention_heads", "attention_head_dim", "in_channels")
"""Entries of a transformer's configuration that tell its checkpoint from others of the class."""


class Method(Protocol):
    """How a policy's table is measured."""

    def runs(self, job: Job) -> int:
        """Calls of the pipeline for each prompt and seed."""

    def measure(self, job: Job, watch: Watch) -> Fit:
        """Make them, and the table of what they gave."""


class Probing:
    """Runs with a single reuse each: how much of its error is left at the end (`mixcache.influence`)."""

    def runs(self, job: Job) -> int:
        """One computed, and one for every probed step and granularity."""
        return influence.runs_of(job.model.steps(job.arguments))

    def measure(self, job: Job, watch: Watch) -> Fit:
        """The influence table."""
        return Fit(*influence.measure(job.policy, job.model, job.arguments, job.pairs, watch))


@frozen(kw_only=True)
class Job:
    """A calibration: of which policy, on which model, with every prompt and seed."""

    policy: str
    model: Model
    arguments: Mapping[str, Any]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    method: Method = field(init=False)

    @method.default
    def _method(self) -> Method:
        return method_of(self.policy)

    @property
    def pairs(self) -> list[tuple[str, int]]:
        """Every prompt with every seed."""
        return [(prompt, seed) for seed in self.seeds for prompt in self.prompts]

    @property
    def source(self) -> str:
        """Where the numbers will be from."""
        steps, kind = self.model.steps(self.arguments), type(self.model.pipeline.scheduler).__name__
        runs = f"{len(self.prompts)} prompt(s) x {len(self.seeds)} seed(s), {steps} steps of {kind}"
        return f"mixcache {mixcache.__version__} calibrate {self.policy}: {self.model.name}, {runs}"

    @property
    def match(self) -> dict[str, Any]:
        """The entries of the transformer's configuration that the table is for."""
        config = next(iter(transformers_of(self.model.pipeline).values())).config
        return {name: config[name] for name in MATCHED if config.get(name) is not None}


def method_of(policy: str) -> Method:
    """How the table of a policy is measured; raises `UnknownNameError` for one that cannot be calibrated."""
    if policy not in METHODS:
        raise UnknownNameError("policy to calibrate", policy, METHODS)
    return METHODS[policy]


def check_table(out: Path) -> None:
    """Raises `ConfigurationError` if `out` is no name of a .json file, or cannot be written."""
    if out.suffix != ".json" or out.is_dir():
        raise ConfigurationError(f"--out {out} must name a .json file.")
    writable(out.parent)


def calibrate(job: Job, watch: Watch | None = None) -> tuple[Calibration, str]:
    """Run every prompt and seed; return the table and a line about it. The model is left as it was.

    Raises `ConfigurationError` where the model gives nothing to fit, `AttachError` where an adapter does not say what
    has to be measured.
    """
    watch = watch or Watch()
    watch.started(len(job.pairs) * job.method.runs(job), job.model.steps(job.arguments))
    fit = job.method.measure(job, watch)
    return Calibration(policy=job.policy, values=fit.values, source=job.source, match=job.match), fit.summary


METHODS: dict[str, Method] = {"magcache": MAGCACHE, "teacache": TEACACHE, "mixcache": Probing()}
"""The policies that can be calibrated. Another one is a further entry."""

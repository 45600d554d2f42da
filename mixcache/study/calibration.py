"""Measure the table of a policy or forecaster on a model.

Who measures it is a `Calibrator`: plugins return theirs from the hook `mixcache_calibrators`, and `mixcache calibrate
NAME` knows every one of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from attrs import field, frozen

from mixcache.bench.loading import Model, as_seeds, as_texts
from mixcache.bench.media import writable
from mixcache.bench.watch import Watch
from mixcache.core import catalogue
from mixcache.core.tables import Calibration, Fit
from mixcache.errors import ConfigurationError, PluginError, UnknownNameError
from mixcache.host.diffusers import models_of

MATCHED = ("num_layers", "num_attention_heads", "attention_head_dim", "in_channels")
"""Entries of a transformer's configuration that tell its checkpoint from others of the class."""


class Calibrator(ABC):
    """How one table is measured: base of what `mixcache_calibrators` returns and `mixcache.register` takes.

    name: whose table it is, as `Calibrations.read` asks for it; most often a policy's name. summary: a line about it.
    """

    kind_of_plugin: ClassVar[str] = "calibrator"
    name: str
    summary: str = ""

    @abstractmethod
    def runs(self, job: Job) -> int:
        """Calls of the pipeline for each prompt and seed."""

    @abstractmethod
    def measure(self, job: Job, watch: Watch) -> Fit:
        """Make these calls, for every one of `job.pairs`; return the values of the table and a line about them.

        Calls `watch.step` after every denoising step and `watch.call` after every call of the pipeline. Raises
        `ConfigurationError` where the model gives nothing to fit.
        """


def find_calibrator(wanted: str | Calibrator) -> Calibrator:
    """The calibrator of that name, or `wanted` itself if it is one.

    Raises `ConfigurationError` for a policy or forecaster that needs no table, `UnknownNameError` for any other name.
    """
    if not isinstance(wanted, str):
        if isinstance(wanted, Calibrator):
            return wanted
        raise ConfigurationError(f"`calibrator` must be a name or a mixcache.study.Calibrator, got {wanted!r}.")
    known: Mapping[str, Calibrator] = catalogue.calibrators()
    if wanted in known:
        return known[wanted]
    for kind, table in (("policy", catalogue.policies()), ("forecaster", catalogue.forecasters())):
        if wanted in table and "table" not in catalogue.parameters(table[wanted]):
            can = ", ".join(sorted(known)) or "none"
            raise ConfigurationError(f"{kind} {wanted} needs no table; those that can be calibrated: {can}.")
    raise UnknownNameError("calibrator", wanted, known)


@frozen(kw_only=True)
class Job:
    """A calibration: which table, on which model, with every prompt and seed.

    calibrator: by name, or a `Calibrator`. arguments: of the pipeline's call, by default the model's own. prompts: the
    model's tuning ones, if none are given.
    """

    calibrator: Calibrator = field(converter=find_calibrator)
    model: Model
    arguments: Mapping[str, Any] = field()
    prompts: tuple[str, ...] = field(converter=as_texts)
    seeds: tuple[int, ...] = field(default=(0,), converter=as_seeds)

    @arguments.default
    def _arguments(self) -> Mapping[str, Any]:
        return self.model.arguments()

    @prompts.default
    def _prompts(self) -> tuple[str, ...]:
        return self.model.tuning

    @prompts.validator
    def _check_prompts(self, _: Any, prompts: tuple[str, ...]) -> None:
        if not prompts:
            raise ConfigurationError(
                f"model {self.model.name!r} comes with no prompts; give --prompts FILE, one prompt per line."
            )

    @property
    def pairs(self) -> list[tuple[str, int]]:
        """Every prompt with every seed."""
        return [(prompt, seed) for seed in self.seeds for prompt in self.prompts]

    @property
    def steps(self) -> int:
        """Denoising steps of a call."""
        return self.model.steps(self.arguments)

    @property
    def source(self) -> str:
        """Where the numbers will be from."""
        runs = f"{len(self.prompts)} prompt(s) x {len(self.seeds)} seed(s)"
        steps = f"{self.steps} steps of {type(self.model.pipeline.scheduler).__name__}"
        version = metadata.version("mixcache")
        return f"mixcache {version} calibrate {self.calibrator.name}: {self.model.name}, {runs}, {steps}"

    @property
    def match(self) -> dict[str, Any]:
        """The entries of the transformer's configuration that the table is for."""
        config = next(iter(models_of(self.model.pipeline).values())).config
        return {name: config[name] for name in MATCHED if config.get(name) is not None}


def check_table(out: Path) -> None:
    """Raises `ConfigurationError` if `out` is no name of a .json file, or cannot be written."""
    if out.suffix != ".json" or out.is_dir():
        raise ConfigurationError(f"--out {out} must name a .json file.")
    writable(out.parent)


def calibrate(job: Job, watch: Watch | None = None) -> tuple[Calibration, str]:
    """Run every prompt and seed; return the table and a line about it. The model is left as it was.

    Raises `ConfigurationError` where the model gives nothing to fit, `AttachError` where an adapter does not say what
    has to be measured, `PluginError` if the calibrator returns no `Fit`.
    """
    watch = watch or Watch()
    watch.started(len(job.pairs) * job.calibrator.runs(job), job.steps)
    fit = job.calibrator.measure(job, watch)
    name = job.calibrator.name
    if not isinstance(fit, Fit):
        raise PluginError(f"calibrator {name!r} must return a Fit from measure(), got {fit!r}.")
    return Calibration(policy=name, values=fit.values, source=job.source, match=job.match), fit.summary

"""What a comparison measures: variants, prompts, seeds and the settings that must stay the same."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import field, frozen

from mixcache.bench.cases import SCHEMA
from mixcache.bench.flags import UNCACHED
from mixcache.bench.loading import Model, as_seeds, as_texts, environment
from mixcache.bench.metrics.scored import metrics_of
from mixcache.bench.steps import Steps
from mixcache.core.metrics import Metric
from mixcache.errors import ConfigurationError
from mixcache.host.diffusers import models_of
from mixcache.recipe import Recipe

WARM_UP_STEPS = 2
PROMPTS = 8
"""How many of a model's own prompts are taken, if none are given."""

Variant = Recipe | Steps
"""What a comparison puts beside the uncached run. Its text is its name in tables, files and pictures."""


def as_variant(given: Variant | str | None, read: Callable[[str], Recipe | None] = Recipe.parse) -> Variant | None:
    """A variant from text, "steps=18" or a recipe; `None` for "none", which is no caching.

    read: how the text of a recipe is read, where there is more to it than the text.
    """
    if not isinstance(given, str):
        return given
    return Steps.parse(given) or (None if given.strip() == UNCACHED else read(given))


def check_variants(given: Iterable[Variant | str | None]) -> tuple[Variant, ...]:
    """The variants of a comparison, from text where they are text.

    Raises `ConfigurationError` if there is none, if one is no variant, or if one is given twice.
    """
    variants: list[Variant] = []
    for one in given:
        variant = as_variant(one)
        if variant is None:
            raise ConfigurationError(
                f"--policy {UNCACHED} is what every policy is compared with; name one that caches."
            )
        if not isinstance(variant, (Recipe, Steps)):
            raise ConfigurationError(f"a variant must be a Recipe, Steps or text, got {variant!r}.")
        if isinstance(variant, Recipe) and variant.audit:
            raise ConfigurationError(f"--policy {str(variant)!r}: audit is a choice of the comparison; give --audit.")
        if str(variant) in map(str, variants):
            raise ConfigurationError(f"--policy {str(variant)!r} is given twice.")
        variants.append(variant)
    if not variants:
        raise ConfigurationError("give at least one --policy; see `mixcache plugins`.")
    return tuple(variants)


def check_recipes(given: Iterable[Recipe | str | None]) -> tuple[Recipe, ...]:
    """As `check_variants`, where every one has to cache."""
    variants = check_variants(given)
    for variant in variants:
        if isinstance(variant, Steps):
            raise ConfigurationError(f"--policy {str(variant)!r} caches nothing; it is a variant of `compare` alone.")
    return tuple(variant for variant in variants if isinstance(variant, Recipe))


@frozen(kw_only=True)
class Comparison:
    """What is to be measured: every variant on every prompt and seed, `repeats` pairs of runs each.

    variants: recipes, and plain pipelines with fewer steps, as `Recipe`, `Steps` or text. prompts: the model's held-out
    ones, if none are given. arguments: of the pipeline's call, by default the model's own. quality_only: make one run
    per variant and one uncached run per (prompt, seed), and time none. rival: measure plain pipelines with fewer steps
    beside the recipes. truth: the steps of one more plain run per (prompt, seed), from the same noise, with which
    everything is compared too. audit: one more cached run per case, in which the true error of every reuse is measured.
    pictured: of how many (prompt, seed), from the first, the clips are kept. metrics: what is measured of every clip,
    by default all that are registered, and the model's own score.

    Raises `ConfigurationError` for a variant with as many steps as the run, and a truth with no more.
    """

    model: Model
    variants: tuple[Variant, ...] = field(converter=check_variants)
    prompts: tuple[str, ...] = field(converter=as_texts)
    seeds: tuple[int, ...] = field(default=(0,), converter=as_seeds)
    arguments: Mapping[str, Any] = field()
    repeats: int = 1
    quality_only: bool = False
    rival: bool = True
    truth: int | None = None
    audit: bool = False
    pictured: int = 1
    metrics: Mapping[str, Metric] = field()

    @prompts.default
    def _prompts(self) -> tuple[str, ...]:
        return self.model.held_out[:PROMPTS]

    @arguments.default
    def _arguments(self) -> Mapping[str, Any]:
        return self.model.arguments()

    @metrics.default
    def _metrics(self) -> Mapping[str, Metric]:
        return metrics_of(self.model.score)

    @prompts.validator
    def _check_prompts(self, _: Any, prompts: tuple[str, ...]) -> None:
        if not prompts:
            raise ConfigurationError(
                f"model {self.model.name!r} comes with no prompts; give --prompts FILE, one prompt per line."
            )

    def __attrs_post_init__(self) -> None:
        for variant in self.variants:
            if isinstance(variant, Steps) and variant.count >= self.steps:
                raise ConfigurationError(
                    f"--policy {str(variant)!r}: the uncached run has {self.steps} steps; give fewer, or more --steps."
                )
        if self.truth is not None and self.truth <= self.steps:
            raise ConfigurationError(
                f"--truth {self.truth}: the uncached run has {self.steps} steps; give more, such as {4 * self.steps}."
            )

    @property
    def steps(self) -> int:
        """Denoising steps of the uncached run."""
        return self.model.steps(self.arguments)

    @property
    def has_rival(self) -> bool:
        """Whether fewer steps can be measured, and are wanted."""
        takes = "num_inference_steps" in inspect.signature(self.model.pipeline.__call__).parameters
        return self.rival and takes

    @property
    def labels(self) -> tuple[str, ...]:
        """The variants as text, in order: their names in tables, files and pictures."""
        return tuple(map(str, self.variants))

    @property
    def settings(self) -> dict[str, Any]:
        """What must not differ between cases that are put side by side."""
        transformers = models_of(self.model.pipeline).values()
        return {
            "schema": SCHEMA,
            "model": self.model.fingerprint or self.model.name,
            "pipeline": type(self.model.pipeline).__name__,
            "noise scheduler": type(self.model.pipeline.scheduler).__name__,
            "dtype": sorted({str(model.dtype).removeprefix("torch.") for model in transformers}),
            "call": dict(self.arguments),
            "repeats": self.repeats,
            "truth": self.truth,
            "metrics": sorted(self.metrics),
            "audit": self.audit,
            "environment": environment(self.model.pipeline.device),
        }

    @property
    def pairs(self) -> list[tuple[str, int]]:
        """Every (prompt, seed), in the order in which they are run."""
        return [(prompt, seed) for seed in self.seeds for prompt in self.prompts]

    @property
    def shown(self) -> list[tuple[str, int]]:
        """The (prompt, seed) whose clips are kept."""
        return self.pairs[: self.pictured]

    def with_steps(self, count: int) -> dict[str, Any]:
        """The arguments of the call with another number of denoising steps."""
        asked = self.model.arguments(num_inference_steps=count)
        return {**self.arguments, "num_inference_steps": asked["num_inference_steps"]}

    @property
    def warm_up(self) -> dict[str, Any]:
        """The arguments of the call before the first that counts: few steps."""
        return self.with_steps(min(WARM_UP_STEPS, self.steps))

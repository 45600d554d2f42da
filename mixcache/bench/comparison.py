"""What a comparison measures: recipes, prompts, seeds and the settings that must stay the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import field, frozen

from mixcache.bench.cases import SCHEMA
from mixcache.bench.flags import UNCACHED
from mixcache.bench.loading import Model, as_seeds, as_texts, environment
from mixcache.errors import ConfigurationError
from mixcache.host.diffusers import models_of
from mixcache.recipe import Recipe

WARM_UP_STEPS = 2
PROMPTS = 8
"""How many of a model's own prompts are taken, if none are given."""


def check_recipes(given: Iterable[Recipe | str | None]) -> tuple[Recipe, ...]:
    """The recipes of a comparison, from text where they are text.

    Raises `ConfigurationError` if there is none, if one does not cache, or if one is given twice.
    """
    recipes: list[Recipe] = []
    for one in given:
        recipe = Recipe.parse(one) if isinstance(one, str) and one != UNCACHED else one
        if recipe is None or isinstance(recipe, str):
            raise ConfigurationError("--policy none is what every policy is compared with; name one that caches.")
        if recipe.audit:
            raise ConfigurationError(f"--policy {str(recipe)!r}: audit is a choice of the comparison; give --audit.")
        if str(recipe) in map(str, recipes):
            raise ConfigurationError(f"--policy {str(recipe)!r} is given twice.")
        recipes.append(recipe)
    if not recipes:
        raise ConfigurationError("give at least one --policy; see `mixcache plugins`.")
    return tuple(recipes)


@frozen(kw_only=True)
class Comparison:
    """What is to be measured: every recipe on every prompt and seed, `repeats` pairs of runs each.

    recipes: as `Recipe` or text. prompts: the model's held-out ones, if none are given. arguments: of the pipeline's
    call, by default the model's own. audit: one more cached run per case, in which the true error of every reuse is
    measured. pictured: of how many (prompt, seed), from the first, the clips are kept.
    """

    model: Model
    recipes: tuple[Recipe, ...] = field(converter=check_recipes)
    prompts: tuple[str, ...] = field(converter=as_texts)
    seeds: tuple[int, ...] = field(default=(0,), converter=as_seeds)
    arguments: Mapping[str, Any] = field()
    repeats: int = 1
    audit: bool = False
    pictured: int = 1

    @prompts.default
    def _prompts(self) -> tuple[str, ...]:
        return self.model.held_out[:PROMPTS]

    @arguments.default
    def _arguments(self) -> Mapping[str, Any]:
        return self.model.arguments()

    @prompts.validator
    def _check_prompts(self, _: Any, prompts: tuple[str, ...]) -> None:
        if not prompts:
            raise ConfigurationError(
                f"model {self.model.name!r} comes with no prompts; give --prompts FILE, one prompt per line."
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """The recipes as text, in order: the names of the variants in tables, files and pictures."""
        return tuple(map(str, self.recipes))

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

    @property
    def warm_up(self) -> dict[str, Any]:
        """The arguments of the call before the first that counts: few steps."""
        steps = min(WARM_UP_STEPS, self.model.steps(self.arguments))
        return {**self.arguments, **self.model.arguments(num_inference_steps=steps)}

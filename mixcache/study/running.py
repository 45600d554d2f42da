"""The parts of a search that run the model: recording a run, checking recipes, looking for the best mask of a clip."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixcache.bench.generation import Generation, generate
from mixcache.bench.loading import Model
from mixcache.bench.metrics.frames import psnr, relative_error
from mixcache.bench.watch import Watch
from mixcache.errors import ConfigurationError
from mixcache.study.oracles import Best, improve
from mixcache.study.pricing import Pricing
from mixcache.study.recorder import Recorder
from mixcache.study.recording import Recording, file_of
from mixcache.study.searching import Found, recipe_of
from mixcache.study.trying import Checked, Trial, TrialStore

RUNS = 120
"""Real runs that the search for an oracle may make, by default."""


def record(
    model: Model,
    prompt: str,
    seed: int = 0,
    arguments: Mapping[str, Any] | None = None,
    *,
    on_step: Callable[[], None] = lambda: None,
) -> Recording:
    """Run a pipeline once, uncached, and keep the numbers that price every reuse.

    arguments: of the pipeline's call, by default the model's own. The outputs are kept in host memory, in their own
    dtype, until the run ends. Raises `ConfigurationError` where the run cannot be followed: a branch that is not called
    at every step, or outputs that are combined in a way that is no weighted sum.
    """
    _, numbers = Recorder(model).follow(
        lambda recipe: generate(model, prompt, seed, arguments, recipe, on_step=on_step), prompt, seed
    )
    return numbers()


class Trials:
    """Real runs of recipes on one model, each made once and kept in `folder`."""

    def __init__(
        self, model: Model, arguments: Mapping[str, Any] | None, folder: str | Path | None, watch: Watch | None
    ) -> None:
        self.model = model
        self.arguments = dict(model.arguments() if arguments is None else arguments)
        told = {"model": model.name, "fingerprint": model.fingerprint, "arguments": self.arguments}
        self.store = TrialStore(told, folder)
        self.watch = watch or Watch()
        self._plain: tuple[tuple[str, int], Generation] | None = None

    def run(self, prompt: str, seed: int, recipe: str) -> Trial:
        """The trial of a recipe, as it is known or from a real run beside an uncached one."""
        trial = self.store.get(prompt, seed, recipe)
        if trial is None:
            plain = self._uncached(prompt, seed)
            made = self._generated(prompt, seed, recipe)
            assert plain.latents is not None
            assert made.latents is not None
            trial = self.store.add(
                Trial(
                    prompt=prompt,
                    seed=seed,
                    recipe=recipe,
                    deviation=relative_error(plain.latents, made.latents),
                    psnr=psnr(plain.frames_FHWC, made.frames_FHWC),
                    mask=made.mask,
                )
            )
        self.watch.call()
        return trial

    def recording(self, prompt: str, seed: int) -> Recording:
        """The recording of a clip; from the folder, if it is there."""
        if self.store.folder is None:
            return record(self.model, prompt, seed, self.arguments)
        file = file_of(self.store.folder, prompt, seed)
        if not file.is_file():
            record(self.model, prompt, seed, self.arguments).save(file)
        return Recording.load(file)

    def _uncached(self, prompt: str, seed: int) -> Generation:
        if self._plain is None or self._plain[0] != (prompt, seed):
            made = self._generated(prompt, seed, None)
            if made.latents is None:
                raise ConfigurationError(
                    f"{type(self.model.pipeline).__name__} has no `callback_on_step_end`, so its final latent cannot "
                    "be read, and masks cannot be compared."
                )
            self._plain = (prompt, seed), made
        return self._plain[1]

    def _generated(self, prompt: str, seed: int, recipe: str | None) -> Generation:
        return generate(self.model, prompt, seed, self.arguments, recipe, on_step=self.watch.step)


def check(
    model: Model,
    recipes: Iterable[Found | str],
    prompts: Sequence[str],
    seeds: Sequence[int] = (0,),
    *,
    arguments: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    watch: Watch | None = None,
) -> list[Checked]:
    """Run recipes, or masks that were found, for real on every prompt and seed; best first by mean deviation.

    folder: keeps every run as it ends; called again, it goes on from there. Raises `ConfigurationError` for a folder of
    another model or call, and for a pipeline that does not show its latents.
    """
    texts = list(dict.fromkeys(one.recipe if isinstance(one, Found) else one for one in recipes))
    trials = Trials(model, arguments, folder, watch)
    trials.watch.started(len(texts) * len(prompts) * len(seeds), model.steps(trials.arguments))
    made: dict[str, list[Trial]] = {text: [] for text in texts}
    for seed in seeds:
        for prompt in prompts:
            for text in texts:
                made[text].append(trials.run(prompt, seed, text))
    checked = [Checked(recipe=text, trials=tuple(found)) for text, found in made.items()]
    return sorted(checked, key=lambda one: one.deviation)


def oracle(
    model: Model,
    prompt: str,
    seed: int = 0,
    *,
    evaluations: int,
    basis: str = "noise",
    forecast: str = "linear",
    runs: int = RUNS,
    first_steps: int = 1,
    arguments: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    watch: Watch | None = None,
) -> Best:
    """The mask of `evaluations` computed evaluations with the smallest deviation that at most `runs` real runs find.

    The masks with the lowest prices are tried first. From the best of them one computed evaluation at a time is
    exchanged with a reused one, in the order of their prices, and the first exchange that gains is kept. The order is
    the same each time: with `folder`, a search that was interrupted, or is given more runs, makes none of them twice.

    Raises `ConfigurationError` for fewer than one run, a budget that no mask meets, a run that cannot be recorded, and
    a folder of another model or call.
    """
    if runs < 1:
        raise ConfigurationError(f"`oracle(runs=...)` must be >= 1, got {runs!r}.")
    trials = Trials(model, arguments, folder, watch)
    trials.watch.started(runs, model.steps(trials.arguments))
    pricing = Pricing(trials.recording(prompt, seed), basis, forecast)
    return improve(
        lambda mask: trials.run(prompt, seed, recipe_of(mask, basis, forecast)),
        pricing,
        evaluations=evaluations,
        runs=runs,
        first_steps=first_steps,
    )

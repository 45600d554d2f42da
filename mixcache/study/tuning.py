"""`tune`: search for the recipe that keeps a target at the least cost, on tuning prompts, and try it on held-out ones.

Optuna keeps the trials and guesses the next one (TPE: Bergstra et al., "Algorithms for hyper-parameter optimization",
2011), once those that need no guess are done. What a trial is measured by is counted, not timed: the share of the
evaluations that it saves. So a search gives the same on any machine, and a busy one does no harm.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from attrs import evolve

from mixcache.bench.generation import Generation, generate
from mixcache.bench.loading import Model
from mixcache.bench.metrics.scored import metrics_of
from mixcache.bench.watch import Watch
from mixcache.errors import ConfigurationError, MixcacheError
from mixcache.host.diffusers import models_of
from mixcache.host.tuned import Identity, Tuned
from mixcache.session import enable
from mixcache.study.plain import Plain
from mixcache.study.seeking import Seeking
from mixcache.study.space import Space
from mixcache.study.targets import Measured, Target
from mixcache.study.verdicts import Tuning, in_words

TRIALS = 16
PROMPTS = 16
"""Tuning prompts, and held-out ones, that are taken of a model's own."""

RECORDED = 8
"""Uncached runs from which masks are priced, at most."""


def tune(
    model: Model,
    target: str,
    *,
    prompts: Sequence[str] = (),
    held_out: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    arguments: Mapping[str, Any] | None = None,
    policies: Sequence[str] | None = None,
    quality: str = "psnr",
    sure: bool = True,
    trials: int = TRIALS,
    minutes: float | None = None,
    seed: int = 0,
    folder: str | Path = "mixcache-tune",
    storage: str | None = None,
    command: str = "study.tune(...)",
    confirm: bool = True,
    tell: Callable[[str], None] = lambda _: None,
    watch: Watch | None = None,
) -> Tuning:
    """The recipe that meets `target` on tuning prompts and saves most, and what it gives on held-out prompts.

    target: "psnr>=40", or any other metric: the worse end of the 95 % interval of the mean over clips has to keep it,
    or with sure=False the mean. Or "speedup>=2.5": then the recipe with the best `quality` of those that are so fast.
    prompts, held_out: by default the model's own. policies: to choose from, beside masks; by default all that may be
    varied. trials: of the whole search, whoever makes them. minutes: begin no trial after that time. seed: of guesses.

    folder: keeps uncached clips, and the search itself unless `storage` (a URL of Optuna's) does; several processes or
    machines may share either. The same call goes on where it was interrupted. Another model, prompts, target or choice
    is another search. confirm: try the result on held-out prompts; those who only help make it false. tell: takes what
    is to be said on the way.

    Raises `ConfigurationError` for what cannot be searched, for prompts in both lists, and if no trial meets the
    target; `KeyboardInterrupt` with a message that says what is kept.
    """
    if trials < 1 or (minutes is not None and minutes <= 0):
        raise ConfigurationError(f"`tune` needs trials >= 1 and minutes > 0, got {trials!r} and {minutes!r}.")
    optuna = _optuna()
    call = dict(model.arguments() if arguments is None else arguments)
    asked = Target.parse(target, metrics_of(model.score), quality, sure)
    tuning, held = (_pairs(one, seeds) for one in _apart(model, prompts, held_out))
    watch = watch or Watch()
    run = _runs(model, call, watch)
    plain = Plain.of(model, call, run, Path(folder))
    until = None if minutes is None else time.monotonic() + 60 * minutes
    try:
        runs = plain.missing(tuning) + trials * len(tuning) + (plain.missing(held) + 2 * len(held)) * confirm
        watch.started(runs, model.steps(call))
        recordings = plain.prepare(tuning, RECORDED)
        steps = recordings[0].steps if recordings else model.steps(call)
        ordered = max(2, math.floor(steps / asked.bound + 1e-9)) if asked.speed else None
        space = Space.of(lambda recipe: _misfit(model, recipe), steps, ordered, recordings, policies)
        if plain.refused:
            space.dropped["masks"] = plain.refused
        work = Seeking(
            model=model, target=asked, call=call, pairs=tuning, plain=plain, run=run, space=space, watch=watch
        )
        work.open(optuna, Path(folder), storage, seed, tell)
        work.go_on(trials, until)
    except KeyboardInterrupt as stop:
        told = f"uncached clips are kept in {folder}; the same command goes on from there."
        raise KeyboardInterrupt(str(stop) or told) from None
    recipe, measured = work.best()
    found = Tuning(target=asked, recipe=recipe, tuning=measured, trials=work.finished, pruned=work.pruned)
    return _confirmed(found, work, held, command) if confirm else found


def _confirmed(found: Tuning, work: Seeking, held: Sequence[tuple[str, int]], command: str) -> Tuning:
    """What was found, tried on held-out clips beside the plain pipeline with fewer steps, and ready to be written."""
    measured = work.held_out(found.recipe, held)
    fewer: tuple[int | None, Measured] = None, Measured(())
    if "num_inference_steps" in inspect.signature(work.model.pipeline.__call__).parameters:
        fewer = work.rival(1.0 - measured.saved, held)
    found = evolve(found, held_out=measured, fewer_steps=fewer[0], rival=fewer[1])
    return found.for_model(
        Tuned(
            target=str(found.target),
            model=work.model.name,
            tuning=in_words(found.target, found.tuning),
            held_out=in_words(found.target, found.held_out),
            command=command,
            conditions=work.conditions(),
            models={name: Identity.of(one) for name, one in models_of(work.model.pipeline).items()},
        )
    )


def _runs(model: Model, call: Mapping[str, Any], watch: Watch) -> Callable[..., Generation]:
    """What makes a clip: (prompt, seed, recipe or `None`, steps if not the usual number)."""

    def run(prompt: str, seed: int, recipe: Any = None, steps: int | None = None) -> Generation:
        asked = {} if steps is None else {"num_inference_steps": steps}
        made = generate(model, prompt, seed, {**call, **asked}, recipe, on_step=watch.step)
        watch.call()
        return made

    return run


def _misfit(model: Model, recipe: str) -> str | None:
    """Why a recipe cannot be enabled on a model."""
    try:
        enable(model.pipeline, recipe).disable()
    except MixcacheError as error:
        return str(error)
    return None


def _pairs(prompts: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    return [(prompt, seed) for seed in seeds for prompt in prompts]


def _optuna() -> Any:
    """Optuna, quiet. Raises `ConfigurationError` where it is not installed."""
    try:
        optuna = import_module("optuna")
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise ConfigurationError("`mixcache tune` needs optuna: pip install 'mixcache[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _apart(model: Model, prompts: Sequence[str], held_out: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tuning and held-out prompts, none of them in both."""
    tuning, held = tuple(prompts) or model.tuning[:PROMPTS], tuple(held_out) or model.held_out[:PROMPTS]
    if not tuning or not held:
        raise ConfigurationError(
            f"model {model.name!r} comes with no {'held-out' if tuning else 'tuning'} prompts; give some of both: "
            "--prompts FILE --held-out FILE, one prompt per line."
        )
    if both := sorted(set(tuning) & set(held)):
        raise ConfigurationError(f"a prompt is for tuning or held out, and these are both: {', '.join(both[:3])}.")
    return tuning, held

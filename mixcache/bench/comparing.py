"""Measure recipes against no caching: paired in time, case by case, and without ever losing a finished case."""

from __future__ import annotations

from pathlib import Path

from attrs import evolve

from mixcache.bench.cases import Audit, Case, CaseStore, Reuse
from mixcache.bench.comparison import Comparison
from mixcache.bench.flags import UNCACHED
from mixcache.bench.generation import Generation, generate
from mixcache.bench.metrics.frames import psnr, relative_error, ssim
from mixcache.bench.watch import Watch
from mixcache.errors import AttachError, ConfigurationError
from mixcache.recipe import Recipe
from mixcache.session import enable


def compare(comparison: Comparison, store: CaseStore | str | Path, watch: Watch | None = None) -> list[Case]:
    """Measure every case that `store` does not hold yet; return all of them, in order.

    store: an opened `CaseStore`, or a folder to open one in. Raises `ConfigurationError` or `AttachError` before the
    first run where a recipe does not fit the model, and `KeyboardInterrupt` with a message that says what is kept.
    """
    watch = watch or Watch()
    if not isinstance(store, CaseStore):
        store = CaseStore(store).open(comparison.settings)
    keys = [(p, s, r) for p, s in comparison.pairs for r in comparison.recipes]
    missing = [index for index, key in enumerate(keys) if not _finished(comparison, store, *key)]
    calls = comparison.repeats * 2 + comparison.audit
    watch.started(len(missing) * calls, comparison.model.steps(comparison.arguments))
    try:
        if missing:
            _check_fit(comparison)
            prompt, seed, _ = keys[missing[0]]
            generate(comparison.model, prompt, seed, comparison.warm_up)
        for index in missing:
            pair, place = divmod(index, len(comparison.recipes))
            cached_first = (pair + place) % 2 == 1  # every recipe runs first as often as second
            case = _measure(comparison, store, *keys[index], cached_first=cached_first, watch=watch)
            store.add(case)
            watch.case(case)
    except KeyboardInterrupt:
        done = sum(_finished(comparison, store, *key) for key in keys)
        kept = f"{done} of {len(keys)} cases are kept in {store.folder}; the same command goes on from there."
        raise KeyboardInterrupt(kept) from None
    return [store.cases[prompt, seed, str(recipe)] for prompt, seed, recipe in keys]


def _check_fit(comparison: Comparison) -> None:
    """Put every recipe on the model and take it off again, so that one that does not fit costs no run of others."""
    for recipe in comparison.recipes:
        try:
            enable(comparison.model.pipeline, recipe).disable()
        except (AttachError, ConfigurationError) as error:
            raise type(error)(f"--policy {str(recipe)!r}: {error}") from error


def _finished(comparison: Comparison, store: CaseStore, prompt: str, seed: int, recipe: Recipe) -> bool:
    if (prompt, seed, str(recipe)) not in store.cases:
        return False
    shown = (prompt, seed) in comparison.shown
    return not shown or all(store.clips.has(prompt, seed, label) for label in (UNCACHED, str(recipe)))


def _measure(
    comparison: Comparison,
    store: CaseStore,
    prompt: str,
    seed: int,
    recipe: Recipe,
    *,
    cached_first: bool,
    watch: Watch,
) -> Case:
    """One case: pairs of an uncached and a cached run, in alternating order, so that drift of the machine cancels."""

    def run(chosen: Recipe | None) -> Generation:
        made = generate(comparison.model, prompt, seed, comparison.arguments, chosen, on_step=watch.step)
        watch.call()
        return made

    pairs: list[tuple[Generation, Generation]] = []
    for repeat in range(comparison.repeats):
        if cached_first == (repeat % 2 == 0):
            cached = run(recipe)
            pairs.append((run(None), cached))
        else:
            uncached = run(None)
            pairs.append((uncached, run(recipe)))
    uncached, cached = pairs[0]
    label = str(recipe)
    if (prompt, seed) in comparison.shown:
        store.clips.save(prompt, seed, label, cached.frames_FHWC)
        if not store.clips.has(prompt, seed, UNCACHED):
            store.clips.save(prompt, seed, UNCACHED, uncached.frames_FHWC)
    assert cached.report is not None  # every recipe of a comparison caches
    known = uncached.latents is not None and cached.latents is not None
    return Case(
        prompt=prompt,
        seed=seed,
        variant=label,
        uncached_seconds=tuple(pair[0].seconds for pair in pairs),
        cached_seconds=tuple(pair[1].seconds for pair in pairs),
        psnr=psnr(uncached.frames_FHWC, cached.frames_FHWC),
        ssim=ssim(uncached.frames_FHWC, cached.frames_FHWC),
        latents_error=relative_error(uncached.latents, cached.latents) if known else None,  # type: ignore[arg-type]
        mask=cached.mask,
        report=cached.report,
        audit=_audit(comparison, prompt, seed, recipe, watch) if comparison.audit else None,
    )


def _audit(comparison: Comparison, prompt: str, seed: int, recipe: Recipe, watch: Watch) -> Audit:
    """The ledger of one more cached run, not timed: the model is computed beside every reuse."""
    audited = evolve(recipe, audit=True)
    made = generate(comparison.model, prompt, seed, comparison.arguments, audited, on_step=watch.step)
    watch.call()
    assert made.bound is not None  # it was audited
    reuses = tuple(
        Reuse(
            granularity=str(record.point.granularity),
            step=record.point.step,
            branch=record.point.branch,
            predicted=record.outcome.predicted_error,
            true=record.outcome.true_error,
        )
        for record in made.records
        if record.outcome.true_error is not None
    )
    return Audit(reuses=reuses, kind=made.bound.kind, why=made.bound.why, bound=made.bound.relative)

"""Measure ways of caching against no caching: paired in time, case by case, and never losing a finished case."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import field, frozen

from mixcache.attach import transformers_of
from mixcache.cases import SCHEMA, Audit, Case, CaseStore, Reuse
from mixcache.errors import AttachError, ConfigurationError
from mixcache.generation import UNCACHED, Generation, Variant, generate
from mixcache.loading import Model, environment
from mixcache.quality import psnr, relative_error, ssim

WARM_UP_STEPS = 2


def _never() -> None:
    """The default of callbacks."""


@frozen(kw_only=True)
class Comparison:
    """What is to be measured: every variant on every prompt and seed, `repeats` pairs of runs each.

    audit: one more cached run a case, in which the true error of every reuse is measured.
    pictured: of how many (prompt, seed), from the first, the clips are kept.
    """

    model: Model
    arguments: Mapping[str, Any]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]
    repeats: int = 1
    audit: bool = False
    pictured: int = 1

    @property
    def settings(self) -> dict[str, Any]:
        """What must not differ between cases that are put side by side."""
        transformers = transformers_of(self.model.pipeline).values()
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


@frozen(kw_only=True)
class Watch:
    """Callbacks of a comparison under way: how many calls of which length, each step, each call, each finished case."""

    started: Callable[[int, int], None] = field(default=lambda calls, steps: None)
    step: Callable[[], None] = _never
    call: Callable[[], None] = _never
    case: Callable[[Case], None] = field(default=lambda case: None)


def compare(comparison: Comparison, store: CaseStore, watch: Watch | None = None) -> list[Case]:
    """Measure every case that `store` does not hold yet; return all of them, in order.

    Raises `ConfigurationError` or `AttachError` before the first run where a variant does not fit the model, and
    `KeyboardInterrupt` with a message that says what is kept.
    """
    watch = watch or Watch()
    keys = [(p, s, v) for p, s in comparison.pairs for v in comparison.variants]
    missing = [index for index, key in enumerate(keys) if not _finished(comparison, store, *key)]
    calls = comparison.repeats * 2 + comparison.audit
    watch.started(len(missing) * calls, comparison.model.steps(comparison.arguments))
    try:
        if missing:
            _check_fit(comparison)
            prompt, seed, _ = keys[missing[0]]
            generate(comparison.model, prompt, seed, comparison.warm_up)
        for index in missing:
            pair, place = divmod(index, len(comparison.variants))
            cached_first = (pair + place) % 2 == 1  # every variant runs first as often as second
            case = _measure(comparison, store, *keys[index], cached_first=cached_first, watch=watch)
            store.add(case)
            watch.case(case)
    except KeyboardInterrupt:
        done = sum(_finished(comparison, store, *key) for key in keys)
        kept = f"{done} of {len(keys)} cases are kept in {store.folder}; the same command goes on from there."
        raise KeyboardInterrupt(kept) from None
    return [store.cases[prompt, seed, variant.label] for prompt, seed, variant in keys]


def _check_fit(comparison: Comparison) -> None:
    """Put every variant on the model and take it off again, so that one that does not fit costs no run of others."""
    for variant in comparison.variants:
        try:
            session = variant.enable(comparison.model.pipeline)
        except (AttachError, ConfigurationError) as error:
            raise type(error)(f"--policy {variant.label!r}: {error}") from error
        if session is not None:
            session.disable()


def _finished(comparison: Comparison, store: CaseStore, prompt: str, seed: int, variant: Variant) -> bool:
    if (prompt, seed, variant.label) not in store.cases:
        return False
    shown = (prompt, seed) in comparison.shown
    return not shown or all(store.clips.has(prompt, seed, v.label) for v in (UNCACHED, variant))


def _measure(
    comparison: Comparison,
    store: CaseStore,
    prompt: str,
    seed: int,
    variant: Variant,
    *,
    cached_first: bool,
    watch: Watch,
) -> Case:
    """One case: pairs of an uncached and a cached run, in alternating order, so that drift of the machine cancels."""

    def run(chosen: Variant) -> Generation:
        made = generate(comparison.model, prompt, seed, comparison.arguments, chosen, on_step=watch.step)
        watch.call()
        return made

    pairs: list[tuple[Generation, Generation]] = []
    for repeat in range(comparison.repeats):
        if cached_first == (repeat % 2 == 0):
            cached = run(variant)
            pairs.append((run(UNCACHED), cached))
        else:
            uncached = run(UNCACHED)
            pairs.append((uncached, run(variant)))
    uncached, cached = pairs[0]
    if (prompt, seed) in comparison.shown:
        for chosen, made in ((UNCACHED, uncached), (variant, cached)):
            if chosen is variant or not store.clips.has(prompt, seed, chosen.label):
                store.clips.save(prompt, seed, chosen.label, made.frames_FHWC)
    assert cached.report is not None  # a variant of a comparison caches
    known = uncached.latents is not None and cached.latents is not None
    return Case(
        prompt=prompt,
        seed=seed,
        variant=variant.label,
        uncached_seconds=tuple(pair[0].seconds for pair in pairs),
        cached_seconds=tuple(pair[1].seconds for pair in pairs),
        psnr=psnr(uncached.frames_FHWC, cached.frames_FHWC),
        ssim=ssim(uncached.frames_FHWC, cached.frames_FHWC),
        latents_error=relative_error(uncached.latents, cached.latents) if known else None,  # type: ignore[arg-type]
        mask=cached.mask,
        report=cached.report,
        audit=_audit(comparison, prompt, seed, variant, watch) if comparison.audit else None,
    )


def _audit(comparison: Comparison, prompt: str, seed: int, variant: Variant, watch: Watch) -> Audit:
    """The ledger of one more cached run, not timed: the model is computed beside every reuse."""
    made = generate(comparison.model, prompt, seed, comparison.arguments, variant, on_step=watch.step, audit=True)
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


def check_variants(variants: Sequence[Variant]) -> tuple[Variant, ...]:
    """The variants, if each caches and none is given twice; `ConfigurationError` otherwise."""
    if not variants:
        raise ConfigurationError("give at least one --policy; see `mixcache plugins`.")
    labels = [variant.label for variant in variants]
    for variant in variants:
        if not variant.caches:
            raise ConfigurationError("--policy none is what every policy is compared with; name one that caches.")
        if labels.count(variant.label) > 1:
            raise ConfigurationError(f"--policy {variant.label!r} is given twice.")
    return tuple(variants)

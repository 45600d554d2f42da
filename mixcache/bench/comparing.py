"""Measure variants against no caching: paired in time, case by case, and without ever losing a finished case."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attrs import evolve, frozen

from mixcache.bench.cases import Audit, Case, CaseStore, Reuse
from mixcache.bench.comparison import Comparison, Variant
from mixcache.bench.flags import UNCACHED
from mixcache.bench.generation import Generation, generate
from mixcache.bench.metrics.frames import psnr, relative_error
from mixcache.bench.references import Reference
from mixcache.bench.results import kept
from mixcache.bench.rival import step_counts
from mixcache.bench.steps import Steps
from mixcache.bench.watch import Watch
from mixcache.errors import AttachError, ConfigurationError
from mixcache.recipe import Recipe
from mixcache.session import enable

Asked = tuple[str, int, Variant | None]
"""Prompt, seed and variant; `None` is the uncached run itself."""


def compare(comparison: Comparison, store: CaseStore | str | Path, watch: Watch | None = None) -> list[Case]:
    """Measure every case that `store` does not hold yet; return all of them, in order.

    For every prompt and seed that is the uncached run ("none") and the variants; the rival's points ("steps=14", ...)
    follow at the end. store: an opened `CaseStore`, or a folder to open one in. Raises `ConfigurationError` or
    `AttachError` before the first run where a recipe does not fit the model, and `KeyboardInterrupt` with a message
    that says what is kept.
    """
    if not isinstance(store, CaseStore):
        store = CaseStore(store).open(comparison.settings)
    work = _Work(comparison=comparison, store=store, watch=watch or Watch())
    asked: list[Asked] = [(p, s, v) for p, s in comparison.pairs for v in (*comparison.variants, None)]
    rivals: list[Asked] = []
    try:
        made = work.finish(asked)
        if comparison.has_rival:
            counts = step_counts(comparison.steps, kept(comparison, store))
            rivals = [(p, s, Steps(n)) for p, s in comparison.pairs for n in counts]
            work.finish(rivals, made, rival=True)
    except KeyboardInterrupt:
        every = list(dict.fromkeys([*asked, *rivals]))
        done = sum(work.finished(key, rival=key in rivals) for key in every)
        told = f"{done} of {len(every)} cases are kept in {store.folder}; the same command goes on from there."
        raise KeyboardInterrupt(told) from None
    return kept(comparison, store)


def label_of(variant: Variant | None) -> str:
    """Its name in tables, files and pictures."""
    return UNCACHED if variant is None else str(variant)


@frozen(kw_only=True)
class _Work:
    """A comparison under way."""

    comparison: Comparison
    store: CaseStore
    watch: Watch

    def finished(self, key: Asked, rival: bool = False) -> bool:
        """Whether the case is kept, with all that is wanted of it: times, and its clip. A rival's needs neither."""
        prompt, seed, variant = key
        case = self.store.cases.get((prompt, seed, label_of(variant)))
        if case is None or rival:
            return case is not None
        if variant is not None and not self.comparison.quality_only and not case.cached_seconds:
            return False
        return (prompt, seed) not in self.comparison.shown or self.store.clips.has(prompt, seed, label_of(variant))

    def finish(self, keys: Sequence[Asked], made: int = 0, rival: bool = False) -> int:
        """Measure the cases that are missing; `made` calls came before. Returns the calls so far."""
        missing = [index for index, key in enumerate(keys) if not self.finished(key, rival)]
        timed = not self.comparison.quality_only and not rival
        calls = made + self._calls([keys[index] for index in missing], timed)
        self.watch.started(calls, self.comparison.steps)
        if missing and not rival:
            self._check_fit()
        if missing and timed:
            prompt, seed, _ = keys[missing[0]]
            generate(self.comparison.model, prompt, seed, self.comparison.warm_up)
        for index in missing:
            pair, place = divmod(index, len(self.comparison.variants) + 1)
            cached_first = (pair + place) % 2 == 1  # every variant runs first as often as second
            case = self._measure(keys[index], timed, cached_first, shown=not rival)
            self.store.add(case)
            self.watch.case(case)
        return calls

    def _check_fit(self) -> None:
        """Put every recipe on the model and take it off again, so that one that does not fit costs no run of others."""
        for variant in self.comparison.variants:
            if isinstance(variant, Recipe):
                try:
                    enable(self.comparison.model.pipeline, variant).disable()
                except (AttachError, ConfigurationError) as error:
                    raise type(error)(f"--policy {str(variant)!r}: {error}") from error

    def _calls(self, keys: Sequence[Asked], timed: bool) -> int:
        """How many runs these cases need."""
        calls = 0
        for _, _, variant in keys:
            if variant is not None:
                calls += 2 * self.comparison.repeats if timed else 1
                calls += self.comparison.audit and isinstance(variant, Recipe)
        for prompt, seed in dict.fromkeys((prompt, seed) for prompt, seed, _ in keys):
            paired = timed and any((p, s) == (prompt, seed) and v is not None for p, s, v in keys)
            calls += not paired and not self.store.references.has(prompt, seed, UNCACHED)
            if self.comparison.truth is not None:
                calls += not self.store.references.has(prompt, seed, str(Steps(self.comparison.truth)))
        return calls

    def _measure(self, key: Asked, timed: bool, cached_first: bool, shown: bool) -> Case:
        """One case: one run, or pairs of an uncached and a cached run, in alternating order against the drift."""
        prompt, seed, variant = key
        pairs: list[tuple[Generation, Generation]] = []
        made: Generation | None = None
        if variant is not None and timed:
            pairs = self._pairs(prompt, seed, variant, cached_first)
            made = pairs[0][1]
            if not self.store.references.has(prompt, seed, UNCACHED):
                self.store.references.save(prompt, seed, UNCACHED, _kept_of(pairs[0][0]))
        elif variant is not None:
            made = self._run(prompt, seed, variant)
        reference = self._plain(prompt, seed)
        truth = None if self.comparison.truth is None else self._plain(prompt, seed, Steps(self.comparison.truth))
        own = reference if made is None else _kept_of(made)
        if shown and (prompt, seed) in self.comparison.shown:
            self.store.clips.save(prompt, seed, label_of(variant), own.frames_FHWC)
        report = None if made is None else made.report
        steps = variant.count if isinstance(variant, Steps) else self.comparison.steps
        metrics = self.comparison.metrics.items()
        audited = isinstance(variant, Recipe) and self.comparison.audit
        return Case(
            prompt=prompt,
            seed=seed,
            variant=label_of(variant),
            uncached_seconds=tuple(pair[0].seconds for pair in pairs),
            cached_seconds=tuple(pair[1].seconds for pair in pairs),
            evaluations=own.calls if report is None else report.evaluations,
            evaluations_uncached=reference.calls if report is None else report.evaluations_uncached,
            scores={name: metric(own.frames_FHWC, reference.frames_FHWC, prompt) for name, metric in metrics},
            latents_error=_error(reference, own),
            truth_psnr=None if truth is None else psnr(truth.frames_FHWC, own.frames_FHWC),
            truth_error=None if truth is None else _error(truth, own),
            mask="1" * steps if made is None or report is None else made.mask,
            report=report,
            audit=self._audit(prompt, seed, variant) if audited else None,  # type: ignore[arg-type]
        )

    def _pairs(
        self, prompt: str, seed: int, variant: Variant, cached_first: bool
    ) -> list[tuple[Generation, Generation]]:
        """(uncached, cached), `repeats` times."""
        pairs = []
        for repeat in range(self.comparison.repeats):
            if cached_first == (repeat % 2 == 0):
                cached = self._run(prompt, seed, variant)
                pairs.append((self._run(prompt, seed), cached))
            else:
                uncached = self._run(prompt, seed)
                pairs.append((uncached, self._run(prompt, seed, variant)))
        return pairs

    def _run(self, prompt: str, seed: int, variant: Variant | None = None) -> Generation:
        """One call of the pipeline, as the variant says."""
        model, arguments, recipe = self.comparison.model, self.comparison.arguments, None
        if isinstance(variant, Steps):
            arguments = self.comparison.with_steps(variant.count)
        else:
            recipe = variant
        made = generate(model, prompt, seed, arguments, recipe, on_step=self.watch.step)
        self.watch.call()
        return made

    def _plain(self, prompt: str, seed: int, variant: Steps | None = None) -> Reference:
        """The uncached run, or the one with many steps: the kept one, or made now and kept."""
        references = self.store.references
        reference = references.load(prompt, seed, label_of(variant))
        if reference is None:
            reference = _kept_of(self._run(prompt, seed, variant))
            references.save(prompt, seed, label_of(variant), reference)
        return reference

    def _audit(self, prompt: str, seed: int, recipe: Recipe) -> Audit:
        """The ledger of one more cached run, not timed: the model is computed beside every reuse."""
        made = self._run(prompt, seed, evolve(recipe, audit=True))
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


def _kept_of(made: Generation) -> Reference:
    """What is kept of a plain run."""
    return Reference(frames_FHWC=made.frames_FHWC, latents=made.latents, calls=made.calls)


def _error(reference: Reference, own: Reference) -> float | None:
    """Relative L2 of the final latents, where both are shown."""
    if reference.latents is None or own.latents is None:
        return None
    return relative_error(reference.latents, own.latents)

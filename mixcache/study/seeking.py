"""A search under way: its trials are kept by Optuna, one after the other is asked for, run and told.

A guess depends on the seed and on the trials before it alone, so a search that was interrupted comes to the same end.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cattrs
from attrs import define, field, frozen

from mixcache.bench.loading import Model
from mixcache.bench.watch import Watch
from mixcache.errors import ConfigurationError, MixcacheError, NothingReusedWarning
from mixcache.host.tuned import Conditions
from mixcache.study.plain import Plain, Run, told_of
from mixcache.study.space import Seen, Space, opening
from mixcache.study.targets import Clip, Measured, Target
from mixcache.study.verdicts import in_words

STARTUP = 5
"""Trials before the first guess that learns from them."""

_converter = cattrs.Converter()


@frozen(kw_only=True)
class Tried:
    """A finished trial, for whoever shows the progress."""

    variant: str
    speed: str


@define(eq=False, kw_only=True)
class Seeking:
    """A search under way.

    call: the arguments of the pipeline's call. pairs: the tuning clips, by prompt and seed. run: makes a clip. optuna:
    the module; study: its record of the trials, kept at `place`. families: what the opening tries.
    """

    model: Model
    target: Target
    call: Mapping[str, Any]
    pairs: Sequence[tuple[str, int]]
    plain: Plain
    run: Run
    space: Space
    watch: Watch
    optuna: Any = None
    study: Any = None
    seed: int = 0
    place: str = ""
    families: list[Any] = field(factory=list)

    @property
    def question(self) -> dict[str, Any]:
        """What determines the result."""
        told = {
            **told_of(self.model, self.call),
            "target": str(self.target),
            "quality": self.target.metric.name,
            "way to meet it": "surely" if self.target.sure else "in the mean",
            "prompts or seeds": self.pairs,
            "choice of policies": self.space.told(),
            "seed of the search": self.seed,
        }
        return json.loads(json.dumps(told, default=str, sort_keys=True))  # type: ignore[no-any-return]

    def open(self, optuna: Any, folder: Path, storage: str | None, seed: int, tell: Callable[[str], None]) -> None:
        """Find the search in its storage, or begin it; say which."""
        self.optuna, self.seed, self.place = optuna, seed, storage or str(folder)
        asked = self.question
        text = json.dumps(asked, sort_keys=True)
        name = f"{self.target} {hashlib.sha256(text.encode()).hexdigest()[:12]}"
        kept = _storage(optuna, folder, storage)
        others = [one for one in optuna.get_all_study_names(kept) if one != name]
        self.study = optuna.create_study(storage=kept, study_name=name, direction="maximize", load_if_exists=True)
        if self.finished:
            tell(f"goes on after {self.finished} trials in {self.place}")
        elif others and "question" not in self.study.user_attrs:
            last = optuna.load_study(study_name=others[-1], storage=kept).user_attrs.get("question", {})
            changed = [key for key in asked if last.get(key) != asked[key]]
            tell(f"{self.place} holds a search with another {', '.join(changed) or 'question'}: a new one begins")
        self.study.set_user_attr("question", asked)
        for dropped, why in self.space.dropped.items() if not self.finished else ():
            tell(f"not tried: {dropped}: {why}")
        self.families = self.space.families()

    @property
    def _trials(self) -> list[Any]:
        return self.study.get_trials(deepcopy=False)  # type: ignore[no-any-return]

    @property
    def finished(self) -> int:
        """Trials so far."""
        return sum(one.state.name in ("COMPLETE", "PRUNED") for one in self._trials)

    @property
    def pruned(self) -> int:
        """Of these, those that were broken off."""
        return sum(one.state.name == "PRUNED" for one in self._trials)

    def go_on(self, trials: int, until: float | None) -> None:
        """Make trials until there are so many, or it is so late."""
        trial: Any = None
        try:
            while self.finished < trials and (until is None or time.monotonic() < until or not self.finished):
                self._sampled()
                if (params := opening(self.families, self.space.budgets, self._seen())) is not None:
                    self.study.enqueue_trial(params, user_attrs={"opening": True})
                trial = self.study.ask()
                self._try(trial)
        except BaseException as stop:
            if trial is not None:
                self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL, skip_if_finished=True)
            if not isinstance(stop, KeyboardInterrupt):
                raise
            told = f"{self.finished} of {trials} trials are kept in {self.place}"
            raise KeyboardInterrupt(f"{told}; the same command goes on from there.") from None

    def _sampled(self) -> None:
        """A sampler whose guesses depend on the seed and the trials so far, however often the search is resumed."""
        count = sum(one.state.name != "FAIL" for one in self._trials)
        seed = (self.seed * 1_000_003 + count) % 2**32
        self.study.sampler = self.optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
        self.study.pruner = self.optuna.pruners.MedianPruner(n_startup_trials=6, n_warmup_steps=2)

    def _seen(self) -> list[Seen]:
        """The trials that count for the opening."""
        return [
            Seen(
                params=one.params or one.system_attrs.get("fixed_params", {}),
                met=one.user_attrs.get("met", False) if one.state.is_finished() else None,
                cost=one.user_attrs.get("cost"),
            )
            for one in self._trials
            if one.state.name != "FAIL"
        ]

    def _try(self, trial: Any) -> None:
        """Run what a trial chooses on every tuning clip; break off what is worse than the median of the others."""
        state = self.optuna.trial.TrialState
        clips: list[Clip] = []
        recipe = ""
        try:
            recipe = self.space.suggest(trial)
            trial.set_user_attr("recipe", recipe)
            known = self._known(recipe)
            for prompt, seed in self.pairs:
                clip = known.get((prompt, seed)) or self._clip(prompt, seed, recipe)
                if (prompt, seed) in known:
                    self.watch.call()  # made before
                clips.append(clip)
                trial.set_user_attr("clips", json.dumps(_converter.unstructure(clips)))
                trial.report(self.target.value(Measured(tuple(clips))), step=len(clips))
                left = len(self.pairs) - len(clips)
                if left and "opening" not in trial.user_attrs and trial.should_prune():
                    self._ended(trial, recipe, clips, left, "broken off: ", state.PRUNED)
                    return
        except MixcacheError as error:  # these choices do not go together
            trial.set_user_attr("refused", str(error))
            left = len(self.pairs) - len(clips)
            self._ended(trial, recipe or str(trial.params), clips, left, f"refused: {error} ", state.PRUNED)
            return
        self._ended(trial, recipe, clips, 0, "", state.COMPLETE)

    def _ended(self, trial: Any, recipe: str, clips: list[Clip], left: int, said: str, state: Any) -> None:
        """Tell Optuna and whoever watches what came of a trial. left: clips that it does not make any more."""
        for _ in range(left):
            self.watch.call()
        complete = state is self.optuna.trial.TrialState.COMPLETE
        measured = Measured(tuple(clips))
        if complete:
            trial.set_user_attr("met", self.target.met(measured))
            trial.set_user_attr("cost", self.space.steps * (1.0 - measured.saved))
        self.study.tell(trial, self.target.value(measured) if complete else None, state)
        told = said if not clips else f"{said}{in_words(self.target, measured)}"
        self.watch.case(Tried(variant=recipe, speed=f"trial {self.finished}: {told}"))

    def _known(self, recipe: str) -> dict[tuple[str, int], Clip]:
        """The clips of a recipe that any trial made."""
        found: dict[tuple[str, int], Clip] = {}
        for one in self._trials:
            if one.user_attrs.get("recipe") == recipe and "clips" in one.user_attrs:
                for clip in _converter.structure(json.loads(one.user_attrs["clips"]), list[Clip]):
                    found[clip.prompt, clip.seed] = clip
        return found

    def _clip(self, prompt: str, seed: int, recipe: str) -> Clip:
        """One clip, measured beside the uncached one."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingReusedWarning)
            made = self.run(prompt, seed, recipe)
        if "conditions" not in self.study.user_attrs:
            self.study.set_user_attr("conditions", json.dumps(_converter.unstructure(made.conditions)))
        made_of = made.report.evaluations, made.report.evaluations_uncached
        return self._measured_clip(prompt, seed, made, made_of)

    def _measured_clip(self, prompt: str, seed: int, made: Any, evaluations: tuple[float, int]) -> Clip:
        """A generation as a clip. evaluations: made, and without a cache."""
        value = self.target.metric(made.frames_FHWC, self.plain.frames(prompt, seed), prompt)
        if math.isnan(value):
            raise ConfigurationError(f"{self.target.metric.name} cannot be told of {prompt!r}; give other prompts.")
        done, all_ = evaluations
        return Clip(prompt=prompt, seed=seed, value=value, evaluations=done, evaluations_uncached=all_)

    def held_out(self, recipe: str, pairs: Sequence[tuple[str, int]]) -> Measured:
        """The recipe on held-out clips. Kept by Optuna, like all clips."""
        return self._others(recipe, pairs, lambda prompt, seed: self._clip(prompt, seed, recipe))

    def rival(self, cost: float, pairs: Sequence[tuple[str, int]]) -> tuple[int, Measured]:
        """The plain pipeline with fewer steps, but no fewer evaluations than `cost`, a share of the run."""
        asked = self.model.steps(self.call)
        steps = max(1, min(asked, math.ceil(cost * asked - 1e-9)))

        def made(prompt: str, seed: int) -> Clip:
            return self._measured_clip(prompt, seed, self.run(prompt, seed, None, steps), (steps, asked))

        return steps, self._others(f"steps={steps}", pairs, made)

    def _others(self, key: str, pairs: Sequence[tuple[str, int]], make: Callable[[str, int], Clip]) -> Measured:
        """Clips that no trial is of, each made once."""
        name = f"held out: {key}"
        kept = _converter.structure(json.loads(self.study.user_attrs.get(name, "[]")), list[Clip])
        known = {(clip.prompt, clip.seed): clip for clip in kept}
        try:
            for pair in pairs:
                if pair not in known:
                    known[pair] = make(*pair)
                    self.study.set_user_attr(name, json.dumps(_converter.unstructure(list(known.values()))))
        except KeyboardInterrupt:
            told = f"the search is done, and {len(known)} of {len(pairs)} held-out clips are kept in {self.place}"
            raise KeyboardInterrupt(f"{told}; the same command goes on from there.") from None
        return Measured(tuple(known[pair] for pair in pairs))

    def best(self) -> tuple[str, Measured]:
        """Of the trials that meet the target, the one that gains most; of equal ones, the one furthest within it."""
        done = [one for one in self._trials if one.state.name == "COMPLETE"]
        found = [(one.user_attrs["recipe"], self._measured(one)) for one in done]
        good = [one for one in found if self.target.met(one[1])]
        if good:
            return max(good, key=lambda one: (round(self.target.gain(one[1]), 9), self.target.beyond(one[1])))
        why = next((one.user_attrs["refused"] for one in self._trials if "refused" in one.user_attrs), "")
        nearest = max(found, key=lambda one: self.target.value(one[1]), default=None)
        told = why if nearest is None else f"the nearest is {nearest[0]}: {in_words(self.target, nearest[1])}"
        raise ConfigurationError(
            f"none of {self.finished} trials meets {self.target}; {told}. Ask for less, or more trials."
        )

    def _measured(self, trial: Any) -> Measured:
        return Measured(tuple(_converter.structure(json.loads(trial.user_attrs["clips"]), list[Clip])))

    def conditions(self) -> Conditions:
        """Under which the clips were made."""
        return _converter.structure(json.loads(self.study.user_attrs["conditions"]), Conditions)


def _storage(optuna: Any, folder: Path, url: str | None) -> Any:
    """Where a search is kept. Raises `ConfigurationError` for a URL that cannot be opened."""
    if url is None:
        journal = optuna.storages.journal
        path = str(folder / "search.log")
        lock = journal.JournalFileOpenLock(path)
        return optuna.storages.JournalStorage(journal.JournalFileBackend(path, lock_obj=lock))
    try:
        return optuna.storages.get_storage(url)
    except Exception as error:
        line = str(error).strip().splitlines()[:1]
        raise ConfigurationError(f"cannot open the storage {url!r}: {''.join(line)}") from error

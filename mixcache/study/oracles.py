"""The best mask for one clip at a budget, found by real runs; and how far every policy stays behind it (its regret)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest

import numpy as np
from attrs import frozen

from mixcache.bench.cases import Case
from mixcache.core import catalogue
from mixcache.errors import ConfigurationError
from mixcache.study.pricing import Masks, Pricing, Total, Weights, as_masks, as_text
from mixcache.study.searching import free_to_reuse, neighbours, search
from mixcache.study.trying import Trial

PRICED = 4
"""Masks that are tried by each way of weighing and adding up, before the local search begins."""


@frozen(kw_only=True)
class Best:
    """The best mask found for one clip at a budget, and its real run. evaluations: the budget.

    runs: how many masks were tried. finished: whether no exchange of a computed and a reused evaluation is better;
    else the number of runs ended the search, and more may find a better one.
    """

    evaluations: int
    trial: Trial
    runs: int
    finished: bool

    @property
    def recipe(self) -> str:
        """As `mixcache.enable` takes it."""
        return self.trial.recipe


def improve(
    attempt: Callable[[str], Trial], pricing: Pricing, *, evaluations: int, runs: int, first_steps: int
) -> Best:
    """The best mask that `attempt`, a real run, shows within `runs` attempts; see `mixcache.study.oracle`."""
    free = free_to_reuse(pricing.recording.steps, evaluations, first_steps, 0)
    tried: dict[str, Trial] = {}

    def better(masks: Iterable[str], than: Trial | None) -> Iterator[tuple[str, Trial]]:
        """Real runs of masks that were not tried yet, as long as there are runs left: those that are better."""
        for mask in masks:
            if mask not in tried and len(tried) < runs:
                tried[mask] = attempt(mask)
                if than is None or tried[mask].deviation < than.deviation:
                    yield mask, tried[mask]

    begin = list(better(_priced(pricing, evaluations, first_steps), None))
    mask, best = min(begin, key=lambda item: (math.isnan(item[1].deviation), item[1].deviation))
    while (found := next(better(_beside(mask, pricing, free), best), None)) is not None:
        mask, best = found
    finished = all(one in tried for one in _beside(mask, pricing, free))
    return Best(evaluations=evaluations, trial=best, runs=len(tried), finished=finished)


def _priced(pricing: Pricing, evaluations: int, first_steps: int) -> Iterator[str]:
    """The masks with the lowest prices, by each way of weighing and adding up in turn."""
    weights: tuple[Weights, ...] = ("even",) if pricing.recording.solver is None else ("even", "solver")
    totals: tuple[Total, ...] = ("rss", "vector")
    ways = [
        search(
            pricing.recording,
            evaluations,
            basis=catalogue.spec_of(pricing.basis),
            forecast=catalogue.spec_of(pricing.forecast),
            weights=weight,
            total=total,
            first_steps=first_steps,
            keep=PRICED,
        )
        for weight in weights
        for total in totals
    ]
    for ranked in zip_longest(*ways):
        yield from (found.mask for found in ranked if found is not None)


def _beside(mask: str, pricing: Pricing, free: Masks) -> list[str]:
    """The masks one exchange away that have a price, the lowest first."""
    masks = neighbours(as_masks(mask, len(free))[0], free)
    if not len(masks):
        return []
    prices = pricing.deviations(masks, "even", "rss")
    return [as_text(masks[i]) for i in np.argsort(prices, kind="stable") if np.isfinite(prices[i])]


@frozen(kw_only=True)
class Regret:
    """How far a case stays behind the best mask known for its clip, at as many evaluations (in whole steps).

    latents: in dB, 20 log10 of the ratio of the deviations of the final latents. psnr: in dB, of the clips. Below 0
    where the case is the better one.
    """

    prompt: str
    seed: int
    variant: str
    evaluations: int
    latents: float
    psnr: float


def budgets(cases: Iterable[Case]) -> list[tuple[str, int, int]]:
    """The (prompt, seed, evaluations) at which `regret` of these cases wants an oracle, each once."""
    return list(dict.fromkeys((case.prompt, case.seed, _budget(case)) for case in cases if _counts(case)))


def regret(cases: Iterable[Case], best: Iterable[Best]) -> list[Regret]:
    """The regret of every case that saved evaluations and was off by something, in their order.

    best: what `oracle` found at the `budgets` of the cases. Raises `ConfigurationError` where one is missing.
    """
    known = {(one.trial.prompt, one.trial.seed, one.evaluations): one.trial for one in best}
    found: list[Regret] = []
    for case in filter(_counts, cases):
        budget = _budget(case)
        trial = known.get((case.prompt, case.seed, budget))
        if trial is None:
            raise ConfigurationError(
                f"no oracle for {case.prompt!r}, seed {case.seed}, at {budget} evaluations; make it with "
                f"`study.oracle(model, prompt, seed, evaluations={budget})`."
            )
        ratio = math.inf if not trial.deviation else (case.latents_error or 0.0) / trial.deviation
        found.append(
            Regret(
                prompt=case.prompt,
                seed=case.seed,
                variant=case.variant,
                evaluations=budget,
                latents=20.0 * math.log10(ratio) if ratio < math.inf else ratio,
                psnr=trial.psnr - case.psnr,
            )
        )
    return found


def _budget(case: Case) -> int:
    """Evaluations of the whole model, counted as steps: guidance branches that are called apart count together."""
    return max(round(case.evaluations / case.evaluations_uncached * len(case.mask)), 1)


def _counts(case: Case) -> bool:
    """Whether something was saved by reuse: fewer steps have no mask."""
    return bool(case.latents_error) and set(case.mask) != {"1"} and _budget(case) < len(case.mask)

"""The best masks for a budget, by price: exactly where the price is a sum, by local search where it is not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
from attrs import frozen

from mixcache.errors import ConfigurationError
from mixcache.study.pricing import Masks, Pricing, Total, Weights, as_masks, as_text
from mixcache.study.recording import Matrix, Recording

Over = Literal["mean", "worst"]
Many = Recording | Iterable[Recording]


@frozen(kw_only=True)
class Found:
    """A mask, its price (see `Pricing.deviations`), and the recipe that `mixcache.enable` takes."""

    mask: str
    price: float
    recipe: str


def recipe_of(mask: str, basis: str, forecast: str) -> str:
    """The mask as a recipe."""
    return f"schedule:mask={mask} @ basis={basis} forecast={forecast}"


def price(
    recordings: Many,
    masks: str | Sequence[str] | Masks,
    *,
    basis: str = "noise",
    forecast: str = "linear",
    weights: Weights = "even",
    total: Total = "rss",
    over: Over = "mean",
) -> Matrix:
    """[K]: the estimated relative deviation of the final latent by mask, up to a factor, mean or worst over recordings.

    weights, total: as in `Pricing.deviations`. Build a `Pricing` yourself to price many batches of masks.
    """
    return _priced(pricings(recordings, basis, forecast), weights, total, over)(masks)


def pricings(recordings: Many, basis: str, forecast: str) -> list[Pricing]:
    """One for each recording. Raises `ConfigurationError` for none, and for runs of several lengths."""
    many = [recordings] if isinstance(recordings, Recording) else list(recordings)
    lengths = sorted({one.steps for one in many})
    if len(lengths) != 1:
        told = ", ".join(map(str, lengths)) or "none"
        raise ConfigurationError(f"`recordings` must be runs of one number of evaluations, got {told}.")
    return [Pricing(one, basis, forecast) for one in many]


def _priced(
    many: Sequence[Pricing], weights: Weights, total: Total, over: Over
) -> Callable[[str | Sequence[str] | Masks], Matrix]:
    if over not in ("mean", "worst"):
        raise ConfigurationError(f"`over` must be 'mean' or 'worst', got {over!r}.")

    def priced(masks: str | Sequence[str] | Masks) -> Matrix:
        table = as_masks(masks, many[0].recording.steps)
        each = np.array([one.deviations(table, weights, total) for one in many])
        found: Matrix = each.mean(axis=0) if over == "mean" else each.max(axis=0)
        return found

    return priced


def search(
    recordings: Many,
    evaluations: int,
    *,
    basis: str = "noise",
    forecast: str = "linear",
    weights: Weights = "even",
    total: Total = "rss",
    over: Over = "mean",
    first_steps: int = 1,
    last_steps: int = 0,
    keep: int = 24,
    starts: int = 6,
    seed: int = 0,
) -> list[Found]:
    """The masks of `evaluations` computed evaluations with the lowest prices, best first; at most `keep`.

    The best one by the mean of squares ("rss") is found exactly by dynamic programming. From there, and from
    `starts` - 1 masks drawn at random, computed evaluations are exchanged with reused ones while the price by `total`
    and `over` falls. first_steps, last_steps: evaluations that are always computed. Raises `ConfigurationError` for a
    budget that no mask meets.
    """
    many = pricings(recordings, basis, forecast)
    free = free_to_reuse(many[0].recording.steps, evaluations, first_steps, last_steps)
    priced = _priced(many, weights, total, over)
    seen: dict[str, float] = {}
    best = optimal(many, evaluations, weights=weights, first_steps=first_steps, last_steps=last_steps)
    draw = np.random.default_rng(seed)
    for start in range(max(starts, 1)):
        mask = best.copy() if not start else _drawn(draw, free, evaluations)
        _descend(mask, free, priced, seen)
    ordered = sorted(seen.items(), key=lambda item: item[1])[:keep]
    return [Found(mask=m, price=value, recipe=recipe_of(m, basis, forecast)) for m, value in ordered]


def free_to_reuse(steps: int, evaluations: int, first_steps: int, last_steps: int) -> Masks:
    """[n]: the evaluations that may be reused."""
    free = np.ones(steps, dtype=bool)
    free[: max(first_steps, 1)] = False
    free[steps - max(last_steps, 0) :] = False
    if not (~free).sum() <= evaluations <= steps:
        raise ConfigurationError(
            f"`evaluations` must be from {(~free).sum()} (those always computed) to {steps}, got {evaluations!r}."
        )
    return free


def _drawn(draw: np.random.Generator, free: Masks, evaluations: int) -> Masks:
    mask = ~free
    mask[draw.choice(np.flatnonzero(free), size=evaluations - int(mask.sum()), replace=False)] = True
    return mask


def neighbours(mask: Masks, free: Masks) -> Masks:
    """[K, n]: the masks with one computed evaluation exchanged for a reused one."""
    computed, reused = np.flatnonzero(mask & free), np.flatnonzero(~mask)
    found = np.repeat(mask[None], len(computed) * len(reused), axis=0)
    rows = np.arange(len(found))
    found[rows, np.repeat(computed, len(reused))] = False
    found[rows, np.tile(reused, len(computed))] = True
    return found


def _descend(mask: Masks, free: Masks, priced: Callable[[Masks], Matrix], seen: dict[str, float]) -> None:
    """Exchange while the price falls; every mask on the way, and the best beside it, are noted."""
    now = float(priced(mask[None])[0])
    seen[as_text(mask)] = now
    while True:
        beside = neighbours(mask, free)
        if not len(beside):
            return
        values = priced(beside)
        order = np.argsort(values)
        for i in order[:8]:
            if np.isfinite(values[i]):
                seen[as_text(beside[i])] = float(values[i])
        if not values[order[0]] < now:
            return
        mask, now = beside[order[0]], float(values[order[0]])


def optimal(
    many: Sequence[Pricing],
    evaluations: int,
    *,
    weights: Weights = "even",
    first_steps: int = 1,
    last_steps: int = 0,
) -> Masks:
    """The mask with the smallest mean over recordings of sum (w_t ||e_t||)^2, exactly; [n], True where computed.

    Dynamic programming over the last `depth` computed evaluations: what a reuse costs depends on nothing else.
    Raises `ConfigurationError` where no mask has a price.
    """
    steps, depth = many[0].recording.steps, many[0].forecast.depth
    free = free_to_reuse(steps, evaluations, first_steps, last_steps)
    between = _between(_squared(many, weights), free)
    value = np.full((steps + 1,) * depth, np.inf)
    value[(steps,) * (depth - 1) + (0,)] = 0.0
    came: list[Matrix] = []
    for _ in range(evaluations - 1):
        onward = value[..., None] + between[..., :steps]
        came.append(onward.argmin(axis=0).astype(np.int16))
        value = np.full_like(value, np.inf)
        value[..., :steps] = onward.min(axis=0)
    value = value + between[..., steps]
    state = [int(i) for i in np.unravel_index(int(value.argmin()), value.shape)]
    if not np.isfinite(value[tuple(state)]):
        raise ConfigurationError(
            f"no mask of {evaluations} evaluations of {steps} can be priced in this basis; give more evaluations or "
            "basis='residual'."
        )
    mask = np.zeros(steps, dtype=bool)
    for before in reversed(came):
        mask[state[-1]] = True
        state = [int(before[tuple(state)]), *state[:-1]]
    mask[0] = True
    return mask


def _squared(many: Sequence[Pricing], weights: Weights) -> Matrix:
    """[n + 1, ..., n]: what a reuse adds to the squared deviation, mean over the recordings."""
    each = [(one.table * np.abs(one.weights(weights)) / one.recording.scale) ** 2 for one in many]
    found: Matrix = np.mean(each, axis=0)
    return found


def _between(cost: Matrix, free: Masks) -> Matrix:
    """[n + 1, ..., n + 1]: the cost of reusing all from the last computed evaluation up to the next one, or the end."""
    steps = len(free)
    cost = np.where(free, cost, np.inf)
    last, t = np.arange(steps + 1)[:, None], np.arange(steps)
    cost = np.where(t > last, cost, 0.0)
    total = np.concatenate([np.zeros((*cost.shape[:-1], 1)), np.cumsum(cost, axis=-1)], axis=-1)
    found: Matrix = np.where((np.arange(steps + 1) > last) & (last < steps), total, np.inf)
    return found

"""What a search may choose: masks that prices found, and every policy that says within which bounds it may be varied.

Nothing here is known by name: policies, bases and forecasters are those that are registered. A policy says what may be
varied in the metadata of its fields (`mixcache.tunable`); one that takes orders (`evaluations`, `speedup`) is varied by
these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from attrs import define, field, frozen

from mixcache import spec as grammar
from mixcache.core import catalogue
from mixcache.core.points import Granularity
from mixcache.core.policy import Policy
from mixcache.core.validators import TUNED, Tunable
from mixcache.errors import ConfigurationError, UnknownNameError
from mixcache.recipe import Recipe
from mixcache.study.pricing import DEEPEST, Masks, Pricing, as_text
from mixcache.study.recording import Recording
from mixcache.study.searching import optimal, pricings, recipe_of

MASKS = "masks"
"""What a search calls the masks that prices find. No spec: masks are `schedule` recipes."""

ORDER = "evaluations"
"""The parameter by which a policy takes an order; a search varies it between its own bounds."""

PUBLISHED = "as published"
"""No choice: the basis or the forecaster is the policy's own."""

LARGEST = 1_100_000
"""Entries of the table of prices of a forecaster that is still quick: 100 steps with two stored evaluations."""

FAMILIES = 3
"""Pairs of basis and forecaster, those with the lowest prices, with whose masks a search begins."""

Params = dict[str, Any]


@frozen(kw_only=True)
class Seen:
    """A trial so far. params: what was chosen. met: whether it meets the target; `None` while it runs.

    cost: evaluations that it made, in whole steps; `None` where that is not known.
    """

    params: Mapping[str, Any]
    met: bool | None
    cost: float | None = None


@define(eq=False)
class Space:
    """The choices of a search on one model.

    misfit: why a recipe cannot be enabled on the model, `None` if it can. steps: evaluations of the uncached run.
    ordered: how many are wanted, where a speed is ordered. policies: what to choose from beside the masks. recordings:
    of uncached runs; without any there are no masks. dropped: what does not fit the model, and why.
    """

    misfit: Callable[[str], str | None]
    steps: int
    ordered: int | None
    recordings: Sequence[Recording]
    policies: dict[str, type[Policy]]
    dropped: dict[str, str] = field(factory=dict)
    bases: tuple[str, ...] = ()
    forecasters: tuple[str, ...] = ()
    priced: tuple[str, ...] = ()
    _prices: dict[tuple[str, str], list[Pricing]] = field(factory=dict)
    _masks: dict[tuple[str, str, int], str] = field(factory=dict)

    @classmethod
    def of(
        cls,
        misfit: Callable[[str], str | None],
        steps: int,
        ordered: int | None,
        recordings: Sequence[Recording],
        named: Sequence[str] | None = None,
    ) -> Space:
        """Of everything that is registered, that may be varied and that fits the model.

        named: policies to choose from, by default all. Raises `UnknownNameError` for one that is not registered, and
        `ConfigurationError` for one that nothing may be varied of.
        """
        known = catalogue.policies()
        for name in named or ():
            if name not in known:
                raise UnknownNameError("policy", name, known)
            if not varied(known[name]):
                raise ConfigurationError(f"policy {name!r} says of no parameter within which bounds it may be varied.")
        chosen = {name: kind for name, kind in known.items() if (name in named if named else varied(kind))}
        space = cls(misfit, steps, ordered, recordings, chosen)
        for name in list(space.policies):
            if not space._fits(name, name):
                del space.policies[name]
        probe = next((name for name in space.policies if space.at_steps(name)), None)
        bases, forecasters = catalogue.bases(), catalogue.forecasters()
        if probe is not None or recordings:
            text = probe or recipe_of("1" * steps, "residual", "hold").partition(" @ ")[0]
            space.bases = tuple(b for b in bases if _bare(bases[b]) and space._fits(b, f"{text} @ basis={b}"))
            names = [f for f in forecasters if _bare(forecasters[f]) and forecasters[f]().depth > 0]
            space.forecasters = tuple(f for f in names if space._fits(f, f"{text} @ forecast={f}"))
        space.priced = tuple(f for f in space.forecasters if recordings and space._quick(forecasters[f]))
        if not space.who:
            raise ConfigurationError(f"there is nothing to choose from: {space.dropped or 'no policy may be varied'}.")
        return space

    @property
    def who(self) -> tuple[str, ...]:
        """The first choice: the masks, or a policy."""
        return (*((MASKS,) if self.priced and self.bases else ()), *self.policies)

    @property
    def budgets(self) -> tuple[int, int]:
        """The fewest and the most evaluations to try."""
        return (2, max(self.steps - 1, 2)) if self.ordered is None else (self.ordered, self.ordered)

    def told(self) -> dict[str, Any]:
        """What determines the choices, as JSON takes it."""
        names = {name: sorted(varied(kind)) for name, kind in self.policies.items()}
        return {"policies": names, "bases": self.bases, "forecasters": self.forecasters, "priced": self.priced}

    def at_steps(self, name: str) -> bool:
        """Whether a policy decides about whole steps alone, where every basis and forecaster can stand."""
        return self.policies[name]().granularities == {Granularity.STEP}

    def _fits(self, name: str, recipe: str) -> bool:
        why = self.misfit(recipe)
        if why is not None:
            self.dropped[name] = why
        return why is None

    def _quick(self, kind: Any) -> bool:
        """Whether the masks of a forecaster can be priced, and quickly."""
        linear = kind.forecast is catalogue.KINDS["forecaster"].base.forecast  # type: ignore[union-attr]
        depth = kind().depth
        return linear and 1 <= depth <= DEEPEST and (self.steps + 1) ** (depth + 1) <= LARGEST

    def suggest(self, trial: Any) -> str:
        """The recipe that a trial of Optuna chooses, as text."""
        who = trial.suggest_categorical("policy", self.who)
        if who == MASKS:
            basis = trial.suggest_categorical("masks basis", self.bases)
            forecast = self._forecast(trial, trial.suggest_categorical("masks forecast", self.priced), named_only=True)
            mask = self.mask(basis, forecast, trial.suggest_int("masks evaluations", *self.budgets))
            return str(Recipe.parse(recipe_of(mask, basis, forecast)))
        kind, values = self.policies[who], {}
        choices: list[tuple[str, str | None, str]] = []
        for name, bounds in varied(kind).items():
            values[name] = _value(trial, f"{who} {name}", bounds, self.budgets)
        if self.at_steps(who):
            basis = trial.suggest_categorical("basis", (PUBLISHED, *self.bases))
            forecast = trial.suggest_categorical("forecast", (PUBLISHED, *self.forecasters))
            choices += [] if basis == PUBLISHED else [("basis", None, basis)]
            choices += [] if forecast == PUBLISHED else [("forecast", None, self._forecast(trial, forecast))]
        return str(Recipe.parse(grammar.format_recipe([grammar.format_part(who, values)], choices)))

    def _forecast(self, trial: Any, name: str, *, named_only: bool = False) -> str:
        """A forecaster with values for what may be varied of it. named_only: nothing that changes how deep it looks."""
        bounds = varied(catalogue.forecasters()[name])
        values = {k: _value(trial, f"{name} {k}", b) for k, b in bounds.items() if b.choices or not named_only}
        return grammar.format_part(name, values)

    def mask(self, basis: str, forecast: str, evaluations: int) -> str:
        """The mask with the lowest price. Raises `ConfigurationError` where none has a price."""
        key = basis, forecast, evaluations
        if key not in self._masks:
            self._masks[key] = as_text(optimal(self._priced(basis, forecast), evaluations))
        return self._masks[key]

    def _priced(self, basis: str, forecast: str) -> list[Pricing]:
        if (basis, forecast) not in self._prices:
            self._prices[basis, forecast] = pricings(self.recordings, basis, forecast)
        return self._prices[basis, forecast]

    def families(self) -> list[tuple[Params, str]]:
        """With what a search begins, the most promising first, as (choices, the name of the one that is a budget).

        The masks of the pairs of basis and forecaster with the lowest prices, and every policy that takes orders.
        """
        budget = self.ordered or max(self.steps // 3, 2)
        ranked: list[tuple[float, Params]] = []
        for basis in self.bases if self.priced else ():
            for name in self.priced:
                try:
                    mask: Masks = optimal(self._priced(basis, name), budget)[None]
                except ConfigurationError:
                    continue
                prices = [one.deviations(mask, "even", "rss")[0] for one in self._priced(basis, name)]
                plain = catalogue.build("forecaster", name)
                own = {f"{name} {k}": getattr(plain, k) for k, b in varied(type(plain)).items() if b.choices}
                params = {"policy": MASKS, "masks basis": basis, "masks forecast": name, **own}
                if not any(math.isclose(float(np.mean(prices)), other, rel_tol=1e-9) for other, _ in ranked):
                    ranked.append((float(np.mean(prices)), params))  # a line has two names
        found = [(params, "masks evaluations") for _, params in sorted(ranked, key=lambda one: one[0])[:FAMILIES]]
        for name, kind in self.policies.items():
            if takes_orders(kind):
                own = {"basis": PUBLISHED, "forecast": PUBLISHED} if self.at_steps(name) else {}
                found.append(({"policy": name, **own}, f"{name} {ORDER}"))
        return found


def opening(families: Sequence[tuple[Params, str]], budgets: tuple[int, int], seen: Sequence[Seen]) -> Params | None:
    """The next trial that needs no guess; `None` once there is none.

    Of the first family the budget is halved, by ratios, until the fewest evaluations that meet the target are known.
    Every other family is asked for one evaluation fewer than the best so far makes, as long as it meets the target.
    """
    costs = [one.cost for one in seen if one.met and one.cost is not None]
    fewest = math.ceil(min(costs) - 1e-9) if costs else None
    for place, (params, name) in enumerate(families):
        tried = {
            one.params[name]: one.met
            for one in seen
            if name in one.params and all(one.params.get(key) == value for key, value in params.items())
        }
        budget = _halved(tried, budgets) if place == 0 else _fewer(tried, budgets, fewest)
        if budget is not None and budget not in tried:
            return {**params, name: budget}
    return None


def _halved(tried: Mapping[int, bool | None], budgets: tuple[int, int]) -> int | None:
    high = min([n for n, met in tried.items() if met], default=budgets[1] + 1)
    low = max([n for n, met in tried.items() if met is False and n < high], default=budgets[0] - 1)
    return max(low + 1, min(high - 1, round(math.sqrt(low * high)))) if high - low > 1 else None


def _fewer(tried: Mapping[int, bool | None], budgets: tuple[int, int], fewest: int | None) -> int | None:
    if budgets[0] == budgets[1]:
        return budgets[0]
    if fewest is None or fewest <= budgets[0] or any(met is False and n >= fewest - 1 for n, met in tried.items()):
        return None
    return fewest - 1


def varied(kind: type[Any]) -> dict[str, Tunable]:
    """What may be varied of a policy or a forecaster, by parameter; of a policy that takes orders, its orders alone."""
    if not _bare(kind) or getattr(kind, "guard", False):
        return {}
    found = {name: one.metadata[TUNED] for name, one in catalogue.parameters(kind).items() if TUNED in one.metadata}
    return {ORDER: Tunable(), **found} if takes_orders(kind) else found


def takes_orders(kind: type[Any]) -> bool:
    """Whether a policy takes a number of evaluations as an order (`Recipe.ordered`)."""
    return issubclass(kind, Policy) and {ORDER, "speedup"} <= set(catalogue.parameters(kind))


def _bare(kind: type[Any]) -> bool:
    """Whether it can be made by its name alone."""
    return all(one.default is not attrs.NOTHING for one in catalogue.parameters(kind).values())


def _value(trial: Any, name: str, bounds: Tunable, budgets: tuple[int, int] = (0, 0)) -> Any:
    if bounds == Tunable():
        return trial.suggest_int(name, *budgets)
    if bounds.choices:
        return trial.suggest_categorical(name, bounds.choices)
    if bounds.whole:
        return trial.suggest_int(name, bounds.low, bounds.high, log=bounds.log)
    return float(f"{trial.suggest_float(name, bounds.low, bounds.high, log=bounds.log):.4g}")

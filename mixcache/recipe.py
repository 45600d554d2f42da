"""The recipe: one frozen record of all choices. Keyword arguments, text and TOML are views of it.

Recipe.of("easycache:threshold=0.05", basis="noise", forecast={"step": "linear"})
Recipe.parse("easycache:threshold=0.05 + window:first_steps=10 @ basis=noise forecast.step=linear")
Recipe.from_toml("fast.toml")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from attrs import Attribute, evolve, field, fields, frozen

from mixcache import settings
from mixcache import spec as grammar
from mixcache.core import catalogue
from mixcache.core.files import write_whole
from mixcache.core.plan import Plan
from mixcache.core.points import Granularity, parse_granularity
from mixcache.core.policy import Policy
from mixcache.core.validators import ge, none_or, one_of
from mixcache.errors import ConfigurationError
from mixcache.host.tuned import Tuned

Choice = tuple[tuple[str, Any], ...]
"""What was chosen for each level ("step", "cfg", "block"), or for all ("")."""


def _policies(given: Any) -> tuple[Policy, ...]:
    """Policies from one spec or several: "a:x=1 + b:y=2", a policy, a class, or a sequence of either."""
    items = list(given) if isinstance(given, (list, tuple, set, frozenset)) else [given]
    parts = [part for item in items for part in (grammar.split_parts(item) if isinstance(item, str) else [item])]
    if not parts:
        raise ConfigurationError("policies must name at least one policy, got none; see `mixcache plugins`.")
    return tuple(catalogue.build("policy", part) for part in parts)


def _by_level(kind: str, given: Any) -> Choice:
    """One spec for all levels, or a mapping by level, as built choices in a fixed order."""
    if given is None or given == ():
        return ()
    if isinstance(given, tuple) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in given):
        given = dict(given)
    table = given if isinstance(given, Mapping) else {"": given}
    levels = {"" if key == "" else str(parse_granularity(key)): value for key, value in table.items()}
    order = ["", *(granularity.value for granularity in Granularity)]
    return tuple((key, catalogue.build(kind, levels[key])) for key in order if levels.get(key) is not None)


def _bases(given: Any) -> Choice:
    return _by_level("basis", given)


def _forecasters(given: Any) -> Choice:
    return _by_level("forecaster", given)


def _anchors(given: Any) -> Choice:
    return _by_level("anchor", given)


def _tuned(given: Any) -> Tuned | None:
    return Tuned.read(given)


def _rule(given: Any) -> Any:
    catalogue.build_rule(given)
    return given


@frozen(kw_only=True)
class Recipe:
    """How to cache: who decides, by which rule, and how what is skipped is rebuilt.

    policies: the policies that vote. rule: how votes become a verdict, by name or a function. basis, forecast, anchor:
    how a skipped output is rebuilt, one for all levels or a mapping by level ("step", "cfg", "block"); what is not
    chosen is as the policy's algorithm was published, which mostly is "residual" and "hold" around "input".
    samples: "worst" lets the fastest-changing sample of a batch decide, "mean" pools them as the published rules do.
    max_cache_bytes: the most that one run's cache may hold; places for which there is no room are computed.
    offload: "cpu" keeps the cache in main memory, at the price of a transfer for every reuse. audit: compute beside
    every reuse what was skipped, to record its true error. on_error: "compute" computes where a plugin fails, and the
    report says so; "raise" lets the run fail. tuned: what `mixcache tune` measured it for, the table of that name in
    TOML; no choice, and no part of the text.

    Two recipes are equal if they choose the same; `Recipe.parse(str(recipe)) == recipe` for registered plugins. Raises
    `ConfigurationError` for a value that cannot be, `UnknownNameError` for a plugin that nobody registered.
    """

    policies: tuple[Policy, ...] = field(converter=_policies)
    rule: Any = field(default="unanimous", converter=_rule)
    basis: Choice = field(default=None, converter=_bases)
    forecast: Choice = field(default=None, converter=_forecasters)
    anchor: Choice = field(default=None, converter=_anchors)
    samples: Literal["worst", "mean"] = field(default="worst", validator=one_of("worst", "mean"))
    max_cache_bytes: int | None = field(default=None, validator=none_or(ge(0, whole=True)))
    offload: str | None = field(default=None, validator=one_of(None, "cpu"))
    audit: bool = field(default=False, validator=one_of(False, True))
    on_error: Literal["raise", "compute"] = field(default="raise", validator=one_of("raise", "compute"))
    tuned: Tuned | None = field(default=None, converter=_tuned, eq=False, repr=False)

    @classmethod
    def of(cls, policies: Any, **choices: Any) -> Recipe:
        """From what `mixcache.enable` takes: a recipe, the path of a .toml, text with or without "@", policies.

        `None` is the recipe that plugins recommend (hook `mixcache_recipe`). choices: hold where what is given says
        nothing itself.
        """
        if policies is None:
            policies = _recommended()
        if isinstance(policies, Recipe):
            return policies._under(choices)
        if isinstance(policies, Path) or (isinstance(policies, str) and _is_file(policies)):
            return cls.from_toml(policies, **choices)
        if isinstance(policies, str):
            return cls.parse(policies, **choices)
        return cls(policies=policies, **_checked(choices))

    @classmethod
    def parse(cls, text: str, **choices: Any) -> Recipe:
        """From "POLICIES @ basis=... forecast.step=... rule=...". choices: hold where the text says nothing itself."""
        tree = grammar.parse_recipe(text)
        told: dict[str, Any] = {}
        for choice in tree.choices:
            if choice.key in _KINDS:
                told.setdefault(choice.key, {})[choice.level or ""] = choice.text
            elif choice.level is None:
                told[choice.key] = _scalar(choice.key, choice.text)
            else:
                raise ConfigurationError(
                    f"{text!r}: {choice.key}.{choice.level} is no choice by level; only {', '.join(_KINDS)} are."
                )
        return cls(policies=_policies([str(part) for part in tree.parts]), **{**_checked(choices), **_checked(told)})

    @classmethod
    def from_toml(cls, path: str | Path, **choices: Any) -> Recipe:
        """From a TOML file: its keys are the fields, `forecast.step = "linear"` chooses by level.

        Raises `ConfigurationError` for a file that cannot be read, is no TOML, or says what cannot be.
        """
        file, told = settings.read(path)
        if "policies" not in told:
            raise ConfigurationError(f"{str(file)!r} must set `policies`, such as 'easycache:threshold=0.05'.")
        try:
            return cls(**{**_checked(choices), **_checked(told)})
        except ConfigurationError as error:
            raise ConfigurationError(f"{str(file)!r}: {error}") from error

    def ordered(self, evaluations: int | None = None, speedup: float | None = None) -> Recipe:
        """This recipe with so many evaluations, or that ideal speed-up, ordered of every policy that takes orders.

        Raises `ConfigurationError` if no policy does, and where a policy refuses the value.
        """
        orders: dict[str, Any] = {"evaluations": evaluations, "speedup": speedup}
        told = {name: value for name, value in orders.items() if value is not None}
        if not told:
            return self
        takes = [set(orders) <= set(catalogue.parameters(type(policy))) for policy in self.policies]
        if not any(takes):
            names, (name, value) = ", ".join(p.policy_name() for p in self.policies), next(iter(told.items()))
            raise ConfigurationError(
                f"{name}={value} cannot be ordered of {names}; order it of a policy that has this parameter, or name "
                "no policy: enable(pipe, speedup=2.5)."
            )
        return evolve(self, policies=tuple(evolve(p, **told) if t else p for p, t in zip(self.policies, takes)))

    def _under(self, choices: Mapping[str, Any]) -> Recipe:
        """This recipe with `choices` where it says nothing itself."""
        own = {a.name: getattr(self, a.name) for a in fields(type(self))}
        default = Recipe(policies=self.policies)
        silent = {name: value for name, value in _checked(choices).items() if own[name] == getattr(default, name)}
        return Recipe(**{**own, **silent})

    def __str__(self) -> str:
        parts = [catalogue.spec_of(policy) for policy in self.policies]
        choices: list[tuple[str, str | None, str]] = []
        for attribute in _choices():
            value = getattr(self, attribute.name)
            if attribute.name in _KINDS:
                choices += [(attribute.name, level or None, catalogue.spec_of(item)) for level, item in value]
            elif value != attribute.default:
                choices.append((attribute.name, None, _named(value)))
        return grammar.format_recipe(parts, choices)

    def to_toml(self) -> str:
        """This recipe as a TOML file that `from_toml` reads."""
        lines = [f"policies = {settings.value([catalogue.spec_of(policy) for policy in self.policies])}"]
        for attribute in _choices():
            value = getattr(self, attribute.name)
            if attribute.name in _KINDS:
                alone = [level for level, _ in value] == [""]
                for level, item in value:  # where some levels have their own, "" is the key of all the others
                    key = attribute.name if alone else f"{attribute.name}.{level or settings.EMPTY}"
                    lines.append(f"{key} = {settings.value(catalogue.spec_of(item))}")
            elif value != attribute.default:
                plain = isinstance(value, (bool, int))
                lines.append(f"{attribute.name} = {settings.value(value if plain else _named(value))}")
        lines += [] if self.tuned is None else settings.table("tuned", self.tuned.told())
        return "\n".join(lines) + "\n"

    def save(self, path: str | Path) -> None:
        """Write `to_toml()`, replacing what was there."""
        write_whole(path, self.to_toml())

    def plan(self, group: Any = None) -> Plan:
        """Everything built and checked: what the loop works by.

        Raises `ConfigurationError` where the choices do not go together.
        """
        plan = Plan(
            policies=self.policies,
            rule=catalogue.build_rule(self.rule),
            build=catalogue.build,
            signals=catalogue.signals(),
            side_inputs=catalogue.side_inputs(),
            basis=_chosen(self.basis),
            forecast=_chosen(self.forecast),
            anchor=_chosen(self.anchor),
            samples=self.samples,
            max_cache_bytes=self.max_cache_bytes,
            offload=self.offload,
            audit=self.audit,
            on_error=self.on_error,
            group=group,
            hooks=catalogue.hooks(),
        )
        if not plan.used:
            names = ", ".join(policy.policy_name() for policy in self.policies)
            raise ConfigurationError(
                f"nothing could ever be reused: {names} can only guard what others decide; add one that reuses, "
                "such as 'easycache:threshold=0.05'."
            )
        for granularity in Granularity:
            plan.check(granularity)
        return plan


def _recommended() -> str:
    """The recipe of the latest plugin that has one."""
    if not (given := catalogue.manager().hook.mixcache_recipe()):
        raise ConfigurationError("no plugin recommends a recipe; name a policy: enable(pipe, POLICY).")
    return str(given[0])


_KINDS = {"basis": "basis", "forecast": "forecaster", "anchor": "anchor"}
"""The choices that are made by level, and what kind of plugin each takes."""


def _choices() -> list[Attribute[Any]]:
    """The fields of a recipe but the policies, and what it was tuned for."""
    return [a for a in fields(Recipe) if a.name not in ("policies", "tuned")]


def _is_file(text: str) -> bool:
    """Whether a text is the name of a .toml file, and not a recipe that names one (table=some.toml)."""
    return text.strip().endswith(".toml") and "=" not in text


def _checked(choices: Mapping[str, Any]) -> dict[str, Any]:
    """Choices that exist; those that are `None` or empty are not made."""
    known = [a.name for a in fields(Recipe)]
    unknown = sorted(set(choices) - set(known))
    if unknown:
        raise ConfigurationError(f"there is no choice {unknown[0]!r}; there are: {', '.join(known)}.")
    return {name: value for name, value in choices.items() if name == "policies" or value not in (None, "")}


def _scalar(key: str, value: Any) -> Any:
    types = {"max_cache_bytes": int | None, "audit": bool}
    known = {a.name for a in _choices()}
    if key not in known:
        raise ConfigurationError(f"there is no choice {key!r}; there are: {', '.join(sorted(known))}.")
    return grammar.convert(grammar.Text(value), types.get(key, str), f"`{key}`")


def _named(value: Any) -> str:
    """A plain choice as text; a function by its name."""
    return str(value).lower() if isinstance(value, bool) else str(getattr(value, "__name__", value))


def _chosen(choice: Sequence[tuple[str, Any]]) -> dict[Granularity, Any]:
    """What is chosen for each granularity: its own choice, else that for all."""
    table = dict(choice)
    everywhere = dict.fromkeys(Granularity, table[""]) if "" in table else {}
    return {**everywhere, **{Granularity(level): item for level, item in choice if level}}

"""Who offers what: the plugin manager, the catalogue of names, and specs such as "easycache:threshold=0.05"."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any, TypeVar

import attrs
import cattrs
import pluggy

from mixcache import basis, forecast, forecast_published, hookspecs, signals, voting
from mixcache.adapter import ModelAdapter, PipelineFolder
from mixcache.basis import Basis
from mixcache.errors import ConfigurationError, PluginError, UnknownNameError
from mixcache.forecast import Forecaster
from mixcache.policy import Policy
from mixcache.signals import Signal
from mixcache.voting import Rule

T = TypeVar("T")
_converter = cattrs.Converter()
_manager: pluggy.PluginManager | None = None


class _Core:
    """What mixcache itself contributes, through the same hooks as everybody."""

    @hookspecs.hookimpl
    def mixcache_bases(self) -> list[type[Basis]]:
        return list(basis.BASES)

    @hookspecs.hookimpl
    def mixcache_forecasters(self) -> list[type[Forecaster]]:
        return [*forecast.FORECASTERS, *forecast_published.PUBLISHED]

    @hookspecs.hookimpl
    def mixcache_rules(self) -> dict[str, Rule]:
        return dict(voting.RULES)

    @hookspecs.hookimpl
    def mixcache_signals(self) -> list[Signal]:
        return list(signals.SIGNALS)


class _Single:
    """A plugin around one registered class, record or rule."""

    def __init__(self, hook: str, value: Any) -> None:
        def contribute() -> Any:
            return value

        setattr(self, hook, hookspecs.hookimpl(contribute))


def new_manager(plugins: Iterable[tuple[str, Any]] = ()) -> pluggy.PluginManager:
    """A plugin manager that knows every hook and holds `plugins`, given as (name, plugin)."""
    manager = pluggy.PluginManager("mixcache")
    manager.add_hookspecs(hookspecs)
    for name, plugin in plugins:
        manager.register(plugin, name)
    return manager


def manager() -> pluggy.PluginManager:
    """The process-wide manager, with all installed plugins loaded on first use."""
    global _manager
    if _manager is None:
        fresh = new_manager([("mixcache", _Core())])
        try:
            fresh.load_setuptools_entrypoints("mixcache")
            fresh.check_pending()
        except Exception as error:
            raise PluginError(f"an installed mixcache plugin cannot be loaded: {error}") from error
        _manager = fresh
    return _manager


def register(plugin: Any, name: str | None = None) -> Any:
    """Offer a policy, basis, forecaster or signal, a model adapter, a pipeline folder, a rule or a whole plugin.

    A class or record is known by its own name; a voting rule (a function of votes) needs `name`. Returns `plugin`, so
    it can decorate a class. Raises `ConfigurationError` if the name is taken, `PluginError` for a hook that is none.
    """
    kind, own_name, value = _classify(plugin, name)
    if kind is None:
        label, holder = name or getattr(plugin, "__name__", repr(plugin)), plugin
    else:
        table = _TABLES[kind]()
        if own_name in table and table[own_name] is not plugin:
            raise ConfigurationError(f"{kind} {own_name!r} is registered already, by {table[own_name]!r}; rename one.")
        if own_name in table:
            return plugin
        label, holder = f"{kind} {own_name}", _Single(_HOOKS[kind], value)
    manager().register(holder, label)
    try:
        manager().check_pending()
    except pluggy.PluginValidationError as error:
        manager().unregister(holder)
        raise PluginError(f"plugin {label!r}: {error}") from error
    return plugin


def unregister(kind: str, name: str) -> None:
    """Take back one thing that `register` added, by kind ("policy", "rule", ...) and name."""
    if manager().unregister(name=f"{kind} {name}") is None:
        raise UnknownNameError(kind, name, _TABLES[kind]())


def _classify(plugin: Any, name: str | None) -> tuple[str | None, str, Any]:
    if inspect.isclass(plugin):
        for kind, base in (("policy", Policy), ("basis", Basis), ("forecaster", Forecaster)):
            if issubclass(plugin, base):
                if not attrs.has(plugin):
                    raise ConfigurationError(f"{kind} {plugin.__name__} must be decorated with @attrs.frozen.")
                return kind, _name_of(plugin), [plugin]
    if isinstance(plugin, Signal):
        return "signal", plugin.name, [plugin]
    if isinstance(plugin, ModelAdapter):
        return "model", plugin.model, [plugin]
    if isinstance(plugin, PipelineFolder):
        return "pipeline", plugin.name, [plugin]
    if inspect.isfunction(plugin):
        if not name:
            raise ConfigurationError(f"register({plugin.__name__}) needs name=..., the name of the voting rule.")
        return "rule", name, {name: plugin}
    return None, "", plugin


def _name_of(kind: type[Any]) -> str:
    return kind.policy_name() if issubclass(kind, Policy) else str(getattr(kind, "name", "") or kind.__name__.lower())


def _by_name(what: str, found: Iterable[Iterable[T]], name: Callable[[T], str]) -> dict[str, T]:
    table: dict[str, T] = {}
    for item in (item for items in found for item in items):
        known = table.setdefault(name(item), item)
        if known is not item:
            raise PluginError(f"two plugins offer a {what} named {name(item)!r}: {known!r} and {item!r}.")
    return table


def policies() -> dict[str, type[Policy]]:
    """Policy classes by name."""
    return _by_name("policy", manager().hook.mixcache_policies(), _name_of)


def bases() -> dict[str, type[Basis]]:
    """Basis classes by name."""
    return _by_name("basis", manager().hook.mixcache_bases(), _name_of)


def forecasters() -> dict[str, type[Forecaster]]:
    """Forecaster classes by name."""
    return _by_name("forecaster", manager().hook.mixcache_forecasters(), _name_of)


def rules() -> dict[str, Rule]:
    """Voting rules by name."""
    found = _by_name("rule", (table.items() for table in manager().hook.mixcache_rules()), lambda item: item[0])
    return dict(found.values())


def all_signals() -> dict[str, Signal]:
    """Signals by name."""
    return _by_name("signal", manager().hook.mixcache_signals(), lambda signal: signal.name)


def models() -> dict[str, ModelAdapter]:
    """Model adapters by class name."""
    found = ([m for m in records if isinstance(m, ModelAdapter)] for records in manager().hook.mixcache_models())
    return _by_name("model", found, lambda adapter: adapter.model)


def pipelines() -> dict[str, PipelineFolder]:
    """Pipeline folders by name."""
    found = ([m for m in records if isinstance(m, PipelineFolder)] for records in manager().hook.mixcache_models())
    return _by_name("pipeline", found, lambda folder: folder.name)


_TABLES: dict[str, Callable[[], dict[str, Any]]] = {
    "policy": policies,
    "basis": bases,
    "forecaster": forecasters,
    "rule": rules,
    "signal": all_signals,
    "model": models,
    "pipeline": pipelines,
}
_HOOKS = {
    "policy": "mixcache_policies",
    "basis": "mixcache_bases",
    "forecaster": "mixcache_forecasters",
    "rule": "mixcache_rules",
    "signal": "mixcache_signals",
    "model": "mixcache_models",
    "pipeline": "mixcache_models",
}


def parameters(kind: type[Any]) -> dict[str, attrs.Attribute[Any]]:
    """The parameters of an attrs class that a spec can set, by name."""
    return {a.name: a for a in attrs.fields(kind) if a.init}


def build(kind: str, spec: Any, base: type[T]) -> T:
    """An instance from a spec "name:parameter=value,...", a class or an instance of `base`.

    Raises `UnknownNameError` for the name, `ConfigurationError` for a parameter or value, naming the valid ones.
    """
    if isinstance(spec, base):
        return spec
    if inspect.isclass(spec) and issubclass(spec, base):
        return _made(spec, f"{kind} {_name_of(spec)}", {})
    if not isinstance(spec, str):
        raise ConfigurationError(
            f"{kind} must be a spec such as 'name:parameter=value' or a {base.__name__}, got {spec!r}."
        )
    name, _, text = spec.strip().partition(":")
    table = _TABLES[kind]()
    if name.strip() not in table:
        raise UnknownNameError(kind, name.strip(), table)
    chosen: type[T] = table[name.strip()]
    label = f"{kind} {name.strip()}"
    return _made(chosen, label, _arguments(chosen, label, text))


def _made(kind: type[T], label: str, values: dict[str, Any]) -> T:
    missing = [n for n, a in parameters(kind).items() if a.default is attrs.NOTHING and n not in values]
    if missing:
        name = label.partition(" ")[2]
        raise ConfigurationError(f"{label} needs a value for {', '.join(missing)}: '{name}:{missing[0]}=...'.")
    return kind(**values)


def _arguments(kind: type[Any], label: str, text: str) -> dict[str, Any]:
    known = parameters(kind)
    types = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals and len(known) and not values:  # "schedule:1101" names the first parameter by place
            key, value = next(iter(_own_first(kind))), part
        if key not in known:
            raise ConfigurationError(f"{label} has no parameter {key!r}; it has: {', '.join(known)}.")
        try:
            values[key] = _parse(value, types[key])
        except ConfigurationError:
            raise
        except Exception:
            wanted = _described(types[key])
            raise ConfigurationError(f"{label}: {key} must be {wanted}, got {value!r}.") from None
    return values


def _described(wanted: Any) -> str:
    if inspect.isclass(wanted) and issubclass(wanted, Enum):
        return f"one of {', '.join(str(member.value) for member in wanted)}"
    return getattr(wanted, "__name__", str(wanted))


def _own_first(kind: type[Any]) -> list[str]:
    return [a.name for a in attrs.fields(kind) if a.init and not a.inherited] or list(parameters(kind))


def _parse(text: str, wanted: Any) -> Any:
    if text.lower() == "none" and type(None) in typing.get_args(wanted):
        return None
    if wanted is bool:
        return {"true": True, "false": False}[text.lower()]
    return _converter.structure(text, wanted)


def build_policies(specs: Any) -> tuple[Policy, ...]:
    """Policies from one spec or several: "a:x=1 + b:y=2", a policy, or a sequence of either. None given is an error."""
    items: Sequence[Any] = list(specs) if isinstance(specs, (list, tuple, set, frozenset)) else [specs]
    flat = [part for item in items for part in (item.split("+") if isinstance(item, str) else [item])]
    if not flat:
        raise ConfigurationError("policies must name at least one policy, got none; see `mixcache plugins`.")
    return tuple(build("policy", item, Policy) for item in flat)


def build_rule(rule: str | Rule) -> Rule:
    """A voting rule by name, or a function as it is."""
    if callable(rule):
        return rule
    table = rules()
    if rule not in table:
        raise UnknownNameError("rule", str(rule), table)
    return table[rule]

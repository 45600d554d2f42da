"""The catalogue: who offers what by which name, and the plugin manager behind it.

Nothing here knows a plugin by name. What plugins contribute is checked where it enters: kind, name, and that no two
things share one.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable
from functools import partial
from operator import attrgetter, itemgetter
from typing import Any, TypeVar, cast

import attrs
import pluggy

from mixcache import spec as grammar
from mixcache.core import hookspecs
from mixcache.core.anchors import ANCHORS, Anchor
from mixcache.core.basis import BASES, Basis
from mixcache.core.forecast.base import Forecaster
from mixcache.core.forecast.polynomial import FORECASTERS
from mixcache.core.hooks import Hooks, hookimpl
from mixcache.core.policy import Policy
from mixcache.core.rules import RULES, Rule
from mixcache.core.signals import SIGNALS, SideInput, Signal
from mixcache.errors import ConfigurationError, PluginError, UnknownNameError, called

T = TypeVar("T")
_manager: pluggy.PluginManager | None = None

_CORE: dict[str, Any] = {
    "mixcache_bases": BASES,
    "mixcache_forecasters": FORECASTERS,
    "mixcache_anchors": ANCHORS,
    "mixcache_rules": RULES,
    "mixcache_signals": SIGNALS,
}
"""What mixcache's core contributes, through the same hooks as everybody."""


class _Single:
    """A plugin around what one hook contributes."""

    def __init__(self, hook: str, value: Any) -> None:
        def contribute() -> Any:
            return value

        setattr(self, hook, hookimpl(contribute))


@attrs.frozen
class Kind:
    """One kind of thing that plugins offer: its hook, its base class (`None` for rules), and how one is named."""

    hook: str
    base: type[Any] | None
    name: Callable[[Any], str]


def _class_name(kind: type[Any]) -> str:
    return kind.policy_name() if issubclass(kind, Policy) else str(getattr(kind, "name", "") or kind.__name__.lower())


KINDS: dict[str, Kind] = {
    "policy": Kind("mixcache_policies", Policy, _class_name),
    "basis": Kind("mixcache_bases", Basis, _class_name),
    "forecaster": Kind("mixcache_forecasters", Forecaster, _class_name),
    "anchor": Kind("mixcache_anchors", Anchor, _class_name),
    "rule": Kind("mixcache_rules", None, itemgetter(0)),
    "signal": Kind("mixcache_signals", Signal, attrgetter("name")),
    "side input": Kind("mixcache_side_inputs", SideInput, attrgetter("name")),
    "model": Kind("mixcache_models", None, attrgetter("model")),
    "pipeline": Kind("mixcache_models", None, attrgetter("name")),
    "calibrator": Kind("mixcache_calibrators", None, attrgetter("name")),
    "metric": Kind("mixcache_metrics", None, attrgetter("name")),
}


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
        fresh = new_manager((f"mixcache's own {hook}", _Single(hook, value)) for hook, value in _CORE.items())
        try:
            fresh.load_setuptools_entrypoints("mixcache")
            fresh.check_pending()
        except Exception as error:
            raise PluginError(f"an installed mixcache plugin cannot be loaded: {error}") from error
        _manager = fresh
    return _manager


def register(plugin: Any, name: str | None = None) -> Any:
    """Offer a policy, basis, forecaster, anchor, signal, side input, model adapter, pipeline folder, calibrator,
    metric, voting rule, or a whole plugin with hooks of its own.

    A class or record is known by its own name; a voting rule (a function of votes) needs `name`. Returns `plugin`, so
    it can decorate a class. Raises `ConfigurationError` if the name is taken, `PluginError` for a hook that is none.
    """
    kind, own_name, value = _classify(plugin, name)
    if kind is None:
        label, holder = name or getattr(plugin, "__name__", repr(plugin)), plugin
    else:
        known = table(kind)
        if own_name in known:
            if known[own_name] is plugin:
                return plugin
            raise ConfigurationError(f"{kind} {own_name!r} is registered already, by {known[own_name]!r}; rename one.")
        label, holder = f"{kind} {own_name}", _Single(KINDS[kind].hook, value)
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
        raise UnknownNameError(kind, name, table(kind))


def _classify(plugin: Any, name: str | None) -> tuple[str | None, str, Any]:
    if inspect.isclass(plugin):
        for kind in ("policy", "basis", "forecaster", "anchor"):
            base = KINDS[kind].base
            if base is not None and issubclass(plugin, base):
                if not attrs.has(plugin) or "__attrs_attrs__" not in vars(plugin):
                    raise ConfigurationError(f"{kind} {plugin.__name__} must be decorated with @attrs.frozen.")
                return kind, _class_name(plugin), [plugin]
    if isinstance(plugin, Signal):
        return "signal", plugin.name, [plugin]
    if isinstance(plugin, SideInput):
        return "side input", plugin.name, [plugin]
    kind_told = None if inspect.isclass(plugin) else getattr(plugin, "kind_of_plugin", None)
    if kind_told in KINDS:
        return kind_told, KINDS[kind_told].name(plugin), [plugin]
    if inspect.isfunction(plugin):
        if not name:
            raise ConfigurationError(f"register({plugin.__name__}) needs name=..., the name of the voting rule.")
        return "rule", name, {name: plugin}
    return None, "", plugin


def table(kind: str) -> dict[str, Any]:
    """Everything of one kind, by name. Raises `PluginError` where two plugins offer one name, or another kind."""
    found: dict[str, Any] = {}
    entry = KINDS[kind]
    for impl in getattr(manager().hook, entry.hook).get_hookimpls():
        offered = called(("plugin", impl.plugin_name), impl.function)
        good = isinstance(offered, dict if kind == "rule" else (list, tuple))
        for item in (offered.items() if kind == "rule" else offered) if good else [offered]:
            if not good or not _fits(item, kind, entry):
                if good and entry.base is None and getattr(item, "kind_of_plugin", None) in KINDS:
                    continue  # two kinds share one hook
                wanted = "rules by name" if kind == "rule" else f"a list of things of kind {kind!r}"
                raise PluginError(f"plugin {impl.plugin_name!r} must offer {wanted} in {entry.hook}, not {item!r}.")
            known = found.setdefault(entry.name(item), item)
            if known is not item and known != item:
                raise PluginError(f"two plugins offer a {kind} named {entry.name(item)!r}: {known!r} and {item!r}.")
    return {name: item[1] for name, item in found.items()} if kind == "rule" else found


def _fits(item: Any, kind: str, entry: Kind) -> bool:
    if kind == "rule":
        return isinstance(item, tuple) and callable(item[1])
    if entry.base is None:
        return getattr(item, "kind_of_plugin", None) == kind and not inspect.isclass(item)
    is_class = entry.name is _class_name
    return inspect.isclass(item) and issubclass(item, entry.base) if is_class else isinstance(item, entry.base)


policies: Callable[[], dict[str, type[Policy]]] = partial(table, "policy")
bases: Callable[[], dict[str, type[Basis]]] = partial(table, "basis")
forecasters: Callable[[], dict[str, type[Forecaster]]] = partial(table, "forecaster")
anchors: Callable[[], dict[str, type[Anchor]]] = partial(table, "anchor")
rules: Callable[[], dict[str, Rule]] = partial(table, "rule")
signals: Callable[[], dict[str, Signal]] = partial(table, "signal")
side_inputs: Callable[[], dict[str, SideInput]] = partial(table, "side input")
models: Callable[[], dict[str, Any]] = partial(table, "model")
pipelines: Callable[[], dict[str, Any]] = partial(table, "pipeline")
calibrators: Callable[[], dict[str, Any]] = partial(table, "calibrator")
metrics: Callable[[], dict[str, Any]] = partial(table, "metric")
"""Everything of one kind, by name: classes of policies, bases, forecasters and anchors; functions; records."""


def hooks() -> Hooks:
    """The run-time hooks of all plugins, in the order of registration."""
    return Hooks(
        started=_implementations("mixcache_run_started"),
        vote=_implementations("mixcache_vote"),
        observe=_implementations("mixcache_observe"),
        ended=_implementations("mixcache_run_ended"),
    )


def _implementations(hook: str) -> tuple[tuple[str, Callable[..., Any]], ...]:
    def calling(function: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
        return lambda **known: function(**{name: known[name] for name in names})

    found = getattr(manager().hook, hook).get_hookimpls()
    return tuple((impl.plugin_name, calling(impl.function, impl.argnames)) for impl in found)


def parameters(kind: type[Any]) -> dict[str, attrs.Attribute[Any]]:
    """The parameters of an attrs class that a spec can set, by name."""
    return {a.name: a for a in attrs.fields(kind) if a.init}


def build(kind: str, spec: Any) -> Any:
    """An instance of a policy, basis, forecaster or anchor from a spec "name:parameter=value,...", a class or itself.

    Raises `UnknownNameError` for the name, `ConfigurationError` for a parameter or value, naming the valid ones.
    """
    base = KINDS[kind].base
    assert base is not None
    if isinstance(spec, base):
        return spec
    if inspect.isclass(spec) and issubclass(spec, base):
        return _made(spec, f"{kind} {_class_name(spec)}", {})
    if not isinstance(spec, str):
        raise ConfigurationError(
            f"{kind} must be a spec such as 'name:parameter=value' or a {base.__name__}, got {spec!r}."
        )
    part = grammar.parse_part(spec)
    known = table(kind)
    if part.name not in known:
        error = UnknownNameError(kind, part.name, known)
        hint = grammar.hint_plus(part.name)
        raise ConfigurationError(f"{error} {hint}") if hint else error
    chosen = known[part.name]
    label = f"{kind} {part.name}"
    return _made(chosen, label, _arguments(chosen, label, part))


def spec_of(item: Any) -> str:
    """The spec of a policy, basis, forecaster or anchor: what `build` makes an equal one of."""
    kind = type(item)
    given = {name: (parameter, getattr(item, name)) for name, parameter in parameters(kind).items()}
    changed = {name: value for name, (parameter, value) in given.items() if _differs(item, parameter, value)}
    return grammar.format_part(_class_name(kind), changed)


def _differs(item: Any, parameter: attrs.Attribute[Any], value: Any) -> bool:
    default, convert, factory = parameter.default, cast(Any, parameter.converter), cast(Any, attrs.Factory)
    if isinstance(default, factory):
        default = default.factory(item) if default.takes_self else default.factory()
    if default is not attrs.NOTHING and convert is not None:
        default = convert(default)
    return default is attrs.NOTHING or bool(default != value)


def _made(kind: type[T], label: str, values: dict[str, Any]) -> T:
    missing = [n for n, a in parameters(kind).items() if a.default is attrs.NOTHING and n not in values]
    if missing:
        name = label.partition(" ")[2]
        raise ConfigurationError(f"{label} needs a value for {', '.join(missing)}: '{name}:{missing[0]}=...'.")
    return kind(**values)


def _arguments(kind: type[Any], label: str, part: grammar.Part) -> dict[str, Any]:
    known = parameters(kind)
    types = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in part.arguments:
        name = next(iter(_own_first(kind)), None) if key is None else key
        if name is None or name not in known:
            raise ConfigurationError(f"{label} has no parameter {name!r}; it has: {', '.join(known)}.")
        if name in values:
            raise ConfigurationError(f"{label}: {name} is given twice; give it once.")
        values[name] = grammar.convert(value, types[name], f"{label}: {name}")
    return values


def _own_first(kind: type[Any]) -> list[str]:
    return [a.name for a in attrs.fields(kind) if a.init and not a.inherited] or list(parameters(kind))


def build_rule(rule: Any) -> Rule:
    """A voting rule by name, or a function as it is."""
    if callable(rule):
        return rule  # type: ignore[no-any-return]
    known = rules()
    if not isinstance(rule, str) or rule not in known:
        raise UnknownNameError("rule", str(rule), known)
    return known[rule]

"""Calibration tables as files: what `mixcache calibrate` writes, and a policy's `table=...` reads.

A table is JSON: {"schema": 1, "policy": NAME, "values": {...}, "source": TEXT, "match": {...}}. Nothing in it is ever
executed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from attrs import field, frozen

from mixcache.errors import ConfigurationError

T = TypeVar("T")

SCHEMA = 1
_FIELDS = {"schema": int, "policy": str, "values": dict, "source": str, "match": dict}
_REQUIRED = ("schema", "policy", "values")


@frozen(kw_only=True)
class Calibration:
    """What a policy has to know about one checkpoint beforehand, as plain numbers.

    policy: its name. values: what it reads, by name. source: where the numbers are from. match: entries of the
    model's configuration that tell this checkpoint from others of its class; all must agree. experts: how many models
    of this class take turns in a run; a table that was measured on one says nothing about two.
    """

    policy: str
    values: Mapping[str, Any]
    source: str = ""
    match: Mapping[str, Any] = field(factory=dict)
    experts: int = 1

    def fits(self, model: Any, experts: int = 1) -> bool:
        """Whether the configuration of `model` agrees with `match`, and so many of its class take turns."""
        config = getattr(model, "config", {})
        return experts == self.experts and all(config.get(name) == value for name, value in self.match.items())


@frozen
class Fit:
    """What becomes a table's `values`, and a line for people about it."""

    values: Mapping[str, Any]
    summary: str


@frozen
class Calibrations:
    """The tables that policies and forecasters may read when they are enabled.

    known: those of the model, by policy name. models: what the table of a file must be for, if anything. taken: where
    those are from that were read without being asked for, by policy name.
    """

    known: Mapping[str, Calibration] = field(factory=dict)
    models: tuple[Any, ...] = ()
    taken: dict[str, str] = field(factory=dict, eq=False)

    def read(self, policy: str, entry: str, table: str | None, make: Callable[[Any], T]) -> T | None:
        """`make` of an entry of a policy's table: that of the file `table`, else the model's; `None` if it has none.

        Raises `ConfigurationError`, which names the table, if it is of another model, lacks the entry or holds what
        `make` refuses.
        """
        found = self.known.get(policy) if table is None else self._load(table, policy)
        if found is None:
            return None
        if table is None:
            self.taken[policy] = found.source
        if entry not in found.values:
            raise ConfigurationError(f"the {policy} table of {found.source} holds no `{entry}`.")
        try:
            return make(found.values[entry])
        except ConfigurationError as error:
            raise ConfigurationError(f"the {policy} table of {found.source}: {error}") from error

    def _load(self, table: str, policy: str) -> Calibration:
        """The calibration in a file, which must be for one of the models."""
        found = load_calibration(table, policy)
        if self.models and not any(found.fits(model) for model in self.models):
            config = getattr(self.models[0], "config", {})
            differing = [name for name, value in found.match.items() if config.get(name) != value]
            wanted, there = (
                ", ".join(f"{name}={entries.get(name)!r}" for name in differing) for entries in (found.match, config)
            )
            raise ConfigurationError(
                f"table {table} is for a model with {wanted}; this {type(self.models[0]).__name__} has {there}. "
                f"{_remedy(policy)}"
            )
        return found


def load_calibration(path: str | Path, policy: str | None = None) -> Calibration:
    """The calibration in a file; `policy`: the name of the one that it must be for.

    Raises `ConfigurationError` that names the file and the remedy for whatever is wrong with it.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise ConfigurationError(f"cannot read table {path}: {error.strerror or error}. {_remedy(policy)}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"table {path} is not JSON: {error}. {_remedy(policy)}") from error
    fault = _fault(found)
    if fault is not None:
        raise ConfigurationError(f"table {path} is no calibration: {fault}. {_remedy(policy)}")
    if policy is not None and found["policy"] != policy:
        raise ConfigurationError(f"table {path} is for policy {found['policy']!r}, not {policy!r}. {_remedy(policy)}")
    source = found.get("source") or str(path)
    return Calibration(policy=found["policy"], values=found["values"], source=source, match=found.get("match", {}))


def resample(values: Sequence[T], count: int) -> list[T]:
    """`count` of `values` at even distances, each the nearest, halves to even: a table for another number of steps.

    Both ends stay; of one alone it is the last (MagCache, arXiv 2506.09045, in the authors' code).
    """
    if not values or count < 1:
        raise ConfigurationError(f"`resample(values, count)` needs values and count >= 1, got {len(values)}, {count}.")
    return [nearest(values, count, i) for i in range(count)]


def nearest(values: Sequence[T], count: int, index: int) -> T:
    """Entry `index` of `resample(values, count)`, without making the others."""
    return values[round(index * ((len(values) - 1) / (count - 1)))] if count > 1 else values[-1]


def _fault(found: Any) -> str | None:
    """What is wrong with the content of a file, or `None`."""
    if not isinstance(found, dict):
        return f"it holds a {type(found).__name__}, not an object"
    missing = [name for name in _REQUIRED if name not in found]
    if missing:
        return f"it has no {', '.join(missing)}"
    for name, kind in _FIELDS.items():
        if name in found and (not isinstance(found[name], kind) or isinstance(found[name], bool)):
            return f"its {name} is {found[name]!r}, not {'an object' if kind is dict else f'a {kind.__name__}'}"
    if found["schema"] != SCHEMA:
        return f"it has schema {found['schema']}, this mixcache reads {SCHEMA}"
    return None


def _remedy(policy: str | None) -> str:
    return f"Make one with `mixcache calibrate {policy or 'POLICY'} --model ... --out TABLE.json`."


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a number")

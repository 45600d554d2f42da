"""The screens of `mixcache plugins`: what is installed, and one plugin explained."""

from __future__ import annotations

import difflib
import enum
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

import attrs
from rich import box
from rich.markup import escape
from rich.table import Table

from mixcache.cli.console import screen
from mixcache.cli.meaning import meanings, prose
from mixcache.core import catalogue
from mixcache.core.policy import Policy
from mixcache.errors import ConfigurationError, UnknownNameError
from mixcache.spec import describe, format_value

KINDS: dict[str, tuple[str, ...]] = {
    "policies": ("policy",),
    "bases": ("basis",),
    "forecasters": ("forecaster",),
    "anchors": ("anchor",),
    "rules": ("rule",),
    "signals": ("signal",),
    "side-inputs": ("side input",),
    "models": ("pipeline", "model"),
    "calibrators": ("calibrator",),
    "metrics": ("metric",),
}
"""What `--kind` takes, and the kinds of the catalogue that it stands for."""

_WHEN = {"before": "before a vote", "after": "after a compute", "reused": "after a compute on a rebuilt value"}
_GENERATE = 'mixcache generate --prompt "a red circle moving left" --out clip.mp4'
_EXAMPLES = {
    "policy": f'{_GENERATE} --policy "{{spec}}"',
    "basis": f'{_GENERATE} --policy static --basis "{{spec}}"',
    "forecaster": f'{_GENERATE} --policy static --forecast "{{spec}}"',
    "anchor": f'{_GENERATE} --policy static --anchor "{{spec}}"',
    "rule": f'{_GENERATE} --policy "easycache + static" --rule {{spec}}',
    "pipeline": f"{_GENERATE} --model {{spec}}",
    "model": 'mixcache.enable(pipe, "easycache")  # where pipe.transformer is a {spec}',
    "calibrator": "mixcache calibrate {spec} --out {spec}.json",
    "metric": "mixcache compare --policy mixcache --out results  # {spec} is a column of every comparison",
    "signal": 'class Mine(mixcache.Policy): signals = ("{spec}",)',
    "side input": 'mixcache.Signal(name="mine", reads={{"previous:{spec}"}}, measure=...)',
}
_REACHING = {
    "sequential": "Every guidance branch is a call of this transformer.",
    "doubled": "The guidance branches are the halves of one batch.",
    "embedded": "Guidance is embedded in the model: there is one branch.",
}
_PAPER = re.compile(r"arXiv:? ?(\d{4}\.\d{4,5})")
_WIDTH = 116


def show(name: str | None, kind: str | None) -> None:
    """Print a table for each kind, or every plugin of that name. Raises `ConfigurationError` for an unknown one."""
    if kind is not None and kind not in KINDS:
        raise UnknownNameError("kind", kind, KINDS)
    groups = KINDS if kind is None else {kind: KINDS[kind]}
    if name is None:
        for title in groups:
            screen().print(_table(title))
        return
    known = {one: catalogue.table(one) for group in groups.values() for one in group}
    found = [explanation(one, name, table[name]) for one, table in known.items() if name in table]
    if not found:
        close = difflib.get_close_matches(name, {other for table in known.values() for other in table}, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigurationError(f"nothing installed is named {name!r}; `mixcache plugins` lists everything.{hint}")
    print("\n\n\n".join(found))


def explanation(kind: str, name: str, item: Any) -> str:
    """One plugin explained, as text: what it does, its parameters with their meaning, its paper, an example."""
    configured = inspect.isclass(item) and attrs.has(item)
    blocks = [
        f"{kind} {name}\n{'=' * (len(kind) + len(name) + 1)}",
        prose(item) if configured else "\n".join(_facts(kind, item)),
        "\n".join(_parameters(item)) if configured else "",
        "\n".join(f"paper: https://arxiv.org/abs/{paper}" for paper in _papers(kind, item)),
        "example:\n  " + _EXAMPLES[kind].format(spec=_spec(name, item) if configured else name),
    ]
    return "\n\n".join(block for block in blocks if block)


def _facts(kind: str, item: Any) -> Iterator[str]:
    """What there is to say about something without parameters."""
    if kind == "model":
        yield _REACHING[item.branches]
        for blocks in item.blocks:
            yield f"Blocks: {blocks.path}, which transform {', '.join(blocks.streams)}."
        for table in item.calibrations:
            yield f"Calibrated for {table.policy}: {table.source}"
        return
    yield _text(item)
    if kind == "signal":
        yield f"It is measured {_WHEN[item.when]}."
    if kind == "pipeline":
        call = ", ".join(f"{key}={value}" for key, value in item.defaults.items())
        yield f"It is called with {call}. Its folder: {item.path}"


def _text(item: Any) -> str:
    """What is written about something: its summary, or its docstring."""
    summary = getattr(item, "summary", "")
    return (summary if isinstance(summary, str) else "") or inspect.getdoc(item) or ""


def _papers(kind: str, item: Any) -> list[str]:
    """The arXiv numbers in its text; for a policy, which has a file of its own, also in what heads that file."""
    text = _text(item)
    if kind == "policy":
        text = f"{sys.modules[item.__module__].__doc__}\n{text}"
    return list(dict.fromkeys(_PAPER.findall(text)))


def _parameters(kind: type[Any]) -> Iterator[str]:
    """Own parameters first, those of one meaning together; then the window, which every policy has."""
    parameters, known, hints = catalogue.parameters(kind), meanings(kind), typing.get_type_hints(kind)
    window = catalogue.parameters(Policy) if issubclass(kind, Policy) else {}
    own = {n: p for n, p in parameters.items() if n not in window or known.get(n) != meanings(Policy).get(n)}
    by_meaning: dict[str, list[str]] = {}
    for name, parameter in sorted(own.items(), key=_inherited):
        line = f"  {_parameter(name, parameter.default)}  ({describe(hints[name])})"
        by_meaning.setdefault(known.get(name, name), []).append(line)
    if own:
        yield "parameters:"
    for meaning, lines in by_meaning.items():
        yield from lines
        if meaning not in own:
            yield textwrap.fill(meaning, _WIDTH, initial_indent="      ", subsequent_indent="      ")
    common = [_parameter(name, parameters[name].default) for name in window if name in parameters and name not in own]
    if common:
        yield f"as every policy: {', '.join(common)}"


def _inherited(named: tuple[str, Any]) -> bool:
    """Whether a (name, parameter) is that of a base class."""
    return bool(named[1].inherited)


def _spec(name: str, kind: type[Any]) -> str:
    """The name, with the first parameter of its own that has a plain default."""
    guarded = "static + " if getattr(kind, "guard", False) else ""
    for key, parameter in catalogue.parameters(kind).items():
        if not _inherited((key, parameter)) and isinstance(parameter.default, (bool, int, float)):
            return f"{guarded}{name}:{key}={format_value(parameter.default)}"
    return f"{guarded}{name}"


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1))
    for column in ("name", "parameters", "what it is"):
        table.add_column(column, overflow="fold")
    for kind in KINDS[title]:
        for name, item in sorted(catalogue.table(kind).items()):
            table.add_row(*(escape(cell) for cell in (name, *_cells(kind, item))))
    return table


def _cells(kind: str, item: Any) -> tuple[str, str]:
    """Parameters, and what it is, in one line each."""
    if kind == "signal":
        return "", f"{item.summary} (measured {_WHEN[item.when]})"
    if kind == "model":
        return "", f"adapter: {item.branches} guidance branches, {len(item.blocks)} block list(s)"
    if kind == "pipeline":
        return ", ".join(f"{key}={value}" for key, value in item.defaults.items()), f"pipeline: {item.summary}"
    parameters = ""
    if inspect.isclass(item) and attrs.has(item):
        own_first = sorted(catalogue.parameters(item).items(), key=_inherited)
        parameters = ", ".join(_parameter(name, parameter.default) for name, parameter in own_first)
    return parameters, _text(item).split("\n\n")[0].replace("\n", " ")


def _parameter(name: str, default: Any) -> str:
    if default is attrs.NOTHING:
        return f"{name}=<required>"
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        return f"{name}=..."
    return f"{name}={default.value if isinstance(default, enum.Enum) else default}"

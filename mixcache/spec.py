"""The one grammar of mixcache: a text becomes a tree, and a tree becomes a text.

    recipe   :=  part (" + " part)* [" @ " choice (" " choice)*]
    part     :=  name [":" argument ("," argument)*]
    argument :=  key "=" value  |  value             only the first one may lack a key: schedule:1101
    choice   :=  key ["." level] "=" value           basis=noise   forecast.step=linear:abscissa=sigma
    value    :=  "a JSON string"  |  [a JSON list]  |  {a JSON object}  |  bare text

Bare text ends at a comma in an argument and at white space in a choice. "+" and "@" separate only where white space (or
an end of the text) is on both sides: 1e+0 and /a+b/t.json are values. Nothing inside quotes or brackets separates.
This file knows no plugin: whoever owns a class applies its types, with `convert`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from numbers import Integral, Real
from typing import Any, Literal, Union, cast, get_args, get_origin

from attrs import frozen

from mixcache.errors import ConfigurationError

_UNIONS = (Union, type(int | str))
_HIDDEN = re.compile(r'"(?:[^"\\]|\\.)*"|\[[^]["{}]*\]|\{[^]["{}]*\}', re.DOTALL)
_BARE, _WORD = re.compile(r'[^\s",=\[\]{}]+'), re.compile(r'[^\s"\[\]{}]+')
_json = functools.partial(json.dumps, ensure_ascii=False)
_PLUS, _AT = r"(?<!\S)\+(?!\S)", r"(?<!\S)@(?!\S)"
_NUMBER = r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|inf(?:inity)?|nan)"
_SCALARS: dict[Any, tuple[str, str, Callable[[str], Any]]] = {
    type(None): ("none", "none", lambda text: None),
    bool: ("true or false", "true|false", lambda text: text.lower() == "true"),
    int: ("a whole number", "[+-]?[0-9]+", int),
    float: ("a number", _NUMBER, float),
    str: ("a text", ".*", str),
}
"""Of each type: its name in errors, the bare text that can be read as it, and how; in the order of trying."""


@frozen
class Text:
    """A value that is a text. Bare text still has to be read as what is wanted; quoted text stays a text."""

    text: str
    quoted: bool = False


Value = Text | list[Any] | dict[str, Any]


@frozen
class Part:
    """One name with its arguments, as written. The key of the first argument may be `None`: the first parameter."""

    name: str
    arguments: tuple[tuple[str | None, Value], ...] = ()

    def __str__(self) -> str:
        return format_part(self.name, self.arguments)


@frozen
class Choice:
    """One choice after the "@", for one level or (`None`) for all of them. `text` is without the quotes around it."""

    key: str
    level: str | None
    text: str


@frozen
class Tree:
    """A whole recipe: the parts in front of the "@" and the choices after it."""

    parts: tuple[Part, ...]
    choices: tuple[Choice, ...] = ()

    def __str__(self) -> str:
        return format_recipe([str(part) for part in self.parts], [(c.key, c.level, c.text) for c in self.choices])


def parse_recipe(text: str) -> Tree:
    """Read "part + part @ choice choice". Raises `ConfigurationError` if the text does not follow the grammar."""
    parts, *rest = _cut(text, _AT)
    if len(rest) > 1:
        raise _unreadable(text, "' @ ' stands there twice", "write it once and all choices after it")
    if rest and not rest[0]:
        raise _unreadable(text, "nothing follows the '@'", "write a choice such as '@ basis=noise', or leave it out")
    return Tree(tuple(map(parse_part, split_parts(parts))), parse_choices(rest[0]) if rest else ())


def split_parts(text: str) -> list[str]:
    """Split "part + part" without reading the parts. Raises `ConfigurationError` if one is empty."""
    parts = _cut(text, _PLUS)
    if not all(parts):
        raise _unreadable(text, "a name is missing", "write one name, or one on each side of every ' + '")
    return parts


def parse_part(text: str) -> Part:
    """Read "name:key=value,key=value". Raises `ConfigurationError` if the text does not follow the grammar."""
    if len(_cut(text, f"{_PLUS}|{_AT}")) > 1:
        raise _unreadable(text, "' + ' and ' @ ' have no place here", "write one name, and quote a value that has them")
    name, *rest = _cut(text, ":", most=1)
    _check_name(name, text)
    arguments: list[tuple[str | None, Value]] = []
    for piece in _cut(rest[0], ",") if rest else ():
        key, *value = _cut(piece, "=", most=1)
        if not piece or value == [""]:
            problem = f"{key} has no value" if key else "an argument is empty"
            raise _unreadable(text, problem, "write key=value after ':' and after every ','; \"\" is the empty text")
        if not value and arguments:
            raise _unreadable(text, f"{piece!r} has no key", "write key=value; only the first argument may lack a key")
        if value and not key.isidentifier():
            raise _unreadable(text, f"{key!r} is not a key", "write key=value; quote a text that holds '='")
        if value and key in dict(arguments):
            raise _unreadable(text, f"{key} is given twice", "give it once")
        arguments.append((key if value else None, _value((value or [piece])[0], text)))
    return Part(name, tuple(arguments))


def parse_choices(text: str) -> tuple[Choice, ...]:
    """Read "key=value key.level=value". Raises `ConfigurationError` if the text does not follow the grammar."""
    choices: dict[str, Choice] = {}
    for word in filter(None, _cut(text, r"\s")):
        name, *value = _cut(word, "=", most=1)
        key, *level = name.split(".")
        if value in ([], [""]) or len(level) > 1 or not all(map(str.isidentifier, (key, *level))):
            remedy = "write key=value or key.level=value without white space, or with the value in quotes"
            raise _unreadable(text, f"{word!r} is not a choice", remedy)
        if name in choices:
            raise _unreadable(text, f"{name} is given twice", "give it once")
        read = _value(value[0], text)
        choices[name] = Choice(key, level[0] if level else None, read.text if isinstance(read, Text) else value[0])
    return tuple(choices.values())


def hint_plus(name: str) -> str:
    """A hint to add to an error about `name`, if "+" or "@" stands in it without white space; otherwise empty."""
    spaced = re.sub(r"(?<=\S)([+@])(?=\S)", r" \1 ", name)
    return f" Did you mean {spaced!r}? A separator needs white space on both sides." if spaced != name else ""


def _unreadable(text: str, problem: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(f"cannot read {text!r}: {problem}; {remedy}.")


def _masked(text: str) -> str:
    """The text with an "x" for every character inside quotes or brackets: the separators that are left count."""
    before, masked = "", text
    while masked != before:
        before, masked = masked, _HIDDEN.sub(lambda found: "x" * len(found[0]), masked)
    if alone := re.search(r'["\[\]{}]', masked):
        raise _unreadable(text, f"{alone[0]} has no partner", "balance quotes and brackets, or quote the value")
    return masked


def _cut(text: str, mark: str, most: int | None = None) -> list[str]:
    """The pieces between the first `most` marks (a pattern) outside of quotes and brackets, stripped."""
    cuts = [found.span() for found in re.finditer(mark, _masked(text))][:most]
    begins, ends = [0, *(end for _, end in cuts)], [*(begin for begin, _ in cuts), len(text)]
    return [text[begin:end].strip() for begin, end in zip(begins, ends)]


def _check_name(name: str, text: str) -> None:
    if not _BARE.fullmatch(name) or ":" in name:
        raise _unreadable(text, f"{name!r} is not a name", "write name:key=value, and ' + ' between two of these")


def _value(text: str, whole: str) -> Value:
    """One value of the text `whole`; what begins like JSON must be JSON."""
    if text[0] not in '"[{':
        return Text(text)
    try:
        read: Any = json.loads(text, object_pairs_hook=_mapping)
    except (ValueError, RecursionError) as error:
        problem = f"{text!r} begins like JSON and is not ({error})"
        raise _unreadable(whole, problem, "correct it, or put a text in double quotes") from None
    return Text(read, quoted=True) if isinstance(read, str) else cast(Value, read)


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is given twice")
    return dict(pairs)


def format_value(value: object) -> str:
    """Write one value so that `parse_part` and `convert` give it back.

    A text stands bare if it cannot be read as anything else, otherwise in quotes. An enum member is its value; a
    sequence or mapping is JSON. Raises `ConfigurationError` for any other object.
    """
    if isinstance(value, Text):
        return _json(value.text) if value.quoted else value.text
    plain = _plain(value)
    if isinstance(plain, str) and _BARE.fullmatch(plain) and isinstance(_typed(Text(plain), Any), str):
        return plain
    return "none" if plain is None else repr(plain) if isinstance(plain, float) else _json(plain)


def format_part(name: str, arguments: Mapping[str, object] | Iterable[tuple[str | None, object]]) -> str:
    """Write "name:key=value,key=value". Raises `ConfigurationError` for a name or value that cannot be written."""
    _check_name(name, name)
    pairs = arguments.items() if isinstance(arguments, Mapping) else arguments
    written = [format_value(value) if key is None else f"{key}={format_value(value)}" for key, value in pairs]
    return f"{name}:{','.join(written)}" if written else name


def format_recipe(parts: Sequence[str], choices: Sequence[tuple[str, str | None, str]] = ()) -> str:
    """Write "part + part @ key=text key.level=text" from written parts and (key, level, text) of each choice."""
    written = " + ".join(parts) + " @" * bool(choices)
    for key, level, text in choices:
        written += f" {key}{f'.{level}' if level else ''}={text if _WORD.fullmatch(text) else _json(text)}"
    return written


def _plain(value: object) -> Any:
    """The value as a text, a number, a list or a dict of Python's own."""
    value = value.value if isinstance(value, Enum) else value
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, Mapping) and all(isinstance(_plain(key), str) for key in value):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [_plain(item) for item in value]
    raise ConfigurationError(f"{value!r} cannot be written in a recipe; use numbers, texts, lists or mappings by text.")


def convert(value: object, wanted: Any, label: str) -> Any:
    """Read a value of a tree, or one of JSON or TOML, as the type `wanted`.

    Types: bool, int, float, str, `None`, `Any`, an enum by value, `Literal`, sequences and mappings of these, unions. A
    union takes the first type that fits, but a bare `none` as `None`, and `str` only if nothing else fits. Quoted text
    is always a text. Raises `ConfigurationError`: "LABEL must be a number, got 'x'."
    """
    try:
        return _typed(value, wanted)
    except (ValueError, OverflowError):
        plain, quoted = (value.text, value.quoted) if isinstance(value, Text) else (value, False)
        end = " in quotes." if quoted else f".{hint_plus(plain) if isinstance(plain, str) else ''}"
        raise ConfigurationError(f"{label} must be {describe(wanted)}, got {plain!r}{end}") from None


def describe(wanted: Any) -> str:
    """The type in words: "a number or none", "one of step, cfg, block", "a list [a number, ...]"."""
    origin, inner = get_origin(wanted) or wanted, get_args(wanted)
    if origin in _SCALARS:
        return _SCALARS[origin][0]
    if origin in _UNIONS:
        return " or ".join(map(describe, inner))
    if origin is Literal or isinstance(origin, type(Enum)):
        return f"one of {', '.join(map(format_value, inner or wanted))}"
    words = ["..." if kind is ... else describe(kind) for kind in inner] or ["a value"]
    if origin in (dict, Mapping):
        return f"a mapping {{{words[0]}: {words[-1]}}}"
    if origin in (list, tuple, Sequence):
        return f"a list [{', '.join(words if origin is tuple and inner else [*words, '...'])}]"
    return "a value" if wanted in (Any, object) else f"a {getattr(wanted, '__name__', wanted)}, given in Python"


def _typed(value: Any, wanted: Any) -> Any:
    """The value as `wanted`; raises `ValueError` if it is no such thing."""
    origin, inner = get_origin(wanted) or wanted, get_args(wanted)
    if wanted in (Any, object) and not isinstance(value, Text):
        return value
    if wanted in (Any, object) or origin in _UNIONS:
        for kind in sorted(inner or _SCALARS, key=lambda kind: (kind is str) - (kind is type(None))):
            with suppress(ValueError, OverflowError):
                return _typed(value, kind)
    elif origin is Literal or isinstance(origin, type(Enum)):
        for member in inner or wanted:
            plain = member.value if isinstance(member, Enum) else member
            with suppress(ValueError, OverflowError):
                if _typed(value, type(plain)) == plain:
                    return member
    elif isinstance(value, dict) and origin in (dict, Mapping):
        of_key, of_value = inner or (Any, Any)
        return {_typed(key, of_key): _typed(item, of_value) for key, item in value.items()}
    elif isinstance(value, list) and origin in (list, tuple, Sequence):
        every = origin is not tuple or not inner or inner[-1] is ...
        kinds = [*inner[:1], Any][:1] * len(value) if every else inner
        return (list if origin is list else tuple)(_typed(item, kind) for item, kind in zip(value, kinds, strict=True))
    elif isinstance(value, Text) and origin in _SCALARS and (origin is str or not value.quoted):
        _, pattern, read = _SCALARS[origin]
        if re.fullmatch(pattern, value.text, re.I | re.A | re.S):
            return read(value.text)
    elif type(value) is origin:
        return value
    elif type(value) is int and origin is float:
        return float(value)
    raise ValueError

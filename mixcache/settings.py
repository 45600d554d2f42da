"""Settings files: TOML, read with one clear error, and written."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixcache.errors import ConfigurationError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EMPTY = '""'
"""The empty key in TOML."""


def read(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """The file, and what it says. Raises `ConfigurationError` for one that cannot be read, and for one without TOML."""
    file = Path(str(path).strip())
    try:
        return file, tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read the settings {str(file)!r}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{str(file)!r} is no TOML file: {error}.") from error


def value(given: Any) -> str:
    """One value as TOML: a bool, a number, a list of values, anything else by its text."""
    if isinstance(given, bool):
        return "true" if given else "false"
    if isinstance(given, float):
        return repr(given) if math.isfinite(given) else str(given)
    if isinstance(given, int):
        return str(given)
    if isinstance(given, Sequence) and not isinstance(given, str):
        return f"[{', '.join(map(value, given))}]"
    return json.dumps(str(given), ensure_ascii=False).replace("\x7f", "\\u007f")  # what else TOML wants escaped


def table(name: str, entries: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a table, with the tables in it after its values. `None` is left out."""
    yield f"\n[{name}]"
    for key, entry in entries.items():
        if entry is not None and not isinstance(entry, Mapping):
            yield f"{_key(key)} = {value(entry)}"
    for key, entry in entries.items():
        if isinstance(entry, Mapping):
            yield from table(f"{name}.{_key(key)}", entry)


def _key(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else value(text)

"""A TOML file that says how to cache: the arguments of `mixcache.enable`, and nothing that could run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mixcache.errors import ConfigurationError
from mixcache.plan import make_plan

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CHOICES = ("policies", "rule", "basis", "forecast", "samples", "max_cache_bytes", "offload", "budget", "on_error")


def read_settings(path: str | Path) -> dict[str, Any]:
    """What a TOML file says, as keyword arguments: `mixcache.enable(pipe, **read_settings("fast.toml"))`.

    Keys: `policies` (one spec or a list), `rule`, `samples`, `max_cache_bytes`, `offload`, `budget`, `on_error`, and
    `basis` and `forecast`, one spec or a table by granularity (`forecast.step = "linear"`).

    Raises `ConfigurationError` for a file that cannot be read, is no TOML, or says what `enable` would refuse.
    """
    file = Path(path)
    try:
        settings: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read the settings {str(file)!r}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{str(file)!r} is no TOML file: {error}.") from error
    unknown = sorted(set(settings) - set(CHOICES))
    if unknown:
        raise ConfigurationError(f"{str(file)!r} sets {unknown[0]!r}; it can set: {', '.join(CHOICES)}.")
    if "policies" not in settings:
        raise ConfigurationError(f"{str(file)!r} must set `policies`, such as 'easycache:threshold=0.05'.")
    for key, value in settings.items():
        if not _is_choice(key, value):
            raise ConfigurationError(f"{str(file)!r} sets {key} to {value!r}, which is no value for it.")
    make_plan(**settings)
    return settings


def _is_choice(key: str, value: Any) -> bool:
    """Whether a value has the form that its key takes; `make_plan` checks what it says."""
    if key in ("max_cache_bytes", "budget"):
        return isinstance(value, (int, float))
    if key == "policies":
        return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))
    if key in ("basis", "forecast") and isinstance(value, dict):
        return all(isinstance(item, str) for item in value.values())
    return isinstance(value, str)

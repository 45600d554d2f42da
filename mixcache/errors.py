"""Every error mixcache raises on purpose. Each message names the argument, the value given and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar


class MixcacheError(Exception):
    """Base of all errors that mixcache raises on purpose; catch it to tell them from a model's own errors."""


class ConfigurationError(MixcacheError, ValueError):
    """An argument has a value that cannot work. Raised before anything is attached or computed."""


class UnknownNameError(ConfigurationError):
    """A policy, basis, forecaster, rule, signal or model name that nobody registered; lists the names there are."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        super().__init__(f"unknown {kind} {name!r}; there are: {', '.join(names) or 'none'}.{hint}")


class AttachError(MixcacheError):
    """mixcache cannot be attached to this pipeline or model, or is attached already."""


class RunError(MixcacheError):
    """A model call that cannot be placed in a denoising run: unknown step count, two threads on one noise scheduler."""


class PluginError(MixcacheError):
    """A plugin raised an error, or returned something that its hook does not allow; names the plugin."""


class TraceError(MixcacheError, ValueError):
    """A trace file or record that is not a trace, or lacks a signal that a replayed policy reads."""


class NothingReusedWarning(UserWarning):
    """A run went to its end and nothing of it was reused; says why. Warned once per session."""


class TunedElsewhereWarning(UserWarning):
    """A recipe of `mixcache tune` is used in a run unlike those that it was measured in; says what differs."""


T = TypeVar("T")


def called(who: tuple[str, object], function: Callable[..., T], *args: Any, **named: Any) -> T:
    """`function(*args)`; what it raises becomes a `PluginError` that says who raised it: (kind, name or object).

    Errors of mixcache's own and a lack of memory pass as they are.
    """
    try:
        return function(*args, **named)
    except (MixcacheError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's; importing torch here would make every help slow
            raise
        raise PluginError(f"{who[0]} {who[1]!r} raised {type(error).__name__}: {error}") from error

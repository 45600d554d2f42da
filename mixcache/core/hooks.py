"""Where plugins hook in: the markers of set-up and run-time hooks, and the run-time hooks as the loop calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pluggy
from attrs import frozen

hookspec = pluggy.HookspecMarker("mixcache")
hookimpl = pluggy.HookimplMarker("mixcache")


@frozen(kw_only=True)
class Hooks:
    """What plugins do while a model runs, each as (name of the plugin, function with the hook's keyword arguments)."""

    started: tuple[tuple[str, Callable[..., Any]], ...] = ()
    vote: tuple[tuple[str, Callable[..., Any]], ...] = ()
    observe: tuple[tuple[str, Callable[..., Any]], ...] = ()
    ended: tuple[tuple[str, Callable[..., Any]], ...] = ()

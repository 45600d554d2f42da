"""Errors of a command are one line, and its exit code says which kind they are."""

from __future__ import annotations

import functools
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import typer

from mixcache.errors import MixcacheError


def guarded(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose error is one line and exit code 2; an interruption one line and 130.

    A failure that mixcache did not foresee (a bug, no memory left) is one line and exit code 1.
    """

    @functools.wraps(function)
    def run(ctx: typer.Context, **options: Any) -> None:
        debug = bool(ctx.find_root().params.get("debug"))
        try:
            with warnings.catch_warnings():
                if not debug:  # those of the libraries say nothing to a user of the command line
                    warnings.simplefilter("ignore")
                function(ctx, **options)
        except KeyboardInterrupt as stop:
            _end(130, f"interrupted: {stop}" if str(stop) else "interrupted: nothing was written.")
        except (MixcacheError, OSError) as error:
            _end(2, f"error: {error}", debug)
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            _end(1, f"error: {type(error).__name__}: {error} (--debug shows where)", debug)

    return run


def _end(code: int, message: str, debug: bool = False) -> None:
    if debug:
        traceback.print_exc()
    print(f"mixcache: {' '.join(message.split())}", file=sys.stderr)
    raise typer.Exit(code)

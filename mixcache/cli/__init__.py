"""The command line: options and screens. `main` is the entry point, `app` the group of commands."""

from mixcache.cli.commands import app, main

__all__ = ["app", "main"]

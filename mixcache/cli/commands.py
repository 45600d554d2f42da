"""The group of commands. A command's file is loaded when the command is asked for, and none needs torch to be loaded.

A command is a file of this room with a function of its own name.
"""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mixcache.cli.guard import guarded

COMMANDS = ("demo", "generate", "compare", "tune", "calibrate", "inspect", "bench", "plugins")
"""The commands, in the order in which help lists them."""


class Commands(TyperGroup):
    """Finds the commands; `--debug` counts wherever it stands."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Load one command, or `None` for a name that is none."""
        if cmd_name not in COMMANDS:
            return None
        function = getattr(import_module(f"mixcache.cli.{cmd_name}"), cmd_name)
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
        single.command(cmd_name)(guarded(function))
        return typer.main.get_command(single)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Move `--debug` to the front."""
        rest = [argument for argument in args if argument != "--debug"]
        return super().parse_args(ctx, ["--debug"] * (len(rest) < len(args)) + rest)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Caching for diffusion-transformer inference: what it gains, and what it costs.",
    epilog="Start with `mixcache demo`. Every command has examples: `mixcache generate --help`.",
)


def main() -> None:
    """The console entry point."""
    app(prog_name="mixcache")


def _version(wanted: bool) -> None:
    if wanted:
        from mixcache import __version__

        print(f"mixcache {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Nothing to do before a command: its options are read where they matter."""

"""`mixcache plugins`."""

from __future__ import annotations

from typing import Annotated

import typer

from mixcache.errors import ConfigurationError


def plugins(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Explain this one.", show_default=False)] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind",
            help="Only policies, bases, forecasters, anchors, rules, signals, side-inputs, models, calibrators or "
            "metrics.",
        ),
    ] = None,
) -> None:
    """List what is installed, with its parameters; or explain one: what it does, its parameters, paper and an example.

    - `mixcache plugins --kind policies`

    - `mixcache plugins easycache`
    """
    from mixcache.cli import explain

    if name is not None and not name.strip():
        raise ConfigurationError("NAME is empty; leave it out to list everything.")
    explain.show(name, kind)

"""`mixcache bench`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixcache.cli import options as has

if TYPE_CHECKING:
    from mixcache.bench.rows import Row

Name = Annotated[
    str,
    typer.Option("--model", metavar="NAME|FOLDER", help="wan-1.3b, wan-14b or flux; or a pipeline of Wan or Flux."),
]
RandomWeights = Annotated[
    bool, typer.Option("--random-weights", help="Of the published size, with weights that nobody trained.")
]
Policies = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        metavar="POLICY",
        help=f"Once for each row. {has.POLICY}  [default: one that reads nothing, and one that measures]",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option("--out", help="The .json file that keeps every row.")]
Restart = Annotated[bool, typer.Option("--restart", help="Forget the rows of this command, and measure them anew.")]
Compiled = Annotated[bool, typer.Option("--compile", help="Add rows with compiled blocks.")]
Steps = Annotated[int, typer.Option("--steps", min=4, help="Denoising steps.")]
Frames = Annotated[int | None, typer.Option("--frames", min=1, help="Frames.  [default: the usual; few on a CPU]")]
Height = Annotated[int | None, typer.Option("--height", min=1, help="Pixels.  [default: the usual; few on a CPU]")]
Width = Annotated[int | None, typer.Option("--width", min=1, help="Pixels.  [default: the usual; few on a CPU]")]
Layers = Annotated[int | None, typer.Option("--layers", min=1, help="Blocks of each kind.  [default: all]")]


def bench(
    ctx: typer.Context,
    model: Name,
    random_weights: RandomWeights = False,
    policy: Policies = None,
    out: Out = Path("mixcache-bench.json"),
    restart: Restart = False,
    compiled: Compiled = False,
    steps: Steps = 10,
    repeats: has.Repeats = 5,
    frames: Frames = None,
    height: Height = None,
    width: Width = None,
    layers: Layers = None,
    device: has.Device = "auto",
    dtype: has.Dtype = None,
) -> None:
    """Time what mixcache costs and gains on a bare transformer of full size. Quality is the business of `compare`.

    Every row (a recipe, with blocks compiled or not) is pairs of an uncached and a cached run, and runs in which
    mixcache's own time is told from the model's. Interrupt it whenever you like: the same command goes on.

    - `mixcache bench --model wan-1.3b --random-weights --device cuda --compile`

    - On a CPU, in minutes: `mixcache bench --model wan-1.3b --random-weights --device cpu --layers 4 --repeats 3`
    """
    from mixcache.bench import rows, speed
    from mixcache.bench.bare import prepare
    from mixcache.bench.comparison import check_recipes
    from mixcache.cli import console

    recipes = check_recipes([has.recipe_of(text, ctx) for text in policy or speed.RECIPES])
    file = rows.RowFile(out)
    size = {"frames": frames, "height": height, "width": width}
    with console.loading(model):
        bare = prepare(model, random_weights=random_weights, device=device, dtype=dtype, layers=layers, **size)
    asked = speed.Bench(bare=bare, recipes=recipes, steps=steps, repeats=repeats, compiled=compiled)
    if restart:
        file.forget(asked.settings)
    with console.progress_bar() as bar:
        found = speed.measure(asked, file, bar.watch)
    _show(found, out)


def _show(found: Sequence[Row], out: Path) -> None:
    """The table, what it was measured on, which aims are reached, and where the rows are."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from mixcache.bench import rows
    from mixcache.cli import console

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column(rows.HEADER[0], min_width=24, overflow="fold")
    for name in rows.HEADER[1:]:
        table.add_column(name, justify="right", overflow="fold")
    for row in found:
        table.add_row(*map(escape, rows.cells(row)))
    printed = console.screen()
    printed.print(table)
    printed.print(escape(rows.caption(found[0].settings)))
    printed.print("the aims, set for full sizes on an accelerator:")
    for line in rows.aims(found):
        printed.print(f"  {escape(line)}")
    printed.print(f"the rows are kept in {escape(str(out))}")

"""What the command line shows: progress bars with the time left, and tables."""

from __future__ import annotations

import enum
import inspect
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from mixcache import plugins
from mixcache.cases import Case
from mixcache.compare import Watch
from mixcache.errors import UnknownNameError
from mixcache.results import HEADER, Summary, rows

_WIDTH = 160  # columns of output that goes to a file


def screen() -> Console:
    """Standard output; wide where it is no terminal, so that no table is squeezed."""
    return Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Say that a model is being loaded."""
    with Console(stderr=True).status(f"loading {name}"):
        yield


class Bar:
    """Denoising steps done of all, elapsed time and time left, on standard error."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)
        self._calls = self._made = self._steps = self._cases = 0
        self._begin = time.monotonic()

    def start(self, calls: int, steps: int) -> None:
        """There will be so many calls of so many steps."""
        self._calls, self._steps = calls, steps
        self._progress.update(self._task, total=calls * steps)

    def step(self) -> None:
        """A denoising step is over."""
        self._progress.advance(self._task)

    def call(self) -> None:
        """A call is over, however many steps it told of."""
        self._made += 1
        self._progress.update(self._task, completed=self._made * self._steps)

    def case(self, case: Case) -> None:
        """A case is finished: shown beside the bar, or as a line where there is no terminal."""
        self.tell(f"{case.variant}: {case.speedup:.2f}x")

    def tell(self, text: str) -> None:
        """Say something about the calls so far, beside the bar or as a line with the time left."""
        if self._progress.console.is_terminal:
            self._progress.update(self._task, description=text)
        else:
            left = (time.monotonic() - self._begin) / self._made * (self._calls - self._made)
            print(f"{self._made}/{self._calls} runs; {text}; {left:.0f} s left", file=sys.stderr, flush=True)

    def observed(self) -> None:
        """A call is over, and there is nothing to say but how far it is."""
        self.call()
        self.tell("observed")

    @property
    def watch(self) -> Watch:
        """The callbacks that a comparison wants."""
        return Watch(started=self.start, step=self.step, call=self.call, case=self.case)


@contextmanager
def progress_bar() -> Iterator[Bar]:
    """A bar over all denoising steps, while inside."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet, speed_estimate_period=120) as progress:
        yield Bar(progress)


def results_table(summaries: Sequence[Summary]) -> Table:
    """Speed-up and quality, one row a variant."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for index, name in enumerate(HEADER):
        table.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows(summaries):
        table.add_row(*row)
    return table


_WHEN = {"before": "before a vote", "after": "after a compute"}

KINDS = ("policies", "bases", "forecasters", "rules", "signals", "models")


def plugin_tables(kind: str | None = None) -> list[Table]:
    """What is installed, a table a kind. Raises `UnknownNameError` for a kind that is none."""
    if kind is not None and kind not in KINDS:
        raise UnknownNameError("kind", kind, KINDS)
    return [_table(name) for name in KINDS if kind in (None, name)]


def _table(kind: str) -> Table:
    table = Table(title=kind, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1))
    for name in ("name", "parameters", "what it is"):
        table.add_column(name, overflow="fold")
    for row in _rows(kind):
        table.add_row(*row)
    return table


def _rows(kind: str) -> list[tuple[str, str, str]]:
    classes: dict[str, Mapping[str, type[Any]]] = {
        "policies": plugins.policies(),
        "bases": plugins.bases(),
        "forecasters": plugins.forecasters(),
    }
    if kind in classes:
        return [(name, _parameters(item), _summary(item)) for name, item in sorted(classes[kind].items())]
    if kind == "rules":
        return [(name, "", _summary(rule)) for name, rule in sorted(plugins.rules().items())]
    if kind == "signals":
        found = sorted(plugins.all_signals().items())
        return [(name, "", f"{s.summary} (measured {_WHEN[s.when]})") for name, s in found]
    adapters = [
        (name, "", f"adapter: {a.branches} guidance branches, {len(a.blocks)} block list(s)")
        for name, a in sorted(plugins.models().items())
    ]
    folders = [
        (name, ", ".join(f"{key}={value}" for key, value in f.defaults.items()), f"pipeline: {f.summary}")
        for name, f in sorted(plugins.pipelines().items())
    ]
    return [*folders, *adapters]


def _parameters(kind: type[Any]) -> str:
    return ", ".join(_parameter(name, item.default) for name, item in plugins.parameters(kind).items())


def _parameter(name: str, default: Any) -> str:
    if default is attrs.NOTHING:
        return f"{name}=<required>"
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        return f"{name}=..."
    return f"{name}={default.value if isinstance(default, enum.Enum) else default}"


def _summary(item: Any) -> str:
    return (inspect.getdoc(item) or "").split("\n\n")[0].replace("\n", " ")

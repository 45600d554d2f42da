"""What the command line shows while it works: progress bars with the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mixcache.bench.flags import UNCACHED
from mixcache.bench.watch import Watch

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
        """Begin: the number of calls, and of steps in each."""
        self._calls, self._steps = calls, steps
        self._progress.update(self._task, total=calls * steps)

    def step(self) -> None:
        """A denoising step is over."""
        self._progress.advance(self._task)

    def call(self) -> None:
        """A call is over, also where its pipeline reported fewer steps than it made."""
        self._made += 1
        self._progress.update(self._task, completed=self._made * self._steps)

    def case(self, case: Any) -> None:
        """A `Case` is finished: shown beside the bar, or as a line where there is no terminal."""
        self.tell("uncached" if case.variant == UNCACHED else f"{case.variant}: {case.speed}")

    def tell(self, text: str) -> None:
        """Say something about the calls so far, beside the bar or as a line with the time left."""
        if self._progress.console.is_terminal:
            self._progress.update(self._task, description=text)
        else:
            left = (time.monotonic() - self._begin) / self._made * (self._calls - self._made)
            print(f"{self._made}/{self._calls} runs; {text}; {left:.0f} s left", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line of its own, that stays."""
        if self._progress.console.is_terminal:
            self._progress.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def observed(self) -> None:
        """A call is over; say how far the work is."""
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

"""What all trainings share: checkpoints that survive an interruption, the rate schedule and the progress bar."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SAVE_EVERY: Final = 250  # iterations between checkpoints
LOG_EVERY: Final = 50  # iterations between printed losses


_compute = {"bfloat16": False}


def use_bfloat16(wanted: bool) -> None:
    """Train in bfloat16 where it is safe: twice as fast on a processor that multiplies it, half as fast on others."""
    _compute["bfloat16"] = wanted


def autocast() -> torch.autocast:
    """The context in which losses are computed."""
    return torch.autocast("cpu", torch.bfloat16, enabled=_compute["bfloat16"])


def compute_dtype() -> torch.dtype:
    """What losses are computed in."""
    return torch.bfloat16 if _compute["bfloat16"] else torch.float32


def learning_rate(iteration: int, iterations: int, peak: float, warmup: int = 100) -> float:
    """Linear warm-up to ``peak``, then a cosine down to 2 % of it at ``iterations``."""
    if iteration < warmup:
        return peak * (iteration + 1) / warmup
    part = (iteration - warmup) / max(1, iterations - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, part))))


def batch_rng(seed: int, stage: int, iteration: int) -> np.random.Generator:
    """The generator of one iteration's batch: a resumed run draws what an uninterrupted one would have drawn."""
    return np.random.default_rng([seed, stage, iteration])


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path`` in one step, so that an interruption leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state saved at ``path``, or None where there is none yet."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def need_checkpoint(path: Path, remedy: str) -> dict[str, Any]:
    """The state saved at ``path``; where there is none, an error that names ``remedy``."""
    state = load_checkpoint(path)
    if state is None:
        raise FileNotFoundError(f"{path} does not exist; run the training with {remedy} first")
    return state


class LossLog:
    """Mean losses over the last iterations, as one line of text."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, **losses: float) -> None:
        """Count one iteration's losses."""
        self._count += 1
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def line(self) -> str:
        """The means since the last call."""
        text = " ".join(f"{name} {value / max(1, self._count):.4f}" for name, value in self._sums.items())
        self._sums, self._count = {}, 0
        return text


class Bar:
    """One task's progress: a bar in a terminal, or a line now and then where the output is a file."""

    def __init__(self, progress: Progress, name: str, total: int, done: int) -> None:
        self._progress, self._name = progress, name
        self._total, self._done, self._first = total, done, done
        self._begin = time.monotonic()
        self._task = progress.add_task(name, total=total, completed=done, losses="")

    def advance(self, count: int = 1) -> None:
        """Count ``count`` more as done."""
        self._done += count
        self._progress.advance(self._task, count)

    def tell(self, losses: str) -> None:
        """Show ``losses``, and the time left."""
        self._progress.update(self._task, losses=losses)
        if not self._progress.console.is_terminal:
            took = time.monotonic() - self._begin
            left = took / max(1, self._done - self._first) * (self._total - self._done)
            text = f"{self._name} {self._done}/{self._total} {losses} after {took:.0f} s, {left:.0f} s left"
            print(text, flush=True)


@contextmanager
def progress_bar(name: str, total: int, done: int = 0) -> Iterator[Bar]:
    """A bar with count, elapsed time, time left and the latest losses; ``done`` of ``total`` is done already."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}"),
    )
    console = Console()
    with Progress(*columns, refresh_per_second=1, console=console, disable=not console.is_terminal) as progress:
        yield Bar(progress, name, total, done)

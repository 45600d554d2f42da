"""Rows of `mixcache bench`: what was timed for one recipe, the file that keeps them, and the table they make."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cattrs
from attrs import frozen

from mixcache.core.files import write_whole
from mixcache.errors import ConfigurationError

SCHEMA = 1
SETTLED = 2
"""From this step on, what is looked at once in a run (how the loop steps, and with which noise levels) is known."""


@frozen(kw_only=True)
class Middle:
    """The median of some repeats, with the smallest and the largest: the true one is between with 1 - 2^(1 - n)."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Middle:
        """Of at least one."""
        return cls(median=statistics.median(values), low=min(values), high=max(values))


@frozen(kw_only=True)
class Row:
    """One recipe, with blocks compiled or not.

    settings: what it was measured with, the machine included. variant: the recipe as text. uncached_seconds,
    cached_seconds: of the whole loop, one pair per repeat. own_seconds: in mixcache, by repeat, of a run of its own:
    all that is neither the model's forward nor the solver, with the device waited for at every change. own_by_step: the
    same by step, median over the repeats. syncs: how often mixcache waited for the device, by step. measured: visits at
    which signals were read, by step. evaluations: made, of `evaluations_uncached`. cache_bytes: at most.
    """

    settings: Mapping[str, Any]
    variant: str
    compiled: bool
    uncached_seconds: tuple[float, ...]
    cached_seconds: tuple[float, ...]
    own_seconds: tuple[float, ...]
    own_by_step: tuple[float, ...]
    syncs: tuple[int, ...]
    measured: tuple[int, ...]
    evaluations: float
    evaluations_uncached: int
    cache_bytes: int

    @property
    def steps(self) -> int:
        """Of the run."""
        return len(self.syncs)

    @property
    def step_seconds(self) -> Middle:
        """A step of the uncached run: the transformer, for every branch, and one step of Euler's."""
        return Middle.of([seconds / self.steps for seconds in self.uncached_seconds])

    @property
    def speedups(self) -> Middle:
        """Uncached over cached seconds, of the pairs."""
        return Middle.of([u / c for u, c in zip(self.uncached_seconds, self.cached_seconds)])

    @property
    def speedup(self) -> float:
        """Their median."""
        return self.speedups.median

    @property
    def speed(self) -> str:
        """The speed-up as text."""
        return f"{self.speedup:.2f}x"

    @property
    def ideal_speedup(self) -> float:
        """If reusing cost nothing: evaluations uncached over evaluations made."""
        return self.evaluations_uncached / self.evaluations if self.evaluations else 1.0

    @property
    def of_ideal(self) -> Middle:
        """Achieved over ideal speed-up, of the pairs."""
        pairs = zip(self.uncached_seconds, self.cached_seconds)
        return Middle.of([u / c / self.ideal_speedup for u, c in pairs])

    @property
    def own_step_seconds(self) -> Middle:
        """mixcache's own time per step."""
        return Middle.of([seconds / self.steps for seconds in self.own_seconds])

    @property
    def own_share(self) -> float:
        """mixcache's own time, as a share of an uncached step."""
        return self.own_step_seconds.median / self.step_seconds.median

    @property
    def most_syncs(self) -> int:
        """In any step, once the run is settled."""
        return max(self.syncs[SETTLED:], default=0)

    @property
    def needless_syncs(self) -> int:
        """Beside one per measured visit: the most in any step, once the run is settled."""
        return max((s - m for s, m in zip(self.syncs[SETTLED:], self.measured[SETTLED:])), default=0)

    @property
    def first_syncs(self) -> int:
        """Before that, in all."""
        return sum(self.syncs[:SETTLED])


converter = cattrs.Converter()


class RowFile:
    """A .json file of rows, of any number of machines and settings. A finished row is on the disk at once."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.suffix != ".json":
            raise ConfigurationError(f"--out must name a .json file, got {str(path)!r}.")
        if not self.path.parent.is_dir():
            raise ConfigurationError(f"--out {path}: there is no folder {self.path.parent}; make it first.")
        self.rows: list[Row] = self._read() if self.path.exists() else []

    def find(self, settings: Mapping[str, Any], key: tuple[str, bool]) -> Row | None:
        """The row of this recipe, measured with these settings on this machine."""
        found = (row for row in self.rows if (row.variant, row.compiled) == key and row.settings == settings)
        return next(found, None)

    def forget(self, settings: Mapping[str, Any]) -> None:
        """Drop the rows that were measured with these settings on this machine; others stay."""
        self.rows = [row for row in self.rows if row.settings != settings]

    def add(self, row: Row) -> None:
        """Keep a row."""
        self.rows.append(row)
        everything = {"schema": SCHEMA, "rows": converter.unstructure(self.rows)}
        write_whole(self.path, json.dumps(everything, indent=1) + "\n")

    def _read(self) -> list[Row]:
        try:
            told = json.loads(self.path.read_text(encoding="utf-8"))
            if told["schema"] != SCHEMA:
                raise ValueError(f"its schema is {told['schema']!r}, not {SCHEMA}")
            return converter.structure(told["rows"], list[Row])
        except Exception as error:  # whatever a file of others makes of the reader
            raise ConfigurationError(
                f"--out {self.path} holds no rows of `mixcache bench` ({type(error).__name__}: {error}); "
                "choose another."
            ) from error


HEADER = (
    "recipe",
    "blocks",
    "transformer,\ns/step",
    "evaluations",
    "speed-up",
    "ideal",
    "of ideal",
    "own,\nms/step",
    "own, %\nof step",
    "syncs\nper step",
    "at\nstart",
    "cache\nbytes",
)


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, under `HEADER`; "at start" are the synchronisations of the first two steps."""
    own, of_ideal, speedups = row.own_step_seconds, row.of_ideal, row.speedups
    return (
        row.variant,
        "compiled" if row.compiled else "eager",
        _spread(row.step_seconds, ".3g"),
        f"{row.evaluations:g} of {row.evaluations_uncached}",
        _spread(speedups, ".3f"),
        f"{row.ideal_speedup:.3f}",
        _spread(of_ideal, ".3f"),
        _spread(Middle(median=1e3 * own.median, low=1e3 * own.low, high=1e3 * own.high), ".3f"),
        f"{100 * row.own_share:.3f}",
        f"{row.most_syncs}",
        f"{row.first_syncs}",
        f"{row.cache_bytes:,}",
    )


def _spread(middle: Middle, form: str) -> str:
    return f"{middle.median:{form}}\n{middle.low:{form}}-{middle.high:{form}}"


def caption(settings: Mapping[str, Any]) -> str:
    """What the numbers were measured on."""
    e, size = settings["environment"], settings["size"]
    weights = "random weights" if settings["weights"] == "random" else "weights of its own"
    branches = "one branch" if settings["branches"] == 1 else f"{settings['branches']} branches"
    return (
        f"{settings['model']}, {weights}: {settings['parameters'] / 1e9:.3g} billion in {settings['blocks']} blocks, "
        f"{settings['dtype']}; {size['frames']}x{size['height']}x{size['width']}: {settings['tokens']:,} tokens and "
        f"{size['text']} of text, {branches}, {settings['steps']} steps; {settings['repeats']} pairs of runs: median, "
        f"smallest-largest. On {e['device']} ({e['cpu']}, {e['threads']} threads), torch {e['torch']}, diffusers "
        f"{e['diffusers']}, mixcache {e['mixcache']}"
    )


def aims(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each aim: whether every row reaches it, and the worst. They are set for full sizes on a GPU."""
    share = max(rows, key=lambda row: row.own_share)
    ratio = min(rows, key=lambda row: row.of_ideal.median)
    syncs = max(rows, key=lambda row: row.needless_syncs)
    beyond = syncs.needless_syncs
    for reached, aim, worst in (
        (share.own_share < 0.001, "own time below 0.1 % of a step", f"{100 * share.own_share:.3g} %, {share.variant}"),
        (
            ratio.of_ideal.median >= 0.99,
            "at least 0.99 of the ideal speed-up",
            f"{ratio.of_ideal.median:.3f}, {ratio.variant}",
        ),
        (
            beyond <= 0,
            "at most one synchronisation per measured visit",
            f"{beyond} beyond that, {syncs.variant}" if beyond > 0 else "none beyond that",
        ),
    ):
        yield f"{'reached' if reached else 'missed'}: {aim} (worst: {worst})"

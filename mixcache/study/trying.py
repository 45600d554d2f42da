"""What real runs showed, kept on disk as they come; and how well prices rank them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cattrs
import numpy as np
from attrs import frozen
from numpy.typing import ArrayLike, NDArray

from mixcache.core.files import append_line, whole_lines, write_whole
from mixcache.errors import ConfigurationError

LINES = "trials.jsonl"

_converter = cattrs.Converter(forbid_extra_keys=True)
_converter.register_structure_hook(float, lambda value, _: float(value))
_converter.register_unstructure_hook(float, lambda value: value if abs(value) < float("inf") else str(value))


@frozen(kw_only=True)
class Trial:
    """One real run against the uncached one. deviation: relative L2 of the final latents. psnr: of the clip, in dB.

    mask: what was done, one character per evaluation, "1" computed, "0" reused, "+" in part.
    """

    prompt: str
    seed: int
    recipe: str
    deviation: float
    psnr: float
    mask: str


@frozen(kw_only=True)
class Checked:
    """A recipe and its real runs, one per prompt and seed."""

    recipe: str
    trials: tuple[Trial, ...]

    @property
    def deviation(self) -> float:
        """Mean relative L2 deviation of the final latents."""
        return statistics.fmean(trial.deviation for trial in self.trials)

    @property
    def worst(self) -> float:
        """The largest deviation."""
        return max(trial.deviation for trial in self.trials)

    @property
    def psnr(self) -> float:
        """Mean over the clips, in dB."""
        return statistics.fmean(trial.psnr for trial in self.trials)


class TrialStore:
    """Trials, each made once. folder: keeps them, so that whoever is interrupted goes on from there.

    settings: what the trials are of. Raises `ConfigurationError` for a folder of others.
    """

    def __init__(self, settings: Mapping[str, Any], folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._known: dict[tuple[str, int, str], Trial] = {}
        if self.folder is not None:
            self._open(self.folder, json.loads(json.dumps(settings, default=str, sort_keys=True)))

    def get(self, prompt: str, seed: int, recipe: str) -> Trial | None:
        """A trial, if it was made."""
        return self._known.get((prompt, seed, recipe))

    def add(self, trial: Trial) -> Trial:
        """Keep a trial: it is on the disk when this returns it."""
        self._known[trial.prompt, trial.seed, trial.recipe] = trial
        if self.folder is not None:
            append_line(self.folder / LINES, json.dumps(_converter.unstructure(trial), allow_nan=False))
        return trial

    def _open(self, folder: Path, wanted: Any) -> None:
        settings = folder / "settings.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            found = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else wanted
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"`folder` {str(folder)!r} cannot be used: {error}; give another folder."
            ) from error
        if found != wanted:
            raise ConfigurationError(
                f"`folder` {str(folder)!r} holds runs of another model or call: {found}; give another folder."
            )
        write_whole(settings, json.dumps(wanted, indent=2) + "\n")
        for line in whole_lines(folder / LINES):
            trial = _converter.structure(json.loads(line), Trial)
            self._known[trial.prompt, trial.seed, trial.recipe] = trial


def rank_correlation(prices: ArrayLike, measured: ArrayLike) -> float:
    """Spearman's rank correlation of two sets of numbers, from -1 to 1; ties share their mean rank.

    NaN where either set does not vary. Raises `ConfigurationError` for sets of unequal size, or of fewer than two.
    """
    a, b = (np.asarray(values, dtype=np.float64).ravel() for values in (prices, measured))
    if len(a) != len(b) or len(a) < 2:
        raise ConfigurationError(f"`rank_correlation` wants as many prices as measurements, got {len(a)} and {len(b)}.")
    ranks = np.stack([_ranks(a), _ranks(b)])
    if (np.ptp(ranks, axis=1) == 0.0).any():
        return float("nan")
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    return float(centred[0] @ centred[1] / np.sqrt((centred[0] @ centred[0]) * (centred[1] @ centred[1])))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    found: NDArray[np.float64] = (last - (counts - 1) / 2.0)[place]
    return found

"""Finished cases of a comparison, and the folder that keeps them whatever happens."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cattrs
from attrs import frozen

from mixcache.bench.media import Clips
from mixcache.bench.references import References
from mixcache.core.files import append_line, whole_lines, write_whole
from mixcache.core.report import Report
from mixcache.errors import ConfigurationError

SCHEMA = 3

Key = tuple[str, int, str]
"""What makes a case: prompt, seed, and the variant as text."""


@frozen(kw_only=True)
class Reuse:
    """One entry of the ledger: where, and the relative L1 error that was predicted (if one was) and the true one."""

    granularity: str
    step: int
    branch: str
    predicted: float | None
    true: float


@frozen(kw_only=True)
class Audit:
    """What an audited run showed: every reuse, and the bound on the final latent, relative to it.

    kind: what the bound is ("estimate", "none"); why: how it was found, or why there is none.
    """

    reuses: tuple[Reuse, ...]
    kind: str
    why: str
    bound: float | None


@frozen(kw_only=True)
class Case:
    """One prompt and seed, made as one variant says, beside the uncached run of the same prompt and seed.

    variant: a recipe as text; "steps=18", the plain pipeline with fewer steps; or "none", the uncached run itself.
    uncached_seconds, cached_seconds: of the denoising loop, one pair per repeat; empty if it was not timed.
    evaluations: of the model, of `evaluations_uncached`. scores: by metric: `psnr` of the whole clip (dB), `ssim`, ...
    latents_error: relative L2 of the final latents, `None` if the pipeline does not show them. truth_psnr, truth_error:
    PSNR and relative L2 against the run with many steps (`--truth`), `None` without it. mask: one character per step,
    "1" computed, "0" reused, "+" in part. report: of the session, `None` where nothing is cached. audit: of one more
    run, if it was asked for.
    """

    prompt: str
    seed: int
    variant: str
    uncached_seconds: tuple[float, ...]
    cached_seconds: tuple[float, ...]
    evaluations: float
    evaluations_uncached: int
    scores: Mapping[str, float]
    latents_error: float | None
    truth_psnr: float | None = None
    truth_error: float | None = None
    mask: str
    report: Report | None
    audit: Audit | None = None

    @property
    def key(self) -> Key:
        """Prompt, seed, variant."""
        return self.prompt, self.seed, self.variant

    @property
    def speedup(self) -> float | None:
        """Uncached over cached seconds, the median of the pairs; `None` if it was not timed."""
        if not self.cached_seconds:
            return None
        return statistics.median(u / c for u, c in zip(self.uncached_seconds, self.cached_seconds))

    @property
    def ideal_speedup(self) -> float:
        """Evaluations uncached over evaluations made: the speed-up if nothing else took time."""
        return self.evaluations_uncached / self.evaluations if self.evaluations else 1.0

    @property
    def psnr(self) -> float:
        """Of the whole clip against the uncached one, in dB."""
        return self.scores["psnr"]

    @property
    def speed(self) -> str:
        """The speed-up as text: the measured one, or the ideal one if it was not timed."""
        return f"ideal {self.ideal_speedup:.2f}x" if self.speedup is None else f"{self.speedup:.2f}x"


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


converter = cattrs.Converter()
"""Cases to and from JSON; numbers that are not finite are the strings "nan", "inf" and "-inf"."""
converter.register_unstructure_hook(float, _number)


class CaseStore:
    """A comparison's folder: settings.json, cases.jsonl with one line for every finished case, clips and references."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.clips = Clips(self.folder / "clips")
        self.references = References(self.folder / "references")
        self.cases: dict[Key, Case] = {}
        self._settings = self.folder / "settings.json"
        self._lines = self.folder / "cases.jsonl"

    def open(self, settings: Mapping[str, Any], restart: bool = False) -> CaseStore:
        """Read what is there, or begin; returns itself.

        Raises `ConfigurationError` if the folder was measured with other settings, unless `restart` forgets them.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = json.loads(json.dumps(settings, default=str))
        if restart:
            self._lines.unlink(missing_ok=True)
            self._settings.unlink(missing_ok=True)
            self.clips.forget()
            self.references.forget()
        if self._lines.is_file():
            self._check(wanted)
            self._read()
        else:
            self.references.forget()  # nobody knows what they were made with
        write_whole(self._settings, json.dumps(wanted, indent=2) + "\n")
        return self

    def add(self, case: Case) -> None:
        """Keep a finished case: it is on the disk when this returns."""
        append_line(self._lines, json.dumps(converter.unstructure(case), allow_nan=False))
        self.cases[case.key] = case

    def _check(self, wanted: Mapping[str, Any]) -> None:
        try:
            found = dict(_leaves(json.loads(self._settings.read_text(encoding="utf-8"))))
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"cannot read {self._settings}: {error}. {self._remedy}") from error
        now = dict(_leaves(wanted))
        differing = [
            f"{name} was {found.get(name, 'not given')}, is {now.get(name, 'not given')}"
            for name in sorted({*found, *now})
            if found.get(name, "not given") != now.get(name, "not given")
        ]
        if differing:
            raise ConfigurationError(
                f"{self.folder} was measured with other settings: {'; '.join(differing)}. {self._remedy}"
            )

    @property
    def _remedy(self) -> str:
        return "Choose another --out, or give --restart to measure again from the start."

    def _read(self) -> None:
        """Every case; a last line that was cut short is taken off the file."""
        for number, line in enumerate(whole_lines(self._lines), 1):
            try:
                case = converter.structure(json.loads(line), Case)
            except Exception as error:
                raise ConfigurationError(f"{self._lines}, line {number} is no case. {self._remedy}") from error
            self.cases[case.key] = case


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", value

"""Pictures of a comparison: the contact sheet, the speed/quality plot, and a report page that needs no other file.

Arrays carry their layout in their names: F frames, H height, W width, C colour channels.
"""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from mixcache.bench.cases import Case, CaseStore
from mixcache.bench.comparison import Comparison
from mixcache.bench.extras import extra
from mixcache.bench.flags import UNCACHED
from mixcache.bench.plots import ERRORS, decibel, draw, predicted_and_true, save, speed_quality
from mixcache.bench.results import AUDITED, audited, caption, kept, summarize, table, write_results
from mixcache.bench.summaries import Summary
from mixcache.core.files import write_whole

SHEET_FRAMES = 8
"""The most frames of a clip on a contact sheet."""

_TYPES = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png"}


@frozen(kw_only=True)
class Strip:
    """One row of a contact sheet: a title above it (or none), a label at its left, the clip's levels."""

    label: str
    frames_FHWC: NDArray[np.uint8]
    title: str = ""


def strips(comparison: Comparison, store: CaseStore) -> list[Strip]:
    """The kept clips, for every (prompt, seed) the uncached one and then the variants with their PSNR."""
    found = []
    for prompt, seed in comparison.shown:
        for variant in (UNCACHED, *comparison.labels):
            frames = store.clips.load(prompt, seed, variant)
            if frames is None:
                continue
            if variant == UNCACHED:
                found.append(Strip(label="uncached", frames_FHWC=frames, title=f"{prompt} (seed {seed})"))
                continue
            case = store.cases[prompt, seed, variant]
            label = f"{variant}\n{case.speed}, {decibel(case.psnr)}"
            found.append(Strip(label=label, frames_FHWC=frames))
    return found


def contact_sheet(path: Path, rows_: Sequence[Strip]) -> None:
    """A picture with one row per clip and evenly spaced frames of it as columns, labelled."""
    count = min(SHEET_FRAMES, max(len(strip.frames_FHWC) for strip in rows_))
    height, width = rows_[0].frames_FHWC.shape[1:3]
    tall = 1.15 * min(height / width, 2.0)
    titles = 0.3 * sum(bool(strip.title) for strip in rows_)
    total = len(rows_) * (tall + 0.06) + titles + 0.3
    figure = draw((2.6 + 1.15 * count, total))
    left = 2.5 / figure.get_figwidth()
    top = total - 0.05
    for strip in rows_:
        if strip.title:
            figure.text(0.01, (top - 0.2) / total, strip.title, fontsize=10, weight="bold")
            top -= 0.3
        bottom = (top - tall) / total
        label = "\n".join(line for part in strip.label.split("\n") for line in textwrap.wrap(part, 30))
        figure.text(0.01, bottom + tall / total / 2, label, fontsize=8, va="center")
        places = np.linspace(0, len(strip.frames_FHWC) - 1, min(count, len(strip.frames_FHWC))).round().astype(int)
        for column, frame in enumerate(places):
            box = (left + column * (1 - left) / count, bottom, (1 - left) / count * 0.96, tall / total)
            axes = figure.add_axes(box)
            axes.imshow(strip.frames_FHWC[frame], interpolation="nearest")
            axes.set_axis_off()
            if strip is rows_[-1]:
                middle = box[0] + box[2] / 2
                figure.text(middle, 0.06 / total, f"frame {frame}", fontsize=7, ha="center")
        top -= tall + 0.06
    save(figure, path)


def page(
    path: Path,
    command: str,
    comparison: Comparison,
    store: CaseStore,
    cases: Sequence[Case],
    summaries: Sequence[Summary],
) -> None:
    """The report page: table, plot, clips side by side with the steps that were computed, a report per variant."""
    jinja2 = extra("jinja2", "the report page")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    text = environment.get_template("report.html").render(
        command=command,
        caption=caption(comparison, summaries),
        table=table(comparison, summaries),
        plot=_data(path.with_name("speed_quality.png")),
        errors=_data(path.with_name(ERRORS)) if path.with_name(ERRORS).exists() else None,
        audited=[AUDITED, *audited(comparison, cases)],
        groups=_groups(comparison, store),
        settings=_flat(comparison.settings),
    )
    write_whole(path, text)


def _groups(comparison: Comparison, store: CaseStore) -> list[dict[str, Any]]:
    groups = []
    for prompt, seed in comparison.shown:
        clips = []
        for variant in (UNCACHED, *comparison.labels):
            media = store.clips.playable(prompt, seed, variant)
            case = store.cases.get((prompt, seed, variant))
            clips.append(
                {
                    "label": "uncached" if variant == UNCACHED else variant,
                    "media": None if media is None else _data(media),
                    "video": media is not None and media.suffix == ".mp4",
                    "case": case,
                    "scores": None if case is None else _scores(comparison, case),
                    "report": None if case is None or case.report is None else str(case.report),
                }
            )
        groups.append({"prompt": prompt, "seed": seed, "clips": clips})
    return groups


def _scores(comparison: Comparison, case: Case) -> str:
    """A line under a clip: its speed-up, PSNR, and what the other metrics say."""
    others = {name: metric for name, metric in comparison.metrics.items() if name != "psnr"}
    told = [f"{name} {case.scores[name]:.{metric.digits}f} {metric.unit}".strip() for name, metric in others.items()]
    return ", ".join(told if case.variant == UNCACHED else [case.speed, decibel(case.psnr), *told])


def _flat(settings: dict[str, Any]) -> list[tuple[str, str]]:
    flat = []
    for name, value in settings.items():
        if isinstance(value, dict):
            flat += [(f"{name}: {key}", str(item)) for key, item in value.items()]
        else:
            flat.append((name, ", ".join(value) if isinstance(value, list) else str(value)))
    return flat


def _data(path: Path) -> str:
    """A file as a data URI, so that the page is one file."""
    return f"data:{_TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def write_report(folder: str | Path, command: str, comparison: Comparison, store: CaseStore) -> list[Summary]:
    """Write everything that people read of a finished comparison: results and pictures. Returns the summaries.

    command: what made it, for the first line. Raises `ConfigurationError` if a library of the extra `bench` is missing.
    """
    cases = kept(comparison, store)
    summaries = summarize(comparison, cases)
    write_results(Path(folder), command, comparison, cases, summaries)
    write_gallery(Path(folder), command, comparison, store, cases, summaries)
    return summaries


def write_gallery(
    folder: Path,
    command: str,
    comparison: Comparison,
    store: CaseStore,
    cases: Sequence[Case],
    summaries: Sequence[Summary],
) -> None:
    """Write contact_sheet.png, speed_quality.png, errors.png (of an audit that predicted any) and index.html."""
    if not predicted_and_true(folder / ERRORS, comparison, cases):
        (folder / ERRORS).unlink(missing_ok=True)
    contact_sheet(folder / "contact_sheet.png", strips(comparison, store))
    speed_quality(folder / "speed_quality.png", summaries)
    page(folder / "index.html", command, comparison, store, cases, summaries)

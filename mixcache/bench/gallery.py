"""Pictures of a comparison: the contact sheet, the speed/quality plot, and a report page that needs no other file.

Arrays carry their layout in their names: F frames, H height, W width, C colour channels.
"""

from __future__ import annotations

import base64
import io
import math
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
from mixcache.bench.results import AUDITED, HEADER, Summary, audited, caption, rows, summarize, write_results
from mixcache.core.files import write_whole

SHEET_FRAMES = 8
"""The most frames of a clip on a contact sheet."""

ERRORS = "errors.png"
_MARKERS = "osD^vP*X<>hd"
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
            label = f"{variant}\n{case.speedup:.2f}x, {decibel(case.psnr)}"
            found.append(Strip(label=label, frames_FHWC=frames))
    return found


def decibel(value: float) -> str:
    """A PSNR as text."""
    return "identical" if value == math.inf else f"{value:.1f} dB"


def contact_sheet(path: Path, rows_: Sequence[Strip]) -> None:
    """A picture with one row per clip and evenly spaced frames of it as columns, labelled."""
    count = min(SHEET_FRAMES, max(len(strip.frames_FHWC) for strip in rows_))
    height, width = rows_[0].frames_FHWC.shape[1:3]
    tall = 1.15 * min(height / width, 2.0)
    titles = 0.3 * sum(bool(strip.title) for strip in rows_)
    total = len(rows_) * (tall + 0.06) + titles + 0.3
    figure = _figure((2.6 + 1.15 * count, total))
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
    _save(figure, path)


def speed_quality(path: Path, summaries: Sequence[Summary]) -> None:
    """The plot: measured speed-up to the right (logarithmic), mean PSNR up, a line down to the worst case."""
    figure = _figure((7.5, 4.6 + 0.22 * len(summaries)), layout="constrained")
    axes = figure.add_subplot()
    finite = [s.psnr.mean for s in summaries if math.isfinite(s.psnr.mean)]
    ceiling = max(finite, default=60.0) + 5
    for index, summary in enumerate(summaries):
        mean = summary.psnr.mean
        place = ceiling if mean == math.inf else mean
        worst = min(summary.psnr.worst, place)
        (drawn,) = axes.plot([summary.speedup] * 2, [worst, place], lw=1, alpha=0.5)
        label = f"{summary.variant}: {summary.speedup:.2f}x, {decibel(mean)}"
        axes.plot(
            [summary.speedup],
            [place],
            _MARKERS[index % len(_MARKERS)],
            color=drawn.get_color(),
            ms=8,
            label=label,
        )
    if any(s.psnr.mean == math.inf for s in summaries):
        axes.axhline(ceiling, color="grey", lw=0.8, ls=":")
        axes.annotate("identical", (1, ceiling), (-4, 4), ("axes fraction", "data"), "offset points", ha="right")
        axes.set_ylim(top=ceiling + 3)
    fastest = max(s.speedup for s in summaries)
    axes.set_xscale("log", base=2)
    ticks = [t for t in (0.5, 0.75, 1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32) if t <= fastest * 1.3]
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(min(0.95, *(s.speedup * 0.95 for s in summaries)), fastest * 1.1)
    axes.axvline(1, color="grey", lw=0.8, ls=":")
    axes.set_xlabel("measured speed-up of the denoising loop, median")
    axes.set_ylabel("PSNR against the uncached clip, dB\n(mean; line down to the worst)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", fontsize=8, frameon=False)
    _save(figure, path)


def predicted_and_true(path: Path, comparison: Comparison, cases: Sequence[Case]) -> bool:
    """The scatter of an audit: predicted error to the right, true error up, a dot per reuse. False if there is none."""
    figure = _figure((6.4, 5.6 + 0.2 * len(comparison.labels)), layout="constrained")
    axes = figure.add_subplot()
    seen: list[float] = []
    for index, label in enumerate(comparison.labels):
        ledgers = [case.audit for case in cases if case.variant == label and case.audit is not None]
        reuses = [reuse for ledger in ledgers for reuse in ledger.reuses if reuse.predicted and reuse.true > 0]
        pairs = [(reuse.predicted or 0.0, reuse.true) for reuse in reuses]
        if pairs:
            seen += [number for pair in pairs for number in pair]
            across, up = zip(*pairs)
            axes.scatter(across, up, s=9, alpha=0.4, marker=_MARKERS[index % len(_MARKERS)], label=label)
    if not seen:
        return False
    ends = [min(seen), max(seen)]
    axes.plot(ends, ends, color="grey", lw=0.8, ls=":", label="predicted = true")
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("predicted error of a reuse, relative L1")
    axes.set_ylabel("true error, relative L1")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", fontsize=8, frameon=False)
    _save(figure, path)
    return True


def _figure(inches: tuple[float, float], **options: Any) -> Any:
    """A matplotlib figure of that width and height."""
    return extra("matplotlib.figure", "drawing a picture").Figure(figsize=inches, dpi=120, **options)


def _save(figure: Any, path: Path) -> None:
    """Write a figure as png, without a display."""
    extra("matplotlib.backends.backend_agg", "drawing a picture").FigureCanvasAgg(figure)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", facecolor="white")
    write_whole(path, picture.getvalue())


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
        header=HEADER,
        rows=rows(summaries),
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
                    "psnr": None if case is None else decibel(case.psnr),
                    "report": None if case is None else str(case.report),
                }
            )
        groups.append({"prompt": prompt, "seed": seed, "clips": clips})
    return groups


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
    cases = [store.cases[p, s, label] for p, s in comparison.pairs for label in comparison.labels]
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

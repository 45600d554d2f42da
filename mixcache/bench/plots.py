"""The plots of a comparison: speed against quality, and predicted against true errors."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixcache.bench.cases import Case
from mixcache.bench.comparison import Comparison
from mixcache.bench.extras import extra
from mixcache.bench.flags import UNCACHED
from mixcache.bench.steps import Steps
from mixcache.bench.summaries import Summary
from mixcache.core.files import write_whole

ERRORS = "errors.png"
_MARKERS = "osD^vP*X<>hd"


def decibel(value: float) -> str:
    """A PSNR as text."""
    return "identical" if value == math.inf else f"{value:.1f} dB"


def speed_quality(path: Path, summaries: Sequence[Summary]) -> None:
    """The plot: speed-up to the right (logarithmic), mean PSNR up, a line down to the worst clip.

    Measured speed-ups; ideal ones where nothing was timed, as of the rival: plain pipelines with fewer steps are joined
    to one line for their means, and one for their worst clips.
    """
    plain = sorted((s for s in summaries if Steps.parse(s.variant)), key=lambda s: s.ideal_speedup)
    shown = [s for s in summaries if s.variant != UNCACHED and (s not in plain or s.speedup is not None)]
    timed = any(s.speedup is not None for s in shown)
    shown = shown or plain
    figure = draw((7.5, 4.6 + 0.22 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    finite = [s.psnr.mean for s in [*shown, *plain] if math.isfinite(s.psnr.mean)]
    ceiling = max(finite, default=60.0) + 5
    for index, summary in enumerate(shown):
        mean = summary.psnr.mean
        place = ceiling if mean == math.inf else mean
        worst = min(summary.psnr.worst, place)
        (drawn,) = axes.plot([summary.speed] * 2, [worst, place], lw=1, alpha=0.5)
        label = f"{summary.variant}: {summary.speed:.2f}x, {decibel(mean)}"
        marker = _MARKERS[index % len(_MARKERS)]
        axes.plot([summary.speed], [place], marker, color=drawn.get_color(), ms=8, label=label)
    if len(plain) > 1:
        across = [s.ideal_speedup for s in plain]
        label = f"fewer steps, without a cache{', ideal speed-up' if timed else ''} (dotted: the worst clip)"
        axes.plot(across, [s.psnr.mean for s in plain], color="black", lw=1.5, marker=".", label=label, zorder=1)
        axes.plot(across, [s.psnr.worst for s in plain], color="black", lw=1, ls=":", zorder=1)
    if any(s.psnr.mean == math.inf for s in shown):
        axes.axhline(ceiling, color="grey", lw=0.8, ls=":")
        axes.annotate("identical", (1, ceiling), (-4, 4), ("axes fraction", "data"), "offset points", ha="right")
        axes.set_ylim(top=ceiling + 3)
    speeds = [*(s.speed for s in shown), *(s.ideal_speedup for s in plain)]
    axes.set_xscale("log", base=2)
    ticks = [t for t in (0.5, 0.75, 1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32) if t <= max(speeds) * 1.3]
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(min(0.95, *(speed * 0.95 for speed in speeds)), max(speeds) * 1.1)
    axes.axvline(1, color="grey", lw=0.8, ls=":")
    measured = "measured speed-up of the denoising loop, median" if timed else "ideal speed-up: evaluations saved"
    axes.set_xlabel(measured)
    axes.set_ylabel("PSNR against the uncached clip, dB\n(mean; line down to the worst)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", fontsize=8, frameon=False)
    save(figure, path)


def predicted_and_true(path: Path, comparison: Comparison, cases: Sequence[Case]) -> bool:
    """The scatter of an audit: predicted error to the right, true error up, a dot per reuse. False if there is none."""
    figure = draw((6.4, 5.6 + 0.2 * len(comparison.labels)), layout="constrained")
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
    save(figure, path)
    return True


def draw(inches: tuple[float, float], **options: Any) -> Any:
    """A matplotlib figure of that width and height."""
    return extra("matplotlib.figure", "drawing a picture").Figure(figsize=inches, dpi=120, **options)


def save(figure: Any, path: Path) -> None:
    """Write a figure as png, without a display."""
    extra("matplotlib.backends.backend_agg", "drawing a picture").FigureCanvasAgg(figure)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", facecolor="white")
    write_whole(path, picture.getvalue())

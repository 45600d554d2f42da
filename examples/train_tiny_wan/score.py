"""Score clips from their pixels alone: which colour, which shape, which way did it move, and how crisp is it.

``python -m examples.train_tiny_wan.score --seeds 2`` makes a clip of each held-out prompt and seed with the embedded
pipeline and prints a table. :func:`measure` needs numpy only, so other programs can score clips that they made.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from examples.train_tiny_wan import clips
from mixcache_models import tiny_wan

# Area of each shape in units of radius squared, to find the radius that a mask's area asks for.
_AREA: Final = {"circle": math.pi, "square": (2 * 0.89) ** 2, "triangle": 2.367, "cross": 2.944}
_VISIBLE: Final = 50.0  # levels of saturation that a shape must reach in a frame
_MOVED: Final = 5.0  # pixels from the first to the last frame
_STRAIGHT: Final = 2.0  # how much further along the one axis than along the other


@dataclass(frozen=True)
class Measurement:
    """What a clip shows. ``colour``, ``shape`` and ``direction`` are words, or "none" where nothing clear is seen.

    ``overlap`` (0 to 1) is the mean intersection over union, over the frames, of the coloured pixels with the best
    fitting ideal shape: above 0.9 is crisp. ``travel_xy`` is in pixels from the first to the last frame.
    """

    colour: str
    shape: str
    direction: str
    overlap: float
    travel_xy: tuple[float, float]


def wanted(prompt: str) -> tuple[str, str, str]:
    """The colour, shape and direction that ``prompt`` names."""
    words = prompt.lower().split()
    found = [next((w for w in words if w in table), None) for table in (clips.COLOURS, clips.SHAPES, clips.DIRECTIONS)]
    colour, shape, direction = found
    if colour is None or shape is None or direction is None:
        raise ValueError(
            f"prompt is {prompt!r}; name a colour, a shape and a direction, as in 'a red circle moving left'"
        )
    return colour, shape, direction


def as_uint8(frames: NDArray[Any]) -> clips.Frames:
    """Frames ``[T, H, W, 3]`` as uint8; floats are taken to run from 0 to 1."""
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames have shape {frames.shape}; give [frames, height, width, 3]")
    if frames.dtype == np.uint8:
        return frames
    return np.clip(np.rint(frames.astype(np.float64) * 255), 0, 255).astype(np.uint8)


def masks(frames: clips.Frames) -> NDArray[np.float32]:
    """How much of each pixel is coloured, 0 to 1, ``[T, H, W]``; all zero in frames that show no colour.

    Backgrounds are grey, so a pixel's saturation is in proportion to how much of it the shape covers.
    """
    values = frames.astype(np.float32)
    saturation = values.max(axis=-1) - values.min(axis=-1)
    result = np.zeros(saturation.shape, dtype=np.float32)
    for index, plane in enumerate(saturation):
        if plane.max() >= _VISIBLE:
            full = float(np.median(plane[plane > 0.6 * plane.max()]))
            result[index] = np.clip((plane / full - 0.1) / 0.85, 0, 1)
    return result


def _overlap(mask: NDArray[np.float32], shape: str) -> float:
    """Intersection over union of ``mask`` with ``shape`` of the same area and centred on the same box."""
    rows, columns = np.nonzero(mask > 0.5)
    if not len(rows):
        return 0.0
    radius = math.sqrt(float(mask.sum()) / _AREA[shape])
    middle = (float(columns.min() + columns.max()) / 2, float(rows.min() + rows.max()) / 2)
    ideal = clips.coverage(shape, middle, radius)
    return float(np.minimum(mask, ideal).sum() / np.maximum(mask, ideal).sum())


def _travel(alpha: NDArray[np.float32]) -> tuple[float, float]:
    """Pixels right and down from the first to the last frame, by a line through the centres of all frames."""
    seen = np.flatnonzero(alpha.sum(axis=(1, 2)) > 4)
    if len(seen) < len(alpha) // 2:
        return 0.0, 0.0
    weight = alpha[seen].sum(axis=(1, 2))
    centre_x = (alpha[seen].sum(axis=1) * np.arange(alpha.shape[2])).sum(axis=1) / weight
    centre_y = (alpha[seen].sum(axis=2) * np.arange(alpha.shape[1])).sum(axis=1) / weight
    steps = len(alpha) - 1
    return float(np.polyfit(seen, centre_x, 1)[0] * steps), float(np.polyfit(seen, centre_y, 1)[0] * steps)


def _direction(travel_xy: tuple[float, float]) -> str:
    """The direction whose axis holds most of ``travel_xy``, or "none"."""
    for name, (step_x, step_y) in clips.DIRECTIONS.items():
        along = travel_xy[0] * step_x + travel_xy[1] * step_y
        across = abs(travel_xy[0] * step_y) + abs(travel_xy[1] * step_x)
        if along >= _MOVED and along >= _STRAIGHT * across:
            return name
    return "none"


def measure(frames: NDArray[Any]) -> Measurement:
    """Measure a clip ``[T, H, W, 3]`` (uint8, or float from 0 to 1)."""
    levels = as_uint8(frames)
    alpha = masks(levels)
    inside = alpha > 0.9
    if not inside.any():
        return Measurement("none", "none", "none", 0.0, (0.0, 0.0))
    mean_rgb = levels[inside].mean(axis=0)
    colour = min(clips.COLOURS, key=lambda name: float(np.abs(mean_rgb - clips.COLOURS[name]).sum()))
    overlaps = {shape: float(np.mean([_overlap(mask, shape) for mask in alpha])) for shape in clips.SHAPES}
    shape = max(overlaps, key=lambda name: overlaps[name])
    travel_xy = _travel(alpha)
    return Measurement(colour, shape, _direction(travel_xy), overlaps[shape], travel_xy)


@dataclass(frozen=True)
class Score:
    """One clip's prompt, seed and measurement."""

    prompt: str
    seed: int
    measured: Measurement

    @property
    def right(self) -> tuple[bool, bool, bool]:
        """Whether colour, shape and direction are as the prompt asks."""
        colour, shape, direction = wanted(self.prompt)
        seen = self.measured
        return seen.colour == colour, seen.shape == shape, seen.direction == direction


def summary(scores: Sequence[Score]) -> dict[str, float]:
    """Percentages of clips with right colour and direction, right shape, and all three; and the mean overlap."""
    right = np.array([score.right for score in scores], dtype=np.float64)
    return {
        "colour and direction %": float((right[:, 0] * right[:, 2]).mean() * 100),
        "shape %": float(right[:, 1].mean() * 100),
        "all three %": float(right.prod(axis=1).mean() * 100),
        "overlap": float(np.mean([score.measured.overlap for score in scores])),
    }


def load_pipeline(folder: Path) -> Any:
    """The :class:`~diffusers.WanPipeline` at ``folder``, in float32 and without progress bars."""
    import torch
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_clip(pipe: Any, prompt: str, seed: int, steps: int = 50, guidance: float = 4.0) -> NDArray[np.float32]:
    """One clip of ``prompt`` from the noise of ``seed``: float ``[17, 64, 64, 3]`` from 0 to 1."""
    import torch

    frames: NDArray[np.float32] = pipe(
        prompt=prompt,
        height=clips.HEIGHT,
        width=clips.WIDTH,
        num_frames=clips.FRAMES,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    ).frames[0]
    return frames


def score_pipeline(
    pipe: Any, prompts: Sequence[str], seeds: int, steps: int = 50, guidance: float = 4.0
) -> list[Score]:
    """Make and measure a clip for each prompt and each of ``seeds`` seeds, with the time left shown."""
    from rich.progress import track

    jobs = [(prompt, seed) for seed in range(seeds) for prompt in prompts]
    return [
        Score(prompt, seed, measure(make_clip(pipe, prompt, seed, steps, guidance)))
        for prompt, seed in track(jobs, description="clips")
    ]


def print_scores(scores: Sequence[Score]) -> None:
    """A line for each clip that is not as asked, and the summary."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("prompt", "seed", "seen", "overlap", title="Clips that are not as asked")
    for score in scores:
        if not all(score.right):
            seen = score.measured
            table.add_row(
                score.prompt, str(score.seed), f"{seen.colour} {seen.shape} {seen.direction}", f"{seen.overlap:.2f}"
            )
    if table.row_count:
        console.print(table)
    total = Table("measured", "value", title=f"{len(scores)} clips")
    for name, value in summary(scores).items():
        total.add_row(name, f"{value:.3f}" if name == "overlap" else f"{value:.1f}")
    console.print(total)


def main() -> None:
    """Score a pipeline on the held-out prompts and print the result."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--pipeline", type=Path, default=tiny_wan.PIPELINE, help="folder of the pipeline")
    parser.add_argument("--seeds", type=int, default=1, help="clips for each prompt")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps")
    parser.add_argument("--guidance", type=float, default=4.0, help="guidance scale")
    options = parser.parse_args()
    pipe = load_pipeline(options.pipeline)
    print_scores(score_pipeline(pipe, tiny_wan.HELD_OUT, options.seeds, options.steps, options.guidance))


if __name__ == "__main__":
    main()

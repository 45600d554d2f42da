"""Score clips from their pixels alone: which colour, which shape, which way did it move, and how crisp is it.

``python -m examples.train_tiny_wan.score --seeds 2`` makes a clip of each held-out prompt and seed with the embedded
pipeline and prints a table. What is measured, and how, is in ``mixcache_models.tiny_wan.score``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.train_shared.pipelines import load_pipeline
from examples.train_tiny_wan import clips
from mixcache_models import tiny_wan
from mixcache_models.tiny_wan.score import HEIGHT, WIDTH, Measurement, measure, wanted


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


def make_clip(pipe: Any, prompt: str, seed: int, steps: int = 50, guidance: float = 4.0) -> NDArray[np.float32]:
    """One clip of ``prompt`` from the noise of ``seed``: float ``[17, 64, 64, 3]`` from 0 to 1."""
    import torch

    frames: NDArray[np.float32] = pipe(
        prompt=prompt,
        height=HEIGHT,
        width=WIDTH,
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

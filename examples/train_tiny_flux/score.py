"""Score the tiny pipeline by its number of steps: ``python -m examples.train_tiny_flux.score --seeds 2 --steps 4 8``.

It makes a picture of each held-out prompt and seed and prints the mean of each score of
:mod:`mixcache_models.tiny_flux.score`, in percent, and the pictures that are not as asked.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from examples.train_shared.pipelines import load_pipeline
from mixcache_models import tiny_flux
from mixcache_models.tiny_flux.score import measure, score


def make_picture(pipe: Any, prompt: str, seed: int, steps: int, guidance: float) -> NDArray[np.float32]:
    """One picture of ``prompt`` from the noise of ``seed``: float ``[64, 64, 3]`` from 0 to 1."""
    import torch

    call = {**tiny_flux.CALL, "num_inference_steps": steps, "guidance_scale": guidance}
    image: NDArray[np.float32] = pipe(
        prompt, **call, generator=torch.Generator().manual_seed(seed), output_type="np"
    ).images[0]
    return image


def score_pipeline(
    pipe: Any, prompts: Sequence[str], seeds: int, steps: int, guidance: float
) -> tuple[dict[str, float], list[str]]:
    """Mean scores over a picture for each prompt and each of ``seeds`` seeds, and a line for each wrong picture."""
    scores, wrong = [], []
    jobs = [(prompt, seed) for seed in range(seeds) for prompt in prompts]
    for prompt, seed in track(jobs, description=f"{steps} steps"):
        image = make_picture(pipe, prompt, seed, steps, guidance)
        scores.append(score(image, prompt))
        if scores[-1]["right"] < 1:
            seen = measure(image)
            things = ", ".join(f"{t.size} {t.colour} {t.shape} ({t.place})" for t in seen.things) or "nothing"
            wrong.append(f"{steps} steps, seed {seed}, {prompt!r}: {things} on {seen.background}")
    return {name: float(np.mean([each[name] for each in scores])) for name in scores[0]}, wrong


def main() -> None:
    """Score a pipeline on the held-out prompts and print the result."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--pipeline", type=Path, default=tiny_flux.PIPELINE, help="folder of the pipeline")
    parser.add_argument("--seeds", type=int, default=1, help="pictures for each prompt")
    parser.add_argument("--steps", type=int, nargs="+", default=[8], help="denoising steps")
    parser.add_argument("--guidance", type=float, default=tiny_flux.CALL["guidance_scale"], help="embedded guidance")
    options = parser.parse_args()
    pipe, console = load_pipeline(options.pipeline), Console()
    table = Table("steps", title=f"{len(tiny_flux.HELD_OUT) * options.seeds} pictures, mean score in percent")
    for steps in options.steps:
        means, wrong = score_pipeline(pipe, tiny_flux.HELD_OUT, options.seeds, steps, options.guidance)
        if not table.row_count:
            for name in means:
                table.add_column(name, justify="right")
        table.add_row(str(steps), *(f"{100 * value:.1f}" for value in means.values()))
        for line in wrong:
            console.print(line)
    console.print(table)


if __name__ == "__main__":
    main()

"""Score a pipeline: ``python -m examples.train_tiny_cogvideox.score --seeds 2``.

Makes a clip of each held-out prompt and seed, measures it from its pixels (:mod:`mixcache_models.tiny_cogvideox.score`)
and prints what is not as asked and how much is. ``--sheet FILE`` writes a picture of all clips too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from examples.train_shared.pipelines import load_pipeline
from examples.train_tiny_cogvideox import classifier
from mixcache_models import tiny_cogvideox
from mixcache_models.tiny_cogvideox.score import measure, score, wanted

_SHOWN: Final = (0, 2, 4, 6, 8)  # the frames of a clip that a sheet shows


@dataclass(frozen=True)
class Scored:
    """One clip's prompt, seed and frames ``[9, 48, 48, 3]``, from 0 to 1."""

    prompt: str
    seed: int
    frames: NDArray[np.float32]


def make_clips(pipe: Any, prompts: Sequence[str], seeds: int, **changes: Any) -> list[Scored]:
    """A clip of each prompt and of each of ``seeds`` seeds, with the time left shown; ``changes`` are of the call."""
    import torch
    from rich.progress import track

    call = {**tiny_cogvideox.CALL, **changes}
    jobs = [(prompt, seed) for seed in range(seeds) for prompt in prompts]
    result = []
    for prompt, seed in track(jobs, description="clips"):
        frames = pipe(prompt, generator=torch.Generator().manual_seed(seed), output_type="np", **call).frames[0]
        result.append(Scored(prompt, seed, frames))
    return result


def summary(clips: Sequence[Scored]) -> dict[str, float]:
    """Percentages of clips that show what was asked: everything, and each kind of word where the prompts name one."""
    scores = [score(clip.frames, clip.prompt) for clip in clips]
    asked = [{"right", *wanted(clip.prompt)} for clip in clips]
    names = [name for name in scores[0] if any(name in one for one in asked)]
    return {
        name: 100 * float(np.mean([found[name] for found, one in zip(scores, asked, strict=True) if name in one]))
        for name in names
    }


def print_scores(clips: Sequence[Scored]) -> None:
    """A line for each clip that is not as asked, and the summary."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("prompt", "seed", "seen", title="Clips that are not as asked")
    for clip in clips:
        if not score(clip.frames, clip.prompt)["right"]:
            seen = measure(clip.frames)
            words = f"{seen.colour} {seen.digit} ({seen.confidence:.2f}) {seen.direction} {seen.speed}"
            table.add_row(clip.prompt, str(clip.seed), f"{words} on {seen.background}")
    if table.row_count:
        console.print(table)
    total = Table("seen as asked", "% of clips", title=f"{len(clips)} clips")
    for name, value in summary(clips).items():
        total.add_row("everything" if name == "right" else name, f"{value:.1f}")
    console.print(total)
    console.print(f"The classifier of digits knows {100 * classifier.accuracy():.1f} % of real ones it never saw.")


def write_sheet(path: Path, clips: Sequence[Scored], across: int = 3) -> None:
    """Write five frames of each clip to ``path``, ``across`` clips in a row, each row under the last."""
    from PIL import Image

    strips = [np.concatenate(clip.frames[list(_SHOWN)], axis=1) for clip in clips]
    strips += [np.zeros_like(strips[0])] * (-len(strips) % across)
    framed = [np.pad(strip, ((0, 4), (0, 8), (0, 0)), constant_values=1) for strip in strips]
    rows = [np.concatenate(framed[i : i + across], axis=1) for i in range(0, len(framed), across)]
    Image.fromarray(np.rint(np.concatenate(rows) * 255).astype(np.uint8)).save(path)


def main() -> None:
    """Score a pipeline on the held-out prompts and print the result."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--pipeline", type=Path, default=tiny_cogvideox.PIPELINE, help="folder of the pipeline")
    parser.add_argument("--prompts", choices=("held_out", "tuning"), default="held_out", help="which prompts")
    parser.add_argument("--seeds", type=int, default=1, help="clips for each prompt")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps")
    parser.add_argument("--guidance", type=float, default=4.0, help="guidance scale")
    parser.add_argument("--sheet", type=Path, help="where to write a picture of the clips")
    options = parser.parse_args()
    prompts = tiny_cogvideox.HELD_OUT if options.prompts == "held_out" else tiny_cogvideox.TUNING
    changes = {"num_inference_steps": options.steps, "guidance_scale": options.guidance}
    clips = make_clips(load_pipeline(options.pipeline), prompts, options.seeds, **changes)
    print_scores(clips)
    if options.sheet is not None:
        write_sheet(options.sheet, clips)


if __name__ == "__main__":
    main()

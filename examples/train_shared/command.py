"""The options that all trainings take."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from examples.train_shared import loop


def parser(description: str, stages: tuple[str, ...]) -> argparse.ArgumentParser:
    """The command line of a training in ``stages``; a training adds the lengths of its own."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the finished pipeline")
    made.add_argument("--stage", choices=("all", *stages), default="all", help="run one stage only")
    made.add_argument("--start-from", type=Path, help="a finished pipeline whose weights to go on from")
    made.add_argument("--seed", type=int, default=0, help="seed of weights, examples and noise")
    made.add_argument("--threads", type=int, default=2, help="processor threads")
    made.add_argument("--compile", action="store_true", help="compile the transformer's training step")
    made.add_argument("--bfloat16", action="store_true", help="faster where the processor multiplies bfloat16")
    return made


def set_up(options: argparse.Namespace, stages: tuple[str, ...]) -> tuple[str, ...]:
    """Set threads and precision as the options say; returns the stages that are to run."""
    torch.set_num_threads(options.threads)
    loop.use_bfloat16(options.bfloat16)
    return stages if options.stage == "all" else (options.stage,)

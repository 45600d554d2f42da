"""One training: steps down a loss, kept every so often, that goes on where it was interrupted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from examples.train_shared import loop
from examples.train_shared.muon import take_step

EMA_DECAY: Final = 0.997

LossOfBatch = Callable[[int], tuple[Tensor, dict[str, float]]]
"""The loss on the batch of an iteration, and the numbers to print of it."""


class Average:
    """Exponential moving average of a model's weights; short at first, so that early exports are of use."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, iteration: int) -> None:
        """Move towards the weights of ``model`` after ``iteration``."""
        decay = min(EMA_DECAY, (1 + iteration) / (10 + iteration))
        for name, value in model.state_dict().items():
            self.weights[name].lerp_(value, 1 - decay)


def load_parts(model: nn.Module, pipeline: Path, *parts: str) -> None:
    """Give those parts of ``model`` (attributes, named as the pipeline's folders) the weights of a finished one."""
    for part in parts:
        load_part(getattr(model, part), pipeline, part)


def load_part(module: Any, pipeline: Path, part: str) -> None:
    """Give ``module`` the weights that the finished ``pipeline`` has in its folder ``part``, in float32."""
    finished = type(module).from_pretrained(pipeline, subfolder=part, torch_dtype=torch.float32)
    module.load_state_dict(finished.state_dict())


def train(
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    loss_of: LossOfBatch,
    path: Path,
    *,
    name: str,
    iterations: int,
    peak: float,
    key: str = "model",
    averaged: bool = False,
) -> None:
    """Train ``model`` for ``iterations``, or what of them is left, and keep all that a resumed run needs at ``path``.

    key: under which the checkpoint has the weights. averaged: keep the average of the weights too ("ema"), and end with
    it. Batches depend on the iteration alone, so no random state is kept. On return ``model`` is in evaluation mode.
    """
    average, first = Average(model) if averaged else None, 0
    state = loop.load_checkpoint(path)
    if state is not None:
        model.load_state_dict(state[key])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first = int(state["iteration"])
        if average is not None:
            average.weights = state["ema"]

    def save(done: int) -> None:
        kept = {} if average is None else {"ema": average.weights}
        states = [optimizer.state_dict() for optimizer in optimizers]
        loop.save_checkpoint(path, {key: model.state_dict(), **kept, "optimizers": states, "iteration": done})

    log = loop.LossLog()
    with loop.progress_bar(name, iterations, first) as bar:
        for iteration in range(first, iterations):
            loss, told = loss_of(iteration)
            take_step(model, optimizers, loss, loop.learning_rate(iteration, iterations, peak))
            if average is not None:
                average.update(model, iteration)
            log.add(**told)
            bar.advance()
            if (iteration + 1) % loop.LOG_EVERY == 0:
                bar.tell(log.line())
            if (iteration + 1) % loop.SAVE_EVERY == 0 and iteration + 1 < iterations:
                save(iteration + 1)
    save(max(first, iterations))  # of no iterations too: the next stage reads it
    if average is not None:
        model.load_state_dict(average.weights)
    model.eval()

"""A toy transformer with blocks: small enough to write out by hand what caching it should give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mixcache import BlockList, ModelAdapter, Session

WEIGHTS = (0.5, -0.3, 0.8, 0.2)
"""Of each block, how much it adds."""


class ToyBlock(nn.Module):
    """x + weight * sin(x), counting how often it runs."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.ran = 0

    def forward(self, hidden_states: Tensor) -> Tensor:
        self.ran += 1
        return hidden_states + self.weight * torch.sin(hidden_states)


class Toy(nn.Module):
    """Its blocks, one after the other."""

    def __init__(self, weights: Sequence[float] = WEIGHTS) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(map(ToyBlock, weights))

    def forward(self, hidden_states: Tensor, timestep: Any = None, return_dict: bool = False) -> tuple[Tensor]:
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return (hidden_states,)

    @property
    def ran(self) -> list[int]:
        """How often each block ran."""
        return [block.ran for block in self.blocks]  # type: ignore[misc]


ADAPTER = ModelAdapter(model="Toy", blocks=(BlockList(path="blocks"),))


def through(x: Tensor, first: int = 0, last: int = len(WEIGHTS), weights: Sequence[float] = WEIGHTS) -> Tensor:
    """What blocks `first` to `last` (one past) make of x, to the bit."""
    for weight in weights[first:last]:
        x = x + weight * torch.sin(x)
    return x


def walk(
    session: Session,
    model: nn.Module,
    latents: Sequence[Tensor],
    branches: Sequence[str] = ("cond",),
    sigmas: Sequence[float] | None = None,
) -> list[list[Tensor]]:
    """Run a transformer on x_t = latents[t], once for each branch, in a run of its own: the outputs of every step."""
    results: list[list[Tensor]] = []
    with torch.no_grad(), session.run(num_steps=len(latents)) as run:
        for t, latent in enumerate(latents):
            results.append([])
            for branch in branches:
                with run.step(t, sigma=None if sigmas is None else sigmas[t]), run.branch(branch):
                    results[t].append(model(latent)[0])
    return results

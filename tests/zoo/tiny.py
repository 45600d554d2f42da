"""A tiny pipeline with the arguments of a quick run; text encoders are left out, embeddings are given."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from attrs import field, frozen


@frozen
class Tiny:
    """A pipeline and the arguments that make a quick run of it. `run()` returns the final latents.

    unguided: the arguments that switch its guidance off, none where it is embedded.
    """

    pipe: Any
    arguments: Callable[[int], dict[str, Any]] = field(repr=False)
    other_size: dict[str, Any] = field(factory=dict)
    steps: int = 8
    unguided: dict[str, Any] = field(factory=dict)

    def run(self, steps: int | None = None, *, seed: int = 1, batch: int = 1, **changes: Any) -> torch.Tensor:
        given = {
            "num_inference_steps": self.steps if steps is None else steps,
            "output_type": "latent",
            "generator": torch.Generator().manual_seed(seed),
            "return_dict": False,
            **self.arguments(batch),
            **changes,
        }
        taken = inspect.signature(self.pipe.__call__).parameters
        result = self.pipe(**{name: value for name, value in given.items() if name in taken})
        return tensor_of(result)


def tensor_of(result: Any) -> torch.Tensor:
    """All that a pipeline returned, flat: latents, arrays, pictures, several of these (video and sound)."""
    if isinstance(result, torch.Tensor):
        return result
    if isinstance(result, dict):
        result = list(result.values())
    if isinstance(result, (list, tuple)):
        parts = [tensor_of(one) for one in result if one is not None]
        return parts[0] if len(parts) == 1 else torch.cat([part.flatten().float() for part in parts])
    return torch.from_numpy(np.array(result))


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def repeat(tensor: torch.Tensor, batch: int) -> torch.Tensor:
    return tensor.repeat(batch, *[1] * (tensor.dim() - 1))


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe

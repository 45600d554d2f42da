"""Muon: momentum whose steps are made orthogonal, for matrices and for kernels taken as matrices.

The same as ``torch.optim.Muon`` with its scale of AdamW, which takes matrices only. On this model's small
batches it needs far fewer iterations than AdamW, in the convolutions of the autoencoder above all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn

_COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)


def orthogonal(matrices: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """About the orthogonal matrix nearest to each of ``matrices`` (``[count, rows, columns]``), found in ``dtype``."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).float()
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = (x.mT if tall else x).float()
    return result


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with orthogonal steps, scaled to the size of AdamW's; kernels are flattened to matrices."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._dtype = dtype
        super().__init__(params, {"lr": 1e-3, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step with the gradients that are there; ``closure`` is not used."""
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = {}  # one product serves many matrices
            for weight in group["params"]:
                if weight.grad is not None:
                    ahead = self._ahead(weight, weight.grad, group["momentum"]).flatten(1)
                    alike.setdefault(tuple(ahead.shape), []).append((weight, ahead))
            for shape, members in alike.items():
                updates = orthogonal(torch.stack([ahead for _, ahead in members]), dtype=self._dtype)
                for (weight, _), update in zip(members, updates, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(update.view(weight.shape), alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)

    def _ahead(self, weight: nn.Parameter, gradient: Tensor, momentum: float) -> Tensor:
        """Nesterov's look ahead: the gradient and its running mean."""
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        average: Tensor = state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(average, momentum)


def build_optimizers(
    matrices: Iterable[nn.Parameter],
    every: Iterable[nn.Parameter],
    share: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> list[torch.optim.Optimizer]:
    """Muon for ``matrices``, and AdamW at ``share`` of its learning rate for the rest of ``every``.

    dtype: what Muon makes matrices orthogonal in; bfloat16 is enough, and faster where the processor multiplies it.
    """
    chosen = list(matrices)
    ids = {id(weight) for weight in chosen}
    others = [weight for weight in every if id(weight) not in ids]
    adamw = torch.optim.AdamW([{"params": others, "share": share}], betas=(0.9, 0.99), weight_decay=0.01)
    return [Muon(chosen, dtype=dtype), adamw]


def take_step(model: nn.Module, optimizers: list[torch.optim.Optimizer], loss: Tensor, rate: float) -> None:
    """One step down ``loss`` at learning rate ``rate``, with gradients clipped to length 1."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("share", 1.0)
        optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()

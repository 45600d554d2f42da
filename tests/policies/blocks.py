"""What went in and out of every block of every call, seen from outside of mixcache."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from attrs import define
from torch import Tensor

from mixcache import catalogue
from mixcache.host.adapter import adapter_for


@define
class Seen:
    """One block of one call: its arguments by name, the image or video tokens that left it, and whether it ran."""

    arguments: dict[str, Any]
    left: Tensor
    ran: bool = False

    @property
    def entered(self) -> Tensor:
        tokens: Tensor = self.arguments["hidden_states"]
        return tokens


@contextmanager
def recorded_blocks(model: Any) -> Iterator[list[list[Seen]]]:
    """For every call of a transformer, its blocks in the order in which they were called, skipped or not."""
    calls: list[list[Seen]] = []
    handles = [model.register_forward_pre_hook(lambda *_: calls.append([]))]

    def watch(block: Any, returns: tuple[str, ...]) -> None:
        names = list(inspect.signature(type(block).forward).parameters)[1:]

        def before(_block: Any, args: Any, kwargs: Any) -> None:
            arguments = {**dict(zip(names, args)), **kwargs}
            kept = {k: v.clone() if isinstance(v, Tensor) else v for k, v in arguments.items()}
            calls[-1].append(Seen(kept, torch.empty(0)))

        def after(_block: Any, _args: Any, result: Any) -> None:
            results = result if isinstance(result, tuple) else (result,)
            calls[-1][-1].left = dict(zip(returns, results))["hidden_states"].clone()

        attention = block.attn if hasattr(block, "attn") else block.attn1
        handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(block.register_forward_hook(after))
        handles.append(attention.to_q.register_forward_pre_hook(lambda *_: setattr(calls[-1][-1], "ran", True)))

    for kind in adapter_for(model, catalogue.models().values()).blocks:
        for block in getattr(model, kind.path):
            watch(block, kind.returns)
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def ran(call: list[Seen]) -> set[int]:
    """The indices of the blocks that ran."""
    return {i for i, block in enumerate(call) if block.ran}


def relative(now: Tensor, before: Tensor, *, pooled: bool = False) -> float:
    """mean|now - before| / mean|before| in float64: the largest over the samples, or over everything."""
    parts = [slice(None)] if pooled else [slice(i, i + 1) for i in range(len(now))]
    a, b = now.double(), before.double()
    return max(float((a[part] - b[part]).abs().mean() / b[part].abs().mean()) for part in parts)

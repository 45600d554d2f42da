"""What several test files share: what a session decided, a toy transformer and its loop, a look inside a module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixcache import Granularity, Record, Session, catalogue
from mixcache.core import trace
from mixcache.host.adapter import adapter_for

POLICIES = [
    ("static:every=2", {}),
    ("static:every=3,first_steps=1", {"basis": "noise", "forecast": "linear:abscissa=sigma"}),
    ("easycache:threshold=0.5,first_steps=2", {}),
]
"""Policies that reuse on every tiny pipeline, and how they rebuild."""


def listed_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks that the model's adapter lists, in its order."""
    adapter = adapter_for(model, catalogue.models().values())
    return [block for kind in adapter.blocks for block in getattr(model, kind.path)]


Seen = Session | Sequence[Record]
"""What was recorded: a session (its last run) or the records themselves."""


def verdicts(seen: Seen) -> list[tuple[int, str, bool]]:
    """(step, branch, reused) of every visit, in order; of a session, those of its last run."""
    return [(r.point.step, r.point.branch, r.outcome.reused) for r in _records(seen)]


def reused_steps(seen: Seen, granularity: str = "step", branch: str | None = None) -> list[int]:
    """The steps that were reused at this granularity, for one branch or for any; of a session, in its last run."""
    return sorted(
        {
            r.point.step
            for r in _records(seen)
            if r.outcome.reused and r.point.granularity is Granularity(granularity) and branch in (None, r.point.branch)
        }
    )


def _records(seen: Seen) -> Sequence[Record]:
    return seen.records if isinstance(seen, Session) else seen


def runs_of(path: Path) -> dict[int, list[Record]]:
    """The records of every run in a trace file, by the run's number."""
    runs: dict[int, list[Record]] = {}
    for record in trace.read(path).records:
        runs.setdefault(record.run, []).append(record)
    return runs


class Scripted(nn.Module):
    """A transformer that returns what it is told to next, whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.next: Tensor = torch.zeros(1)
        self.calls = 0

    def forward(self, hidden_states: Tensor, timestep: Any = None, return_dict: bool = False) -> tuple[Tensor]:
        self.calls += 1
        return (self.next.clone(),)


def follow(
    session: Session,
    model: Scripted,
    anchors: Sequence[Tensor],
    outputs: Sequence[Sequence[Tensor]],
    branches: Sequence[str] = ("cond",),
    sigmas: Sequence[float] | None = None,
) -> list[list[Tensor]]:
    """Run a scripted transformer along x_t = anchors[t]; `outputs[t][b]` is what computing branch b would give."""
    results: list[list[Tensor]] = []
    with torch.no_grad(), session.run(num_steps=len(anchors)) as run:
        for t, anchor in enumerate(anchors):
            results.append([])
            for b, branch in enumerate(branches):
                model.next = outputs[t][b]
                with run.step(t, sigma=None if sigmas is None else sigmas[t]), run.branch(branch):
                    results[t].append(model(anchor)[0])
    return results


@contextmanager
def recorded_calls(module: nn.Module) -> Iterator[list[tuple[dict[str, Any], Tensor]]]:
    """(arguments, output) of every call of a transformer, whether it was computed or rebuilt."""
    seen: list[tuple[dict[str, Any], Tensor]] = []

    def note(_module: Any, _args: Any, kwargs: dict[str, Any], result: Any) -> None:
        kept = {name: value.clone() if isinstance(value, Tensor) else value for name, value in kwargs.items()}
        seen.append((kept, result[0].clone()))

    handle = module.register_forward_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def state_of(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Everything that hangs on a module and its children: attributes by identity, hooks by content."""

    def look(value: Any) -> Any:
        if type(value).__name__ == "HookRegistry":
            functions = [(id(r.forward), id(r.original_forward)) for r in value._fn_refs]
            return [(name, id(hook)) for name, hook in value.hooks.items()], list(value._hook_order), functions
        return dict(value) if isinstance(value, dict) else id(value)

    return {
        name: {"type": type(module), **{key: look(value) for key, value in vars(module).items()}}
        for name, module in model.named_modules()
    }


def guidance_after(scales: dict[int, float]) -> Callable[..., dict[str, Any]]:
    """A callback for a Wan pipeline that sets the guidance scale after these steps; at most 1 is no second branch."""

    def callback(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = scales.get(index, pipe._guidance_scale)
        return {}

    return callback

"""Signals: tensors -> a few scalars, the only things that policies see.

A signal is computed for every sample of the batch ([S]; or [1] with samples="mean", which pools the batch as the
published rules do) and reaches the host as one number, its worst over the samples. Norms are means of absolute values,
accumulated in float32. Changes are taken on the first stream (the latent, or the image hidden states).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from attrs import frozen
from torch import Tensor
from torch import distributed as dist

from mixcache.errors import ConfigurationError, UnknownNameError

Samples = Literal["worst", "mean"]
Memory = Literal[
    "previous_anchor",
    "previous_prefix",
    "previous_probe",
    "computed_anchor",
    "computed_output",
    "computed_prefix",
    "rebuilt",
]
Measure = Callable[["Tensors"], "Tensor | None"]


@frozen(kw_only=True)
class Tensors:
    """What a signal may look at. `previous_*`: the previous visit of this point; `computed_*`: the last computed one.

    `prefix`, at a span that does not begin at the first block: what the blocks before it added to the hidden states;
    behind a place where these change shape, what was known of it before.
    `probe`, at any span: the tensor that the model's adapter names, such as the modulated input of the first block.
    `rebuilt`, at a computed visit: the output that the cache would have given instead.

    Tensors that nothing asked for, or that do not exist yet, are `None`. `values` holds the signals already measured
    here, per sample and still on the device: those after the last compute, and those this signal requires.
    """

    anchor: Tensor
    output: Tensor | None = None
    previous_anchor: Tensor | None = None
    computed_anchor: Tensor | None = None
    computed_output: Tensor | None = None
    prefix: Tensor | None = None
    previous_prefix: Tensor | None = None
    computed_prefix: Tensor | None = None
    probe: Tensor | None = None
    previous_probe: Tensor | None = None
    rebuilt: Tensor | None = None
    values: Mapping[str, Tensor] = {}
    samples: Samples = "worst"

    def norm(self, tensor: Tensor) -> Tensor:
        """mean|tensor| per sample ([S]), or over everything ([1]) with samples="mean"."""
        flat = tensor.detach().abs()
        if self.samples == "mean" or flat.dim() == 0:
            return flat.mean(dtype=torch.float32).reshape(1)
        return flat.flatten(1).mean(dim=1, dtype=torch.float32)


@frozen(kw_only=True)
class Signal:
    """A named measurement.

    when: "before" the vote of a visit, or "after" a compute (then it is read at the next vote, so that a visit needs
    one transfer). reads: which remembered tensors it needs. requires: signals it builds on. worst: how the samples
    of a batch become one number. measure returns [S] or [1], or `None` where there is no history.
    """

    name: str
    measure: Measure
    when: Literal["before", "after"] = "before"
    reads: frozenset[Memory] = frozenset()
    requires: tuple[str, ...] = ()
    worst: Literal["max", "min"] = "max"
    summary: str = ""

    def reduce(self, values: Tensor) -> Tensor:
        """The worst sample, as a 0-d tensor; NaN in any sample stays NaN."""
        return values.amax() if self.worst == "max" else values.amin()


def worst_of_ranks(numbers: Tensor, signals: Sequence[Signal], group: Any) -> Tensor:
    """Reduced readings [N] of the ranks that hold shards of one model -> the worst of them, the same on every rank.

    The first numbers are of `signals`, the others are worse when larger. What is not finite on one rank is not on any.
    """
    signs = [1.0 if signal.worst == "max" else -1.0 for signal in signals]
    sign = numbers.new_tensor(signs + [1.0] * (len(numbers) - len(signs)))
    worst = (numbers * sign).nan_to_num(nan=math.inf, posinf=math.inf, neginf=math.inf)
    dist.all_reduce(worst, op=dist.ReduceOp.MAX, group=group)
    return worst * sign


def _delta(t: Tensors, reference: Tensor | None) -> Tensor | None:
    return None if reference is None else t.norm(t.anchor - reference)


def _output_norm(t: Tensors) -> Tensor | None:
    return None if t.output is None else t.norm(t.output)


def _output_delta(t: Tensors) -> Tensor | None:
    return None if t.output is None or t.computed_output is None else t.norm(t.output - t.computed_output)


def _rate(t: Tensors) -> Tensor | None:
    if "output_delta" not in t.values or "anchor_span" not in t.values:
        return None
    return t.values["output_delta"] / t.values["anchor_span"]


def _increment_change(t: Tensors) -> Tensor | None:
    if t.output is None or t.computed_output is None or t.computed_anchor is None:
        return None
    before = t.computed_output - t.computed_anchor
    return t.norm((t.output - t.anchor) - before) / t.norm(before)


def _relative(t: Tensors, now: Tensor | None, reference: Tensor | None) -> Tensor | None:
    return None if reference is None or now is None else t.norm(now - reference) / t.norm(reference)


def _predicted_change(t: Tensors) -> Tensor | None:
    names = ("rate", "anchor_delta", "output_norm")
    if any(name not in t.values for name in names):
        return None
    rate, delta, norm = (t.values[name] for name in names)
    return rate * delta / norm


def _signal(
    name: str, measure: Callable[[Tensors], Tensor | None], summary: str, *reads: Memory, **more: object
) -> Signal:
    return Signal(name=name, measure=measure, summary=summary, reads=frozenset(reads), **more)  # type: ignore[arg-type]


SIGNALS: tuple[Signal, ...] = (
    _signal("anchor_delta", lambda t: _delta(t, t.previous_anchor), "mean|a - a_prev|", "previous_anchor"),
    _signal(
        "anchor_change",
        lambda t: _relative(t, t.anchor, t.previous_anchor),
        "mean|a - a_prev| / mean|a_prev|",
        "previous_anchor",
    ),
    _signal(
        "anchor_delta_since_compute", lambda t: _delta(t, t.computed_anchor), "mean|a - a_last|", "computed_anchor"
    ),
    _signal(
        "anchor_change_since_compute",
        lambda t: _relative(t, t.anchor, t.computed_anchor),
        "mean|a - a_last| / mean|a_last|",
        "computed_anchor",
    ),
    _signal(
        "prefix_change",
        lambda t: _relative(t, t.prefix, t.previous_prefix),
        "relative L1 change of what the blocks before the span added, against the previous visit",
        "previous_prefix",
    ),
    _signal(
        "prefix_change_since_compute",
        lambda t: _relative(t, t.prefix, t.computed_prefix),
        "the same against the last computed visit: First-Block-Cache's and DBCache's test",
        "computed_prefix",
    ),
    _signal(
        "probe_change",
        lambda t: _relative(t, t.probe, t.previous_probe),
        "relative L1 change of the model's probe tensor against the previous visit: TeaCache's signal",
        "previous_probe",
    ),
    _signal(
        "forecast_error",
        lambda t: _relative(t, t.output, t.rebuilt),
        "mean|o - rebuilt| / mean|rebuilt|: how far off the cache would have been at the last computed visit",
        "rebuilt",
        when="after",
    ),
    _signal(
        "output_change",
        lambda t: _relative(t, t.output, t.computed_output),
        "mean|o - o_last| / mean|o_last|: BWCache's test",
        "computed_output",
        when="after",
    ),
    _signal(
        "predicted_change",
        _predicted_change,
        "rate * anchor_delta / output_norm: EasyCache's predicted relative change of the output in one step",
        requires=("rate", "anchor_delta", "output_norm"),
    ),
    _signal("output_norm", _output_norm, "mean|o| of the last computed visit", when="after", worst="min"),
    _signal("output_delta", _output_delta, "mean|o - o_last|", "computed_output", when="after"),
    _signal("anchor_span", lambda t: _delta(t, t.computed_anchor), "mean|a - a_last|", "computed_anchor", when="after"),
    _signal(
        "rate",
        _rate,
        "output_delta / anchor_span: EasyCache's transformation rate K",
        when="after",
        requires=("output_delta", "anchor_span"),
    ),
    _signal(
        "increment_change",
        _increment_change,
        "relative L1 change of output - anchor between computed visits",
        "computed_anchor",
        "computed_output",
        when="after",
    ),
)


def resolve(names: Iterable[str], known: Mapping[str, Signal]) -> tuple[Signal, ...]:
    """The signals asked for and all that they require, each once, required ones first."""
    order: dict[str, Signal] = {}

    def add(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            raise ConfigurationError(f"signals require each other in a circle: {' -> '.join((*trail, name))}")
        if name not in known:
            raise UnknownNameError("signal", name, known)
        for needed in known[name].requires:
            add(needed, (*trail, name))
        order.setdefault(name, known[name])

    for name in names:
        add(name, ())
    return tuple(order.values())

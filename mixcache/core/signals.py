"""Signals: tensors -> a few scalars, the only things that policies see.

A signal is computed for every sample of the batch ([S]; or [1] with samples="mean", which pools the batch as the
published rules do) and reaches the host as one number, its worst over the samples. Norms are means of absolute values,
accumulated in float32.

A signal looks at one stream at a time. A model with several outputs (video and sound) is measured on each of them at
"step" and at "cfg", and policies see the worst stream by `Signal.sign`. At "block" the first stream alone is measured
(the image hidden states), as the published rules do: hidden states and those of the prompt have scales of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from attrs import field, frozen
from torch import Tensor

from mixcache.core.points import NoiseLevel, Reading
from mixcache.core.streams import NOTHING_BESIDE, Beside
from mixcache.errors import ConfigurationError, PluginError, UnknownNameError

Samples = Literal["worst", "mean"]
Measure = Callable[["Tensors"], "Tensor | None"]
Derive = Callable[[Reading], "float | None"]

OWN = ("anchor", "output")
"""What every place has without being told: what enters it, and what leaves it."""


@frozen(kw_only=True)
class SideInput:
    """A named tensor that signals and forecasters may ask for beside what enters a place.

    name: how `Signal.reads` and `Forecaster.reads` call it. make: gets what the host knows of the call in progress (a
    `mixcache.host.sites.Scene` at a span of blocks) and returns a tensor, or `None` where there is none (then what was
    known of it before, in the same call, stands). once: it is the same at every place of one call.
    """

    name: str
    make: Callable[[Any], Tensor | None]
    once: bool = False
    summary: str = ""


@frozen(kw_only=True)
class Tensors:
    """What a signal may look at, at one visit.

    anchor: what enters the place, of the stream that is looked at. output: what was computed, after a compute. rebuilt:
    what the cache would have given instead. level: the noise level, if it is known. values: the signals already
    measured here, per sample and still on the device. own: tensors that this signal keeps for itself from visit to
    visit, by stream; they count as cache and go with it. Tensors that nobody asked for, or that do not exist yet, are
    `None`.
    """

    anchor: Tensor
    output: Tensor | None = None
    rebuilt: Tensor | None = None
    level: NoiseLevel | None = None
    beside: Beside = NOTHING_BESIDE
    memory: Mapping[str, Tensor] = field(factory=dict)
    values: Mapping[str, Tensor] = field(factory=dict)
    own: dict[str, Tensor] = field(factory=dict)
    samples: Samples = "worst"

    def now(self, name: str) -> Tensor | None:
        """A side input at this visit ("prefix", "probe", ...)."""
        streams = self.beside.get(name)
        return streams[0] if streams else None

    def previous(self, name: str) -> Tensor | None:
        """What `name` ("anchor" or a side input) was at the previous visit of this place."""
        return self.memory.get(f"previous:{name}")

    def computed(self, name: str) -> Tensor | None:
        """What `name` ("anchor", "output" or a side input) was at the last computed visit of this place."""
        return self.memory.get(f"computed:{name}")

    def norm(self, tensor: Tensor) -> Tensor:
        """mean|tensor| per sample ([S]), or over everything ([1]) with samples="mean"."""
        flat = tensor.detach().abs()
        if self.samples == "mean" or flat.dim() == 0:
            return flat.mean(dtype=torch.float32).reshape(1)
        return flat.flatten(1).mean(dim=1, dtype=torch.float32)


@frozen(kw_only=True)
class Signal:
    """A named measurement.

    when: "before" the vote of a visit; "after" a compute; or "reused", after a compute that stands downstream of a
    reuse in the same call, so that a rebuilt value is verified by what the model makes of it. What is measured after a
    compute is read at the next measured visit of the run, so that a visit needs one transfer.
    reads: the tensors that it compares with, "previous:NAME" or "computed:NAME", where NAME is "anchor", "output" or a
    registered side input; "NAME" alone for a side input of this visit; and "rebuilt".
    requires: signals it builds on. keeps: whether it keeps tensors of its own in `Tensors.own`. worst: how the samples
    of a batch become one number. measure returns [S] or [1], or `None` where there is no history. derive, in the place
    of measure: a number from the readings of the signals in `requires`, without any tensor.
    """

    name: str
    measure: Measure | None = None
    when: Literal["before", "after", "reused"] = "before"
    reads: frozenset[str] = frozenset()
    requires: tuple[str, ...] = ()
    worst: Literal["max", "min"] = "max"
    keeps: bool = False
    derive: Derive | None = None
    summary: str = ""

    def __attrs_post_init__(self) -> None:
        if (self.measure is None) == (self.derive is None):
            raise ConfigurationError(f"Signal({self.name!r}) needs either `measure` or `derive`.")

    @property
    def side_inputs(self) -> frozenset[str]:
        """The registered side inputs that it needs at a visit."""
        names = {name.partition(":")[2] or name for name in self.reads}
        return frozenset(names - {*OWN, "rebuilt"})

    def measured(self, known: Tensors) -> Tensor | None:
        """What `measure` gives, checked: [S] or [1] numbers. Raises `PluginError` for anything else."""
        assert self.measure is not None
        value = self.measure(known)
        if value is None:
            return None
        batch = known.anchor.shape[0] if known.anchor.dim() else 1
        if not isinstance(value, Tensor) or value.dim() > 1 or (value.dim() and value.shape[0] not in (1, batch)):
            shape = tuple(value.shape) if isinstance(value, Tensor) else repr(value)[:80]
            raise PluginError(
                f"signal {self.name!r} must return one number per sample, of shape ({batch},) or (1,), or None; it "
                f"returned {shape}."
            )
        return value

    @property
    def sign(self) -> float:
        """1 if a larger value is worse, -1 if a smaller one is."""
        return 1.0 if self.worst == "max" else -1.0

    def reduce(self, values: Tensor) -> Tensor:
        """The worst sample, as a 0-d tensor; NaN in any sample stays NaN."""
        return values.amax() if self.worst == "max" else values.amin()

    def worst_of(self, streams: Sequence[float]) -> float:
        """The worst stream; NaN in any of them stays NaN."""
        return max(streams, key=lambda value: (value != value, self.sign * value))


def _delta(t: Tensors, reference: Tensor | None) -> Tensor | None:
    return None if reference is None else t.norm(t.anchor - reference)


def _output_norm(t: Tensors) -> Tensor | None:
    return None if t.output is None else t.norm(t.output)


def _output_delta(t: Tensors) -> Tensor | None:
    before = t.computed("output")
    return None if t.output is None or before is None else t.norm(t.output - before)


def _rate(t: Tensors) -> Tensor | None:
    if "output_delta" not in t.values or "anchor_span" not in t.values:
        return None
    return t.values["output_delta"] / t.values["anchor_span"]


def _increment_change(t: Tensors) -> Tensor | None:
    output, anchor = t.computed("output"), t.computed("anchor")
    if t.output is None or output is None or anchor is None:
        return None
    before = output - anchor
    return t.norm((t.output - t.anchor) - before) / t.norm(before)


def relative_change(t: Tensors, now: Tensor | None, reference: Tensor | None) -> Tensor | None:
    """mean|now - reference| / mean|reference| per sample; `None` where either is missing."""
    return None if reference is None or now is None else t.norm(now - reference) / t.norm(reference)


def _predicted_change(t: Tensors) -> Tensor | None:
    names = ("rate", "anchor_delta", "output_norm")
    if any(name not in t.values for name in names):
        return None
    rate, delta, norm = (t.values[name] for name in names)
    return rate * delta / norm


def _signal(
    name: str, measure: Callable[[Tensors], Tensor | None], summary: str, *reads: str, **more: object
) -> Signal:
    return Signal(name=name, measure=measure, summary=summary, reads=frozenset(reads), **more)  # type: ignore[arg-type]


SIGNALS: tuple[Signal, ...] = (
    _signal("anchor_delta", lambda t: _delta(t, t.previous("anchor")), "mean|a - a_prev|", "previous:anchor"),
    _signal(
        "anchor_change",
        lambda t: relative_change(t, t.anchor, t.previous("anchor")),
        "mean|a - a_prev| / mean|a_prev|",
        "previous:anchor",
    ),
    _signal(
        "anchor_delta_since_compute", lambda t: _delta(t, t.computed("anchor")), "mean|a - a_last|", "computed:anchor"
    ),
    _signal(
        "anchor_change_since_compute",
        lambda t: relative_change(t, t.anchor, t.computed("anchor")),
        "mean|a - a_last| / mean|a_last|",
        "computed:anchor",
    ),
    _signal(
        "forecast_error",
        lambda t: relative_change(t, t.output, t.rebuilt),
        "mean|o - rebuilt| / mean|rebuilt|: how far off the cache would have been at the last computed visit",
        "rebuilt",
        when="after",
    ),
    _signal(
        "verify_error",
        lambda t: relative_change(t, t.output, t.rebuilt),
        "mean|o - rebuilt| / mean|rebuilt| where the model was really run on a rebuilt value: SpeCa's check",
        "rebuilt",
        when="reused",
    ),
    _signal(
        "output_change",
        lambda t: relative_change(t, t.output, t.computed("output")),
        "mean|o - o_last| / mean|o_last|: BWCache's test",
        "computed:output",
        when="after",
    ),
    _signal(
        "predicted_change",
        _predicted_change,
        "rate * anchor_delta / output_norm: EasyCache's predicted relative change of the output in one step",
        requires=("rate", "anchor_delta", "output_norm"),
    ),
    _signal("output_norm", _output_norm, "mean|o| of the last computed visit", when="after", worst="min"),
    _signal("output_delta", _output_delta, "mean|o - o_last|", "computed:output", when="after"),
    _signal(
        "anchor_span", lambda t: _delta(t, t.computed("anchor")), "mean|a - a_last|", "computed:anchor", when="after"
    ),
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
        "computed:anchor",
        "computed:output",
        when="after",
    ),
)


def summed(name: str) -> str | None:
    """NAME of "sum(NAME)", a signal summed since the last compute; `None` for a plain name."""
    return name[4:-1] if name.startswith("sum(") and name.endswith(")") else None


def resolve(names: Iterable[str | Signal], known: Mapping[str, Signal]) -> tuple[tuple[Signal, ...], tuple[str, ...]]:
    """The signals asked for and all that they require, each once, required ones first; and the names to be summed.

    names: of registered signals, "sum(NAME)", or signals that a policy brings itself. Raises `UnknownNameError` for a
    name nobody registered, `ConfigurationError` for a circle, and for two different signals of one name.
    """
    asked = list(names)
    table = dict(known)
    for signal in asked:
        if isinstance(signal, Signal) and table.setdefault(signal.name, signal) != signal:
            raise ConfigurationError(f"two policies bring different signals named {signal.name!r}; rename one.")
    order: dict[str, Signal] = {}
    sums: dict[str, None] = {}

    def add(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            raise ConfigurationError(f"signals require each other in a circle: {' -> '.join((*trail, name))}")
        if name not in table:
            raise UnknownNameError("signal", name, table)
        for needed in table[name].requires:
            add(needed, (*trail, name))
        order.setdefault(name, table[name])

    for one in asked:
        name = one.name if isinstance(one, Signal) else one
        inner = summed(name)
        add(name if inner is None else inner, ())
        if inner is not None:
            sums[inner] = None
    return tuple(order.values()), tuple(sums)

"""Signals: every formula, written out again; the worst sample of a batch decides; a signal of one's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attrs import frozen

import mixcache
from mixcache import Point, Policy, Reading, Signal, Tensors, Vote
from mixcache.signals import SIGNALS, resolve
from tests.helpers import Scripted, follow

BEFORE = [s.name for s in SIGNALS if s.when == "before" and not s.name.startswith("prefix")]
AFTER = [s.name for s in SIGNALS if s.when == "after"]


@frozen(kw_only=True)
class Reads(Policy):
    """Reads everything; computes by a mask."""

    signals = (*BEFORE, *AFTER)
    mask: str

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        return Vote.compute() if self.mask[point.step] == "1" else Vote.reuse()


def walk(batch: int, steps: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return list(torch.randn(steps, batch, 3, 2, generator=generator, dtype=torch.float64).cumsum(0))


def mean(t: torch.Tensor) -> float:
    return float(t.abs().mean())


def unrolled(anchors: list[torch.Tensor], outputs: list[torch.Tensor], mask: str) -> list[dict[str, float | None]]:
    """All signals of one sample, from their formulas."""
    table, computed = [], []
    for t, x in enumerate(anchors):
        row: dict[str, float | None] = dict.fromkeys([*BEFORE, *AFTER])
        if t:
            row["anchor_delta"] = mean(x - anchors[t - 1])
            row["anchor_change"] = mean(x - anchors[t - 1]) / mean(anchors[t - 1])
        if computed:
            c = computed[-1]
            row["anchor_delta_since_compute"] = mean(x - anchors[c])
            row["anchor_change_since_compute"] = mean(x - anchors[c]) / mean(anchors[c])
            row["output_norm"] = mean(outputs[c])
        if len(computed) > 1:
            b, c = computed[-2:]
            row["output_delta"] = mean(outputs[c] - outputs[b])
            row["output_change"] = row["output_delta"] / mean(outputs[b])
            row["anchor_span"] = mean(anchors[c] - anchors[b])
            row["rate"] = row["output_delta"] / row["anchor_span"]
            before = outputs[b] - anchors[b]
            row["forecast_error"] = mean(outputs[c] - (anchors[c] + before)) / mean(anchors[c] + before)
            row["increment_change"] = mean((outputs[c] - anchors[c]) - before) / mean(before)
            row["predicted_change"] = row["rate"] * row["anchor_delta"] / row["output_norm"]
        table.append(row)
        if mask[t] == "1":
            computed.append(t)
    return table


@pytest.mark.parametrize("samples", ["worst", "mean"])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_signal_is_its_formula(samples: str, batch: int) -> None:
    mask, anchors, outputs = "11010011", walk(batch), [2 * w for w in walk(batch + 10)]
    outputs = [o[:batch] for o in outputs]
    model = Scripted()
    with mixcache.enable(model, Reads(mask=mask), samples=samples) as session:
        follow(session, model, anchors, [[o] for o in outputs])
    one_by_one = [unrolled([a[i] for a in anchors], [o[i] for o in outputs], mask) for i in range(batch)]
    for t, record in enumerate(session.records):
        pooled = unrolled(anchors, outputs, mask)[t]
        for name, value in record.reading.items():
            of_samples = [table[t][name] for table in one_by_one]
            if pooled[name] is None:
                assert value is None
            elif samples == "mean":
                assert value == pytest.approx(pooled[name], rel=1e-5), name
            else:
                worst = min if name == "output_norm" else max
                assert value == pytest.approx(worst(of_samples), rel=1e-5), name


def test_a_sample_with_nan_is_not_hidden_by_the_others() -> None:
    values = torch.tensor([0.1, float("nan"), 0.2])
    for signal in SIGNALS:
        assert signal.reduce(values).isnan()


def test_signals_that_require_others_come_after_them() -> None:
    known = {signal.name: signal for signal in SIGNALS}
    order = [signal.name for signal in resolve(["predicted_change", "rate"], known)]
    assert len(order) == len(set(order))
    for name in order:
        assert all(order.index(needed) < order.index(name) for needed in known[name].requires)


def test_signals_in_a_circle_and_unknown_ones_are_errors() -> None:
    def nothing(tensors: Tensors) -> None:
        return None

    circle = {n: Signal(name=n, measure=nothing, requires=(m,)) for n, m in (("a", "b"), ("b", "a"))}
    with pytest.raises(mixcache.ConfigurationError, match="in a circle: a -> b -> a"):
        resolve(["a"], circle)
    with pytest.raises(mixcache.UnknownNameError, match="unknown signal 'c'; there are: a, b"):
        resolve(["c"], circle)


def test_a_signal_of_ones_own_is_measured_and_traced() -> None:
    def largest(tensors: Tensors) -> torch.Tensor:
        return tensors.anchor.flatten(1).amax(dim=1)

    @frozen(kw_only=True)
    class Below(Policy):
        """Reuses while the largest value stays below a bound."""

        signals = ("largest",)
        bound: float = 3.0

        def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
            value = reading["largest"]
            return Vote.reuse() if value is not None and value < self.bound else Vote.compute()

    mixcache.register(Signal(name="largest", measure=largest, summary="the largest value of the latent"))
    try:
        model, anchors = Scripted(), [torch.tensor([[float(v), 0.0]]) for v in (1, 2, 5, 2)]
        with mixcache.enable(model, Below()) as session:
            follow(session, model, anchors, [[a] for a in anchors])
        assert [r.reading["largest"] for r in session.records] == [1, 2, 5, 2]
        assert [r.outcome.reused for r in session.records] == [False, True, False, True]
    finally:
        mixcache.unregister("signal", "largest")
    with pytest.raises(mixcache.UnknownNameError):
        mixcache.enable(Scripted(), Below())

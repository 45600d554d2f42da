"""Signals: every formula, written out again; the worst sample of a batch decides; a signal of one's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

import mixcache
from mixcache import Point, Policy, Reading, Signal, Tensors, Vote
from mixcache.core.signals import SIGNALS, resolve
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
    order = [signal.name for signal in resolve(["predicted_change", "rate"], known)[0]]
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


# wider: what a signal may see and keep


def measured(policy: Policy, anchors: list[torch.Tensor], **how: Any) -> list[dict[str, float | None]]:
    """The readings of a run in which the model gives twice what enters."""
    model = Scripted()
    sigmas = how.pop("sigmas", None)
    with mixcache.enable(model, policy, **how) as session:
        follow(session, model, anchors, [[2 * a] for a in anchors], sigmas=sigmas)
    return [dict(record.reading) for record in session.records]


def policy_of(*asked: Any, mask: str = "1", **more: Any) -> Policy:
    """A policy that reads these, and computes by a mask."""

    @frozen(kw_only=True)
    class Asks(Policy):
        """Asks."""

        signals = asked

        def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
            return Vote.compute() if mask[point.step % len(mask)] == "1" else Vote.reuse()

    return Asks(**more)


def test_a_signal_sees_the_noise_level() -> None:
    """Here how much of the latent is noise, per sample; without noise levels there is nothing to see."""

    def share(t: Tensors) -> torch.Tensor | None:
        return None if t.level is None else t.norm(t.anchor) * t.level.sigma

    policy = policy_of(Signal(name="share", measure=share))
    anchors = [torch.full((1, 2), value) for value in (1.0, 3.0)]
    assert measured(policy, anchors, sigmas=[0.5, 0.25]) == [{"share": 0.5}, {"share": 0.75}]
    assert measured(policy, anchors) == [{"share": None}] * 2


def smoothed(t: Tensors) -> torch.Tensor | None:
    """mean|a - m| where m is the running mean of what entered before; it keeps m."""
    mean = t.own.get("mean")
    t.own["mean"] = t.anchor.clone() if mean is None else (mean + t.anchor) / 2
    return None if mean is None else t.norm(t.anchor - mean)


SMOOTHED = Signal(name="smoothed", measure=smoothed, keeps=True)


@pytest.mark.parametrize("mask", ["1", "10", "100"])
def test_a_signal_keeps_tensors_of_its_own_from_visit_to_visit(mask: str) -> None:
    anchors = walk(2, 6)
    readings = measured(policy_of(SMOOTHED, mask=mask), anchors)
    mean, expected = anchors[0], [None]
    for anchor in anchors[1:]:
        expected.append(float((anchor - mean).abs().flatten(1).mean(1).max()))
        mean = (mean + anchor) / 2
    assert readings[0]["smoothed"] is expected.pop(0) is None
    assert [reading["smoothed"] for reading in readings[1:]] == pytest.approx(expected, rel=1e-6)


def test_two_signals_and_two_branches_do_not_share_what_they_keep() -> None:
    model, anchors = Scripted(), walk(1, 5)
    again = Signal(name="again", measure=smoothed, keeps=True)

    @frozen
    class Asks(Policy):
        """Asks for both."""

        signals = (SMOOTHED, again)
        branches = "independent"

        def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
            return Vote.compute()

    with mixcache.enable(model, Asks()) as session:
        follow(session, model, anchors, [[a, a] for a in anchors], branches=("cond", "uncond"))
    alone = measured(policy_of(SMOOTHED), anchors)
    for i, record in enumerate(session.records):
        assert record.reading["smoothed"] == record.reading["again"] == alone[i // 2]["smoothed"]


def test_what_a_signal_keeps_counts_as_cache_and_goes_with_it() -> None:
    model = Scripted()
    anchors = [torch.ones(1, 100), torch.ones(1, 100), torch.ones(2, 100), 3 * torch.ones(2, 100)]
    with mixcache.enable(model, policy_of(SMOOTHED, mask="10")) as session:
        follow(session, model, anchors[:2], [[a] for a in anchors[:2]])
    readings = 4 + 4  # a signal on the device, and a sum over what was stored
    assert 2 * 400 <= session.report().peak_bytes <= 2 * 400 + readings
    with mixcache.enable(model, policy_of(SMOOTHED, mask="10")) as session:
        follow(session, model, anchors, [[a] for a in anchors])
    assert [r.reading["smoothed"] for r in session.records] == [None, 0.0, None, 2.0]  # the shape changed
    with mixcache.enable(model, policy_of(SMOOTHED, mask="10"), max_cache_bytes=700) as session:
        follow(session, model, anchors[:2], [[a] for a in anchors[:2]])
    assert session.report().peak_bytes <= 700
    assert session.records[1].outcome.reason.startswith("no room in the cache to reuse")


def test_what_grows_on_a_reuse_is_counted_there() -> None:
    def hoard(t: Tensors) -> None:
        t.own[str(len(t.own))] = t.anchor.clone()

    model, anchors = Scripted(), [torch.ones(1, 100)] * 6
    policy = policy_of(Signal(name="hoard", measure=hoard, keeps=True), mask="100000")
    with mixcache.enable(model, policy) as session:
        follow(session, model, anchors, [[a] for a in anchors])
    assert session.report().peak_bytes >= 7 * 400
    with mixcache.enable(model, policy, max_cache_bytes=4 * 400) as session:
        follow(session, model, anchors, [[a] for a in anchors])
    assert session.report().peak_bytes <= 4 * 400


def test_a_signal_that_does_not_say_that_it_keeps_something_cannot() -> None:
    policy = policy_of(Signal(name="smoothed", measure=smoothed))
    with pytest.raises(mixcache.PluginError, match="signal 'smoothed' raised TypeError"):
        measured(policy, walk(1, 2))


@pytest.mark.parametrize("first", ["whole", "half"])
def test_the_dtype_of_a_signal_changes_no_other(first: str) -> None:
    """A count comes as whole numbers, another in half precision; all share one transfer."""
    kinds = {"whole": torch.int64, "half": torch.float16}
    count = Signal(name=first, measure=lambda t: torch.full((t.anchor.shape[0],), 3, dtype=kinds[first]))
    anchors = walk(2, 3)
    readings = measured(policy_of(count, "anchor_delta"), anchors)
    assert measured(policy_of(count), anchors) == [{first: 3.0}] * 3
    plain = measured(policy_of("anchor_delta"), anchors)
    assert readings == [{first: 3.0, **reading} for reading in plain]


# derived


def test_derived_signals_are_made_of_readings() -> None:
    """Of the worst sample's, one after the other, without a tensor."""
    needs = ("anchor_delta",)
    double = Signal(name="double", derive=lambda r: r["anchor_delta"] and 2 * r["anchor_delta"], requires=needs)
    more = Signal(name="more", derive=lambda r: None if r["double"] is None else r["double"] + 1, requires=("double",))
    mixcache.register(double)
    try:
        readings = measured(policy_of(more), walk(3, 4))
    finally:
        mixcache.unregister("signal", "double")
    assert readings[0] == {"anchor_delta": None, "double": None, "more": None}
    for reading in readings[1:]:
        assert reading["double"] == 2 * reading["anchor_delta"]
        assert reading["more"] == reading["double"] + 1


@pytest.mark.parametrize("answer", ["much", True, torch.ones(1)])
def test_a_derived_signal_is_a_number(answer: Any) -> None:
    policy = policy_of(Signal(name="odd", derive=lambda r: answer, requires=("anchor_norm",)), ANCHOR_NORM)
    with pytest.raises(mixcache.PluginError, match="signal 'odd' must derive a number or None, it returned"):
        measured(policy, walk(1, 2))


ANCHOR_NORM = Signal(name="anchor_norm", measure=lambda t: t.norm(t.anchor))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_derived_signal_that_is_not_finite_computes(value: float) -> None:
    odd = Signal(name="odd", derive=lambda r: value, requires=("anchor_norm",))
    model, anchors = Scripted(), walk(1, 3)
    with mixcache.enable(model, policy_of(odd, ANCHOR_NORM, mask="0")) as session:
        follow(session, model, anchors, [[a] for a in anchors])
    assert [r.outcome.reused for r in session.records] == [False] * 3
    assert f"odd is {value}" in session.records[1].outcome.reason


def test_the_branches_that_follow_derive_nothing_even_where_something_is_learned_there() -> None:
    """A joint policy is measured on the first branch alone; what was measured after it is read at the next visit."""

    needs = ("output_norm",)

    @frozen
    class Learns(Policy):
        """Learns the output's size."""

        signals = ("output_norm", Signal(name="twice", derive=lambda r: 2 * r["output_norm"], requires=needs))

        def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
            return Vote.compute()

        def learn(self, point: Point, reading: Reading, state: Any) -> None:
            assert reading == {"output_norm": 2.0 * (point.step + 1)}

    model, anchors = Scripted(), [torch.full((1, 2), t + 1.0) for t in range(3)]
    with mixcache.enable(model, Learns()) as session:
        follow(session, model, anchors, [[2 * a, 2 * a] for a in anchors], branches=("cond", "uncond"))
    nothing: dict[str, float | None] = {"output_norm": None, "twice": None}
    known = [nothing, *({"output_norm": 2.0 * t, "twice": 4.0 * t} for t in (1, 2))]
    assert [r.reading for r in session.records] == [reading for one in known for reading in (one, {})]
    assert [len(r.learned) for r in session.records] == [0, 1] * 3


# sums


@pytest.mark.parametrize("branches", [("cond",), ("cond", "uncond")])
@given(mask=st.text("01", min_size=1, max_size=12))
def test_a_sum_is_over_the_visits_since_the_last_compute(branches: tuple[str, ...], mask: str) -> None:
    """This visit included, for each place and branch; what its first visit lacks is not counted."""

    @frozen
    class Sums(Policy):
        """Reads sums, and computes by a mask: the second branch by the opposite one."""

        signals = ("sum(anchor_delta)", "anchor_delta")
        branches = "independent"

        def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
            computes = (mask[point.step] == "1") is (point.branch == "cond")
            return Vote.compute() if computes or point.step == 0 else Vote.reuse()

    model, anchors = Scripted(), walk(2, len(mask))
    with mixcache.enable(model, Sums()) as session:
        follow(session, model, anchors, [[a] * 2 for a in anchors], branches=branches)
    for branch in branches:
        total = 0.0
        for record in (r for r in session.records if r.point.branch == branch):
            if record.point.step:
                total += record.reading["anchor_delta"]
                assert record.reading["sum(anchor_delta)"] == pytest.approx(total)
            else:
                assert record.reading["sum(anchor_delta)"] is None
            total = total if record.outcome.reused else 0.0


def test_a_derived_signal_may_be_summed_and_a_sum_starts_again_with_the_history() -> None:
    one = Signal(name="one", derive=lambda r: 1.0, requires=("anchor_norm",))
    anchors = [torch.ones(1, 2)] * 3 + [torch.ones(2, 2)] * 3
    readings = measured(policy_of("sum(one)", one, ANCHOR_NORM, mask="100000"), anchors)
    assert [reading["sum(one)"] for reading in readings] == [1, 1, 2, 1, 1, 2]


# names


def test_two_policies_may_bring_one_signal_but_not_two_of_one_name() -> None:
    anchors = walk(1, 3)
    model = Scripted()
    with mixcache.enable(model, [policy_of(SMOOTHED), policy_of(SMOOTHED, "anchor_delta")]) as session:
        follow(session, model, anchors, [[a] for a in anchors])
    assert session.records[2].reading.keys() == {"smoothed", "anchor_delta"}
    other = Signal(name="smoothed", measure=lambda t: None)
    with pytest.raises(mixcache.ConfigurationError, match="different signals named 'smoothed'; rename one"):
        mixcache.enable(Scripted(), [policy_of(SMOOTHED), policy_of(other)])


@pytest.mark.parametrize("name", ["sum(nothing)", "sum(anchor_delta", "sum()"])
def test_a_sum_of_nothing_is_an_unknown_signal(name: str) -> None:
    with pytest.raises(mixcache.UnknownNameError, match="unknown signal"):
        mixcache.enable(Scripted(), policy_of(name))


@pytest.mark.parametrize("how", [{}, {"measure": lambda t: None, "derive": lambda r: None}])
def test_a_signal_is_either_measured_or_derived(how: dict[str, Any]) -> None:
    with pytest.raises(mixcache.ConfigurationError, match=r"Signal\('odd'\) needs either `measure` or `derive`"):
        Signal(name="odd", **how)

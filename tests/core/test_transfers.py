"""Law 7: at most one transfer from the device a measured visit, none for policies that read nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from attrs import define, frozen

import mixcache
from mixcache import Anchor, Beside, Point, Policy, Reading, Session, Signal, Streams, Tensors, Vote
from mixcache.core import loop, store
from tests.zoo.every import PIPELINES
from tests.zoo.pipelines import Tiny


@pytest.fixture(autouse=True)
def another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors here are on the host; what is read there and nowhere else must not be counted."""
    for module in (loop, store):
        monkeypatch.setattr(module, "on_host", lambda tensor: False)


@contextmanager
def transfers() -> Iterator[list[str]]:
    """Every way in which the host can read a tensor, counted. What `cpu` gave is on the host, and read for nothing."""
    names = ["tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__", "__array__"]
    seen: list[str] = []
    busy = False

    def counted(name: str, original: Any) -> Any:
        def method(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal busy
            if busy or hasattr(self, "_read"):  # one that is made of another counts once
                return original(self, *args, **kwargs)
            seen.append(name)
            busy = True
            try:
                found = original(self, *args, **kwargs)
            finally:
                busy = False
            if name == "cpu":
                found = found.view_as(found)
                found._read = True
            return found

        return method

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(torch.Tensor, name, counted(name, getattr(torch.Tensor, name)))
        yield seen


def extra_transfers(tiny: Tiny, policy: Any, steps: int, **how: Any) -> tuple[int, Session]:
    tiny.run(steps)
    with transfers() as bare:
        tiny.run(steps)
    with mixcache.enable(tiny.pipe, policy, **how) as session, transfers() as cached:
        tiny.run(steps)
    return len(cached) - len(bare), session


def test_a_static_policy_reads_the_device_no_more_often_in_a_longer_run(random_tiny: Tiny) -> None:
    how = {"basis": "noise", "forecast": "linear:abscissa=sigma"}
    short, _ = extra_transfers(random_tiny, "static:every=1", 4, **how)
    long, _ = extra_transfers(random_tiny, "static:every=1", 9, **how)
    assert short == long <= 12  # the noise levels, and what the first step shows, once a run


def test_a_measuring_policy_reads_the_device_once_a_measured_visit(random_tiny: Tiny) -> None:
    static, _ = extra_transfers(random_tiny, "static:every=1", 9)
    measuring, session = extra_transfers(random_tiny, "easycache:threshold=0", 9)
    measured = sum(any(v is not None for v in record.reading.values()) for record in session.records)
    assert measuring - static == measured
    assert 0 < measured <= 9


def test_reusing_reads_nothing_either(random_tiny: Tiny) -> None:
    """With reuse the model runs less often, so there can only be fewer reads than with a policy that computes."""
    computing, _ = extra_transfers(random_tiny, "static:every=1", 9)
    reusing, session = extra_transfers(random_tiny, "static:every=3", 9)
    assert session.report().evaluations < session.report().evaluations_uncached
    assert reusing <= computing


def test_two_policies_that_measure_share_one_transfer(tiny_wan_random: Tiny) -> None:
    one, _ = extra_transfers(tiny_wan_random, "easycache:threshold=0", 9)
    two, _ = extra_transfers(tiny_wan_random, ["easycache:threshold=0", Changes()], 9)
    assert two == one


def test_spans_of_blocks_read_the_device_once_a_measured_visit(tiny_wan_random: Tiny) -> None:
    static, _ = extra_transfers(tiny_wan_random, "static:every=1,at=block", 9)
    measuring, session = extra_transfers(tiny_wan_random, "firstblock:threshold=0", 9)
    assert measuring - static == sum(any(v is not None for v in r.reading.values()) for r in session.records) == 16


@pytest.mark.parametrize("policy", ["easycache:threshold=0,first_steps=0", "firstblock:threshold=0"])
def test_several_streams_share_one_transfer(policy: str) -> None:
    """Video and sound, each measured by itself."""
    ltx2 = PIPELINES["LTX2Pipeline"]()
    static, _ = extra_transfers(ltx2, "static:every=1" + ",at=block" * policy.startswith("first"), 6)
    measuring, session = extra_transfers(ltx2, policy, 6)
    measured = [r for r in session.records if any(v is not None for v in r.reading.values())]
    assert measuring - static == len(measured) > 0
    assert {len(r.streams) for r in measured} == ({2} if policy.startswith("easy") else {0})


def smoothed(t: Tensors) -> torch.Tensor | None:
    """How far what enters is from its running mean, which the signal keeps."""
    mean = t.own.get("mean")
    t.own["mean"] = t.anchor.clone() if mean is None else (mean + t.anchor) / 2
    return None if mean is None else t.norm(t.anchor - mean)


@frozen(kw_only=True)
class Everything(Policy):
    """Computes, but reads signals of every sort, and learns of those that come late."""

    signals = (
        Signal(name="smoothed", measure=smoothed, keeps=True),
        Signal(name="twice", derive=lambda r: r["smoothed"] and 2 * r["smoothed"], requires=("smoothed",)),
        "sum(twice)",
        "sum(anchor_change)",
        "forecast_error",
    )

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        return Vote.compute()

    def learn(self, point: Point, reading: Reading, state: Any) -> None:
        """That is told with the next visit's readings."""


def test_signals_of_every_sort_share_one_transfer(random_tiny: Tiny) -> None:
    """Kept tensors, derived ones, sums, and what is learned on the branch that follows."""
    static, _ = extra_transfers(random_tiny, "static:every=1", 9)
    measuring, session = extra_transfers(random_tiny, Everything(), 9)
    told = [r for r in session.records if r.learned or any(v is not None for v in r.reading.values())]
    assert measuring - static == len(told) > 0
    assert any(r.learned for r in told)


@frozen
class Half(Anchor):
    """Half of what enters, remembering it."""

    stateful = True

    @define
    class State:
        """What entered last."""

        last: torch.Tensor | None = None

    def make(self, entering: Streams, point: Point, state: Any, beside: Beside) -> Streams:
        state.last = entering[0]
        return tuple(0.5 * x for x in entering)


@pytest.mark.parametrize("forecast", ["none", "hold"])
def test_an_anchor_of_ones_own_reads_nothing(tiny_wan_random: Tiny, forecast: str) -> None:
    plain, _ = extra_transfers(tiny_wan_random, "static:every=3", 9)
    own, session = extra_transfers(tiny_wan_random, "static:every=3", 9, anchor=Half(), forecast=forecast)
    assert own == plain
    assert session.report().evaluations < session.report().evaluations_uncached


@frozen(kw_only=True)
class Changes(Policy):
    """Computes, but asks how the anchor changed."""

    signals = ("anchor_change", "anchor_change_since_compute")

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        return Vote.compute()

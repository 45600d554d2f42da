"""Law 7: at most one transfer from the device a measured visit, none for policies that read nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from attrs import frozen

import mixcache
from mixcache import Point, Policy, Reading, Session, Vote
from mixcache.core import loop, store
from tests.zoo.pipelines import Tiny


@pytest.fixture(autouse=True)
def another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors here are on the host; what is read there and nowhere else must not be counted."""
    for module in (loop, store):
        monkeypatch.setattr(module, "on_host", lambda tensor: False)


@contextmanager
def transfers() -> Iterator[list[str]]:
    """Every way in which the host can read a tensor, counted."""
    names = ["tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__", "__array__"]
    seen: list[str] = []
    busy = False

    def counted(name: str, original: Any) -> Any:
        def method(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal busy
            if busy:  # one that is made of another counts once
                return original(self, *args, **kwargs)
            seen.append(name)
            busy = True
            try:
                return original(self, *args, **kwargs)
            finally:
                busy = False

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
    assert short == long <= 3  # the noise levels, once a run


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


@frozen(kw_only=True)
class Changes(Policy):
    """Computes, but asks how the anchor changed."""

    signals = ("anchor_change", "anchor_change_since_compute")

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        return Vote.compute()

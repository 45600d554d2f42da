"""Policies that guard others, and DBCache: what each does, written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mixcache
from mixcache.testing import simulate
from mixcache_policies import Budget, DBCache, FirstBlock, Static, Window
from tests.helpers import reused_steps
from tests.pipelines import Tiny

EAGER = Static(every=1000, first_steps=0, last_steps=0)


@given(st.lists(st.none() | st.floats(0, 0.5), min_size=1, max_size=15), st.floats(0, 2))
def test_a_budget_is_never_overspent(changes: list[float | None], total: float) -> None:
    """Exactly the reuses that the sum of accumulated changes allows, and no more."""
    records = simulate([EAGER, Budget(total=total)], [{"predicted_change": c} for c in changes])
    spent = accumulated = 0.0
    for step, (record, change) in enumerate(zip(records, changes)):
        wanted = step > 0 and change is not None and spent + accumulated + change <= total
        assert record.outcome.reused is wanted
        accumulated = accumulated + change if wanted else 0.0
        spent += accumulated
    assert spent <= total


def test_a_window_binds_policies_that_have_none() -> None:
    records = simulate([EAGER, Window(first_steps=3, last_steps=2, longest_run=2)], [{}] * 12)
    assert [r.point.step for r in records if r.outcome.reused] == [3, 4, 6, 7, 9]
    reasons = {r.point.step: r.outcome.reason for r in records}
    assert reasons[1] == "window: first 3 steps"
    assert reasons[5] == "window: longest run of 2 reached"
    assert reasons[11] == "window: last 2 steps"


def test_guards_alone_compute() -> None:
    for guard in (Window(), Budget(total=100)):
        readings = [{"predicted_change": 0.1}] * 5
        assert not any(r.outcome.reused for r in simulate([guard], readings))


def test_dbcache_with_one_block_is_first_block(tiny_wan_random: Tiny) -> None:
    results = []
    for policy in (DBCache(first_blocks=1, threshold=0.1, first_steps=0), FirstBlock(threshold=0.1)):
        with mixcache.enable(tiny_wan_random.pipe, policy) as session:
            results.append((tiny_wan_random.run(16), reused_steps(session, "block")))
    assert torch.equal(results[0][0], results[1][0])
    assert 2 < len(results[0][1]) < 15
    assert results[0][1] == results[1][1]


@pytest.mark.parametrize(("first", "last", "ran"), [(1, 0, {0}), (1, 1, {0, 2}), (2, 0, {0, 1})])
def test_dbcache_runs_the_first_and_the_last_blocks(tiny_wan_random: Tiny, first: int, last: int, ran: Any) -> None:
    blocks = tiny_wan_random.pipe.transformer.blocks
    seen: list[set[int]] = []
    handles = [block.attn1.register_forward_pre_hook(lambda *_, i=i: seen[-1].add(i)) for i, block in enumerate(blocks)]
    handles.append(tiny_wan_random.pipe.transformer.register_forward_pre_hook(lambda *_: seen.append(set())))
    policy = DBCache(first_blocks=first, last_blocks=last, threshold=10, first_steps=2, most=3)
    with mixcache.enable(tiny_wan_random.pipe, policy) as session:
        tiny_wan_random.run(8, guidance_scale=1.0)
    for handle in handles:
        handle.remove()
    assert reused_steps(session, "block") == [2, 3, 4]
    assert [ran if step in (2, 3, 4) else {0, 1, 2} for step in range(8)] == seen

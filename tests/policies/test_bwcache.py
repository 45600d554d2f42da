"""BWCache decides as its rule written out does, on random trajectories and on real models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import mixcache
from mixcache.testing import simulate
from mixcache_policies import BWCache
from tests.conftest import built
from tests.helpers import Scripted, follow
from tests.policies.blocks import recorded_blocks, relative


def unroll(steps: int, change: Callable[[int, int], float], policy: BWCache) -> tuple[list[bool], float]:
    """The rule as a loop over runs of reuse. `change(c, b)`: relative change of the outputs from evaluation b to c."""
    length = max(round(policy.run_share * steps), 1)
    reused, margin, until, c, b = [False] * steps, float("inf"), None, 0, None
    while c < steps:
        run = 0
        if b is not None:
            d = change(c, b)
            margin = min(margin, abs(d - policy.threshold) / policy.threshold)
            if d < policy.threshold:
                if until is None:
                    until = c + int(policy.open_share * (steps - 1 - c))
                run = min(length, until - c)
        for t in range(c + 1, c + 1 + max(run, 0)):
            reused[t] = True
        c, b = c + 1 + max(run, 0), c
    return reused, margin


@given(
    st.integers(1, 40), st.integers(0, 2**31), st.floats(0.05, 0.5), st.sampled_from([0.0, 0.1, 0.25]), st.booleans()
)
def test_decides_as_the_rule_does(steps: int, seed: int, threshold: float, share: float, wild: bool) -> None:
    """Outputs in a U: fast, slow, fast. Those of reused evaluations are never looked at."""
    generator = torch.Generator().manual_seed(seed)
    size = [0.05 + 0.9 * abs(2 * t / steps - 1) ** 2 for t in range(steps)]
    v = [torch.full((1, 6), 3.0)]
    for t in range(1, steps):
        v.append(v[-1] + size[t] * torch.randn(1, 6, generator=generator))
    policy = BWCache(at="step", threshold=threshold, run_share=share)
    expected, margin = unroll(steps, lambda c, b: relative(v[c], v[b]), policy)
    assume(margin > 1e-5)
    model = Scripted()
    given = [torch.full_like(a, 1e6) if wild and reuse else a for a, reuse in zip(v, expected)]
    with mixcache.enable(model, policy) as session:
        results = follow(session, model, [torch.zeros(1, 6)] * steps, [[a] for a in given])
    assert [r.outcome.reused for r in session.records] == expected
    last = 0
    for t, (result,) in enumerate(results):
        last = last if expected[t] else t
        assert torch.equal(result, v[last])


def test_a_still_run_is_reused_a_tenth_at_a_time_up_to_its_middle() -> None:
    """d is 0 throughout: first known at the second evaluation, so k = 1; half of the 48 that follow are 2 to 25."""
    records = simulate([BWCache()], [{"output_change": None}] * 2 + [{"output_change": 0.0}] * 48)
    assert [r.point.step for r in records if r.outcome.reused] == [t for t in range(2, 26) if (t - 1) % 6]


@pytest.mark.parametrize(("name", "threshold"), [("wan", 0.03), ("wan", 0.05), ("flux", 0.045), ("hunyuan", 0.04)])
def test_decides_as_the_rule_does_on_a_real_stack(name: str, threshold: float) -> None:
    """o is what leaves the last block; a reused call returns that of the last computed one."""
    tiny = built(name)
    policy = BWCache(threshold=threshold, run_share=0.15)
    with mixcache.enable(tiny.pipe, policy) as session, recorded_blocks(tiny.pipe.transformer) as calls:
        tiny.run(20)
    branches = len(calls) // 20
    for branch in range(branches):
        left = [call[-1].left for call in calls[branch::branches]]
        expected, margin = unroll(20, lambda c, b, left=left: relative(left[c], left[b]), policy)  # type: ignore[misc]
        assert margin > 1e-4, "choose another threshold: rounding could decide"
        found = [r.outcome.reused for r in session.records][branch::branches]
        assert found == expected
        assert 2 < sum(found) < 15, "choose another threshold: nothing is decided here"
        for t in range(20):
            if found[t]:
                torch.testing.assert_close(left[t], left[t - 1])

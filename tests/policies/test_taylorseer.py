"""TaylorSeer computes when the published code does, and forecasts as a Taylor series does; diffusers' variant too."""

from __future__ import annotations

import pytest
import torch
from diffusers import TaylorSeerCacheConfig
from hypothesis import given
from hypothesis import strategies as st

import mixcache
from mixcache import Granularity, Recipe
from mixcache.testing import simulate
from mixcache_policies import TaylorSeer
from tests.conftest import built
from tests.helpers import reused_steps
from tests.policies.blocks import ran, recorded_blocks


def computed(policy: TaylorSeer, steps: int) -> list[int]:
    return [r.point.step for r in simulate([policy], [{}] * steps) if not r.outcome.reused]


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        (TaylorSeer(), list(range(0, 50, 5))),  # HunyuanVideo and Wan 2.1
        (TaylorSeer(every=6, first_steps=3), [0, 1, 2, 8, 14, 20, 26, 32, 38, 44]),  # FLUX
        (TaylorSeer(first_steps=3, next_full=2), [0, 1, 2, *range(4, 50, 5)]),  # diffusers
        (TaylorSeer(every=1), list(range(50))),
        (TaylorSeer(every=20, first_steps=0), [0, 20, 40]),  # nothing to forecast from at 0
    ],
    ids=repr,
)
def test_computes_when_the_published_code_does(policy: TaylorSeer, wanted: list[int]) -> None:
    assert computed(policy, 50) == wanted


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 40))
def test_computes_as_a_counter_does(every: int, first: int, steps: int) -> None:
    """The authors count predictions since the last full evaluation."""
    counter, wanted = 0, []
    for step in range(steps):
        if step < first or counter == every - 1:
            counter = 0
            wanted.append(step)
        else:
            counter += 1
    assert computed(TaylorSeer(every=every, first_steps=first), steps) == wanted


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 40))
def test_computes_as_diffusers_does(every: int, first: int, steps: int) -> None:
    wanted = [step for step in range(steps) if step < first or (step - first - 1) % every == 0]
    assert computed(TaylorSeer(every=every, first_steps=first, next_full=2), steps) == wanted


@pytest.mark.parametrize("every", [3, 5])
def test_is_what_diffusers_does_in_lite_mode(every: int) -> None:
    """There blocks are skipped and the output's projection is forecast, which is a Taylor series of the output."""
    tiny = built("wan")
    model = tiny.pipe.transformer
    config = TaylorSeerCacheConfig(
        cache_interval=every,
        disable_cache_before_step=3,
        max_order=1,
        taylor_factors_dtype=torch.float32,
        use_lite_mode=True,
    )
    model.enable_cache(config)
    try:
        with recorded_blocks(model) as theirs:
            wanted = tiny.run(16)
    finally:
        model.disable_cache()
    policy = TaylorSeer(at="step", every=every, first_steps=3, next_full=2)
    with mixcache.enable(tiny.pipe, policy, basis="output") as session, recorded_blocks(model) as ours:
        found = tiny.run(16)
    assert [bool(ran(call)) for call in ours] == [bool(ran(call)) for call in theirs]
    assert 6 < len(reused_steps(session)) < 13
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", ["wan", "flux"])
def test_forecasts_what_all_blocks_add(name: str) -> None:
    """F_c + (F_c - F_b) / (c - b) * (t - c) of the increment, and the last increment while there is but one."""
    tiny = built(name)
    with mixcache.enable(tiny.pipe, TaylorSeer(every=4)), recorded_blocks(tiny.pipe.transformer) as calls:
        tiny.run(12)
    branches = len(calls) // 12
    for branch in range(branches):
        known: list[tuple[int, torch.Tensor]] = []
        for t, call in enumerate(calls[branch::branches]):
            increment = call[-1].left - call[0].entered
            if t % 4 == 0:
                assert ran(call) == set(range(len(call)))
                known.append((t, increment))
                continue
            assert not ran(call)
            c, last = known[-1]
            b, before = known[-2] if len(known) > 1 else (c - 1, last)
            torch.testing.assert_close(increment, last + (last - before) / (c - b) * (t - c), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("order", "at"), [(1, "block"), (2, "block"), (2, "step")])
def test_asks_for_its_forecaster(order: int, at: str) -> None:
    span, blocks = ((0, 3), 3) if at == "block" else (None, 0)
    site = Recipe.of(f"taylorseer:order={order},at={at}").plan().site(Granularity(at), span, blocks)
    assert site.forecaster(None).order == order  # type: ignore[attr-defined]
    assert site.basis.name == "residual"

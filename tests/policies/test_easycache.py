"""EasyCache decides as a direct unrolling of the paper's formulas does, on random trajectories and on real models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import mixcache
from mixcache_policies import EasyCache
from tests.helpers import Scripted, follow, recorded_calls, reused_steps
from tests.zoo.pipelines import Tiny


def mabs(tensor: Tensor) -> float:
    return float(tensor.double().abs().mean())


def unroll(
    x: list[Tensor], v: list[Tensor], threshold: float, first: int, last: int = 1, *, pooled: bool = False
) -> tuple[list[bool], float]:
    """The paper, written for [batch, ...] tensors: which steps are reused, and how near E came to the threshold.

    Every sample has its own K and change; the batch takes the largest change, or pools everything.
    """
    parts = [slice(None)] if pooled else [slice(i, i + 1) for i in range(len(x[0]))]
    E, computed, reused, margin = 0.0, [], [], float("inf")
    for t in range(len(x)):
        reuse = False
        if first <= t < len(x) - last and len(computed) >= 2:
            b, c = computed[-2:]
            changes = []
            for part in parts:
                K = mabs(v[c][part] - v[b][part]) / mabs(x[c][part] - x[b][part])
                changes.append(K * mabs(x[t][part] - x[t - 1][part]) / mabs(v[c][part]))
            E += max(changes)
            margin = min(margin, abs(E - threshold) / threshold)
            reuse = threshold > E
        if not reuse:
            E = 0.0
            computed.append(t)
        reused.append(reuse)
    return reused, margin


@st.composite
def a_trajectory(draw: st.DrawFn) -> tuple[list[Tensor], list[Tensor]]:
    """Smooth: a few slow waves of random phase and size, and a drift; v is a smooth function of its own."""
    steps, batch = draw(st.integers(4, 20)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    speed = draw(st.floats(0.02, 0.6))

    def smooth() -> list[Tensor]:
        size, rate, phase = torch.rand(3, 3, batch, 4, 5, generator=generator) * 2 + 0.1
        return [(size * torch.sin(speed * t * rate + 3 * phase)).sum(0) for t in range(steps)]

    return smooth(), smooth()


@given(a_trajectory(), st.floats(0.01, 2.0), st.integers(0, 6), st.integers(0, 2), st.sampled_from(["worst", "mean"]))
def test_decides_as_the_formulas_do(
    trajectory: tuple[list[Tensor], list[Tensor]], threshold: float, first: int, last: int, samples: str
) -> None:
    x, v = trajectory
    expected, margin = unroll(x, v, threshold, first, last, pooled=samples == "mean")
    assume(margin > 1e-4)  # the model's own arithmetic is float32
    model = Scripted()
    policy = EasyCache(threshold=threshold, first_steps=first, last_steps=last)
    with mixcache.enable(model, policy, samples=samples) as session:
        results = follow(session, model, x, [[a, 2 * a] for a in v], branches=("cond", "uncond"))
    for branch, factor in (("cond", 1), ("uncond", 2)):
        assert [r.outcome.reused for r in session.records if r.point.branch == branch] == expected
        last_computed = 0
        for t, result in enumerate(results):
            last_computed = last_computed if expected[t] else t
            wanted = x[t] + (factor * v[last_computed] - x[last_computed]) if expected[t] else factor * v[t]
            torch.testing.assert_close(result[factor - 1], wanted)


def decisions_of(tiny: Tiny, threshold: float, first: int, steps: int) -> tuple[list[int], float, list[int]]:
    """What the formulas decide on the run that was made, and what was decided."""
    policy = EasyCache(threshold=threshold, first_steps=first)
    with mixcache.enable(tiny.pipe, policy) as session, recorded_calls(tiny.pipe.transformer) as calls:
        tiny.run(steps)
    cond = calls[::2]
    expected, margin = unroll([a["hidden_states"] for a, _ in cond], [v for _, v in cond], threshold, first)
    assert reused_steps(session, branch="uncond") == reused_steps(session, branch="cond")
    return [t for t, reuse in enumerate(expected) if reuse], margin, reused_steps(session)


@pytest.mark.parametrize("threshold", [0.01, 0.03, 0.1, 0.3])
def test_decides_as_the_formulas_do_on_a_random_wan(tiny_wan_random: Tiny, threshold: float) -> None:
    """x_t and v_t are taken from the run itself; v of a reused step is never looked at by the formulas."""
    expected, margin, found = decisions_of(tiny_wan_random, threshold, 3, 20)
    assert margin > 1e-4, "choose another threshold: rounding could decide"
    assert found == expected


@pytest.mark.parametrize("threshold", [0.05, 0.2, 0.6])
def test_decides_as_the_formulas_do_on_the_embedded_model(embedded_wan: Tiny, threshold: float) -> None:
    expected, margin, found = decisions_of(embedded_wan, threshold, 2, 12)
    assert margin > 1e-4, "choose another threshold: rounding could decide"
    assert found == expected


def test_the_thresholds_above_make_a_difference(tiny_wan_random: Tiny) -> None:
    reused = [len(decisions_of(tiny_wan_random, t, 3, 20)[2]) for t in (0.01, 0.1, 0.3)]
    assert reused[0] < reused[1] < reused[2]


def test_what_a_reused_step_returned_is_not_taken_for_a_measurement() -> None:
    """K comes from computed outputs alone: scripted outputs of reused steps are wild, and change nothing."""
    x = [torch.tensor([[0.1 * t]]) for t in range(12)]
    calm = [torch.tensor([[1.0 + 0.1 * t]]) for t in range(12)]
    policy = EasyCache(threshold=0.25, first_steps=2)

    def decide(v: list[Tensor]) -> list[int]:
        model = Scripted()
        with mixcache.enable(model, policy) as session:
            follow(session, model, x, [[a] for a in v])
        return reused_steps(session)

    reused = decide(calm)
    assert 4 < len(reused) < 10
    assert decide([torch.full((1, 1), 1e6) if t in reused else a for t, a in enumerate(calm)]) == reused


@pytest.mark.parametrize(("batch", "wanted"), [("worst", []), ("mean", [2, 3, 4, 5, 6])])
def test_one_fast_sample_stops_the_batch_unless_pooled(batch: Any, wanted: list[int]) -> None:
    slow = [torch.tensor([100.0 + 0.1 * t]) for t in range(8)]
    fast = [torch.tensor([(-1.0) ** t]) for t in range(8)]
    x = [torch.stack([slow[t]] * 7 + [fast[t]]) for t in range(8)]
    model = Scripted()
    with mixcache.enable(model, EasyCache(threshold=0.3, first_steps=2), samples=batch) as session:
        follow(session, model, x, [[a] for a in x])
    assert reused_steps(session) == wanted

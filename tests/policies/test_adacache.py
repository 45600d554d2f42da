"""AdaCache against its rule written out: the distance per step, looked up in a codebook, says when to compute next."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import mixcache
from mixcache import ConfigurationError
from mixcache.testing import simulate
from mixcache_policies import AdaCache
from tests.helpers import Scripted, follow, reused_steps
from tests.zoo.pipelines import Tiny


def schedule(distance: float, codebook: str, steps: int = 20) -> list[int]:
    """The computed steps where every compute measures this distance per step."""
    policy, computed = AdaCache(codebook=codebook), [0]
    readings: list[dict[str, Any]] = [{"increment_change": None}] * steps
    for _ in range(steps):  # what a compute measures is known afterwards, and stays known until the next
        records = simulate([policy], readings)
        computed = [r.point.step for r in records if not r.outcome.reused]
        gaps = {c: c - b for b, c in pairwise(computed)}
        last = [max((c for c in computed[1:] if c < t), default=None) for t in range(steps)]
        readings = [{"increment_change": None if c is None else distance * gaps[c]} for c in last]
    return computed


@pytest.mark.parametrize(
    ("distance", "wanted"),
    [
        (0.01, [0, 1, 7, 13, 18, 19]),
        (0.079, [0, 1, 7, 13, 18, 19]),
        (0.08, [0, 1, 6, 11, 16, 18, 19]),
        (0.2, [0, 1, 5, 9, 13, 17, 18, 19]),
        (0.35, [0, 1, 3, 5, 7, 9, 11, 13, 15, 17, 18, 19]),
        (0.5, list(range(20))),
        (7.0, list(range(20))),
    ],
)
def test_the_fast_codebook(distance: float, wanted: list[int]) -> None:
    assert schedule(distance, "0.08:6 0.16:5 0.24:4 0.32:3 0.40:2 1:1") == wanted
    assert schedule(distance, AdaCache().codebook) == wanted


def test_a_codebook_in_a_spec(tiny_wan_random: Tiny) -> None:
    with mixcache.enable(tiny_wan_random.pipe, "adacache:codebook=1e9:3,last_steps=0") as session:
        tiny_wan_random.run(8)
    assert reused_steps(session, branch="cond") == reused_steps(session, branch="uncond") == [2, 3, 5, 6]


@given(st.integers(0, 2**31), st.integers(4, 24), st.floats(0.02, 0.6))
def test_decides_as_the_formulas_do(seed: int, steps: int, speed: float) -> None:
    """On smooth random trajectories of the whole model, by a direct unrolling."""
    generator = torch.Generator().manual_seed(seed)
    size, rate, phase = torch.rand(3, 2, 1, 40, generator=generator) * 2 + 0.1
    x, v = ([size[i] * torch.sin(speed * t * rate[i] + 3 * phase[i]) for t in range(steps)] for i in (0, 1))
    book = [(0.03, 5), (0.1, 3), (0.3, 2), (1.0, 1)]
    computed, due, margin = [], 0, float("inf")
    for t in range(steps):
        if t >= due or t >= steps - 2 or len(computed) < 2:
            computed.append(t)
            if len(computed) > 1:
                b, c = computed[-2:]
                before, now = (v[b] - x[b]).double(), (v[c] - x[c]).double()
                distance = float((now - before).abs().mean() / before.abs().mean()) / (c - b)
                margin = min(margin, *(abs(distance - bound) / bound for bound, _ in book))
                due = c + next((wait for bound, wait in book if distance < bound), 1)
    assume(margin > 1e-4)
    policy = AdaCache(codebook=" ".join(f"{bound}:{wait}" for bound, wait in book))
    model = Scripted()
    with mixcache.enable(model, policy) as session:
        follow(session, model, x, [[a] for a in v])
    assert [t for t in range(steps) if t not in reused_steps(session)] == computed


@pytest.mark.parametrize("codebook", ["", "0.1", "0.1:0", "0.1:2 0.1:1", "0.2:2 0.1:1", "nan:2", "0.1:x", "0.1:1.5", 3])
def test_a_codebook_that_is_none_is_refused(codebook: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"`AdaCache\(codebook=...\)` must be 'distance:steps ...'"):
        AdaCache(codebook=codebook)

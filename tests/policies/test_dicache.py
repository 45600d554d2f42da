"""DiCache decides as a direct unrolling of its formula does, and reuses along the probe."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import mixcache
from mixcache import Granularity, Recipe
from mixcache.testing import simulate
from mixcache_policies import DiCache
from tests.conftest import built
from tests.policies.blocks import Seen, ran, recorded_blocks, relative
from tests.zoo.tiny import Tiny


def unroll(probes: list[torch.Tensor], policy: DiCache, *, pooled: bool = False) -> tuple[list[bool], float]:
    """The published rule: which evaluations are reused, and how near E came to the threshold."""
    E, reused, margin, warm = 0.0, [False], float("inf"), int(policy.first_share * len(probes))
    for t, (before, now) in enumerate(pairwise(probes), 1):
        reuse = False
        if t >= warm:
            E += relative(now, before, pooled=pooled)
            margin = min(margin, abs(E - policy.threshold) / policy.threshold)
            reuse = policy.threshold > E
        if not reuse:
            E = 0.0
        reused.append(reuse)
    return reused, margin


def decided(
    tiny: Tiny, policy: DiCache, *, forecast: str | None = None, samples: str = "worst", batch: int = 1
) -> None:
    """Check every branch of a run against the unrolling, and that the probe alone runs where a call is reused."""
    model, m = tiny.pipe.transformer, policy.probe_blocks
    enabled = mixcache.enable(tiny.pipe, policy, forecast=forecast, samples=samples)
    with enabled as session, recorded_blocks(model) as calls:
        tiny.run(16, batch=batch)
    branches = len(calls) // 16
    for branch in range(branches):
        mine = calls[branch::branches]
        expected, margin = unroll([call[m].entered for call in mine], policy, pooled=samples == "mean")
        assert margin > 1e-4, "choose another threshold: rounding could decide"
        found = [r.outcome.reused for r in session.records][branch::branches]
        assert found == expected
        assert 2 < sum(found) < 13, "choose another threshold: nothing is decided here"
        for call, reuse in zip(mine, found):
            assert ran(call) == (set(range(m)) if reuse else set(range(len(call))))
        if forecast is None:
            check_reuse(mine, found, m)


def check_reuse(calls: list[list[Seen]], reused: list[bool], m: int) -> None:
    """R_2 + g (R_1 - R_2), g = mean|q - q_2| / mean|q_1 - q_2| in [1, 1.5], and R_1 while there is but one."""
    known: list[tuple[torch.Tensor, torch.Tensor]] = []
    for call, reuse in zip(calls, reused):
        q, R = call[m].entered - call[0].entered, call[-1].left - call[m].entered
        if not reuse:
            known.append((q, R))
            continue
        q1, R1 = known[-1]
        if len(known) > 1:
            q2, R2 = known[-2]
            g = float(((q - q2).abs().mean() / (q1 - q2).abs().mean()).clamp(1, 1.5))
            torch.testing.assert_close(R, R2 + g * (R1 - R2), atol=1e-4, rtol=1e-3)
        else:
            torch.testing.assert_close(R, R1, atol=1e-4, rtol=1e-3)


CASES = [("wan", 1, 0.08), ("wan", 2, 0.1), ("flux", 1, 0.12), ("flux", 3, 0.09), ("hunyuan", 1, 0.07)]


@pytest.mark.parametrize(("name", "blocks", "threshold"), CASES)
def test_decides_as_the_formula_does(name: str, blocks: int, threshold: float) -> None:
    """The probe is what enters block m in the run itself."""
    decided(built(name), DiCache(probe_blocks=blocks, threshold=threshold), forecast="hold")


@pytest.mark.parametrize("samples", ["worst", "mean"])
def test_the_worst_sample_decides_unless_pooled(samples: str) -> None:
    policy = DiCache(threshold=0.09, first_share=0.3)
    decided(built("flux"), policy, forecast="hold", samples=samples, batch=2)


@pytest.mark.parametrize(("name", "blocks", "threshold"), CASES)
def test_reuses_along_the_probe(name: str, blocks: int, threshold: float) -> None:
    decided(built(name), DiCache(probe_blocks=blocks, threshold=threshold))


def test_asks_for_the_aligned_increment_where_there_is_a_probe() -> None:
    site = Recipe.of("dicache").plan().site(Granularity.BLOCK, (1, 3), 3)
    assert site.forecaster(None).name == "aligned"
    assert site.basis.name == "residual"
    assert Recipe.of("dicache:at=step").plan().site(Granularity.STEP).forecaster(None).name == "hold"


@pytest.mark.parametrize(("share", "steps", "computed"), [(0.2, 50, 10), (0.2, 7, 1), (0.0, 5, 1), (1.0, 5, 5)])
def test_the_first_share_of_the_run_is_computed(share: float, steps: int, computed: int) -> None:
    """Rounded down; the very first evaluation has no probe before it."""
    changes = [{"anchor_change": None}, *[{"anchor_change": 0.0}] * (steps - 1)]
    records = simulate([DiCache(first_share=share)], changes)
    assert [r.outcome.reused for r in records] == [False] * computed + [True] * (steps - computed)


def test_a_probe_of_all_blocks_is_refused(tiny_wan_random: Tiny) -> None:
    with pytest.raises(mixcache.ConfigurationError, match=r"probe_blocks=3\)` leaves nothing to skip: the model has 3"):
        mixcache.enable(tiny_wan_random.pipe, "dicache:probe_blocks=3")

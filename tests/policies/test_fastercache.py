"""FasterCache's guidance part: the published schedules, and what it saves on a pipeline."""

from __future__ import annotations

import pytest

import mixcache
from mixcache.testing import simulate
from mixcache_policies import FasterCache
from tests.helpers import reused_steps
from tests.zoo.pipelines import Tiny


@pytest.mark.parametrize(
    ("steps", "share", "wanted"),
    [
        (50, 0.34, [*range(1, 18), 20, 25, 30, 35, 40, 45, 50]),  # CogVideoX and Latte
        (30, 0.37, [*range(1, 12), 15, 20, 25, 30]),  # Open-Sora
    ],
)
def test_published_schedules(steps: int, share: float, wanted: list[int]) -> None:
    """Evaluations with full guidance, counted from 1."""
    records = simulate([FasterCache(first_share=share)], [{}] * steps)
    assert [r.point.step + 1 for r in records if not r.outcome.reused] == wanted


def test_rebuilds_with_the_frequency_split_unless_told_otherwise(tiny_wan_random: Tiny) -> None:
    assert FasterCache().rebuilt(mixcache.Granularity.CFG) == ("residual", "split")
    assert FasterCache().rebuilt(mixcache.Granularity.STEP) == (None, None)
    with mixcache.enable(tiny_wan_random.pipe, "fastercache:every=3") as split:
        first = tiny_wan_random.run(9)
    with mixcache.enable(tiny_wan_random.pipe, "fastercache:every=3", forecast="hold") as hold:
        second = tiny_wan_random.run(9)
    assert reused_steps(split, "cfg") == reused_steps(hold, "cfg") == [3, 4, 6, 7]
    assert not first.equal(second)

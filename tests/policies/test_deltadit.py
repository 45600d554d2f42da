"""Delta-DiT: which blocks run at which step, and that an end adds what it added before."""

from __future__ import annotations

import pytest
import torch

import mixcache
from mixcache_policies import DeltaDiT
from tests.conftest import built
from tests.policies.blocks import ran, recorded_blocks
from tests.zoo.tiny import Tiny


@pytest.mark.parametrize(
    ("name", "count", "front", "back"),
    [
        ("wan", 1, {1, 2}, {0, 1}),
        ("wan", 2, {2}, {0}),
        ("wan", 3, set(), set()),
        ("wan", None, {2}, {0}),
        ("flux", 1, {1, 2, 3}, {0, 1, 2}),
        ("flux", 3, {3}, {0}),
    ],
)
def test_the_back_is_skipped_early_and_the_front_late(
    name: str, count: int | None, front: set[int], back: set[int]
) -> None:
    """front, back: the blocks that run where that end is skipped. Overlapping ends are cut in pieces, and add up."""
    tiny = built(name)
    policy = DeltaDiT(every=3, blocks=count, boundary=0.5)
    with mixcache.enable(tiny.pipe, policy), recorded_blocks(tiny.pipe.transformer) as calls:
        tiny.run(12)
    branches = len(calls) // 12
    n = len(calls[0])
    skipped = count or 2
    for branch in range(branches):
        increment = torch.empty(0)
        for t, call in enumerate(calls[branch::branches]):
            first, last = (n - skipped, n) if t < 6 else (0, skipped)
            added = call[last - 1].left - call[first].entered
            if t % 3 == 0:
                assert ran(call) == set(range(n))
                increment = added
            else:
                assert ran(call) == (back if t < 6 else front)
                torch.testing.assert_close(added, increment)


@pytest.mark.parametrize(("boundary", "early"), [(0.0, 0), (0.6, 5), (0.25, 2), (1.0, 8), (3.0, 8)])
def test_the_boundary_is_a_share_of_the_run(tiny_wan_random: Tiny, boundary: float, early: int) -> None:
    policy = DeltaDiT(every=100, blocks=1, boundary=boundary)
    with mixcache.enable(tiny_wan_random.pipe, policy), recorded_blocks(tiny_wan_random.pipe.transformer) as calls:
        tiny_wan_random.run(8, guidance_scale=1.0)
    assert [ran(call) for call in calls[1:]] == [{0, 1}] * (early - 1) + [{1, 2}] * (8 - max(early, 1))


@pytest.mark.parametrize(("count", "blocks", "wanted"), [(None, 28, 21), (None, 30, 22), (None, 1, 1), (7, 28, 7)])
def test_how_many_blocks(count: int | None, blocks: int, wanted: int) -> None:
    assert DeltaDiT(blocks=count).spans(blocks) == ((0, wanted), (blocks - wanted, blocks))


def test_more_blocks_than_there_are(tiny_wan_random: Tiny) -> None:
    with pytest.raises(mixcache.ConfigurationError, match=r"blocks=4\)` is too many: the model has 3 blocks"):
        mixcache.enable(tiny_wan_random.pipe, "deltadit:blocks=4")

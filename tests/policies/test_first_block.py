"""FirstBlock decides, and gives, exactly what diffusers' First-Block-Cache does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig

import mixcache
from tests.conftest import built
from tests.pipelines import Tiny

THRESHOLDS = (0.01, 0.03, 0.1, 0.3)
LAST = {
    "wan": "blocks",
    "flux": "single_transformer_blocks",
    "hunyuan": "single_transformer_blocks",
    "cogvideox": "transformer_blocks",
    "ltx": "transformer_blocks",
}
"""The list that holds the last block of each model."""


@contextmanager
def computing_calls(model: Any, last_block: Any) -> Iterator[list[bool]]:
    """For every call of the model, whether its last block really ran."""
    inner = next(m for m in last_block.modules() if isinstance(m, torch.nn.Linear))
    seen: list[bool] = []
    handles = [
        model.register_forward_pre_hook(lambda *_: seen.append(False)),
        inner.register_forward_pre_hook(lambda *_: seen.__setitem__(-1, True)),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("name", LAST)
def test_decides_and_gives_what_diffusers_does(name: str, threshold: float) -> None:
    """The same calls run the last block, and the final latents are the same to the bit."""
    tiny: Tiny = built(name)
    model = tiny.pipe.transformer
    last = getattr(model, LAST[name])[-1]
    model.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    try:
        with computing_calls(model, last) as theirs:
            wanted = tiny.run(16, batch=2)
    finally:
        model.disable_cache()
    enabled = mixcache.enable(tiny.pipe, f"firstblock:threshold={threshold}", samples="mean")
    with enabled as session, computing_calls(model, last) as ours:
        found = tiny.run(16, batch=2)
    assert ours == theirs
    assert [not r.outcome.reused for r in session.records] == ours
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", LAST)
def test_the_thresholds_above_make_a_difference(name: str) -> None:
    """Every model reuses some calls and computes others at one of them."""
    mixed = []
    for threshold in THRESHOLDS:
        with mixcache.enable(built(name).pipe, f"firstblock:threshold={threshold}", samples="mean") as session:
            built(name).run(16, batch=2)
        reused = [r.outcome.reused for r in session.records]
        mixed.append(2 < sum(reused) < len(reused) - 2)
    assert any(mixed)

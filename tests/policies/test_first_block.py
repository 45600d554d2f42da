"""FirstBlock decides, and gives, exactly what diffusers' First-Block-Cache does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig

import mixcache
from tests.conftest import built
from tests.zoo.architectures import mochi_transformer
from tests.zoo.pipelines import Tiny

THRESHOLDS = (0.01, 0.03, 0.1, 0.3)
LAST = {
    "wan": "blocks",
    "flux": "single_transformer_blocks",
    "hunyuan": "single_transformer_blocks",
    "cogvideox": "transformer_blocks",
    "ltx": "transformer_blocks",
    "qwen": "transformer_blocks",
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


def walked(model: Any, session: mixcache.Session | None = None, steps: int = 16) -> torch.Tensor:
    """A denoising loop of one's own around a Mochi transformer: its last latents."""
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(2, 4, 2, 4, 4, generator=generator)
    text = {
        "encoder_hidden_states": torch.randn(2, 8, 16, generator=generator),
        "encoder_attention_mask": torch.ones(2, 8).bool(),
    }
    with torch.no_grad(), nullcontext() if session is None else session.run(steps) as run:
        for t in range(steps):
            with model.cache_context("cond_uncond"), nullcontext() if run is None else run.step(t):
                moment = torch.full((2,), 1000 - 60 * t)
                latents = latents - model(hidden_states=latents, timestep=moment, **text, return_dict=False)[0] / steps
    return latents


@pytest.mark.filterwarnings("ignore:In CPU autocast")  # diffusers asks for float32 there
@pytest.mark.parametrize("threshold", [0.4, 0.6, 0.8])
def test_decides_and_gives_what_diffusers_does_on_mochi(threshold: float) -> None:
    model = mochi_transformer()
    last = model.transformer_blocks[-1]
    model.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    with computing_calls(model, last) as theirs:
        wanted = walked(model)
    model.disable_cache()
    enabled = mixcache.enable(model, f"firstblock:threshold={threshold}", samples="mean")
    with enabled as session, computing_calls(model, last) as ours:
        found = walked(model, session)
    assert set(ours) == {True, False}
    assert ours == theirs
    assert torch.equal(found, wanted)

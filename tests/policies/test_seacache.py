"""SeaCache: the filter against its formula on plain waves, and the decisions against a direct unrolling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import mixcache
from mixcache import NoiseLevel, Tensors, catalogue
from mixcache.testing import simulate
from mixcache_policies import SeaCache
from mixcache_policies.seacache import SEA_CHANGE, filtered
from tests.conftest import built
from tests.core.test_transfers import transfers
from tests.helpers import Scripted, follow, recorded_calls, reused_steps
from tests.policies.forecasting import noise


def gain(frequency: float, size: int, alpha: float, sigma: float) -> float:
    """H(f) of one axis over its mean, from the formula."""

    def H(f: float) -> float:
        content, alpha_ = 1 / (abs(f) ** 3 + 1e-6), max(alpha, 1e-6)  # the limit where all is noise
        return alpha_ * content / (alpha_**2 * content + sigma**2 + 1e-6)

    return H(frequency) / float(np.mean([H(k / size if k <= size // 2 else k / size - 1) for k in range(size)]))


@given(
    st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([4, 7, 8]), st.sampled_from([6, 9])),
    st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(0, 3)),
    st.floats(0.05, 0.95),
)
def test_a_wave_is_scaled_by_the_filter_at_its_frequency(
    shape: tuple[int, int, int], waves: tuple[int, int, int], sigma: float
) -> None:
    """Frames, height and width: a product of one gain per axis, and no change of phase."""
    waves = tuple(min(w, n // 2) for w, n in zip(waves, shape))  # type: ignore[assignment]
    grids = torch.meshgrid(*(torch.arange(n).double() / n for n in shape), indexing="ij")
    wave = torch.ones(shape, dtype=torch.float64)
    expected = 1.0
    for w, grid, n in zip(waves, grids, shape):
        wave = wave * (2 * math.pi * w * grid).cos()
        expected *= gain(w / n, n, 1 - sigma, sigma)
    found = filtered(wave[None, None], 1 - sigma, sigma)[0, 0]
    torch.testing.assert_close(found.double(), expected * wave, rtol=1e-4, atol=1e-4 * max(expected, 1.0))


def test_without_noise_it_changes_nothing_and_in_noise_it_keeps_the_large() -> None:
    x = noise(0, 2, 3, 5, 8, 8)
    torch.testing.assert_close(filtered(x, 1.0, 0.0), x.float(), rtol=1e-3, atol=1e-3)
    assert gain(0.0, 16, 0.1, 0.9) > 5 * gain(0.5, 16, 0.1, 0.9)
    assert filtered(x.to(torch.bfloat16), 0.0, 1.0).isfinite().all()


def unroll(x: list[Tensor], sigmas: list[float], threshold: float) -> tuple[list[bool], float]:
    """The rule, with complex FFTs in numpy."""

    def filter_(z: Tensor, sigma: float) -> Any:
        bands = np.fft.fftn(z.double().numpy(), axes=(2, 3))
        for axis, size in ((2, z.shape[2]), (3, z.shape[3])):
            line = np.array([gain(f, size, 1 - sigma, sigma) for f in np.fft.fftfreq(size)])
            bands = bands * line.reshape([-1 if i == axis else 1 for i in range(4)])
        return np.fft.ifftn(bands, axes=(2, 3)).real

    E, before, reused, margin = 0.0, None, [], math.inf
    for step, (z, sigma) in enumerate(zip(x, sigmas)):
        now = filter_(z, sigma)
        reuse = False
        if before is not None:
            change = max(np.abs(a - b).mean() / np.abs(b).mean() for a, b in zip(now, before))
            if 0 < step < len(x) - 1:
                E += change
                margin = min(margin, abs(E - threshold) / threshold)
                reuse = threshold > E
        E = E if reuse else 0.0
        before = now
        reused.append(reuse)
    return reused, margin


@pytest.mark.parametrize("threshold", [0.3, 0.5, 1.0])
def test_decides_as_a_direct_unrolling_does(threshold: float) -> None:
    """The latent is blended from noise to a picture, in a batch of two; cond leads, uncond follows."""
    sigmas = [1 - 0.06 * i for i in range(16)]
    start, clean = noise(1, 2, 2, 8, 6), noise(2, 2, 2, 1, 1) + 0.2 * noise(3, 2, 2, 8, 6)
    x = [(s * start + (1 - s) * clean).float() for s in sigmas]
    expected, margin = unroll(x, sigmas, threshold)
    assert margin > 1e-3, "choose another threshold: rounding could decide"
    assert 2 < sum(expected) < 14, "choose another threshold: nothing is decided here"
    model = Scripted()
    with mixcache.enable(model, SeaCache(threshold=threshold)) as session:
        follow(session, model, x, [[v, v] for v in x], branches=("cond", "uncond"), sigmas=sigmas)
    for branch in ("cond", "uncond"):
        assert reused_steps(session, branch=branch) == [i for i, reuse in enumerate(expected) if reuse]


def test_signals_change_with_content_not_with_scale() -> None:
    def change(first: Tensor, second: Tensor, own: dict[str, Tensor]) -> Tensor:
        assert SEA_CHANGE.measure is not None
        SEA_CHANGE.measure(Tensors(anchor=first, level=NoiseLevel.flow(0.7), own=own))
        found = SEA_CHANGE.measure(Tensors(anchor=second, level=NoiseLevel.flow(0.7), own=own))
        assert found is not None
        return found

    x, fine = noise(1, 2, 3, 8, 8).float(), noise(2, 2, 3, 8, 8).float()
    broad = fine.mean((2, 3), keepdim=True).expand_as(fine)
    torch.testing.assert_close(change(x, x + 0.1 * fine, {}), change(5 * x, 5 * x + 0.5 * fine, {}))
    assert torch.equal(change(x, x, {}), torch.zeros(2))
    scaled = broad * (fine.norm() / broad.norm())
    assert (change(x, x + 0.1 * scaled, {}) > change(x, x + 0.1 * fine, {})).all()
    with transfers() as seen:
        change(x, fine, {})
    assert seen == []


def test_packed_latents_and_unknown_noise_are_computed_and_said_so() -> None:
    x = [noise(i, 1, 4, 8, 8).float() for i in range(4)]
    for latents, sigmas in ((x, None), ([z.flatten(2) for z in x], [0.9, 0.7, 0.5, 0.3])):
        model = Scripted()
        warned = pytest.warns(UserWarning, match="reused")
        with mixcache.enable(model, SeaCache(threshold=100)) as session, warned:
            follow(session, model, latents, [[z] for z in latents], sigmas=sigmas)
        assert reused_steps(session) == []
        assert "a latent without height and width" in session.records[1].outcome.reason


def test_it_reuses_on_a_wan_pipeline_more_with_a_larger_threshold() -> None:
    tiny = built("wan")
    counts = []
    for threshold in (0.05, 0.5, 50.0):
        with mixcache.enable(tiny.pipe, f"seacache:threshold={threshold}") as session:
            with recorded_calls(tiny.pipe.transformer) as calls:
                tiny.run(10)
            counts.append(len(reused_steps(session, branch="cond")))
        assert all(output.isfinite().all() for _, output in calls)
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == 8


@given(st.lists(st.none() | st.floats(0, 0.5), min_size=1, max_size=20), st.floats(0.01, 1))
def test_it_accumulates_what_it_reads(changes: list[float | None], threshold: float) -> None:
    changes[0] = None
    records = simulate([SeaCache(threshold=threshold)], [{"sea_change": change} for change in changes])
    E = 0.0
    for step, (change, record) in enumerate(zip(changes, records)):
        E = E + change if change is not None and 0 < step < len(changes) - 1 else math.inf
        assert record.outcome.reused == (threshold > E)
        E = E if record.outcome.reused else 0.0


def test_the_signal_is_registered() -> None:
    assert catalogue.signals()["sea_change"] == SEA_CHANGE

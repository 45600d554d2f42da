"""What one step of a solver shows, as properties: whatever was put somewhere is found there, and nothing else is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixcache.host.facts import combine, fit
from mixcache.host.latents import Part, Source, find_source
from tests.zoo.tiny import randn
from tests.zoo.zorp import plain

DTYPES = st.sampled_from([torch.float32, torch.bfloat16])


@st.composite
def sources(draw: st.DrawFn) -> tuple[Tensor, Tensor, Source]:
    """A sample, an argument that holds it, and where."""
    seed, dtype = draw(st.integers(0, 999)), draw(DTYPES)
    sample = randn(draw(st.integers(1, 3)), draw(st.integers(2, 6)), draw(st.integers(2, 6)), seed=seed).to(dtype)
    scale, copies = draw(st.sampled_from([1.0, 0.37, -2.5])), draw(st.integers(1, 3))
    part, holding = None, sample * scale
    if draw(st.booleans()):
        dim, (before, after) = draw(st.integers(1, 2)), draw(st.sampled_from([(0, 2), (1, 0), (3, 1)]))
        shape = list(sample.shape)
        more = [randn(*shape[:dim], n, *shape[dim + 1 :], seed=seed + 5).to(dtype) for n in (before, after)]
        holding = torch.cat([more[0], holding, more[1]], dim=dim)
        part = Part(dim=dim, start=before, size=shape[dim])
    return sample, holding.repeat(copies, 1, 1), Source(argument="mimsy", part=part, copies=copies, scale=scale)


@given(sources())
def test_where_a_latent_is_held_is_found(built: tuple[Tensor, Tensor, Source]) -> None:
    """As copies, as a part, times a number: among other tensors of the same shape; and nowhere else."""
    sample, value, wanted = built
    decoys = {"time": torch.tensor([0.5]), "like": randn(*value.shape, seed=1234).to(value.dtype), "what": None}
    found = find_source({**decoys, "mimsy": value}, sample)
    assert found is not None
    assert (found.argument, found.part, found.copies) == (wanted.argument, wanted.part, wanted.copies)
    assert found.scale == pytest.approx(wanted.scale, rel=0.01)
    latent = found.of({"mimsy": value})
    assert latent is not None
    torch.testing.assert_close(latent[: len(sample)], sample * wanted.scale)
    assert find_source(decoys, sample) is None


WEIGHTS = st.lists(st.floats(-8.0, 8.0).filter(lambda w: abs(w) > 0.1), min_size=1, max_size=3)


@given(weights=WEIGHTS, seed=st.integers(0, 999), dtype=DTYPES)
def test_what_a_tensor_is_made_of_is_found(weights: list[float], seed: int, dtype: torch.dtype) -> None:
    """The weights to rounding; with noise of 1e-3 in it, nothing is called an explanation in float32."""
    columns = [randn(2, 5, 30, seed=seed + 1000 * i).to(dtype) for i in range(len(weights))]
    made = torch.stack([w * column.double() for w, column in zip(weights, columns)]).sum(0).to(dtype)
    found = fit(made, columns)
    assert found.explained
    assert found.unique
    assert found.values == pytest.approx(weights, abs=1e-5 if dtype is torch.float32 else 0.02)
    if dtype is torch.float32:
        rough = made + 1e-3 * made.norm() / made.numel() ** 0.5 * randn(2, 5, 30, seed=seed + 7)
        assert not fit(rough, columns).explained
        assert find_source({"mimsy": rough}, made) is None


@given(scale=st.floats(1.1, 9.0), first=st.booleans(), batched=st.booleans(), sign=st.sampled_from([1.0, -1.0]))
def test_guidance_is_read_off_the_solvers_input(scale: float, first: bool, batched: bool, sign: float) -> None:
    """In one call or two, in either order, beside an output that goes elsewhere; with the sign of the prediction."""
    sample, cond, uncond = (randn(2, 4, 12, seed=i) for i in range(3))
    branches = [cond, uncond] if first else [uncond, cond]
    calls = [torch.cat(branches)] if batched else branches
    outputs = [(randn(*one.shape, seed=77), one) for one in calls]
    found = combine(sign * plain(scale)(cond, uncond), sample, outputs, None)
    assert found is not None
    assert (found.field, found.sign, found.conditional) == (1, sign, 0 if first else 1)
    assert found.affine
    assert found.unique
    noisy = plain(scale)(cond, uncond) + 1e-3 * scale * randn(2, 4, 12, seed=5)
    assert combine(noisy, sample, outputs, None) is None


@given(value=st.floats(0.1, 5.0), other=st.sampled_from([0.25, 0.5, 1.0, 2.0, -1.0]), constant=st.booleans())
def test_tensors_that_are_alike_tell_nothing(value: float, other: float, constant: bool) -> None:
    """Constant or collinear branches: no weights of theirs are taken for the only ones."""
    branch = torch.full((1, 4, 12), value) if constant else value * randn(1, 4, 12, seed=3)
    twin = branch * other  # exactly: rounding would tell them apart
    assert not fit(branch + 2 * twin, (branch, twin)).unique
    found = combine(plain(4.0)(branch, twin), randn(1, 4, 12, seed=4), [(torch.cat([branch, twin]),)], None)
    assert found is None or (found.conditional is None and not found.unique)


@given(st.integers(1, 3))
def test_a_few_numbers_explain_nothing(count: int) -> None:
    """Fewer than four for every column could be explained by anything."""
    for enough in (False, True):
        columns = [randn(4 * count - (not enough), seed=i) for i in range(count)]
        assert fit(torch.stack(columns).sum(0), columns).explained is enough


@pytest.mark.parametrize("twins", [False, True])
@pytest.mark.parametrize("held", ["zero", "another"])
def test_of_what_is_held_nothing_is_told(held: str, twins: bool) -> None:
    """Some tokens are given, and nothing is predicted there: the rest tells how branches are combined; where two of
    them are alike it tells the sum of their weights, and no conditional branch."""
    cond, uncond, sample = (randn(1, 40, 12, seed=seed) for seed in range(3))
    third = cond if twins else randn(1, 40, 12, seed=4)
    wanted = 3.0 * cond - 1.5 * uncond - 0.5 * third
    if held == "zero":
        wanted[:, :28] = 0.0
    else:
        wanted[:, :8] = randn(1, 8, 12, seed=5)
    found = combine(wanted, sample, [(torch.cat([cond, uncond]),), (third,)], None)
    assert found is not None
    assert found.weights is not None
    assert found.sample == 0.0
    assert sum(found.weights) == pytest.approx(1.0, abs=1e-4)
    assert found.weights[1] == pytest.approx(-1.5, abs=1e-4)
    assert (found.conditional, found.unique) == ((None, False) if twins else (0, True))


@given(st.integers(0, 99), st.integers(0, 2), st.integers(1, 3))
def test_a_latent_behind_pictures_in_a_list_for_every_sample_is_found(seed: int, pictures: int, samples: int) -> None:
    """However many pictures each sample has: its latent is the last."""
    sample = randn(samples, 3, 4, seed=seed)
    given_to = [
        [*(randn(3, 2, seed=seed + 7 * k + i) for k in range(pictures * (i % 2))), one] for i, one in enumerate(sample)
    ]
    found = find_source({"like": randn(samples, 3, 4, seed=seed + 1), "mimsy": given_to}, sample)
    assert found == Source(argument="mimsy", listed=True, item=-1)
    latent = found.of({"mimsy": given_to})
    assert latent is not None
    torch.testing.assert_close(latent, sample)


@pytest.mark.parametrize("frames", [slice(0, 3), slice(2, 5)])
@pytest.mark.parametrize("channels", [slice(0, 2), slice(4, 6)])
def test_a_latent_in_some_frames_and_some_channels_is_found(frames: slice, channels: slice) -> None:
    """As where a given image stands before the frames, and conditions beside the channels."""
    sample, held = randn(1, 3, 4, 2), randn(2, 5, 4, 6, seed=1)
    held[:, frames, :, channels] = sample
    found = find_source({"like": randn(1, 5, 4, 2, seed=2), "mimsy": held}, sample)
    assert found is not None
    latent = found.of({"mimsy": held})
    assert latent is not None
    torch.testing.assert_close(latent, sample.expand(2, -1, -1, -1))
    assert found.copies == 2
    assert found.of({"mimsy": held[:, :2]}) is None

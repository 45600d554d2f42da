"""Bases: what they mean, that decoding undoes encoding, and that a singular end computes instead of dividing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

import mixcache
from mixcache import (
    Basis,
    Granularity,
    Input,
    ModelAdapter,
    NoiseLevel,
    NothingReusedWarning,
    Point,
    Recipe,
    Record,
    RunInfo,
    Value,
    catalogue,
)
from mixcache.core.basis import BASES, LOST, ROUNDING, SINGULAR
from mixcache.core.loop import Loop
from tests.helpers import Scripted, follow

NAMES = [basis.name for basis in BASES]
PREDICTIONS = ("flow", "epsilon", "v_prediction", "sample")


def level(prediction: Any, sigma: float) -> NoiseLevel:
    alpha = 1.0 - sigma if prediction == "flow" else math.sqrt(1.0 - sigma**2)
    return NoiseLevel(sigma=sigma, alpha=alpha, prediction=prediction)


def at(prediction: Any, sigma: float) -> Point:
    return Point(granularity=Granularity.STEP, step=0, num_steps=1, level=level(prediction, sigma))


def tensors(seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clean, noise = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64).to(dtype)
    return clean, noise


def predicted(prediction: str, clean: torch.Tensor, noise: torch.Tensor, here: NoiseLevel) -> torch.Tensor:
    """What a perfect model would say, from the definitions alone."""
    return {
        "flow": noise - clean,
        "epsilon": noise,
        "sample": clean,
        "v_prediction": here.alpha * noise - here.sigma * clean,
    }[prediction]


@given(st.sampled_from(PREDICTIONS), st.floats(0.05, 0.95), st.integers(0, 2**31))
def test_noise_and_clean_are_what_they_say(prediction: str, sigma: float, seed: int) -> None:
    """z of a perfect prediction is the noise, or the clean latent, itself."""
    clean, noise = tensors(seed, torch.float64)
    point = at(prediction, sigma)
    assert point.level is not None
    anchor = point.level.alpha * clean + point.level.sigma * noise
    output = predicted(prediction, clean, noise, point.level)
    for name, wanted in (("noise", noise), ("clean", clean)):
        z = catalogue.build("basis", name).encode((output,), (anchor,), point)
        assert z is not None
        torch.testing.assert_close(z[0], wanted)


@given(
    st.sampled_from(NAMES),
    st.sampled_from(PREDICTIONS),
    st.floats(0, 1),
    st.integers(0, 2**31),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_decoding_undoes_encoding(name: str, prediction: str, sigma: float, seed: int, dtype: torch.dtype) -> None:
    """At every noise level where both exist, to the rounding that 1/q amplifies; no alias."""
    basis, point = catalogue.build("basis", name), at(prediction, sigma)
    streams = tensors(seed, dtype)
    output, anchor = (streams[0], streams[1] * 2), (streams[1], streams[0])
    z = basis.encode(output, anchor, point)
    pair = basis.coefficients(point)
    if z is None:
        assert pair is None
        return
    back = basis.decode(z, anchor, point)
    if back is None:
        assert abs(pair[1]) < SINGULAR or abs(pair[0] / pair[1]) * torch.finfo(dtype).eps * ROUNDING > LOST
        return
    slack = torch.finfo(dtype).eps * 8 * (1 + (1 + abs(pair[0])) / abs(pair[1]))
    for was, now, stored, a in zip(output, back, z, anchor):
        assert (was - now).abs().max() <= slack * (1 + was.abs().max() + a.abs().max())
        assert stored.dtype == now.dtype == torch.promote_types(dtype, torch.float32)  # at STEP, z keeps all bits
        assert stored.data_ptr() not in (was.data_ptr(), a.data_ptr())
        assert now.data_ptr() not in (stored.data_ptr(), a.data_ptr())


SINGULAR_ENDS = [
    ("noise", "flow", 1.0),
    ("clean", "flow", 0.0),
    ("noise", "sample", 0.0),
    ("clean", "epsilon", 1.0),
    ("noise", "v_prediction", 1.0),
    ("clean", "v_prediction", 0.0),
    ("noise", "sample", 1.0),
    ("clean", "epsilon", 0.0),
]


@pytest.mark.parametrize(("name", "prediction", "sigma"), SINGULAR_ENDS)
def test_a_singular_end_computes_and_divides_by_nothing(name: str, prediction: Any, sigma: float) -> None:
    """A policy that wants to reuse there gets the computed output, and the report says why."""
    model = Scripted()
    anchors = [torch.full((1, 3), 1.0 + i) for i in range(4)]
    outputs = [[torch.full((1, 3), 5.0 + i)] for i in range(4)]
    policy = "static:every=9,first_steps=1,last_steps=0"
    with mixcache.enable(model, policy, basis=name) as session, session.run(4, prediction=prediction) as run:
        results = []
        for i, s in enumerate([0.5, sigma, sigma, 0.4]):
            model.next = outputs[i][0]
            with run.step(i, sigma=s), run.branch("cond"):
                results.append(model(anchors[i])[0])
    reused = [r.outcome.reused for r in session.records]
    assert reused == [False, False, False, True]
    assert "singular basis to reuse" in session.records[1].outcome.reason
    assert torch.equal(results[1], outputs[1][0])
    assert torch.equal(results[2], outputs[2][0])
    assert all(result.isfinite().all() for result in results)


def test_only_noise_and_clean_need_a_noise_level() -> None:
    anchors = [torch.ones(1, 2)] * 3
    for name in ("residual", "output"):
        model = Scripted()
        with mixcache.enable(model, "schedule:100", basis=name) as session:
            follow(session, model, anchors, [[a] for a in anchors])
        assert session.report().evaluations == 1
    for name in ("noise", "clean"):
        model = Scripted()
        needs = pytest.raises(mixcache.ConfigurationError, match=f"basis='{name}' needs the noise level of every step")
        with mixcache.enable(model, "schedule:100", basis=name) as session, needs:
            follow(session, model, anchors, [[a] for a in anchors])


def test_a_basis_of_ones_own() -> None:
    @frozen
    class Scaled(Basis):
        """z = output - scale * anchor."""

        name = "scaled"
        scale: float = 2.0

        def coefficients(self, point: Point) -> tuple[float, float]:
            return -self.scale, 1.0

    mixcache.register(Scaled)
    try:
        model, anchors = Scripted(), [torch.full((1, 2), float(i)) for i in (1, 2, 3)]
        with mixcache.enable(model, "schedule:100", basis="scaled:scale=3") as session:
            results = follow(session, model, anchors, [[torch.full((1, 2), 10.0)] for _ in anchors])
        assert [r[0][0, 0].item() for r in results] == [10, 7 + 3 * 2, 7 + 3 * 3]
    finally:
        mixcache.unregister("basis", "scaled")
    with pytest.raises(mixcache.UnknownNameError, match="unknown basis 'scaled'"):
        mixcache.enable(Scripted(), "static", basis="scaled")


@pytest.mark.parametrize(("basis", "fits"), [("residual", False), ("output", True)])
def test_an_output_of_another_shape_needs_the_output_basis(basis: str, fits: bool) -> None:
    """Nothing is raised in the middle of a run: it is computed, and the reason says what to choose."""
    records: list[Record] = []
    loop = Loop(Recipe.of(["schedule:100"], basis=basis).plan(), RunInfo(index=0, num_steps=3), records.append)
    for step in range(3):
        point = Point(granularity=Granularity.STEP, step=step, num_steps=3)
        ticket = loop.open(point, Input((torch.ones(1, 1),)))
        assert (ticket.output is not None) == (fits and step > 0)
        if ticket.output is None:
            loop.close(ticket, Value((torch.ones(1, 2),)))
        else:
            assert torch.equal(ticket.output.streams[0], torch.ones(1, 2))
    why = "output of (1, 2) beside an anchor of (1, 1), which wants basis='output', to reuse"
    assert [why in record.outcome.reason for record in records] == [False] + [not fits] * 2


@pytest.mark.parametrize("basis", ["residual", "output"])
def test_an_output_that_is_larger_than_its_latent_is_computed_unless_it_is_shown_what_it_is(basis: str) -> None:
    """In no basis: which part of it moves the latent, and with which sign, is not guessed."""
    model = Scripted()
    anchors, outputs = [torch.ones(1, 2)] * 3, [[torch.full((1, 4), float(t))] for t in range(3)]
    with mixcache.enable(model, "schedule:100", basis=basis, adapter=ModelAdapter(model="Scripted")) as session:
        results = follow(session, model, anchors, outputs)
    assert all(torch.equal(result[0], wanted[0]) for result, wanted in zip(results, outputs))
    assert model.calls == 3
    assert any(
        "its output of (1, 4) has another shape than the latent of (1, 2), and nothing showed which part of it is the "
        "prediction" in note
        for note in session.report().notes
    )


def test_a_run_whose_calls_cannot_be_cached_says_so_loudly() -> None:
    """As any run in which nothing was reused: it raises nothing, so a warning has to tell."""
    model, anchors = Scripted(), [torch.ones(1, 2)] * 3
    told = pytest.warns(NothingReusedWarning, match="nothing showed which part of it is the prediction")
    with mixcache.enable(model, "schedule:100", adapter=ModelAdapter(model="Scripted")) as session, told:
        follow(session, model, anchors, [[torch.ones(1, 4)]] * 3)


@pytest.mark.parametrize("start", [0, 4], ids=["first", "last"])
def test_what_stands_beside_the_prediction_is_kept_around_zero(start: int) -> None:
    """As where a model also predicts a variance: the part that moves the latent is the prediction, the rest is held."""
    generator = torch.Generator().manual_seed(0)
    outputs = list(torch.randn(3, 4, 8, generator=generator, dtype=torch.float64))
    part = slice(start, start + 4)
    xs = [torch.randn(4, 4, generator=generator, dtype=torch.float64)]
    for output in outputs[:2]:
        xs.append(xs[-1] - 0.1 * output[:, part])
    model = Scripted()
    with mixcache.enable(model, "schedule:100") as session:
        rebuilt = follow(session, model, xs, [[output] for output in outputs])[2][0]
    expected = outputs[0].clone()
    expected[:, part] += xs[2] - xs[0]  # moved with the latent
    torch.testing.assert_close(rebuilt, expected)
    held = slice(4, 8) if start == 0 else slice(0, 4)
    assert torch.equal(rebuilt[:, held], outputs[0][:, held])
    assert model.calls == 1

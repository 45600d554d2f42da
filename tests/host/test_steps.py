"""Noise schedulers: how many evaluations they make, where each stands, and its noise level by another formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch

import mixcache
from mixcache import NoiseLevel
from mixcache.host.noise import read_schedule
from mixcache.host.own_loop import Run
from mixcache.host.protocol import Call
from tests.helpers import Scripted, recorded_calls, reused_steps, verdicts
from tests.zoo.pipelines import Tiny, cogvideox, embedded, flux, unipc, wan

N = 6


def euler(shift: float = 3.0) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)


def heun(shift: float = 3.0) -> Any:
    return diffusers.FlowMatchHeunDiscreteScheduler(shift=shift)


def shifted(sigma: float, shift: float = 3.0) -> float:
    return shift * sigma / (1 + (shift - 1) * sigma)


def euler_sigmas(n: int) -> list[float]:
    """Timesteps spaced evenly from 1000 to the smallest shifted one, and shifted again."""
    first, last = shifted(1.0), shifted(1 / 1000)
    return [shifted(first + (last - first) * i / (n - 1)) for i in range(n)]


def heun_sigmas(n: int) -> list[float]:
    """As Euler's, but every one after the first is visited twice: as the end of a step and the start of the next."""
    one = euler_sigmas(n)
    return [one[0], *(s for sigma in one[1:] for s in (sigma, sigma))]


def unipc_sigmas(n: int) -> list[float]:
    """Evenly from 1 to 1/1000 in n + 1 places, the last left out, shifted."""
    return [shifted(1 + (1 / 1000 - 1) * i / n) for i in range(n)]


FLOW: dict[str, tuple[Callable[[], Any], Callable[[int], list[float]], int]] = {
    "euler": (euler, euler_sigmas, N),
    "heun": (heun, heun_sigmas, 2 * N - 1),
    "unipc": (unipc, unipc_sigmas, N),
}


@pytest.fixture(scope="module", params=FLOW)
def flow(request: pytest.FixtureRequest) -> tuple[Tiny, list[float], int]:
    make, sigmas, evaluations = FLOW[request.param]
    return wan(noise_scheduler=make()), sigmas(N), evaluations


def test_the_sigmas_of_a_flow_matching_scheduler(flow: tuple[Tiny, list[float], int]) -> None:
    """Against the formula, and against the noise that the pipeline's own calls were made with (timestep / 1000)."""
    tiny, sigmas, evaluations = flow
    with mixcache.enable(tiny.pipe, "static:every=1") as session, recorded_calls(tiny.pipe.transformer) as calls:
        tiny.run(N)
    read = [r.point.level for r in session.records if r.point.branch == "cond"]
    assert len(read) == evaluations
    assert {level.prediction for level in read} == {"flow"}
    assert [level.sigma for level in read] == pytest.approx(sigmas, abs=1e-4)
    told = [float(arguments["timestep"].flatten()[0]) / 1000 for arguments, _ in calls[::2]]
    assert [level.sigma for level in read] == pytest.approx(told, abs=1.1e-3)  # UniPC truncates its timesteps
    assert all(level.alpha == 1 - level.sigma for level in read)


def test_evaluations_are_counted_as_the_scheduler_makes_them(flow: tuple[Tiny, list[float], int]) -> None:
    tiny, _, evaluations = flow
    with mixcache.enable(tiny.pipe, "static:every=1") as session:
        tiny.run(N)
    assert [(r.point.step, r.point.branch) for r in session.records] == [
        (step, branch) for step in range(evaluations) for branch in ("cond", "uncond")
    ]
    assert {r.point.num_steps for r in session.records} == {evaluations}
    assert session.report().foreign_calls == 0


def test_the_laws_hold_with_every_scheduler(flow: tuple[Tiny, list[float], int]) -> None:
    """Bit-exact without reuse, a fresh state for every run, and reuse where the policy says."""
    tiny, _, evaluations = flow
    bare = tiny.run(N)
    with mixcache.enable(tiny.pipe, "static:every=1"):
        assert torch.equal(tiny.run(N), bare)
    for basis in ("residual", "noise"):
        how = {"basis": basis, "forecast": "linear:abscissa=sigma"}
        with mixcache.enable(tiny.pipe, "static:every=2,first_steps=3", **how) as session:
            cached, first = tiny.run(N), verdicts(session)
            assert torch.equal(tiny.run(N), cached)
        assert verdicts(session) == first
        assert reused_steps(session) == [s for s in range(3, evaluations - 1) if s % 2]
        assert cached.isfinite().all()
        assert not torch.equal(cached, bare)


@pytest.mark.parametrize("name", FLOW)
def test_every_scheduler_on_the_embedded_model(name: str) -> None:
    make, *_ = FLOW[name]
    tiny = embedded()
    tiny.pipe.scheduler = make()
    bare = tiny.run(16)
    with mixcache.enable(tiny.pipe, "static:every=1") as session:
        assert torch.equal(tiny.run(16), bare)
    evaluations = 31 if name == "heun" else 16
    assert session.report().evaluations == 2 * evaluations
    with mixcache.enable(tiny.pipe, "static:every=2,first_steps=1", basis="noise", forecast="linear") as session:
        cached = tiny.run(16)
    assert reused_steps(session) == list(range(1, evaluations - 1, 2))
    assert (cached - bare).abs().mean() < 0.5 * bare.abs().mean()


def ddim_levels(timesteps: list[int], prediction: str) -> list[NoiseLevel]:
    """Scaled-linear betas, squeezed by snr_shift_scale; alpha = sqrt(prod(1 - beta)), alpha^2 + sigma^2 = 1."""
    scale = 3.0
    betas = [(math.sqrt(0.00085) + i / 999 * (math.sqrt(0.012) - math.sqrt(0.00085))) ** 2 for i in range(1000)]
    kept, product = [], 1.0
    for beta in betas:
        product *= 1 - beta
        kept.append(product / (scale + (1 - scale) * product))
    return [
        NoiseLevel(alpha=math.sqrt(kept[t]), sigma=math.sqrt(1 - kept[t]), prediction=prediction) for t in timesteps
    ]


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon", "sample"])
def test_the_levels_of_a_ddim_scheduler(prediction: Any) -> None:
    make = diffusers.CogVideoXDDIMScheduler(
        prediction_type=prediction,
        rescale_betas_zero_snr=False,
        timestep_spacing="trailing",
        beta_schedule="scaled_linear",
    )
    tiny = cogvideox(noise_scheduler=make)
    with mixcache.enable(tiny.pipe, "static:every=1") as session:
        tiny.run(5)
    timesteps = [999, 799, 599, 399, 199]
    for record, wanted in zip(session.records, ddim_levels(timesteps, prediction), strict=True):
        level = record.point.level
        assert level is not None
        assert (level.alpha, level.sigma) == pytest.approx((wanted.alpha, wanted.sigma), abs=2e-5)
        assert level.prediction == prediction


@pytest.mark.parametrize("basis", ["noise", "clean"])
def test_ddim_with_zero_terminal_snr_computes_at_its_singular_start(basis: str) -> None:
    make = diffusers.CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    tiny = cogvideox(noise_scheduler=make)
    bare = tiny.run()
    with mixcache.enable(tiny.pipe, "static:every=2,first_steps=1", basis=basis) as session:
        cached = tiny.run()
    assert session.records[0].point.level.alpha == pytest.approx(0, abs=1e-6)
    assert cached.isfinite().all()
    assert bare.isfinite().all()
    assert reused_steps(session) == [1, 3, 5]


def test_a_run_that_starts_late_counts_from_its_own_start() -> None:
    """Image to image: the noise scheduler begins in the middle of its timesteps."""
    noise_scheduler = euler()
    noise_scheduler.set_timesteps(10)
    noise_scheduler.set_begin_index(4)
    schedule = read_schedule(noise_scheduler, None)
    assert schedule.num_steps == 6
    assert [schedule.relative(i) for i in (None, 4, 9)] == [None, 0, 5]
    assert schedule.levels[4].sigma == pytest.approx(float(noise_scheduler.sigmas[4]))


def test_flux_places_its_calls_by_the_noise_scheduler() -> None:
    tiny = flux()
    with mixcache.enable(tiny.pipe, "static:every=1") as session:
        tiny.run(5)
    assert verdicts(session) == [(step, "cond", False) for step in range(5)]
    assert [r.point.sigma for r in session.records] == pytest.approx(tiny.pipe.scheduler.sigmas[:5].tolist())


# a loop of one's own


def test_a_loop_that_tells_its_steps() -> None:
    model = Scripted()
    with mixcache.enable(model, "static:every=2") as session, session.run(6) as run:
        for i in range(6):
            with run.step(i, sigma=1 - i / 6):
                for branch in ("cond", "uncond", "skip"):
                    with run.branch(branch):
                        model(torch.zeros(1))
    assert [(r.point.step, r.point.branch, r.point.leads) for r in session.records] == [
        (i, branch, branch == "cond") for i in range(6) for branch in ("cond", "uncond", "skip")
    ]
    assert [r.point.sigma for r in session.records[::3]] == [1 - i / 6 for i in range(6)]


def test_a_loop_that_tells_nothing_but_its_timesteps() -> None:
    """Calls at one timestep are branches of one step, named by their place in it."""
    model = Scripted()
    with mixcache.enable(model, "static:every=2") as session, session.run(4):
        for t in (1000, 750, 500, 250):
            for _ in range(2):
                model(torch.zeros(1), timestep=torch.tensor([t]))
    assert verdicts(session) == [(step, branch, step == 2) for step in range(4) for branch in ("call0", "call1")]


@pytest.mark.parametrize("steps", [0, -1, 2.0, "4", None])
def test_a_run_needs_a_number_of_steps(steps: Any) -> None:
    refused = pytest.raises(mixcache.ConfigurationError, match="must be an integer >= 1")
    with mixcache.enable(Scripted(), "static") as session, refused, session.run(steps):
        pass


@pytest.mark.parametrize("index", [-1, 4, 1.0])
def test_a_step_lies_inside_its_run(index: Any) -> None:
    refused = pytest.raises(mixcache.ConfigurationError, match="must be an integer from 0 to 3")
    with mixcache.enable(Scripted(), "static") as session, session.run(4) as run, refused, run.step(index):
        pass


@pytest.mark.parametrize("sigma", [-0.1, 1.1, math.nan, math.inf])
def test_a_sigma_lies_between_clean_and_noise(sigma: float) -> None:
    refused = pytest.raises(mixcache.ConfigurationError, match="must be from 0")
    with mixcache.enable(Scripted(), "static") as session, session.run(4) as run, refused, run.step(0, sigma=sigma):
        pass


def test_runs_do_not_nest_and_end_with_an_exception() -> None:
    model = Scripted()
    with mixcache.enable(model, "schedule:10") as session:
        with (
            pytest.raises(mixcache.RunError, match="this thread or task has a run open"),
            session.run(2),
            session.run(2),
        ):
            pass
        with session.run(2) as run:
            for i in range(2):
                with run.step(i), run.branch("cond"):
                    model(torch.zeros(1))
    assert [r.outcome.reused for r in session.records] == [False, True]


def test_a_loop_longer_than_its_run_is_an_error() -> None:
    model = Scripted()
    with mixcache.enable(model, "static") as session, session.run(2):
        for t in (3, 2):
            model(torch.zeros(1), timestep=t)
        with pytest.raises(mixcache.RunError, match=r"step 2 is outside a run of 2 steps \(0 to 1\)"):
            model(torch.zeros(1), timestep=1)


def test_a_step_back_or_a_branch_again_is_something_new() -> None:
    run = Run(key="alone", num_steps=5, memory=None)
    call = Call(component="transformer", branch="cond")
    run.advance(call, 2)
    assert run.repeats(call, 2)
    assert run.repeats(call, 1)
    assert not run.repeats(call, 3)
    assert not run.repeats(Call(component="transformer", branch="uncond"), 2)
    assert not run.repeats(Call(component="transformer_2", branch="cond"), 2)

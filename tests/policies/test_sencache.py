"""SenCache: decisions against the formula written out, and a table that is right on a model with known derivatives."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

import mixcache
from mixcache import AttachError, Calibrations, ConfigurationError
from mixcache.bench import load
from mixcache.study import Job, calibrate
from mixcache_policies import SenCache
from mixcache_policies.calibrate_sencache import _watched
from tests.helpers import Scripted, follow, recorded_calls, reused_steps
from tests.policies.forecasting import noise
from tests.zoo.folder import FRAMES, SIZE

TABLE = {
    "sigma": [1.0, 0.8, 0.5, 0.2, 0.0],
    "x": [1.0, 3.0, 2.0, 1.5, 1.0],
    "t": [0.5, 0.2, 1.0, 0.1, 0.3],
    "output": [1.0, 2.0, 1.0, 1.0, 1.0],
}


def unroll(
    x: list[Tensor], sigmas: list[float], threshold: float, early: float, longest: int, share: float = 0.2
) -> tuple[list[bool], float]:
    """The published loop, with root mean squares; and how near it came to a threshold."""
    reused, margin, run = [], math.inf, 0
    kept, level = x[0], sigmas[0]
    for t, (now, sigma) in enumerate(zip(x, sigmas)):
        reuse = False
        if 1 <= t < len(x) - 1:
            i = min(range(5), key=lambda i: abs(TABLE["sigma"][i] - level))
            moved = max(float((a - b).double().square().mean().sqrt()) for a, b in zip(now, kept))
            score = TABLE["x"][i] * moved + TABLE["t"][i] * abs(sigma - level)
            limit = early if t < round(share * len(x)) else threshold
            margin = min(margin, abs(score - limit) / limit)
            reuse = score < limit and run < longest
        run = run + 1 if reuse else 0
        if not reuse:
            kept, level = now, sigma
        reused.append(reuse)
    return reused, margin


@given(st.integers(0, 1000), st.floats(0.05, 2.0), st.floats(0.01, 1.0), st.integers(1, 6), st.integers(4, 25))
def test_decides_as_the_formula_does(seed: int, threshold: float, early: float, longest: int, steps: int) -> None:
    early = min(early, threshold)
    sigmas = [1 - i / steps for i in range(steps)]
    start, clean = noise(seed, 2, 3, 4), noise(seed + 1, 2, 3, 4)
    x = [(s * start + (1 - s) * clean).float() for s in sigmas]
    expected, margin = unroll(x, sigmas, threshold, early, longest)
    assume(margin > 1e-4)  # the model's own arithmetic is float32
    policy = SenCache(threshold=threshold, early=early, longest_run=longest, sensitivity=TABLE)
    model = Scripted()
    with mixcache.enable(model, policy) as session:
        results = follow(session, model, x, [[z, 2 * z] for z in x], branches=("cond", "uncond"), sigmas=sigmas)
    for branch in ("cond", "uncond"):
        assert reused_steps(session, branch=branch) == [t for t, reuse in enumerate(expected) if reuse]
    last = 0
    for t, reuse in enumerate(expected):
        last = last if reuse else t
        assert torch.equal(results[t][0], x[last]), "the output is held"


def test_the_predicted_error_is_relative_to_the_output() -> None:
    score, error = SenCache(sensitivity=TABLE).predicted(0.1, 0.7, since=0.79)
    assert score == pytest.approx(3.0 * 0.1 + 0.2 * 0.09)
    assert error == pytest.approx(score / 2.0)


def test_without_noise_levels_it_computes_and_says_why() -> None:
    x = [torch.ones(1, 3)] * 4
    model = Scripted()
    warned = pytest.warns(UserWarning, match="reused")
    with mixcache.enable(model, SenCache(sensitivity=TABLE)) as session, warned:
        follow(session, model, x, [[z] for z in x])
    assert "no noise level" in session.records[2].outcome.reason


def test_one_fast_sample_stops_the_batch_unless_pooled() -> None:
    sigmas = [1 - i / 10 for i in range(10)]
    x = [torch.stack([torch.full((4,), 0.01 * i)] * 9 + [torch.full((4,), 0.3 * i)]) for i in range(10)]
    found = []
    for samples in ("worst", "mean"):
        model = Scripted()
        policy = SenCache(threshold=0.5, early=0.5, sensitivity=TABLE)
        with mixcache.enable(model, policy, samples=samples) as session:  # type: ignore[arg-type]
            follow(session, model, x, [[z] for z in x], sigmas=sigmas)
        found.append(len(reused_steps(session)))
    assert found[0] < found[1]


def test_a_table_is_read_from_a_file_and_none_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "sencache.json"
    content = {"schema": 1, "policy": "sencache", "values": {"sensitivity": TABLE}, "source": "a test", "match": {}}
    file.write_text(json.dumps(content))
    policy = SenCache(table=str(file)).calibrated(Calibrations())
    assert isinstance(policy, SenCache)
    assert policy.sensitivity == tuple(tuple(row) for row in TABLE.values())
    assert policy == SenCache(table=str(file), sensitivity=TABLE)
    hash(policy)
    for missing in (lambda: SenCache().calibrated(Calibrations()), lambda: mixcache.enable(Scripted(), "sencache")):
        with pytest.raises(ConfigurationError, match="mixcache calibrate sencache"):
            missing()


@pytest.mark.parametrize(
    "bad", [{"x": [1.0]}, {**TABLE, "t": [1.0]}, {**TABLE, "x": [-1.0] * 5}, {name: [] for name in TABLE}, "text"]
)
def test_rows_that_are_no_sensitivity_are_refused(bad: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"SenCache\(sensitivity=\.\.\.\)` must map sigma, x, t, output"):
        SenCache(sensitivity=bad)


# the calibrator


class Known(nn.Module):
    """f(x, t) = 3 x + 5 t + 1: |J_x| is 3 and |J_t| is 5, everywhere."""

    def forward(self, hidden_states: Tensor, timestep: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        return (3.0 * hidden_states + 5.0 * timestep + 1.0,)


class Holder:
    """What `_watched` looks into."""

    def __init__(self, **components: Any) -> None:
        self.components = components


def test_derivatives_of_a_known_model_are_found() -> None:
    model = Known()
    times = [1.0, 0.7, 0.45, 0.1]
    with _watched(Holder(transformer=model, vae=nn.Linear(2, 2), text=None)) as seen:
        for i, t in enumerate(times):
            for branch in range(2):  # the second branch of a step is not probed
                model(noise(i + 10 * branch, 1, 2, 6), timestep=torch.tensor([t]))
    assert len(seen) == len(times)
    for one, (a, b) in zip(seen, pairwise(times)):
        assert one.by_x == pytest.approx(3.0, rel=1e-5)
        assert one.change_t == pytest.approx(5.0 * (a - b), rel=1e-5)
    assert math.isnan(seen[-1].by_x)
    assert not model._forward_hooks


def test_a_pipeline_without_latent_and_timestep_is_refused() -> None:
    with pytest.raises(AttachError, match="write a ModelAdapter"), _watched(Holder(vae=nn.Linear(2, 2))):
        pass


@pytest.fixture(scope="module")
def model(wan_folder: Path) -> Any:
    return load(str(wan_folder), device="cpu")


def test_the_table_holds_finite_differences_of_the_model(model: Any) -> None:
    """Calls are recorded from outside and the two mixed ones made by hand; the run itself is as without."""
    call = model.arguments(num_inference_steps=4, num_frames=FRAMES, height=SIZE, width=SIZE)
    job = Job(calibrator="sencache", model=model, arguments=call, prompts=("a red circle moving left",))
    wan = model.pipeline.transformer
    with recorded_calls(wan) as calls:
        table, summary = calibrate(job)
    assert len(calls) == 8
    assert "sensitivity at 4 steps: |J_x| " in summary
    rows = table.values["sensitivity"]
    sigmas = [float(s) for s in model.pipeline.scheduler.sigmas[:4]]
    assert rows["sigma"] == pytest.approx(sigmas, abs=1e-5)

    def rms(z: Tensor) -> float:
        return float(z.double().square().mean().sqrt())

    for s in range(3):
        (here, f), (there, _) = calls[2 * s], calls[2 * s + 2]
        with torch.no_grad():
            (by_x,) = wan(**{**here, "hidden_states": there["hidden_states"]})
            (by_t,) = wan(**{**here, "timestep": there["timestep"]})
        moved = rms(there["hidden_states"] - here["hidden_states"])
        assert rows["x"][s] == pytest.approx(rms(by_x - f) / moved, rel=1e-3)
        assert rows["t"][s] == pytest.approx(rms(by_t - f) / (sigmas[s] - sigmas[s + 1]), rel=1e-3)
        assert rows["output"][s] == pytest.approx(rms(f), rel=1e-3)
    assert rows["x"][3] == rows["x"][2]


def test_a_single_step_is_refused(model: Any) -> None:
    call = model.arguments(num_inference_steps=1, num_frames=FRAMES, height=SIZE, width=SIZE)
    with pytest.raises(ConfigurationError, match="--steps 2 or more"):
        calibrate(Job(calibrator="sencache", model=model, arguments=call, prompts=("x",)))

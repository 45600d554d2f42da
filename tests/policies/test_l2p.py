"""L2P: weights fitted to recorded runs, against numpy's least squares on these runs; the table, and its calibrator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mixcache
from mixcache import Calibrations, catalogue
from mixcache.bench import generate, load
from mixcache.study import Job, calibrate
from mixcache_policies import L2P
from tests.helpers import recorded_calls
from tests.policies.forecasting import at, check_laws, forecast, noise, told
from tests.zoo.folder import FRAMES, SIZE

STEPS = 7


def runs(seed: int = 0, count: int = 3, steps: int = 50, size: int = 40) -> torch.Tensor:
    """Smooth recorded runs [run, step, element]: a few waves of random shapes."""
    t = torch.arange(steps).double() / steps
    waves = torch.stack([torch.ones_like(t), t, (2 * t).sin(), (5 * t).cos()], 1)
    return waves @ noise(seed, count, 4, size) + 0.01 * noise(seed + 1, count, steps, size)


def triangle(recorded: torch.Tensor) -> tuple[tuple[float, ...], ...]:
    """The lower triangle of the inner products between steps, summed over runs."""
    gram = torch.einsum("rse,rte->st", recorded, recorded)
    return tuple(tuple(float(v) for v in row[: s + 1]) for s, row in enumerate(gram))


GRAMS = {"cond": triangle(runs())}


def test_laws() -> None:
    """One visit alone is scaled, as the recorded runs grew."""
    check_laws(L2P(grams=GRAMS), holds=False)
    check_laws(L2P(grams=GRAMS, visits=5, ridge=1e-2), holds=False)


@given(
    st.lists(st.integers(0, 45), min_size=1, max_size=6, unique=True).map(sorted),
    st.integers(1, 4),
    st.sampled_from([1e-6, 1e-4, 1e-2]),
    st.integers(1, 5),
)
def test_weights_are_the_least_squares_of_the_recorded_runs(
    steps: list[int], ahead: int, ridge: float, visits: int
) -> None:
    """Written out as one long regression, with a row for each element and one for each pull towards `hold`."""
    recorded, kept = runs(), steps[-visits:]
    target = kept[-1] + ahead
    A = recorded[:, kept].permute(0, 2, 1).reshape(-1, len(kept)).numpy()
    y = recorded[:, target].reshape(-1).numpy()
    pull = np.sqrt(ridge * (A**2).sum(0).mean()) * np.eye(len(kept))
    w, *_ = np.linalg.lstsq(np.vstack([A, pull]), np.concatenate([y, pull[-1]]), rcond=None)
    made = L2P(grams=GRAMS, visits=visits, ridge=ridge).fitted(kept, at(target))
    np.testing.assert_allclose(made, w, rtol=1e-5, atol=1e-5)


def test_it_reproduces_what_the_recorded_runs_did() -> None:
    """New runs of the same four waves: any four visits tell the fifth, whatever its shape."""
    t = torch.arange(50).double() / 50
    waves = torch.stack([torch.ones_like(t), t, (2 * t).sin(), (5 * t).cos()], 1)
    learned = L2P(grams={"cond": triangle(waves @ noise(3, 6, 4, 30))}, visits=4, ridge=0)
    new = waves @ noise(11, 4, 8)
    for steps, target in (([3, 9, 15, 21], 24), ([0, 1, 5, 30], 33)):
        made = forecast(learned, told(lambda step: new[None, step], steps), target)
        torch.testing.assert_close(made[0], new[target], rtol=1e-3, atol=1e-3)


def test_a_large_ridge_holds_and_no_history_of_the_branch_takes_cond() -> None:
    history = told(lambda step: noise(step, 1, 5), [3, 6, 9])
    torch.testing.assert_close(forecast(L2P(grams=GRAMS, ridge=1e9), history, 11), history[-1].z[0])
    both = L2P(grams={**GRAMS, "uncond": triangle(runs(7))})
    assert both.fitted([3, 6], at(8, branch="skip")) == both.fitted([3, 6], at(8))
    assert both.fitted([3, 6], at(8, branch="uncond")) != both.fitted([3, 6], at(8))


def test_a_run_of_another_length_takes_the_nearest_steps() -> None:
    learned = L2P(grams=GRAMS)
    nearest = [round(step * 49 / 24) for step in (3, 6, 8)]
    assert learned.fitted([3, 6], at(8, num_steps=25)) == learned.fitted(nearest[:2], at(nearest[2]))
    longer = learned.fitted([50, 51, 52], at(53, num_steps=200))  # three visits at one step of the table
    assert np.isfinite(longer).all()


def test_a_table_is_read_for_its_basis(tmp_path: Path) -> None:
    file = tmp_path / "l2p.json"
    values = {"grams": {"output": {"cond": [[1.0], [0.9, 1.0]]}, "noise": {"cond": [[2.0], [1.0, 2.0]]}}}
    content: dict[str, Any] = {"schema": 1, "policy": "l2p", "values": values, "source": "a test", "match": {}}
    file.write_text(json.dumps(content))
    for basis, first in (("output", 1.0), ("noise", 2.0)):
        forecaster = catalogue.build("forecaster", f"l2p:table={file},basis={basis}")
        assert dict(forecaster.calibrated(Calibrations()).grams)["cond"][0] == (first,)
    other = catalogue.build("forecaster", f"l2p:table={file},basis=residual")
    with pytest.raises(mixcache.ConfigurationError, match=r"no inner products for basis='residual', only for: output"):
        other.calibrated(Calibrations())
    with pytest.raises(mixcache.ConfigurationError, match="mixcache calibrate l2p"):
        L2P().calibrated(Calibrations())
    with pytest.raises(mixcache.ConfigurationError, match="mixcache calibrate l2p"):
        L2P().forecast(told(lambda step: noise(step, 1, 2), [0]), at(1), {})


@pytest.mark.parametrize(
    "grams", [{"cond": [[1.0], [1.0]]}, {"cond": [[-1.0]]}, {"cond": [[float("nan")]]}, {"other": [[1.0]]}, [1.0]]
)
def test_numbers_that_are_no_inner_products_are_refused(grams: Any) -> None:
    with pytest.raises(mixcache.ConfigurationError, match=r"L2P\(grams="):
        L2P(grams=grams)


# the calibrator


@pytest.fixture(scope="module")
def model(wan_folder: Path) -> Any:
    return load(str(wan_folder), device="cpu")


def test_the_table_holds_the_inner_products_of_the_run(model: Any) -> None:
    """Every call is recorded from outside; latent and output give z in each basis by its own formula."""
    prompts = ("a red circle moving left", "a blue square moving up")
    call = model.arguments(num_inference_steps=STEPS, num_frames=FRAMES, height=SIZE, width=SIZE)
    table, summary = calibrate(Job(calibrator="l2p", model=model, arguments=call, prompts=prompts))
    assert f"inner products of {STEPS} steps for cond, uncond" in summary
    with recorded_calls(model.pipeline.transformer) as calls:
        for prompt in prompts:
            generate(model, prompt, 0, call)
    assert len(calls) == 2 * 2 * STEPS
    levels = [float(s) for s in model.pipeline.scheduler.sigmas[:STEPS]]
    assert set(table.values["grams"]) == {"output", "residual", "noise", "clean"}
    for basis, rows in table.values["grams"].items():
        for branch, name in enumerate(("cond", "uncond")):
            z = []
            for run in range(2):
                for step in range(STEPS):
                    arguments, output = calls[2 * STEPS * run + 2 * step + branch]
                    x, v, s = arguments["hidden_states"].double(), output.double(), levels[step]
                    z.append({"output": v, "residual": v - x, "noise": x + (1 - s) * v, "clean": x - s * v}[basis])
            stacked = torch.stack(z).flatten(1).reshape(2, STEPS, -1)
            gram = torch.einsum("rse,rte->st", stacked, stacked)
            gram /= gram.diagonal().mean()
            for s, row in enumerate(rows[name]):
                assert row == pytest.approx(gram[s, : s + 1].tolist(), rel=1e-4, abs=1e-5)


def test_a_calibrated_session_forecasts_with_its_weights(model: Any, tmp_path: Path) -> None:
    call = model.arguments(num_inference_steps=STEPS, num_frames=FRAMES, height=SIZE, width=SIZE)
    table, _ = calibrate(Job(calibrator="l2p", model=model, arguments=call, prompts=("a red circle moving left",)))
    file = tmp_path / "l2p.json"
    mixcache.save_calibration(file, table)
    recipe = f"schedule:1101011 @ basis=output forecast=l2p:table={file}"
    with recorded_calls(model.pipeline.transformer) as calls:
        generate(model, "a red circle moving left", 0, call, recipe)
    cond = [output for _, output in calls[::2]]
    weights = L2P(grams=table.values["grams"]["output"]).fitted([0, 1, 3], at(4, num_steps=STEPS))
    expected = sum(w * cond[s] for w, s in zip(weights, (0, 1, 3)))
    torch.testing.assert_close(cond[4], expected, rtol=1e-4, atol=1e-5)


def test_a_single_step_is_refused(model: Any) -> None:
    call = model.arguments(num_inference_steps=1, num_frames=FRAMES, height=SIZE, width=SIZE)
    with pytest.raises(mixcache.ConfigurationError, match="--steps 2 or more"):
        calibrate(Job(calibrator="l2p", model=model, arguments=call, prompts=("x",)))

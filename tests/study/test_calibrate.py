"""`mixcache calibrate`: the numbers are those of the model, the file loads, and nothing is cached meanwhile."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.hooks.mag_cache import MagCacheConfig
from typer.testing import CliRunner

import mixcache
from mixcache import load_calibration
from mixcache.bench import generate, load
from mixcache.cli import app
from mixcache.errors import ConfigurationError, PluginError, UnknownNameError
from mixcache.study import Calibrator, Fit, Job, Observed, Observing, calibrate, find_calibrator, observing
from mixcache_policies import calibrators
from tests.conftest import built
from tests.helpers import recorded_calls
from tests.zoo.folder import FRAMES, SIZE

STEPS = 7
PROMPTS = ("a red circle moving left", "a blue square moving up")


@pytest.fixture(scope="module")
def model(wan_folder: Path) -> Any:
    return load(str(wan_folder), device="cpu")


def job(model: Any, calibrator: Any, **changes: Any) -> Job:
    call = {"num_inference_steps": STEPS, "num_frames": FRAMES, "height": SIZE, "width": SIZE}
    usual = {"arguments": model.arguments(**call), "prompts": PROMPTS[:1]}
    return Job(calibrator=calibrator, model=model, **{**usual, **changes})


def run(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="mixcache")


# magcache


def test_ratios_are_those_that_diffusers_measures(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """diffusers prints them at the end of a run: cond first."""
    task = job(model, "magcache")
    transformer = model.pipeline.transformer
    transformer.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=STEPS))
    try:
        generate(model, PROMPTS[0], 0, task.arguments)
    finally:
        transformer.disable_cache()
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("[1.0")]
    table, summary = calibrate(task)
    assert list(table.values["ratios"]) == ["cond", "uncond"]
    for found, wanted in zip(table.values["ratios"].values(), printed, strict=True):
        assert found == pytest.approx(wanted, abs=2e-6)
        assert len(found) == STEPS
        assert len(set(found)) == STEPS
    assert table.match == {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4}
    assert f"{STEPS} ratios for cond, uncond" in summary


def test_ratios_are_the_mean_over_prompts_and_seeds(model: Any) -> None:
    both, _ = calibrate(job(model, "magcache", prompts=PROMPTS, seeds=(0, 1)))
    alone = [
        calibrate(job(model, "magcache", prompts=(prompt,), seeds=(seed,)))[0].values["ratios"]
        for prompt in PROMPTS
        for seed in (0, 1)
    ]
    for branch, found in both.values["ratios"].items():
        assert found == pytest.approx(np.mean([ratios[branch] for ratios in alone], axis=0), abs=2e-6)
    assert "2 prompt(s) x 2 seed(s), 7 steps" in both.source


def test_a_batch_of_all_branches_gives_the_ratios_of_cond() -> None:
    """Where no call is named cond, the leading one stands for it: a table without could not be used."""
    tiny = built("ltx")
    observed = []
    with mixcache.enable(tiny.pipe, "static:every=1,at=block") as session:
        tiny.run(3)
    for record in session.records:
        value = None if record.point.step == 0 else 0.5
        observed.append(Observed(signal="magnitude_ratio", run=(0, 0), point=record.point, value=value))
    assert {o.point.branch for o in observed} == {"cond_uncond"}
    assert calibrators.MAGCACHE.fit(observed).values == {"ratios": {"cond": [1.0, 0.5, 0.5]}}


def test_calibrating_reuses_nothing_and_leaves_the_model_as_it_was(model: Any) -> None:
    with recorded_calls(model.pipeline.transformer) as plain:
        generate(model, PROMPTS[0], 0, job(model, "magcache").arguments)
    for policy in ("magcache", "teacache"):
        with recorded_calls(model.pipeline.transformer) as observed:
            calibrate(job(model, policy))
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(plain, observed, strict=True))
    with recorded_calls(model.pipeline.transformer) as after:
        generate(model, PROMPTS[0], 0, job(model, "magcache").arguments)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(plain, after, strict=True))


# teacache


def test_the_polynomial_is_fitted_to_the_probe_and_the_outputs_of_the_run(model: Any) -> None:
    """The outputs are recorded outside; the probe, Wan's time embedding of the first block, is read beside it."""
    probes: list[torch.Tensor] = []
    block = model.pipeline.transformer.blocks[0]
    handle = block.register_forward_pre_hook(lambda _, args, kwargs: probes.append(args[2].clone()), with_kwargs=True)
    with recorded_calls(model.pipeline.transformer) as calls:
        table, summary = calibrate(job(model, "teacache", prompts=PROMPTS))
    handle.remove()

    def change(tensors: list[torch.Tensor]) -> list[float]:
        runs = [tensors[i : i + 2 * STEPS] for i in range(0, len(tensors), 2 * STEPS)]
        branches = [run[b::2] for run in runs for b in (0, 1)]
        pairs = [(a, b) for branch in branches for a, b in pairwise(branch)]
        return [float((b - a).abs().mean() / a.abs().mean()) for a, b in pairs]

    x, y = change(probes), change([output for _, output in calls])
    wanted = np.polynomial.Polynomial.fit(x, y, 4)
    at = np.array(sorted(set(x)))
    assert len(table.values["coefficients"]) == 5
    np.testing.assert_allclose(np.polyval(table.values["coefficients"], at), wanted(at), rtol=1e-3)
    assert f"{len(x)} pairs" in summary


def test_too_few_pairs_are_an_error(model: Any) -> None:
    task = job(model, "teacache", arguments={**job(model, "teacache").arguments, "num_inference_steps": 3})
    with pytest.raises(ConfigurationError, match=r"2 different value.*--steps"):
        calibrate(task)


# mixcache


def test_the_influence_is_the_final_deviation_over_the_error_of_one_reuse(model: Any) -> None:
    """Each run made by hand with a mask: one reuse, computed beside, against the run that is computed in full."""
    task = job(model, "mixcache")
    table, summary = calibrate(task)
    wan = model.pipeline.transformer
    with recorded_calls(wan) as calls:
        plain = generate(model, PROMPTS[0], 0, task.arguments).latents
        again = generate(model, PROMPTS[0], 0, task.arguments).latents
    assert plain is not None
    assert again is not None
    assert len(calls) == 4 * STEPS
    assert torch.equal(plain, again), "the model was not left as it was"
    raw = {}
    for at, basis in (("step", "noise"), ("cfg", "residual")):
        for step in range(1, STEPS):
            mask = "".join("0" if i == step else "1" for i in range(STEPS))
            words = f"schedule:mask={mask},at={at}"
            with mixcache.enable(model.pipeline, words, basis=basis, forecast="linear", audit=True) as session:
                latents = generate(model, PROMPTS[0], 0, task.arguments).latents
            assert latents is not None
            lead = next(r for r in session.records if r.outcome.reused)
            assert lead.outcome.true_error is not None
            raw[at, step] = float((latents - plain).norm() / plain.norm()) / lead.outcome.true_error
    steps = [raw["step", 1], *(raw["step", i] for i in range(1, STEPS))]
    mean = sum(steps) / STEPS
    assert table.values["influence"]["step"] == pytest.approx([value / mean for value in steps], rel=1e-3, abs=1e-4)
    assert table.values["influence"]["cfg"][1:] == pytest.approx(
        [raw["cfg", i] / mean for i in range(1, STEPS)], rel=1e-3, abs=1e-4
    )
    assert set(table.values["influence"]) == {"step", "cfg", "block"}
    assert f"each of {STEPS} steps" in summary


# the command


@pytest.mark.parametrize(("policy", "runs"), [("magcache", 2), ("teacache", 2), ("mixcache", 2 * (1 + 3 * 7))])
def test_the_command_writes_a_table_that_the_policy_takes(
    policy: str, runs: int, wan_folder: Path, small: list[str], tmp_path: Path
) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "new" / "table.json"
    prompts.write_text("\n".join(PROMPTS))
    words = [*small, "--prompts", prompts, "--seeds", 2, "--steps", 8]
    result = run("calibrate", policy, "--model", wan_folder, *words, "--limit", 1, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert f"--policy {policy}:table={out}" in result.stdout
    assert f"{runs}/{runs} runs; observed; 0 s left" in result.stderr
    assert load_calibration(out, policy).match["num_layers"] == 1
    with mixcache.enable(load(str(wan_folder), device="cpu").pipeline, f"{policy}:table={out}") as session:
        assert session.plan.policies[0].policy_name() == policy


def test_an_interruption_writes_nothing(
    wan_folder: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the second of two runs."""
    made: list[int] = []

    def stops(*args: Any, **options: Any) -> Any:
        made.append(1)
        if len(made) == 2:
            raise KeyboardInterrupt
        return generate(*args, **options)

    monkeypatch.setattr(observing, "generate", stops)
    prompts, out = tmp_path / "prompts.txt", tmp_path / "table.json"
    prompts.write_text("\n".join(PROMPTS))
    result = run("calibrate", "magcache", "--model", wan_folder, *small, "--prompts", prompts, "--out", out)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "mixcache: interrupted: nothing was written."
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.txt"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["easycache", "--out", "table.json"],
            "policy easycache needs no table; those that can be calibrated: l2p, magcache, mixcache, sencache",
        ),
        (
            ["magcash", "--out", "table.json"],
            "there are: l2p, magcache, mixcache, sencache, teacache. Did you mean 'magcache'?",
        ),
        (["magcache", "--out", "table.txt"], "--out table.txt must name a .json file"),
        (["magcache", "--out", "table.json"], "comes with no prompts; give --prompts"),
        (["magcache", "--out", "table.json", "--steps", "1", "--prompts", "prompts.txt"], "--steps 2 or more"),
    ],
)
def test_errors_are_one_line(
    words: list[str], said: str, wan_folder: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text(PROMPTS[0])
    result = run("calibrate", words[0], "--model", wan_folder, *small, *words[1:])
    assert result.exit_code == 2
    assert said in result.stderr.splitlines()[-1]
    assert not Path("table.json").exists()


# a calibrator of one's own


class Counting(Calibrator):
    """Measures how many calls the transformer gets."""

    name = "counting"

    def __init__(self, result: Any = None) -> None:
        self.result = result

    def runs(self, job: Job) -> int:
        return 2

    def measure(self, job: Job, watch: Any) -> Any:
        calls = 0
        for prompt, seed in job.pairs:
            for _ in range(self.runs(job)):
                with recorded_calls(job.model.pipeline.transformer) as seen:
                    generate(job.model, prompt, seed, job.arguments, on_step=watch.step)
                calls += len(seen)
                watch.call()
        return Fit({"calls": calls}, f"{calls} calls") if self.result is None else self.result


def test_a_calibrator_of_ones_own(model: Any) -> None:
    assert all(isinstance(one, Calibrator) for one in mixcache.catalogue.calibrators().values())
    table, summary = calibrate(job(model, Counting(), seeds=(0, 1)))
    assert (table.policy, table.values, summary) == ("counting", {"calls": 8 * STEPS}, f"{8 * STEPS} calls")
    with pytest.raises(ConfigurationError, match=r"must be a name or a mixcache\.study\.Calibrator, got 3"):
        find_calibrator(3)  # type: ignore[arg-type]


def test_what_a_calibrator_returns_is_checked(model: Any) -> None:
    with pytest.raises(PluginError, match=r"calibrator 'counting' must return a Fit from measure\(\), got 5"):
        calibrate(job(model, Counting(5)))


def test_a_third_partys_calibrator_is_known_to_the_command(wan_folder: Path, small: list[str], tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "table.json"
    prompts.write_text(PROMPTS[0])
    words = ["calibrate", "counting", "--model", wan_folder, *small, "--prompts", prompts, "--out", out]
    mixcache.register(Counting())
    try:
        result = run(*words)
        listed = run("plugins", "--kind", "calibrators").stdout
    finally:
        mixcache.unregister("calibrator", "counting")
    assert result.exit_code == 0, result.stderr
    assert "2/2 runs; observed" in result.stderr
    assert f"wrote {out}\n" in result.stdout  # no policy of that name reads it
    assert load_calibration(out, "counting").values == {"calls": 16}
    assert "counting" in listed
    assert "magcache" in listed
    assert run(*words).exit_code == 2


def test_a_signal_that_nobody_registered_is_named(model: Any) -> None:
    unknown = Observing(name="x", signals={mixcache.Granularity.STEP: "anchor_chnge"}, fit=lambda found: Fit({}, ""))
    with pytest.raises(UnknownNameError, match="unknown signal 'anchor_chnge'"):
        calibrate(job(model, unknown))

"""The oracle: no exchange is better, it goes on where it was interrupted, and regret is measured against it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from typer.testing import CliRunner

from mixcache import study
from mixcache.bench import generate, load
from mixcache.bench.cases import Case
from mixcache.bench.metrics.frames import psnr, relative_error
from mixcache.bench.watch import Watch
from mixcache.cli import app
from mixcache.errors import ConfigurationError
from mixcache.study import Best, Pricing, Trial
from mixcache.study.oracles import improve
from tests.study.test_pricing import every_mask, made
from tests.zoo.folder import FRAMES, SIZE

STEPS = 7
BUDGET = 4
PROMPT = "a red circle moving left"


@pytest.fixture(scope="module")
def model(wan_folder: Path) -> Any:
    return load(str(wan_folder), device="cpu")


@pytest.fixture(scope="module")
def call(model: Any) -> dict[str, Any]:
    return dict(model.arguments(num_inference_steps=STEPS, num_frames=FRAMES, height=SIZE, width=SIZE))


@pytest.fixture(scope="module")
def all_trials(model: Any, call: dict[str, Any]) -> dict[str, Trial]:
    """Every mask of the budget, run for real."""
    recipes = {f"schedule:mask={m} @ basis=noise forecast=linear": m for m in every_mask(STEPS, BUDGET) if m[1] == "1"}
    found = study.check(model, recipes, [PROMPT], [0], arguments=call)
    assert len(found) == math.comb(STEPS - 2, BUDGET - 2)
    return {recipes[one.recipe]: one.trials[0] for one in found}


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """The calls of the transformer that were really computed."""
    calls: list[int] = []
    block = model.pipeline.transformer.blocks[0]
    handle = block.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        handle.remove()


def found_by(model: Any, call: dict[str, Any], **changes: Any) -> Best:
    given = {"evaluations": BUDGET, "first_steps": 2, "runs": 60, "arguments": call, **changes}
    return study.oracle(model, PROMPT, **given)


def test_a_trial_is_what_a_user_would_measure(all_trials: dict[str, Trial], model: Any, call: dict[str, Any]) -> None:
    mask, trial = next(iter(all_trials.items()))
    plain = generate(model, PROMPT, 0, call)
    cached = generate(model, PROMPT, 0, call, f"schedule:mask={mask} @ basis=noise forecast=linear")
    assert trial.mask == cached.mask == mask
    assert plain.latents is not None
    assert cached.latents is not None
    assert trial.deviation == relative_error(plain.latents, cached.latents)
    assert trial.psnr == psnr(plain.frames_FHWC, cached.frames_FHWC)


def test_no_exchange_is_better_than_the_oracle(model: Any, call: dict[str, Any], all_trials: dict[str, Trial]) -> None:
    best = found_by(model, call)
    assert best.finished
    assert best.trial == all_trials[best.trial.mask]
    beside = [m for m in all_trials if sum(a != b for a, b in zip(m, best.trial.mask)) == 2]
    assert len(beside) == (BUDGET - 2) * (STEPS - BUDGET)
    assert all(all_trials[mask].deviation >= best.trial.deviation for mask in beside)
    assert best.trial.deviation < sorted(one.deviation for one in all_trials.values())[len(all_trials) // 2]


def test_exchanges_lead_where_prices_do_not() -> None:
    """What a real run shows is taken: here a sum over the evaluations that has nothing to do with the prices."""
    worth = np.random.default_rng(5).permutation(12)

    def attempt(mask: str) -> Trial:
        value = float(sum(w for w, c in zip(worth, mask) if c == "1"))
        return Trial(prompt="", seed=0, recipe=mask, deviation=value, psnr=0.0, mask=mask)

    pricing = Pricing(made(0, steps=12), "noise", "linear")
    best = improve(attempt, pricing, evaluations=5, runs=500, first_steps=1)
    least = min(every_mask(12, 5), key=lambda mask: attempt(mask).deviation)
    assert best.finished
    assert best.trial.mask == least
    assert 60 < best.runs < len(every_mask(12, 5))
    ended = improve(attempt, pricing, evaluations=5, runs=best.runs - 1, first_steps=1)
    assert (ended.finished, ended.runs) == (False, best.runs - 1)


def test_an_interrupted_oracle_goes_on_where_it_was(model: Any, call: dict[str, Any], tmp_path: Path) -> None:
    with counted(model) as whole:
        wanted = found_by(model, call)
    ended = [0]

    def interrupt() -> None:
        ended[0] += 1
        if ended[0] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        found_by(model, call, folder=tmp_path, watch=Watch(call=interrupt))
    lines = tmp_path / "trials.jsonl"
    assert len(lines.read_text().splitlines()) == 4
    with lines.open("a") as file:
        file.write('{"prompt": "cut sho')
    with counted(model) as rest:
        assert found_by(model, call, folder=tmp_path) == wanted
    assert len(lines.read_text().splitlines()) == wanted.runs
    assert len(rest) == len(whole) - 2 * STEPS - 4 * 2 * BUDGET  # the recording and four trials were there
    with counted(model) as none:
        assert found_by(model, call, folder=tmp_path) == wanted
    assert not none


def test_runs_are_bounded_and_more_never_make_it_worse(model: Any, call: dict[str, Any], tmp_path: Path) -> None:
    found = [found_by(model, call, runs=runs, folder=tmp_path) for runs in (1, 3, 60)]
    assert [one.runs for one in found[:2]] == [1, 3]
    assert [one.finished for one in found] == [False, False, True]
    deviations = [one.trial.deviation for one in found]
    assert deviations == sorted(deviations, reverse=True)
    with pytest.raises(ConfigurationError, match=r"`oracle\(runs=\.\.\.\)` must be >= 1, got 0"):
        found_by(model, call, runs=0)


def test_a_folder_of_another_call_is_refused(model: Any, call: dict[str, Any], tmp_path: Path) -> None:
    found_by(model, call, runs=1, folder=tmp_path)
    other = {**call, "num_inference_steps": STEPS + 1}
    with pytest.raises(ConfigurationError, match="another model or call"):
        found_by(model, other, runs=1, folder=tmp_path)


def case(**changes: Any) -> Case:
    """A case that a comparison would have measured."""
    usual = {
        "prompt": PROMPT,
        "seed": 0,
        "variant": "static:every=2",
        "evaluations": 8.4,  # of both branches
        "evaluations_uncached": 2 * STEPS,
        "scores": {"psnr": 30.0, "ssim": 0.9},
        "latents_error": 0.02,
        "mask": "1101010",
    }
    blank = {field.name: () for field in attrs.fields(Case) if field.default is attrs.NOTHING}
    return Case(**{**blank, "report": None, **usual, **changes})


def test_regret_is_how_far_a_case_stays_behind() -> None:
    recipe = "schedule:mask=1100101"
    trial = Trial(prompt=PROMPT, seed=0, recipe=recipe, deviation=0.002, psnr=42.5, mask="1100101")
    best = Best(evaluations=4, trial=trial, runs=9, finished=True)
    computed = case(variant="static:every=1", evaluations=2.0 * STEPS, mask="1" * STEPS, latents_error=0.0)
    better = case(variant="other", latents_error=0.001, scores={"psnr": 48.0})
    fewer = case(variant="steps=4", evaluations=8.0, mask="1111")
    cases = [case(), computed, fewer, better]
    assert study.budgets(cases) == [(PROMPT, 0, 4)]
    first, second = study.regret(cases, [best])
    assert (first.variant, first.evaluations) == ("static:every=2", 4)
    assert (first.latents, first.psnr) == pytest.approx((20.0, 12.5))
    assert (second.latents, second.psnr) == pytest.approx((20.0 * math.log10(0.5), -5.5))
    with pytest.raises(ConfigurationError, match=r"no oracle for .*seed 1, at 4 evaluations.*study\.oracle"):
        study.regret([case(seed=1)], [best])


def test_the_rank_correlation_is_spearmans() -> None:
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(0)
    for _ in range(5):
        a, b = draw.integers(0, 6, size=(2, 12))  # with ties
        assert study.rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert math.isnan(study.rank_correlation([1, 1], [1, 2]))
    with pytest.raises(ConfigurationError, match="got 2 and 3"):
        study.rank_correlation([1, 2], [1, 2, 3])


def test_compare_prints_the_regret(wan_folder: Path, small: list[str], tmp_path: Path) -> None:
    words = ["compare", "--policy", "static:every=2,last_steps=0,first_steps=1", "--model", str(wan_folder), *small]
    words += ["--prompts", str(tmp_path / "prompts.txt"), "--seeds", "1", "--quality-only", "--no-rival"]
    words += ["--out", str(tmp_path / "out"), "--regret", "3", "--device", "cpu"]
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n")
    done = CliRunner().invoke(app, words, prog_name="mixcache")
    assert done.exit_code == 0, done.output
    assert "regret against the best mask of each clip" in done.output
    told = json.loads((tmp_path / "out" / "regret.json").read_text())
    (one,), (best,) = told["regret"], told["best"]
    assert (one["evaluations"], best["runs"] <= 3) == (2, True)
    folder = json.loads((tmp_path / "out" / "results.json").read_text())["cases"]
    error = next(found["latents_error"] for found in folder if found["variant"].startswith("static"))
    assert one["latents"] == pytest.approx(20 * math.log10(error / best["trial"]["deviation"]))

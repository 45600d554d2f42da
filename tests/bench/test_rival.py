"""Fewer steps as a variant and as the rival, runs with many steps as a second reference, and runs without timing."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixcache import Recipe
from mixcache.bench import (
    Case,
    CaseStore,
    Comparison,
    Generation,
    Metric,
    Model,
    Steps,
    Watch,
    compare,
    comparing,
    generate,
    load,
    psnr,
    relative_error,
    summarize,
    write_report,
)
from mixcache.bench.comparison import as_variant, check_recipes
from mixcache.bench.metrics.scored import metrics_of
from mixcache.bench.results import kept, markdown, table
from mixcache.bench.rival import Rival, grid, step_counts
from mixcache.core.report import Report
from mixcache.errors import ConfigurationError, PluginError

PROMPTS = ("a red circle moving left", "a blue square moving up")
EVERY_OTHER = "static:every=2,first_steps=1"
STATIC = str(Recipe.parse(EVERY_OTHER))


@pytest.fixture(scope="module")
def model(wan_folder: Path) -> Model:
    return load(str(wan_folder), device="cpu")


@pytest.fixture(scope="module")
def comparison(model: Model) -> Comparison:
    arguments = model.arguments(num_inference_steps=6, num_frames=5, height=16, width=16)
    return Comparison(
        model=model,
        arguments=arguments,
        prompts=PROMPTS,
        variants=(EVERY_OTHER, "steps=5"),
        quality_only=True,
        truth=9,
    )


@pytest.fixture(scope="module")
def measured(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> tuple[CaseStore, list[Case]]:
    """A finished comparison; nobody changes it."""
    store = CaseStore(tmp_path_factory.mktemp("measured")).open(comparison.settings)
    return store, compare(comparison, store)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The recipe and the steps of every generation that a comparison makes."""
    made: list[tuple[str, int]] = []

    def counting(*given: Any, **options: Any) -> Generation:
        recipe = given[4] if len(given) > 4 else None
        made.append(("plain" if recipe is None else str(recipe), given[3]["num_inference_steps"]))
        return generate(*given, **options)

    monkeypatch.setattr(comparing, "generate", counting)
    return made


# the variant


@given(st.integers(1, 10**6))
def test_steps_are_their_text(count: int) -> None:
    assert Steps.parse(str(Steps(count))) == Steps(count)
    assert as_variant(f" steps = {count} ") == Steps(count)


@pytest.mark.parametrize("text", ["steps=", "steps=0", "steps=-3", "steps=2.5", "steps=18 @ basis=noise", "steps=a"])
def test_what_is_no_number_of_steps_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="steps= takes a whole number from 1 on"):
        as_variant(text)


def test_a_text_is_a_variant_in_one_way() -> None:
    assert as_variant("static:every=2") == Recipe.parse("static:every=2")
    assert as_variant(" none ") is None
    assert as_variant(Steps(3)) == Steps(3)
    with pytest.raises(ConfigurationError, match="steps=3' caches nothing"):
        check_recipes([Steps(3)])  # type: ignore[list-item]


@pytest.mark.parametrize("count", [6, 7, 50])
def test_as_many_steps_as_the_run_are_refused(comparison: Comparison, count: int) -> None:
    with pytest.raises(ConfigurationError, match=f"--policy 'steps={count}': the uncached run has 6 steps; give fewer"):
        attrs.evolve(comparison, variants=(f"steps={count}",))
    with pytest.raises(ConfigurationError, match="--truth 6: the uncached run has 6 steps; give more, such as 24"):
        attrs.evolve(comparison, truth=6)


# what is measured


def clip(comparison: Comparison, prompt: str, steps: int, output_type: str) -> Any:
    """A direct call of the pipeline."""
    generator = torch.Generator().manual_seed(0)
    call = {**comparison.arguments, "num_inference_steps": steps, "output_type": output_type}
    return comparison.model.pipeline(prompt=prompt, generator=generator, **call).frames


def test_every_number_is_what_direct_calls_of_the_pipeline_give(
    comparison: Comparison, measured: tuple[CaseStore, list[Case]]
) -> None:
    _, cases = measured
    for prompt in PROMPTS:
        own = {case.variant: case for case in cases if case.prompt == prompt}
        a, x = clip(comparison, prompt, 6, "np")[0], clip(comparison, prompt, 6, "latent")
        t, y = clip(comparison, prompt, 9, "np")[0], clip(comparison, prompt, 9, "latent")
        b, z = clip(comparison, prompt, 5, "np")[0], clip(comparison, prompt, 5, "latent")
        fewer, uncached = own["steps=5"], own["none"]
        assert fewer.psnr == pytest.approx(psnr(a, b), abs=1e-4)
        assert fewer.latents_error == pytest.approx(relative_error(x, z), rel=1e-5)
        assert fewer.truth_psnr == pytest.approx(psnr(t, b), abs=1e-4)
        assert fewer.truth_error == pytest.approx(relative_error(y, z), rel=1e-5)
        assert (fewer.evaluations, fewer.evaluations_uncached, fewer.mask) == (10, 12, "11111")
        assert uncached.truth_psnr == pytest.approx(psnr(t, a), abs=1e-4)
        assert uncached.truth_error == pytest.approx(relative_error(y, x), rel=1e-5)
        assert own[STATIC].evaluations == 6 + 2  # the last step is computed
        assert own[STATIC].truth_error not in (None, uncached.truth_error)


def test_without_timing_a_reference_is_made_once_for_a_prompt_and_seed(
    comparison: Comparison, tmp_path: Path, runs: list[tuple[str, int]]
) -> None:
    planned: list[tuple[int, int]] = []
    watch = Watch(started=lambda calls, steps: planned.append((calls, steps)))
    cases = compare(comparison, tmp_path, watch)
    assert runs == [(STATIC, 6), ("plain", 6), ("plain", 9), ("plain", 5)] * 2 + [("plain", 4)] * 2
    assert planned == [(8, 6), (10, 6)]
    assert all(case.speedup is None and not case.uncached_seconds for case in cases)
    runs.clear()
    assert compare(comparison, tmp_path) == cases
    assert runs == []
    compare(attrs.evolve(comparison, variants=(*comparison.variants, "static:every=3")), tmp_path)
    assert runs == [("static:every=3", 6)] * 2  # references and truths were kept; the grid has one point here


def test_references_that_nobody_knows_are_made_again(
    comparison: Comparison, tmp_path: Path, runs: list[tuple[str, int]]
) -> None:
    """Another guidance was run first, and interrupted before its first case was kept."""
    store = CaseStore(tmp_path).open(comparison.settings)
    made = generate(comparison.model, PROMPTS[0], 3, comparison.arguments)
    store.references.save(PROMPTS[0], 0, "none", comparing._kept_of(made))
    compare(comparison, tmp_path)
    assert runs.count(("plain", 6)) == 2


def test_a_timed_comparison_times_what_was_not(
    comparison: Comparison, tmp_path: Path, runs: list[tuple[str, int]]
) -> None:
    compare(comparison, tmp_path)
    runs.clear()
    timed = attrs.evolve(comparison, quality_only=False)
    cases = compare(timed, tmp_path)
    assert sorted(runs) == sorted([("plain", 2)] + ([(STATIC, 6), ("plain", 5)] + [("plain", 6)] * 2) * 2)
    shown = [case for case in cases if case.variant in timed.labels]
    assert all(len(case.cached_seconds) == 1 for case in shown)
    assert all(row.speedup is not None for row in summarize(timed, cases) if row.variant in timed.labels)


def test_a_comparison_without_the_rival_makes_no_run_for_it(
    comparison: Comparison, tmp_path: Path, runs: list[tuple[str, int]]
) -> None:
    alone = attrs.evolve(comparison, variants=(EVERY_OTHER,), rival=False, truth=None, prompts=PROMPTS[:1])
    cases = compare(alone, tmp_path)
    assert [case.variant for case in cases] == ["none", STATIC]
    assert len(runs) == 2
    header, *_ = table(alone, summarize(alone, cases))
    assert not [name for name in header if "fewer" in name or "to 9" in name or name == "speed-up"]


# the rival


@given(st.integers(2, 300), st.floats(0.02, 0.98))
def test_the_grid_is_close_enough_everywhere(steps: int, share: float) -> None:
    counts = grid(steps)
    assert counts == sorted(set(counts))
    assert (counts[0], counts[-1]) == (1, steps - 1)
    assert all(b <= max(a + 1, 1.3 * a + 1) for a, b in itertools.pairwise(counts))
    case = a_case("static", share * 2 * steps, 40.0, uncached=2 * steps)
    chosen = step_counts(steps, [case])
    if 1 <= share * steps <= steps - 1:
        assert chosen[0] <= share * steps <= chosen[-1]
        assert len(chosen) <= 2
    else:
        assert chosen == []


def a_case(variant: str, evaluations: float, decibels: float, prompt: str = "a", uncached: int = 100) -> Case:
    report = Report(
        runs=1,
        visits={},
        evaluations=evaluations,
        evaluations_uncached=uncached,
        estimated=0,
        compute_seconds=None,
        peak_bytes=0,
        foreign_calls=0,
    )
    return Case(
        prompt=prompt,
        seed=0,
        variant=variant,
        uncached_seconds=(),
        cached_seconds=(),
        evaluations=evaluations,
        evaluations_uncached=uncached,
        scores={"psnr": decibels},
        latents_error=None,
        mask="",
        report=None if variant.startswith("steps=") else report,
    )


PLAIN = [
    a_case("steps=10", 20, 30.0),
    a_case("steps=15", 30, 45.0),
    a_case("steps=10", 20, 20.0, "b"),
    a_case("steps=15", 30, 30.0, "b"),
]


def test_the_rival_is_read_at_equal_evaluations_clip_by_clip() -> None:
    rival = Rival.of([*PLAIN, a_case("static", 24, 50.0)])
    above = rival.below([a_case("static", 24, 40.0), a_case("static", 30, 38.0, "b")])
    assert above is not None
    a, b = 40.0 - 36.0, 38.0 - 30.0  # the line at 24 is 36 dB
    assert above.mean == pytest.approx((a + b) / 2)
    assert (above.low, above.high) == (pytest.approx(a), pytest.approx(b))
    assert above.worst == pytest.approx(38.0 - 30.0)  # worst clip less worst clip, not the worst difference
    assert rival.below([a_case("static", 24, math.inf)]) is None


@pytest.mark.parametrize(("prompt", "evaluations"), [("a", 19), ("a", 31), ("c", 25)])
def test_outside_of_what_was_measured_nothing_is_said(prompt: str, evaluations: float) -> None:
    inside = a_case("static", 25, 40.0)
    assert Rival.of(PLAIN).below([inside, a_case("static", evaluations, 40.0, prompt)]) is None
    assert Rival.of(PLAIN).below([inside]) is not None


def test_the_table_says_how_far_above_and_the_files_hold_it(
    comparison: Comparison, measured: tuple[CaseStore, list[Case]]
) -> None:
    store, cases = measured
    summaries = write_report(store.folder, "mixcache compare", comparison, store)
    assert kept(comparison, store) == cases
    assert [s.variant for s in summaries] == ["none", STATIC, "steps=5", "steps=4"]
    own = {(case.variant, case.prompt): case for case in cases}
    four = "steps=4"
    assert own[STATIC, PROMPTS[0]].evaluations == own[four, PROMPTS[0]].evaluations == 8
    above = summaries[1].above_fewer_steps
    assert above is not None
    gains = [own[STATIC, prompt].psnr - own[four, prompt].psnr for prompt in PROMPTS]
    assert above.mean == pytest.approx(np.mean(gains))
    text = markdown("mixcache compare", comparison, cases, summaries)
    row = next(line for line in text.splitlines() if line.startswith(f"| {STATIC} |"))
    assert f"| {above.mean:+.1f} ±{abs(gains[1] - gains[0]) / 2:.1f} ({above.worst:+.1f}) |" in row
    assert summaries[0].truth_error is not None
    assert f"({summaries[0].truth_error.worst:.4f})" in text
    results = json.loads((store.folder / "results.json").read_text())
    assert results["summaries"][1]["above_fewer_steps"]["low"] == above.low
    assert (store.folder / "speed_quality.png").read_bytes().startswith(b"\x89PNG")
    every = attrs.evolve(comparison, variants=("static:every=1",))
    header, _, computed, *_ = table(every, summarize(every, compare(every, store)))
    assert computed[header.index("above fewer steps dB (worst)")] == "outside"


# metrics


def test_the_models_own_score_is_a_column_of_every_run(comparison: Comparison, tmp_path: Path) -> None:
    def score(frames_FHWC: Any, prompt: str) -> dict[str, float]:
        assert frames_FHWC.shape == (5, 16, 16, 3)
        if "circle" not in prompt:
            raise ValueError("which shape?")
        return {"right": 1.0, "other": 0.25}

    scored = attrs.evolve(comparison.model, score=score)
    asked = attrs.evolve(
        comparison, model=scored, variants=(EVERY_OTHER,), truth=None, rival=False, metrics=metrics_of(score)
    )
    cases = compare(asked, tmp_path)
    assert [case.scores["score"] for case in cases[:2]] == [1.0, 1.0]
    assert all(math.isnan(case.scores["score"]) for case in cases[2:])
    header, uncached, _ = table(asked, summarize(asked, cases))
    assert uncached[header.index("score (worst)")] == "-"  # one prompt could not be judged
    first = attrs.evolve(asked, prompts=PROMPTS[:1])
    header, uncached, _ = table(first, summarize(first, cases[:2]))
    assert uncached[header.index("score (worst)")] == "1.00 (1.00)"
    assert Comparison(model=scored, variants=["static"], prompts=PROMPTS).metrics.keys() == {"psnr", "ssim", "score"}


def test_a_metric_is_checked_where_it_enters() -> None:
    frames = np.zeros((1, 4, 4, 3), np.float32)
    lower = Metric(name="flicker", measure=lambda frames, *_: np.float32(2), higher_is_better=False)
    assert lower(frames, frames, "") == 2.0
    assert (lower.worst([1.0, 3.0]), Metric(name="a", measure=lambda *_: 0).worst([1.0, 3.0])) == (3.0, 1.0)
    with pytest.raises(PluginError, match=r"metric 'odd' must return one number, got 'high'"):
        Metric(name="odd", measure=lambda *_: "high")(frames, frames, "")  # type: ignore[arg-type, return-value]
    with pytest.raises(PluginError, match="metric 'odd' raised ZeroDivisionError"):
        Metric(name="odd", measure=lambda *_: 1 / 0)(frames, frames, "")

"""Comparisons: honest numbers, paired runs, and nothing finished is ever lost."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch

import mixcache
from mixcache import Recipe
from mixcache.bench import (
    Case,
    CaseStore,
    Comparison,
    Generation,
    Model,
    Summary,
    Watch,
    compare,
    comparing,
    generate,
    load,
    markdown,
    psnr,
    relative_error,
    ssim,
    summarize,
    write_gallery,
    write_results,
)
from mixcache.bench.cases import converter
from mixcache.bench.comparison import check_variants
from mixcache.bench.results import table
from mixcache.core.report import Errors, GranularityReport, Report
from mixcache.errors import ConfigurationError

PROMPTS = ("a red circle moving left", "a blue square moving up")
STATIC, NEVER = Recipe.parse("static:every=2"), Recipe.parse("static:every=1")


@pytest.fixture(scope="module")
def model(wan_folder: Path) -> Model:
    return load(str(wan_folder), device="cpu")


@pytest.fixture(scope="module")
def comparison(model: Model) -> Comparison:
    arguments = model.arguments(num_inference_steps=4, num_frames=5, height=16, width=16)
    return Comparison(
        model=model, arguments=arguments, prompts=PROMPTS, seeds=(0,), variants=(STATIC, NEVER), rival=False
    )


def opened(folder: Path, comparison: Comparison, restart: bool = False) -> CaseStore:
    return CaseStore(folder).open(comparison.settings, restart)


@pytest.fixture(scope="module")
def measured(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Case]]:
    """A finished comparison and its cached cases; nobody changes it."""
    folder = tmp_path_factory.mktemp("measured")
    return folder, compare(comparison, opened(folder, comparison))


def cached(cases: list[Case]) -> list[Case]:
    return [case for case in cases if case.report is not None]


def found(comparison: Comparison, cases: list[Case]) -> list[Summary]:
    """The summaries of the variants."""
    uncached, *others = summarize(comparison, cases)
    assert uncached.variant == "none"
    return others


class Calls:
    """Counts the generations that a comparison makes, and can stop one."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.variants: list[str] = []
        self.stop_at = stop_at

    def __call__(self, *given: Any, **options: Any) -> Generation:
        recipe = given[4] if len(given) > 4 else None
        label = "none" if recipe is None else str(recipe)
        self.variants.append(label if given[3]["num_inference_steps"] > 2 else "warm-up")
        if len(self.variants) == self.stop_at:
            raise KeyboardInterrupt
        return generate(*given, **options)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Calls]:
    def watch(stop_at: int | None = None) -> Calls:
        counted = Calls(stop_at)
        monkeypatch.setattr(comparing, "generate", counted)
        return counted

    return watch


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "cases.jsonl").read_text().splitlines()]


# numbers


def test_quality_measures_are_their_formulas() -> None:
    rng = np.random.default_rng(0)
    a = rng.random((3, 16, 20, 3), dtype=np.float32)
    b = np.clip(a + rng.normal(0, 0.1, a.shape).astype(np.float32), 0, 1)
    assert psnr(a, b) == pytest.approx(-10 * math.log10(np.mean((a.astype(float) - b) ** 2)), abs=1e-6)
    assert psnr(a, a) == math.inf
    assert ssim(a, a) == 1
    assert 0 < ssim(a, b) < 1
    assert math.isnan(ssim(a[:, :2], b[:, :2]))
    assert math.isnan(psnr(a, np.full_like(a, np.nan)))
    x, y = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0])
    assert relative_error(x, y) == pytest.approx(1 / 5)


def test_a_case_holds_what_an_independent_computation_finds(
    comparison: Comparison, measured: tuple[Path, list[Case]]
) -> None:
    folder, _ = measured
    pipeline = comparison.model.pipeline

    def clip(prompt: str, output_type: str) -> Any:
        generator = torch.Generator().manual_seed(0)
        return pipeline(prompt=prompt, generator=generator, output_type=output_type, **comparison.arguments).frames

    for line in lines(folder):
        if line["variant"] == "none":
            assert (line["scores"], line["latents_error"], line["mask"]) == ({"psnr": "inf", "ssim": 1.0}, 0.0, "1111")
            assert (line["evaluations"], line["evaluations_uncached"], line["report"]) == (8, 8, None)
            continue
        a, x = clip(line["prompt"], "np")[0], clip(line["prompt"], "latent")
        with mixcache.enable(pipeline, line["variant"]) as session:
            b = clip(line["prompt"], "np")[0]
            report = session.report()
            y = clip(line["prompt"], "latent")
        assert line["report"]["evaluations"] == line["evaluations"] == report.evaluations
        assert line["report"]["evaluations_uncached"] == line["evaluations_uncached"] == 8
        assert line["report"]["peak_bytes"] == report.peak_bytes
        if line["variant"] == "static:every=1":
            assert (line["scores"], line["latents_error"], line["mask"]) == ({"psnr": "inf", "ssim": 1.0}, 0.0, "1111")
        else:
            mse = np.mean((a.astype(np.float64) - b) ** 2)
            assert line["scores"]["psnr"] == pytest.approx(10 * math.log10(1 / mse), abs=1e-4)
            assert line["latents_error"] == pytest.approx(float((x - y).norm() / x.norm()), rel=1e-5)
            assert line["mask"] == "1101"
            assert line["report"]["evaluations"] == 6


def test_summaries_are_over_the_cases(comparison: Comparison, measured: tuple[Path, list[Case]]) -> None:
    folder, cases = measured
    static, never = found(comparison, cases)
    mine = [line for line in lines(folder) if line["variant"] == str(STATIC)]
    assert len(mine) == static.cases == 2
    assert static.speedup == statistics.median(line["uncached_seconds"][0] / line["cached_seconds"][0] for line in mine)
    assert static.ideal_speedup == pytest.approx(8 / 6)
    assert static.psnr.mean == pytest.approx(np.mean([line["scores"]["psnr"] for line in mine]))
    assert static.psnr.worst == min(line["scores"]["psnr"] for line in mine)
    assert static.scores["ssim"].worst == min(line["scores"]["ssim"] for line in mine)
    assert static.latents_error is not None
    assert static.latents_error.worst == max(line["latents_error"] for line in mine)
    assert (never.ideal_speedup, never.psnr.mean, never.psnr.worst) == (1, math.inf, math.inf)


def test_results_are_written_for_people_and_for_programs(
    comparison: Comparison, measured: tuple[Path, list[Case]], tmp_path: Path
) -> None:
    _, cases = measured
    summaries = summarize(comparison, cases)
    _, static_row, never_row = summaries
    write_results(tmp_path, "mixcache compare --all", comparison, cases, summaries)
    text = (tmp_path / "results.md").read_text()
    assert text == markdown("mixcache compare --all", comparison, cases, summaries)
    assert text.splitlines()[0] == "`mixcache compare --all`"
    static = next(line for line in text.splitlines() if line.startswith(f"| {STATIC} |"))
    assert f"| {static_row.speedup:.3f}x | 1.333x |" in static
    assert "| 6 of 8 |" in static
    assert table(comparison, summaries)[3][5] == "inf (inf)"
    mean, half = static_row.psnr.mean, (static_row.psnr.high - static_row.psnr.low) / 2
    assert f"| {mean:.1f} ±{half:.1f} ({static_row.psnr.worst:.1f}) |" in static
    assert never_row.psnr.low is None

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    everything = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    assert everything["settings"]["environment"]["torch"] == torch.__version__
    assert everything["settings"]["call"] == dict(comparison.arguments)
    assert everything["prompts"] == list(PROMPTS)
    assert [converter.structure(case, Case) for case in everything["cases"]] == cases
    assert everything["summaries"][2]["scores"]["psnr"] == {"mean": "inf", "low": None, "high": None, "worst": "inf"}
    assert everything["summaries"][1]["scores"]["psnr"]["low"] == static_row.psnr.low


def test_a_case_survives_json_whatever_its_numbers_are(measured: tuple[Path, list[Case]]) -> None:
    visit = GranularityReport(
        computed=1, reused=2, reasons={"why": 3}, predicted=Errors(count=1, total=math.inf, worst=math.inf, at="x")
    )
    report = attrs.evolve(cached(measured[1])[0].report, visits={"step": visit}, notes=("a", "b"))
    for value in (math.inf, -math.inf, 0.1):
        case = attrs.evolve(measured[1][0], scores={"psnr": value}, latents_error=None, report=report)
        text = json.dumps(converter.unstructure(case), allow_nan=False)
        assert converter.structure(json.loads(text), Case) == case
    lost = attrs.evolve(measured[1][0], scores={"ssim": math.nan}, latents_error=math.nan)
    again = converter.structure(json.loads(json.dumps(converter.unstructure(lost), allow_nan=False)), Case)
    assert math.isnan(again.scores["ssim"])
    assert again.latents_error is not None
    assert math.isnan(again.latents_error)


# pairs


def test_every_case_is_a_pair_and_the_order_alternates(
    comparison: Comparison, tmp_path: Path, calls: Callable[..., Calls]
) -> None:
    counted = calls()
    compare(comparison, opened(tmp_path, comparison))
    static, never = str(STATIC), str(NEVER)
    assert counted.variants == ["warm-up", "none", static, never, "none", static, "none", "none", never]


def test_repeats_are_alternating_pairs_and_their_median_counts(
    comparison: Comparison, tmp_path: Path, calls: Callable[..., Calls]
) -> None:
    counted = calls()
    comparison = attrs.evolve(comparison, repeats=3, prompts=PROMPTS[:1], variants=(STATIC,))
    _, case = compare(comparison, opened(tmp_path, comparison))
    static = str(STATIC)
    assert counted.variants == ["warm-up", "none", static, static, "none", "none", static]
    assert len(case.uncached_seconds) == len(case.cached_seconds) == 3
    ratios = sorted(u / c for u, c in zip(case.uncached_seconds, case.cached_seconds))
    assert case.speedup == ratios[1]


def test_a_variant_that_does_not_fit_the_model_costs_no_run_of_the_others(
    comparison: Comparison, tmp_path: Path, calls: Callable[..., Calls]
) -> None:
    made = calls()
    unfit = attrs.evolve(comparison, variants=(STATIC, Recipe.parse("dbcache:first_blocks=50")))
    with pytest.raises(ConfigurationError, match=r"^--policy 'dbcache:first_blocks=50': .*50"):
        compare(unfit, opened(tmp_path, unfit))
    assert made.variants == []
    assert "forward" not in vars(comparison.model.pipeline.transformer)


def test_the_watch_sees_every_call_and_step(comparison: Comparison, tmp_path: Path) -> None:
    seen: dict[str, int] = {"step": 0, "call": 0, "case": 0}
    planned: list[tuple[int, int]] = []

    def count(what: str) -> Callable[..., None]:
        def more(*_: Any) -> None:
            seen[what] += 1

        return more

    watch = Watch(
        started=lambda calls, steps: planned.append((calls, steps)),
        step=count("step"),
        call=count("call"),
        case=count("case"),
    )
    compare(comparison, opened(tmp_path, comparison), watch)
    assert planned == [(8, 4)]
    assert seen == {"step": 32, "call": 8, "case": 6}


# interruptions and resuming


def test_an_interrupted_comparison_goes_on_where_it_stopped(
    comparison: Comparison, tmp_path: Path, calls: Callable[..., Calls], measured: tuple[Path, list[Case]]
) -> None:
    calls(stop_at=7)  # the warm-up, the first prompt's three cases, and the second run of the fourth
    with pytest.raises(KeyboardInterrupt, match=r"3 of 6 cases are kept in .*the same command goes on"):
        compare(comparison, opened(tmp_path, comparison))
    kept = (tmp_path / "cases.jsonl").read_text()
    assert len(kept.splitlines()) == 3
    counted = calls()
    cases = compare(comparison, opened(tmp_path, comparison))
    assert (tmp_path / "cases.jsonl").read_text().startswith(kept)
    assert counted.variants == ["warm-up", str(STATIC), "none", "none", "static:every=1"]

    def untimed(case: Case) -> dict[str, Any]:
        fields = attrs.asdict(attrs.evolve(case, uncached_seconds=(), cached_seconds=()))
        return {**fields, "report": fields["report"] and {**fields["report"], "compute_seconds": None}}

    assert [untimed(case) for case in cases] == [untimed(case) for case in measured[1]]
    again = calls()
    assert compare(comparison, opened(tmp_path, comparison)) == cases
    assert again.variants == []


def test_a_torn_last_line_is_measured_again(
    comparison: Comparison, tmp_path: Path, calls: Callable[..., Calls]
) -> None:
    before = compare(comparison, opened(tmp_path, comparison))
    file = tmp_path / "cases.jsonl"
    file.write_bytes(file.read_bytes()[:-30])
    counted = calls()
    assert compare(comparison, opened(tmp_path, comparison)) == before
    assert counted.variants == ["warm-up"]  # it was the uncached run's, whose frames are kept
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-2])[:-30])
    counted = calls()
    after = compare(comparison, opened(tmp_path, comparison))
    assert counted.variants == ["warm-up", str(STATIC), "none", "none", "static:every=1"]
    assert after[:3] == before[:3]
    assert [line["variant"] for line in lines(tmp_path)] == [str(STATIC), "static:every=1", "none"] * 2


def test_a_line_that_is_no_case_is_an_error_with_a_remedy(comparison: Comparison, tmp_path: Path) -> None:
    opened(tmp_path, comparison)
    (tmp_path / "cases.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(ConfigurationError, match=r"line 1 is no case.*--restart"):
        opened(tmp_path, comparison)


def test_other_settings_are_refused_by_name_and_restart_begins_anew(
    comparison: Comparison, tmp_path: Path, calls: Callable[..., Calls]
) -> None:
    compare(comparison, opened(tmp_path, comparison))
    other = attrs.evolve(comparison, arguments={**comparison.arguments, "num_inference_steps": 5}, repeats=2)
    with pytest.raises(ConfigurationError, match=r"num_inference_steps was 4, is 5.*repeats was 1, is 2.*--restart"):
        opened(tmp_path, other)
    assert len(lines(tmp_path)) == 6
    weights = attrs.evolve(comparison, model=attrs.evolve(comparison.model, fingerprint="0123"))
    with pytest.raises(ConfigurationError, match=r"model was \w+, is 0123"):
        opened(tmp_path, weights)
    assert opened(tmp_path, other, restart=True).cases == {}
    counted = calls()
    compare(comparison, opened(tmp_path, comparison, restart=True))
    assert len(counted.variants) == 9


def test_another_policy_joins_the_same_folder(
    comparison: Comparison, tmp_path: Path, calls: Callable[..., Calls]
) -> None:
    compare(attrs.evolve(comparison, variants=(STATIC,)), opened(tmp_path, comparison))
    counted = calls()
    cases = compare(comparison, opened(tmp_path, comparison))
    assert sorted(counted.variants) == ["none"] * 2 + ["static:every=1"] * 2 + ["warm-up"]
    assert [case.variant for case in cases] == ["none", str(STATIC), "static:every=1"] * 2


def test_a_lost_clip_is_made_again(comparison: Comparison, tmp_path: Path, calls: Callable[..., Calls]) -> None:
    compare(comparison, opened(tmp_path, comparison))
    store = opened(tmp_path, comparison)
    path = store.clips.playable(PROMPTS[0], 0, str(STATIC))
    assert path is not None
    path.unlink()
    counted = calls()
    compare(comparison, store)
    assert counted.variants == ["warm-up", "none", str(STATIC)]
    assert path.is_file()


def test_only_the_first_clips_are_kept(comparison: Comparison, measured: tuple[Path, list[Case]]) -> None:
    clips = CaseStore(measured[0]).clips
    frames = clips.load(PROMPTS[0], 0, str(STATIC))
    made = generate(comparison.model, PROMPTS[0], 0, comparison.arguments, STATIC).frames_FHWC
    assert frames is not None
    assert np.array_equal(frames, np.rint(made * 255).astype(np.uint8))
    assert clips.load(PROMPTS[1], 0, str(STATIC)) is None


@pytest.mark.parametrize(
    ("specs", "says"),
    [
        ([], "at least one"),
        (["none"], "compared with"),
        ([None], "compared with"),
        (["static", " static "], "given twice"),
        (["static", Recipe.parse("static")], "given twice"),
        (["static @ audit=true"], "give --audit"),
        (["easycash"], "Did you mean 'easycache'"),
    ],
)
def test_recipes_that_cannot_be_compared(comparison: Comparison, specs: list[Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        check_variants(specs)
    with pytest.raises(ConfigurationError, match=says):
        attrs.evolve(comparison, variants=specs)


def test_a_comparison_takes_text_and_the_models_own_prompts_and_arguments(model: Model, tmp_path: Path) -> None:
    """The Python API in as few words as it needs; a folder will do for the store."""
    arguments = model.arguments(num_inference_steps=3, num_frames=5, height=16, width=16)
    own = attrs.evolve(model, held_out=tuple(f"prompt {i}" for i in range(9)), defaults=arguments)
    comparison = Comparison(model=own, variants=["static:every=2"], rival=False)
    assert comparison.prompts == own.held_out[:8]
    assert comparison.seeds == (0,)
    assert comparison.arguments == arguments
    comparison = attrs.evolve(comparison, prompts=PROMPTS[:1])
    cases = compare(comparison, tmp_path)
    assert [case.key for case in cases] == [(PROMPTS[0], 0, "none"), (PROMPTS[0], 0, str(STATIC))]
    assert compare(comparison, str(tmp_path)) == cases
    with pytest.raises(ConfigurationError, match="comes with no prompts; give --prompts"):
        Comparison(model=model, variants=["static"])


def test_a_report_without_evaluations_divides_nothing() -> None:
    nothing = Report(
        runs=0,
        visits={},
        evaluations=0,
        evaluations_uncached=0,
        estimated=0,
        compute_seconds=None,
        peak_bytes=0,
        foreign_calls=0,
    )
    assert nothing.ideal_speedup == 1


def test_an_audited_comparison_keeps_the_ledger_and_draws_it(comparison: Comparison, tmp_path: Path) -> None:
    easy = Recipe.parse("easycache:threshold=9,first_steps=2")
    audited = attrs.evolve(comparison, variants=(easy, STATIC), prompts=PROMPTS[:1], audit=True)
    cases = compare(audited, opened(tmp_path, audited))
    own = cached(cases)
    assert len(own) == 2
    for case in own:
        assert case.audit is not None
        steps = {reuse.step for reuse in case.audit.reuses}
        assert steps == {step for step, made in enumerate(case.mask) if made == "0"} != set()
        assert all(reuse.true > 0 for reuse in case.audit.reuses)
        assert case.audit.kind == "estimate"
        assert case.audit.bound >= case.latents_error
    assert any(reuse.predicted for reuse in own[0].audit.reuses)
    assert list(opened(tmp_path, audited).cases.values()) == [*own, cases[0]]
    summaries = summarize(audited, cases)
    text = markdown("mixcache compare --audit", audited, cases, summaries)
    assert "| audited | reuses | predicted error, mean | true error, mean |" in text
    write_gallery(tmp_path, "mixcache compare --audit", audited, opened(tmp_path, audited), cases, summaries)
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG")
    assert "Predicted against true error" in (tmp_path / "index.html").read_text()
    plain = attrs.evolve(audited, audit=False)
    with pytest.raises(ConfigurationError, match="audit"):
        opened(tmp_path, plain)
    unpredicted = [attrs.evolve(case, audit=None) for case in cases]
    write_gallery(tmp_path, "mixcache compare", plain, opened(tmp_path, audited), unpredicted, summaries)
    assert not (tmp_path / "errors.png").exists()
    assert "Predicted against" not in (tmp_path / "index.html").read_text()

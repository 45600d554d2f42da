"""Prices: equal to a direct loop over the recorded tensors, to the solver's own result, and to brute force."""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve, frozen
from torch import Tensor

from mixcache import Entry, catalogue, enable, study
from mixcache.bench import generate, load
from mixcache.bench.loading import Model
from mixcache.core.points import NoiseLevel
from mixcache.errors import ConfigurationError
from mixcache.study import Pricing, Recording
from mixcache.study.pricing import as_masks
from mixcache.study.recorder import Recorder
from mixcache.study.recording import gram
from mixcache.study.searching import optimal, pricings
from tests.helpers import recorded_calls
from tests.zoo.folder import FRAMES, SIZE
from tests.zoo.tiny import Tiny

STEPS = 9
GUIDANCE = 4.0
PROMPT = "a red circle moving left"
PAIRS = (("residual", "hold"), ("noise", "linear"), ("noise", "taylor:order=2"), ("output", "taylor:order=2"))
BASES = ("residual", "output", "noise", "clean")
FORECASTS = ("hold", "linear", "linear:abscissa=sigma", "taylor:order=2", "adams:order=2")
MASKS = ("111111111", "110110101", "101010101", "110000001", "100100100", "111010010")


@pytest.fixture(scope="module")
def model(wan_folder: Path) -> Any:
    return load(str(wan_folder), device="cpu")


@pytest.fixture(scope="module")
def call(model: Any) -> dict[str, Any]:
    size = {"num_frames": FRAMES, "height": SIZE, "width": SIZE}
    return dict(model.arguments(num_inference_steps=STEPS, guidance_scale=GUIDANCE, **size))


@frozen
class Run:
    """A recording, and what the run's tensors were: seen from outside, in float64."""

    recording: Recording
    anchors: list[Tensor]
    outputs: list[Tensor]
    solver: Any

    def finished(self, outputs: list[Tensor]) -> Tensor:
        """Where the noise scheduler goes from the first latent, if it is given these outputs."""
        solver = type(self.solver).from_config(self.solver.config)
        solver.set_timesteps(STEPS)
        latent = self.anchors[0]
        for output, time in zip(outputs, solver.timesteps):
            latent = solver.step(output, time, latent, return_dict=False)[0]
        return latent


@pytest.fixture(scope="module")
def run(model: Any, call: dict[str, Any]) -> Run:
    with recorded_calls(model.pipeline.transformer) as calls:
        recording = study.record(model, PROMPT, 3, call)
    cond, uncond = ([output.double() for _, output in calls[branch::2]] for branch in (0, 1))
    guided = [u + GUIDANCE * (c - u) for c, u in zip(cond, uncond, strict=True)]
    return Run(recording, [told["hidden_states"].double() for told, _ in calls[::2]], guided, model.pipeline.scheduler)


def rebuilt(run: Run, mask: str, basis: str, forecast: str) -> list[Tensor | None]:
    """The outputs in open loop, evaluation by evaluation, by the plugins' own code."""
    change, forecaster = catalogue.build("basis", basis), catalogue.build("forecaster", forecast)
    history: list[Entry] = []
    given: list[Tensor | None] = []
    for step, character in enumerate(mask):
        point, anchor = run.recording.point(step), (run.anchors[step],)
        if character == "1":
            z = change.encode((run.outputs[step],), anchor, point)
            history.append(Entry(z=z, point=point))
            given.append(run.outputs[step])
        else:
            found = change.decode(forecaster.forecast(history, point, {}), anchor, point)
            given.append(None if found is None else found[0])
    return given


def test_a_recording_is_of_the_run(run: Run, model: Any, call: dict[str, Any]) -> None:
    recording = run.recording
    assert recording.steps == STEPS
    assert recording.guidance == pytest.approx(np.tile([GUIDANCE, 1 - GUIDANCE], (STEPS, 1)), rel=1e-4)
    assert [level.sigma for level in recording.levels if level] == pytest.approx(run.solver.sigmas[:-1].tolist())
    final = generate(model, PROMPT, 3, call).latents
    assert final is not None
    assert recording.scale == pytest.approx(float(final.norm()), rel=1e-6)
    anchors = gram(run.anchors)
    assert recording.gram[-STEPS:, -STEPS:] == pytest.approx(anchors, rel=1e-12)


@pytest.mark.parametrize(("basis", "forecast"), product(BASES, FORECASTS))
def test_the_price_of_every_reuse_is_that_of_a_direct_loop(run: Run, basis: str, forecast: str) -> None:
    prices = Pricing(run.recording, basis, forecast).errors(MASKS)
    for mask, found in zip(MASKS, prices, strict=True):
        given = rebuilt(run, mask, basis, forecast)
        wanted = [float((a - b).norm() / b.norm()) for a, b in zip(given, run.outputs) if a is not None]
        assert None not in given
        assert found == pytest.approx(wanted, rel=1e-6, abs=1e-6)
        assert (found > 1e-4).sum() == mask.count("0")


@pytest.mark.parametrize(("basis", "forecast"), PAIRS)
def test_the_final_deviation_is_where_the_noise_scheduler_goes_in_open_loop(
    run: Run, basis: str, forecast: str
) -> None:
    """The real noise scheduler (UniPC) is given the reused outputs; errors add up as vectors."""
    final = run.finished(run.outputs)
    found = Pricing(run.recording, basis, forecast).deviations(MASKS, "solver", "vector")
    for mask, price in zip(MASKS, found, strict=True):
        given = [output for output in rebuilt(run, mask, basis, forecast) if output is not None]
        wanted = float((run.finished(given) - final).norm() / final.norm())
        assert price == pytest.approx(wanted, rel=1e-3, abs=1e-6)


def test_the_ways_of_adding_up_are_what_they_say(run: Run) -> None:
    pricing = Pricing(run.recording, "noise", "linear")
    weights = np.linspace(0.1, 1.0, STEPS)
    parts = pricing.errors(MASKS) * weights  # the influence of a relative error
    assert pricing.deviations(MASKS, weights, "sum") == pytest.approx(parts.sum(axis=1), rel=1e-6)
    assert pricing.deviations(MASKS, weights, "rss") == pytest.approx(np.sqrt((parts**2).sum(axis=1)), rel=1e-6)
    assert pricing.deviations(MASKS, "even", "sum") == pytest.approx(pricing.errors(MASKS).sum(axis=1), rel=1e-6)
    alone = "111111011"
    single = [pricing.deviations(alone, weights, total)[0] for total in ("vector", "rss", "sum")]
    assert single == pytest.approx([single[0]] * 3, rel=1e-6)


def test_a_reuse_at_the_end_deviates_by_its_price(run: Run, model: Any, call: dict[str, Any]) -> None:
    """Nothing comes after it, so that open and closed loop are one."""
    mask = "1" * (STEPS - 1) + "0"
    recipe = f"schedule:mask={mask} @ basis=noise forecast=linear"
    (checked,) = study.check(model, [recipe], [PROMPT], [3], arguments=call)
    assert checked.trials[0].mask == mask
    assert study.price(run.recording, mask, weights="solver", total="vector")[0] == pytest.approx(
        checked.deviation, rel=1e-3
    )


def test_a_recording_is_saved_and_read(run: Run, tmp_path: Path) -> None:
    run.recording.save(tmp_path / "run.npz")
    again = Recording.load(tmp_path / "run.npz")
    assert np.array_equal(study.price(again, MASKS), study.price(run.recording, MASKS))
    assert (again.prompt, again.seed, again.levels) == (PROMPT, 3, run.recording.levels)
    (tmp_path / "other.npz").write_bytes(b"no archive")
    with pytest.raises(ConfigurationError, match=r"cannot read the recording.*record it again"):
        Recording.load(tmp_path / "other.npz")


def test_a_run_without_guidance_has_one_branch(model: Any, call: dict[str, Any]) -> None:
    unguided = {**call, "guidance_scale": 1.0}
    assert study.record(model, PROMPT, 3, unguided).guidance.shape == (STEPS, 1)


@pytest.mark.filterwarnings("ignore::mixcache.NothingReusedWarning")
def test_every_kind_of_pipeline_can_be_priced(random_tiny: Tiny) -> None:
    """Doubled batches, embedded guidance, v-prediction, packed tokens: a reuse at the end deviates by its price."""
    recorder = Recorder(Model(name="tiny", pipeline=random_tiny.pipe))
    with recorder.watching(), enable(random_tiny.pipe, recorder.recipe) as session:
        plain = random_tiny.run(4)
        recording = recorder.recording(session.records, plain, session.report().notes, "", 1)
    with enable(random_tiny.pipe, "schedule:mask=1110 @ basis=noise forecast=linear"):
        cached = random_tiny.run(4)
    wanted = float((cached - plain).norm() / plain.norm())
    rescaled = "Qwen" in type(random_tiny.pipe).__name__  # guidance that keeps the norm of the conditional prediction
    assert study.price(recording, "1110", weights="solver", total="vector")[0] == pytest.approx(
        wanted, rel=0.05 if rescaled else 2e-3
    )
    assert not any("mixcache" in name for name in vars(random_tiny.pipe.scheduler))


# without a model: runs of random vectors


def made(seed: int = 0, steps: int = 10, components: tuple[str, ...] | None = None) -> Recording:
    """A run of one branch, whose outputs change slowly."""
    draw = torch.Generator().manual_seed(seed)
    waves = torch.randn(4, 32, generator=draw, dtype=torch.float64)
    outputs = [sum(waves[k] * np.cos(0.2 * k * t**1.3) for k in range(4)) for t in range(steps)]
    outputs = [one + 0.02 * torch.randn(32, generator=draw, dtype=torch.float64) for one in outputs]
    sigmas = np.linspace(0.97, 0.08, steps)
    anchors = [waves[0] + float(s) * waves[1] for s in sigmas]
    return Recording(
        gram=gram([*outputs, *anchors]),
        guidance=np.ones((steps, 1)),
        solver=np.full(steps, -1.0 / steps),
        scale=float(anchors[-1].norm()),
        levels=tuple(NoiseLevel.flow(float(s)) for s in sigmas),
        components=components or ("transformer",) * steps,
        dtype="float32",
        model="made",
        prompt=str(seed),
        seed=seed,
    )


def every_mask(steps: int, evaluations: int) -> list[str]:
    chosen = combinations(range(1, steps), evaluations - 1)
    return ["1" + "".join("1" if t in c else "0" for t in range(1, steps)) for c in map(set, chosen)]


@pytest.mark.parametrize("evaluations", [1, 2, 4, 7, 10])
@pytest.mark.parametrize(("basis", "forecast"), PAIRS)
def test_dynamic_programming_finds_what_brute_force_finds(evaluations: int, basis: str, forecast: str) -> None:
    many = pricings([made(0), made(1)], basis, forecast)
    masks = every_mask(10, evaluations)
    values = np.mean([one.deviations(masks, total="rss") ** 2 for one in many], axis=0)
    best = optimal(many, evaluations)
    assert best.sum() == evaluations
    value = np.mean([one.deviations(best, total="rss") ** 2 for one in many])
    assert value == pytest.approx(values.min(), rel=1e-9)


def test_steps_that_are_always_computed_are(run: Run) -> None:
    found = study.search([made(0), made(1)], 6, first_steps=3, last_steps=2)
    assert all(one.mask.startswith("111") and one.mask.endswith("11") and one.mask.count("1") == 6 for one in found)
    allowed = [mask for mask in every_mask(10, 6) if mask.startswith("111") and mask.endswith("11")]
    assert found[0].mask in allowed
    with pytest.raises(ConfigurationError, match=r"`evaluations` must be from 5 .* to 10, got 4"):
        study.search(made(0), 4, first_steps=3, last_steps=2)


@pytest.mark.parametrize("over", ["mean", "worst"])
def test_the_search_is_best_first_and_no_exchange_is_better(over: Any) -> None:
    runs = [made(0), made(1), made(2)]
    found = study.search(runs, 5, over=over, starts=4)
    values = study.price(runs, every_mask(10, 5), over=over)
    assert [one.price for one in found] == sorted(one.price for one in found)
    assert study.price(runs, [one.mask for one in found], over=over) == pytest.approx([one.price for one in found])
    assert found[0].price == pytest.approx(values.min(), rel=1e-9)
    assert found[0].recipe == f"schedule:mask={found[0].mask} @ basis=noise forecast=linear"


def test_history_does_not_cross_from_one_expert_to_the_next() -> None:
    experts = made(0, components=("transformer",) * 5 + ("transformer_2",) * 5)
    pricing, joint = Pricing(experts, "noise", "linear"), Pricing(made(0), "noise", "linear")
    first, second = pricing.errors(["1110011000", "1110001000"])
    assert np.isfinite(first).all()
    assert first[:5] == pytest.approx(joint.errors("1110011000")[0][:5])
    assert np.isinf(second[5])  # the second expert has computed nothing yet
    short = Pricing(experts, "noise", "hold").errors("1110010000")[0]  # the line through one point
    assert pricing.errors("1110010000")[0][5:] == pytest.approx(short[5:])


def test_where_nothing_can_be_rebuilt_a_reuse_has_no_price() -> None:
    """At sigma = 1 the noise basis is singular: the loop computes there."""
    plain = made(0)
    levels = (plain.levels[0], NoiseLevel.flow(1.0), *plain.levels[2:])
    noisy = evolve(plain, levels=levels)
    assert np.isinf(study.price(noisy, "1011111111"))
    assert np.isfinite(study.price(noisy, "1011111111", basis="residual"))
    assert optimal(pricings(noisy, "noise", "linear"), 4)[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forecast": "none"}, "not linear"),
        ({"forecast": "taylor:order=4"}, "weighs 5 stored evaluations"),
        ({"masks": "0111111111"}, "begin with a computed evaluation"),
        ({"masks": ["11"]}, "10 characters"),
        ({"weights": "euler"}, "'solver', 'even' or one number each"),
        ({"weights": [1.0, np.nan]}, "finite numbers"),
        ({"total": "max"}, "'vector', 'rss' or 'sum'"),
        ({"over": "median"}, "'mean' or 'worst'"),
        ({"recordings": []}, "got none"),
        ({"recordings": [made(0), made(0, steps=9)]}, "got 9, 10"),
        ({"recordings": evolve(made(0), solver=None), "weights": "solver"}, "not affine"),
    ],
)
def test_what_cannot_be_priced_is_refused(change: dict[str, Any], message: str) -> None:
    given = {"recordings": made(0), "masks": "1" + "0" * 9, **change}
    with pytest.raises(ConfigurationError, match=message):
        study.price(**given)


def test_masks_are_text_or_arrays() -> None:
    assert np.array_equal(as_masks("101", 3), as_masks(np.array([[1, 0, 1]]), 3))
    assert study.price(made(0), "1010101010") == study.price(made(0), as_masks("1010101010", 10))

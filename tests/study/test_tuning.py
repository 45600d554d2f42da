"""`tune`: targets, the opening, a search that is resumed, held-out prompts, and a file for one model alone."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from attrs import evolve, field, frozen
from hypothesis import given
from hypothesis import strategies as st

import mixcache
from mixcache import ConfigurationError, Point, Policy, Reading, Recipe, TunedElsewhereWarning, Vote, ge, tunable
from mixcache.bench import Metric, Model, Watch, load
from mixcache.host.tuned import Conditions, Identity, Tuned
from mixcache.study import Tuning, tune
from mixcache.study.space import Seen, Space, opening
from mixcache.study.targets import Clip, Measured, Target

TUNING = ("a red circle moving left", "a blue square moving up")
HELD_OUT = ("a green triangle moving down", "a white square moving right")
METRICS = {
    "psnr": Metric(name="psnr", measure=lambda a, b, p: 0.0, unit="dB", digits=1),
    "blur": Metric(name="blur", measure=lambda a, b, p: 0.0, higher_is_better=False),
}


@frozen(kw_only=True)
class Every(Policy):
    """Compute every so many evaluations."""

    often: int = field(default=2, validator=ge(1, whole=True), metadata=tunable(2, 4))

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        return Vote.compute() if point.step % self.often == 0 else Vote.reuse()


@pytest.fixture(scope="module")
def every() -> Iterator[None]:
    mixcache.register(Every)
    yield
    mixcache.unregister("policy", "every")


@pytest.fixture(scope="module")
def model(wan_folder: Path) -> Model:
    """Of noise, small and quick."""
    small = {"num_inference_steps": 6, "num_frames": 5, "height": 16, "width": 16}
    return evolve(load(str(wan_folder), device="cpu"), tuning=TUNING, held_out=HELD_OUT, defaults=small)


def searched(model: Model, folder: Path, target: str = "psnr>=20", **choices: Any) -> Tuning:
    return tune(model, target, **{"trials": 6, "policies": ["every"], "folder": folder, **choices})


class Stop:
    """Interrupts after so many runs, and counts the denoising steps."""

    def __init__(self, after: float = math.inf) -> None:
        self.steps = self.calls = 0
        self.after = after

    def call(self) -> None:
        self.calls += 1
        if self.calls >= self.after:
            raise KeyboardInterrupt

    def step(self) -> None:
        self.steps += 1

    @property
    def watch(self) -> Watch:
        return Watch(call=self.call, step=self.step)


@frozen
class Whole:
    """A search that nobody interrupted: its folder, what it found, and the denoising steps that it took."""

    folder: Path
    found: Tuning
    steps: int


@pytest.fixture(scope="module")
def whole(model: Model, every: None, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder, counted = tmp_path_factory.mktemp("whole"), Stop()
    return Whole(folder, searched(model, folder, watch=counted.watch), counted.steps)


def recipes(folder: Path) -> list[str]:
    """What every finished trial of the only search in a folder was, in order."""
    import optuna

    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "search.log")))
    (name,) = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    return [one.user_attrs["recipe"] for one in trials if one.state.name in ("COMPLETE", "PRUNED")]


# targets


def measured(value: float, made: float = 10) -> Measured:
    clip = Clip(prompt="a", seed=0, value=value, evaluations=made, evaluations_uncached=20)
    return Measured((clip, clip))


@pytest.mark.parametrize(
    ("text", "again"), [("psnr>=40", "psnr>=40"), (" blur <= 0.5 ", "blur<=0.5"), ("speedup>=2.5",) * 2]
)
def test_a_target_is_read_and_written(text: str, again: str) -> None:
    assert str(Target.parse(text, METRICS)) == again


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("psnr", "must be a measure and a bound, such as 'psnr>=40'"),
        ("psnr>=", "must be a measure and a bound"),
        ("psnr>=--3", "must be a measure and a bound"),
        ("psnr<=40", r"of psnr more is better, so write psnr>=40"),
        ("blur>=0.5", r"of blur less is better, so write blur<=0\.5"),
        ("pnsr>=40", r"unknown target 'pnsr'.*Did you mean 'psnr'"),
        ("speedup>=1", r"a speed-up must be above 1"),
        ("speedup<=2", r"of speedup more is better"),
    ],
)
def test_what_is_no_target_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Target.parse(text, METRICS)


numbers = st.tuples(st.floats(0, 80), st.integers(1, 20))


@given(numbers, numbers, st.sampled_from(["psnr>=40", "blur<=40", "speedup>=2"]))
def test_what_meets_the_target_is_above_what_misses_it_and_gains_decide(
    one: tuple[float, int], other: tuple[float, int], text: str
) -> None:
    target = Target.parse(text, METRICS)

    def met(value: float, made: int) -> bool:
        return 20 / made >= 2 if target.speed else value <= 40 if text == "blur<=40" else value >= 40

    def gain(value: float, made: int) -> float:
        return value if target.speed else -made

    a, b = (target.value(measured(*pair)) for pair in (one, other))
    if met(*one) and met(*other):
        assert (a > b) == (gain(*one) > gain(*other)) or math.isclose(gain(*one), gain(*other))
    elif met(*one) != met(*other):
        assert (a > b) == met(*one)
    assert target.met(measured(*one)) == met(*one)


@pytest.mark.parametrize(("text", "good"), [("psnr>=40", 1), ("blur<=40", -1)])
def test_the_worse_end_of_the_interval_has_to_keep_the_target_or_else_the_mean(text: str, good: int) -> None:
    values = [40 + good * off for off in (-4, 8, 0, 2)]
    clips = Measured(tuple(evolve(measured(0).clips[0], value=value) for value in values))
    assert clips.mean == 40 + good * 1.5
    draws = np.random.default_rng(1).choice(values, size=(20_000, 4)).mean(axis=1)
    worse = np.quantile(draws, 0.025 if good > 0 else 0.975)
    for off in (-0.3, 0.3):
        bound = f"{text[:6]}{worse + off * good:.3f}"
        assert Target.parse(bound, METRICS).met(clips) == (off < 0)
        assert Target.parse(bound, METRICS, sure=False).met(clips)
    assert Target.parse(text, METRICS, sure=False).met(clips)
    assert not Target.parse(text, METRICS).met(clips)


# the opening: what needs no guess


def opened(least: list[int], budgets: tuple[int, int]) -> list[Seen]:
    """The trials of an opening where family i meets the target from `least[i]` evaluations on."""
    families: list[tuple[dict[str, Any], str]] = [({"policy": str(i)}, f"{i} evaluations") for i in range(len(least))]
    seen: list[Seen] = []
    while (params := opening(families, budgets, seen)) is not None:
        made = params[f"{params['policy']} evaluations"]
        assert budgets[0] <= made <= budgets[1]
        assert params not in [one.params for one in seen]
        seen.append(Seen(params=params, met=made >= least[int(params["policy"])], cost=float(made)))
    return seen


@given(st.lists(st.integers(2, 60), min_size=1, max_size=4), st.integers(3, 60))
def test_the_opening_finds_the_fewest_evaluations_of_all_families(least: list[int], most: int) -> None:
    seen = opened(least, (2, most))
    good = [one.cost for one in seen if one.met]
    wanted = min((n for n in least if n <= most), default=None)
    if least[0] <= most:  # else nothing is known to be beaten, and guesses have to do
        assert min(cost for cost in good if cost is not None) == wanted
    own = [one for one in seen if one.params["policy"] == "0"]
    assert len(own) <= 2 * math.log2(most) + 2


def test_at_a_speed_every_family_is_tried_once_at_what_it_allows() -> None:
    assert [one.params for one in opened([2, 30, 2], (10, 10))] == [
        {"policy": str(i), f"{i} evaluations": 10} for i in range(3)
    ]


def test_what_another_process_tries_is_not_tried_too() -> None:
    families: list[tuple[dict[str, Any], str]] = [({"policy": "a"}, "n")]
    first = opening(families, (2, 50), [])
    assert first is not None
    assert opening(families, (2, 50), [Seen(params=first, met=None)]) is None


# a search


def test_a_search_finds_the_cheapest_that_meets_the_target(model: Model, whole: Whole) -> None:
    found = whole.found
    tried = {text: [verdict(model, text, prompt) for prompt in TUNING] for text in recipes(whole.folder)}
    good = {text: runs for text, runs in tried.items() if min(psnr for psnr, _ in runs) >= 20}  # of two: the interval
    cheapest = min(sum(made for _, made in runs) for runs in good.values())
    assert sum(made for _, made in tried[found.recipe]) == cheapest
    assert found.recipe in good
    assert found.tuning.mean == pytest.approx(np.mean([psnr for psnr, _ in tried[found.recipe]]))
    held = [verdict(model, found.recipe, prompt) for prompt in HELD_OUT]
    assert found.held_out.mean == pytest.approx(np.mean([psnr for psnr, _ in held]))
    said = "\n".join(found.lines())
    assert f"held out it {'meets' if found.held_out.mean >= 20 else 'misses'} psnr>=20" in said
    assert f"held-out less tuning prompts: {found.held_out.mean - found.tuning.mean:+.1f} dB" in said


def verdict(model: Model, recipe: str, prompt: str) -> tuple[float, float]:
    """PSNR and evaluations of a recipe, from runs of its own."""
    from mixcache.bench import generate, psnr

    plain, made = generate(model, prompt), generate(model, prompt, recipe=recipe)
    assert made.report is not None
    return psnr(plain.frames_FHWC, made.frames_FHWC), made.report.evaluations


def test_a_speed_is_kept_and_the_best_quality_of_it_is_taken(model: Model, every: None, tmp_path: Path) -> None:
    found = searched(model, tmp_path, "speedup>=2")
    assert found.tuning.speedup >= 2
    assert found.held_out.speedup >= 2
    fast = {t: [verdict(model, t, prompt) for prompt in TUNING] for t in recipes(tmp_path)}
    good = [np.mean([v for v, _ in runs]) for runs in fast.values() if sum(made for _, made in runs) <= 12]
    assert found.tuning.mean == pytest.approx(max(good))


def test_a_policys_own_knob_is_tried_within_its_bounds(model: Model, every: None, tmp_path: Path) -> None:
    searched(model, tmp_path, trials=14, confirm=False)
    policies = [Recipe.parse(text).policies[0] for text in recipes(tmp_path)]
    knobs = {policy.often for policy in policies if isinstance(policy, Every)}
    assert knobs
    assert knobs <= {2, 3, 4}
    choices = {text.partition(" @ ")[2] for text in recipes(tmp_path) if text.startswith("every")}
    assert len(choices) > 1, "bases and forecasters vary too"


def test_a_policy_without_a_knob_is_no_choice(model: Model) -> None:
    with pytest.raises(ConfigurationError, match="'window' says of no parameter within which bounds"):
        Space.of(lambda _: None, 6, None, (), ["window"])
    with pytest.raises(ConfigurationError, match="unknown policy 'evry'"):
        Space.of(lambda _: None, 6, None, (), ["evry"])


@pytest.mark.parametrize("bounds", [(2, 1), (1, 1), (0, 1)])
def test_bounds_of_a_knob_must_rise(bounds: tuple[float, float]) -> None:
    with pytest.raises(ConfigurationError, match="must rise, and begin above 0 with `log`"):
        tunable(*bounds, log=True)


def test_held_out_prompts_are_seen_after_the_search_alone(model: Model, every: None, tmp_path: Path) -> None:
    seen: list[str] = []

    def look(frames: Any, reference: Any, prompt: str) -> float:
        seen.append(prompt)
        return -float(np.abs(frames - reference).mean())

    mixcache.register(Metric(name="near", measure=look))
    try:
        searched(model, tmp_path, "near>=-0.2", confirm=False)
        assert set(seen) == set(TUNING)
        before = len(seen)
        searched(model, tmp_path, "near>=-0.2")
        assert set(seen[before:]) == set(HELD_OUT)
    finally:
        mixcache.unregister("metric", "near")


def test_prompts_are_for_tuning_or_held_out(model: Model, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match="a prompt is for tuning or held out, and these are both: a red circle"
    ):
        searched(model, tmp_path, held_out=TUNING[:1])
    with pytest.raises(ConfigurationError, match="comes with no held-out prompts"):
        searched(evolve(model, held_out=()), tmp_path)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("after", [pytest.param(1, marks=SLOW), 5, pytest.param(11, marks=SLOW)])
def test_an_interrupted_search_comes_to_the_same_end_and_repeats_nothing(
    after: int, model: Model, whole: Whole, tmp_path: Path
) -> None:
    first, rest, idle = Stop(after), Stop(), Stop()
    with pytest.raises(KeyboardInterrupt, match=r"the same command goes on from there\.$") as stop:
        searched(model, tmp_path, watch=first.watch)
    assert "kept in" in str(stop.value)
    again, found = searched(model, tmp_path, watch=rest.watch), whole.found
    assert recipes(tmp_path) == recipes(whole.folder)
    assert (again.recipe, again.tuning, again.held_out, again.rival) == (
        found.recipe,
        found.tuning,
        found.held_out,
        found.rival,
    )
    assert first.steps + rest.steps <= whole.steps + 6, "at most the run that was broken off is made again"
    assert searched(model, tmp_path, watch=idle.watch).recipe == found.recipe
    assert idle.steps == 0


def test_another_question_is_another_search_on_the_same_clips(model: Model, every: None, tmp_path: Path) -> None:
    said: list[str] = []
    searched(model, tmp_path, confirm=False, trials=2)
    counted = Stop()
    searched(model, tmp_path, "psnr>=10", confirm=False, trials=1, watch=counted.watch, tell=said.append)
    assert "holds a search with another target: a new one begins" in "\n".join(said)
    assert counted.steps == 6 * len(TUNING), "one recipe on every clip, and no uncached one"
    searched(model, tmp_path, "psnr>=10", confirm=False, trials=1, tell=said.append)
    assert said[-1] == f"goes on after 1 trials in {tmp_path}"


def test_a_target_that_nothing_meets_is_an_error_that_names_the_nearest(
    model: Model, every: None, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=r"none of 4 trials meets ssim>=2; the nearest is .*: ssim "):
        searched(model, tmp_path, "ssim>=2", trials=4)


def test_without_optuna_it_says_what_to_install(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigurationError, match=r"needs optuna: pip install 'mixcache\[tune\]'"):
        searched(model, tmp_path)


def test_a_search_in_a_database(model: Model, every: None, tmp_path: Path) -> None:
    said: list[str] = []
    url = f"sqlite:///{tmp_path / 'tune.db'}"
    for _ in range(2):
        searched(model, tmp_path, storage=url, confirm=False, trials=1, tell=said.append)
    assert said[-1] == f"goes on after 1 trials in {url}"
    assert not (tmp_path / "search.log").exists()
    with pytest.raises(ConfigurationError, match="cannot open the storage 'nosuch://x'"):
        searched(model, tmp_path, storage="nosuch://x")


# the file


@pytest.fixture(scope="module")
def file(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mask, tuned for the model."""
    with mixcache.enable(model.pipeline, "static") as session:
        call(model.pipeline)
    assert session.conditions is not None
    tuned = Tuned(
        target="psnr>=40",
        model="toy",
        tuning="",
        held_out="",
        command="",
        conditions=session.conditions,
        models={"transformer": Identity.of(model.pipeline.transformer)},
    )
    path = tmp_path_factory.mktemp("tuned") / "tuned.toml"
    evolve(Recipe.of("schedule:mask=110101 @ basis=noise forecast=linear"), tuned=tuned).save(path)
    return path


def call(pipeline: Any, **other: Any) -> None:
    usual = {"num_inference_steps": 6, "num_frames": 5, "height": 16, "width": 16, "output_type": "latent"}
    pipeline.set_progress_bar_config(disable=True)
    pipeline(TUNING[0], **{**usual, **other})


def test_the_file_is_enabled_on_the_model_it_was_tuned_for_wherever_it_lies_and_in_any_dtype(
    file: Path, wan_folder: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(wan_folder, tmp_path / "elsewhere")
    for dtype in ("float32", "bfloat16", "float16"):
        pipeline = load(str(tmp_path / "elsewhere"), device="cpu", dtype=dtype).pipeline
        with mixcache.enable(pipeline, file) as session:
            if dtype == "float32":
                call(pipeline)
                assert session.report().evaluations == 8
        assert session.recipe == Recipe.parse("schedule:mask=110101 @ basis=noise forecast=linear")
        assert session.recipe.tuned is not None


def fused(transformer: Any) -> None:
    """As a LoRA of rank 2 is fused: a small change of the attention's projections."""
    draw = torch.Generator().manual_seed(0)
    for name, weight in transformer.named_parameters():
        if "attn" in name and weight.dim() == 2:
            low, high = torch.randn(weight.shape[0], 2, generator=draw), torch.randn(2, weight.shape[1], generator=draw)
            weight.data += 0.05 * weight.std() * low @ high


def adapted(transformer: Any) -> None:
    """As a LoRA is put beside a projection."""
    transformer.blocks[0].attn1.to_q.lora_A = torch.nn.Linear(8, 2)


@pytest.mark.parametrize(
    ("change", "why"),
    [(fused, r"weights that were compared differ"), (adapted, r"parameters, not .* \(a LoRA adds some\)")],
)
def test_another_model_is_refused(change: Callable[[Any], None], why: str, file: Path, wan_folder: Path) -> None:
    pipeline = load(str(wan_folder), device="cpu").pipeline
    change(pipeline.transformer)
    with pytest.raises(
        ConfigurationError, match=rf"tuned for 'toy', and this is another model: .*{why}.*mixcache tune"
    ):
        mixcache.enable(pipeline, file)
    with mixcache.enable(pipeline, str(Recipe.from_toml(file))) as session:  # nothing was left attached; the text runs
        assert session.enabled


def test_other_models_and_components_are_refused(file: Path, model: Model, fresh_wan: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"another model: it has .* parameters, not"):
        mixcache.enable(fresh_wan.pipe, file)
    with pytest.raises(ConfigurationError, match="another model: it is a Linear, not a WanTransformer3DModel"):
        mixcache.enable(torch.nn.Linear(2, 2), file)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"guidance_scale": 2.0}, "guidance 2, not 5"),
        ({"height": 32}, "latents of 4x2x4x2, not 4x2x2x2"),
        ({"shift": 9.0}, "a noise scheduler with flow_shift=9.0, not "),
        (
            {"scheduler": "FlowMatchEulerDiscreteScheduler"},
            "the noise scheduler FlowMatchEulerDiscreteScheduler, not Uni",
        ),
    ],
)
def test_a_run_unlike_those_it_was_measured_in_is_said_aloud(
    other: dict[str, Any], said: str, file: Path, wan_folder: Path
) -> None:
    import diffusers

    pipeline = load(str(wan_folder), device="cpu").pipeline
    if name := other.pop("scheduler", None):
        pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)
    if shift := other.pop("shift", None):
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, flow_shift=shift)
    with mixcache.enable(pipeline, file) as session:
        with pytest.warns(TunedElsewhereWarning, match="not measured for"):
            call(pipeline, **other)
        call(pipeline, **other)  # a second warning would be an error
    (note,) = [note for note in session.report().notes if "tuned for other runs" in note]
    assert said in note


def test_a_mask_of_another_length_is_refused(file: Path, model: Model) -> None:
    with (
        mixcache.enable(model.pipeline, file),
        pytest.raises(ConfigurationError, match="has 6 steps, but the run makes 5"),
    ):
        call(model.pipeline, num_inference_steps=5)


text = st.text(st.characters(exclude_categories=["Cs"]))
plain = st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | text
tuned = st.builds(
    Tuned,
    target=text,
    model=text,
    tuning=text,
    held_out=text,
    command=text,
    conditions=st.builds(
        Conditions,
        evaluations=st.integers(1, 1000),
        latent=st.none() | st.lists(st.integers(1, 99), max_size=4).map(tuple),
        guidance=st.none() | st.floats(allow_nan=False),
        noise_scheduler=st.none() | st.dictionaries(text, plain, max_size=3),
    ),
    models=st.dictionaries(
        text,
        st.builds(
            Identity,
            kind=text,
            parameters=st.integers(0, 2**62),
            weights=st.lists(st.floats(allow_nan=False), max_size=4).map(tuple),
        ),
        max_size=2,
    ),
)


@given(tuned)
def test_what_a_recipe_was_tuned_for_goes_to_the_file_and_back(tmp_path_factory: Any, tuned: Tuned) -> None:
    path = tmp_path_factory.getbasetemp() / "some.toml"
    recipe = evolve(Recipe.parse("static @ basis=noise forecast.step=linear"), tuned=tuned)
    recipe.save(path)
    back = Recipe.from_toml(path)
    assert (back, back.tuned) == (recipe, tuned)
    assert Recipe.parse(str(recipe)) == recipe
    assert "tuned" not in str(recipe)


@pytest.mark.parametrize("table", ["tuned = 3", "[tuned]\ntarget = 'psnr>=40'", "[tuned]\nmodel = [1]"])
def test_a_table_that_tune_did_not_write_is_refused(table: str, tmp_path: Path) -> None:
    (tmp_path / "some.toml").write_text(f"policies = 'static'\n{table}\n")
    with pytest.raises(ConfigurationError, match=r"some\.toml.*\[tuned\] is not what `mixcache tune` writes"):
        Recipe.from_toml(tmp_path / "some.toml")


def test_every_knob_takes_its_bounds() -> None:
    """A knob that its own validator refuses would make every trial with it void."""
    for kind in [*mixcache.catalogue.policies().values(), *mixcache.catalogue.forecasters().values()]:
        for name, one in mixcache.catalogue.parameters(kind).items():
            bounds = one.metadata.get("tuned")
            if bounds is not None and all(a.default is not attrs.NOTHING for a in attrs.fields(kind) if a.init):
                for value in bounds.choices or (bounds.low, bounds.high):
                    assert getattr(kind(**{name: value}), name) == value

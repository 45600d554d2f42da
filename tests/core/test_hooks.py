"""Every hook is called, with what it promises. tests/core/test_structure.py fails for a hook without a test here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import frozen

import mixcache
from mixcache import (
    Anchor,
    Basis,
    Beside,
    Fit,
    Forecaster,
    Granularity,
    ModelAdapter,
    Outcome,
    PipelineFolder,
    Point,
    Policy,
    Reading,
    Recipe,
    RunInfo,
    Scene,
    SideInput,
    Signal,
    Streams,
    Tensors,
    Vote,
    bench,
    catalogue,
    hookimpl,
    study,
)
from tests.helpers import Scripted, follow, reused_steps
from tests.zoo import toy
from tests.zoo.tiny import Tiny


@frozen
class Always(Policy):
    """Reuses whenever it can."""

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        return Vote.reuse()


@frozen
class Plain(Basis):
    """The output."""

    def coefficients(self, point: Point) -> tuple[float, float]:
        return 0.0, 1.0


@frozen
class Twice(Forecaster):
    """Twice the last z."""

    def weights(self, nodes: list[float], target: float) -> list[float]:
        return [2.0]


@frozen
class Half(Anchor):
    """Half of what enters."""

    def make(self, entering: Streams, point: Point, state: Any, beside: Beside) -> Streams:
        return tuple(0.5 * stream for stream in entering)


def never(votes: Any) -> bool:
    """Never reuse."""
    return False


ADAPTER = ModelAdapter(model="Nobody")
FOLDER = PipelineFolder(name="nowhere", path=Path("/nowhere"))


def rows(tensors: Tensors) -> torch.Tensor:
    return torch.full((1,), float(tensors.anchor.shape[0]))


SIGNAL = Signal(name="rows", measure=rows, summary="samples in the batch")


def first_value(scene: Scene) -> torch.Tensor:
    return scene.streams[0].flatten()[:1]


SIDE_INPUT = SideInput(name="first_value", make=first_value, summary="the first number that enters the span")


@frozen
class Counting(study.Calibrator):
    """Runs nothing."""

    name: str = "counting"

    def runs(self, job: Any) -> int:
        return 0

    def measure(self, job: Any, watch: Any) -> Fit:
        return Fit({"count": 3}, "counted to 3")


CALIBRATOR = Counting()
METRIC = bench.Metric(name="brightness", measure=lambda frames, reference, prompt: frames.mean(), summary="mean level")


class Plugin:
    """Uses every hook, and keeps a record of the calls."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []
        self.answer: Vote | None = None

    @hookimpl
    def mixcache_policies(self) -> list[type[Policy]]:
        return [Always]

    @hookimpl
    def mixcache_bases(self) -> list[type[Basis]]:
        return [Plain]

    @hookimpl
    def mixcache_forecasters(self) -> list[type[Forecaster]]:
        return [Twice]

    @hookimpl
    def mixcache_anchors(self) -> list[type[Anchor]]:
        return [Half]

    @hookimpl
    def mixcache_side_inputs(self) -> list[SideInput]:
        return [SIDE_INPUT]

    @hookimpl
    def mixcache_calibrators(self) -> list[Any]:
        return [CALIBRATOR]

    @hookimpl
    def mixcache_recipe(self) -> str:
        return "static:every=7 @ basis=output"

    @hookimpl
    def mixcache_metrics(self) -> list[bench.Metric]:
        return [METRIC]

    @hookimpl
    def mixcache_rules(self) -> dict[str, Any]:
        return {"never": never}

    @hookimpl
    def mixcache_signals(self) -> list[Signal]:
        return [SIGNAL]

    @hookimpl
    def mixcache_models(self) -> list[ModelAdapter | PipelineFolder]:
        return [ADAPTER, FOLDER]

    @hookimpl
    def mixcache_run_started(self, run: RunInfo) -> None:
        self.seen.append(("started", run))

    @hookimpl
    def mixcache_vote(self, point: Point, reading: Reading) -> Vote | None:
        self.seen.append(("vote", (point, dict(reading))))
        return self.answer

    @hookimpl
    def mixcache_observe(self, point: Point, outcome: Outcome) -> None:
        self.seen.append(("observe", (point, outcome)))

    @hookimpl
    def mixcache_run_ended(self, run: RunInfo) -> None:
        self.seen.append(("ended", run))

    def of(self, hook: str) -> list[Any]:
        return [value for name, value in self.seen if name == hook]


@pytest.fixture
def plugin() -> Iterator[Plugin]:
    plugin = mixcache.register(Plugin(), name="tests")
    try:
        yield plugin
    finally:
        catalogue.manager().unregister(plugin)


def run(policies: Any = "always", steps: int = 4, **how: Any) -> tuple[mixcache.Session, list[list[torch.Tensor]]]:
    model, anchors = Scripted(), [torch.full((1, 2), float(i + 1)) for i in range(steps)]
    with mixcache.enable(model, policies, **how) as session:
        return session, follow(session, model, anchors, [[3 * a] for a in anchors])


def test_mixcache_policies(plugin: Plugin) -> None:
    assert catalogue.policies()["always"] is Always
    assert reused_steps(run()[0]) == [1, 2, 3]


def test_mixcache_bases(plugin: Plugin) -> None:
    assert [r[0][0, 0].item() for r in run(basis="plain")[1]] == [3, 3, 3, 3]


def test_mixcache_forecasters(plugin: Plugin) -> None:
    assert [r[0][0, 0].item() for r in run(forecast="twice", basis="output")[1]] == [3, 6, 6, 6]


def test_mixcache_rules(plugin: Plugin) -> None:
    assert reused_steps(run(rule="never")[0]) == []


def test_mixcache_signals(plugin: Plugin) -> None:
    @frozen
    class Reads(Policy):
        """Reads the plugin's signal."""

        signals = ("rows",)

        def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
            return Vote.compute()

    assert [r.reading for r in run(Reads())[0].records] == [{"rows": 1.0}] * 4


def test_mixcache_anchors(plugin: Plugin) -> None:
    """z = 3 a - a / 2, held, around half of what enters now."""
    assert catalogue.anchors()["half"] is Half
    assert [r[0][0, 0].item() for r in run(anchor="half")[1]] == [3, 2.5 + 1, 2.5 + 1.5, 2.5 + 2]


def test_mixcache_side_inputs(plugin: Plugin) -> None:
    """A signal of the same plugin reads what the side input was made of at a span of blocks."""

    @frozen
    class Reads(Policy):
        """Reads the side input."""

        signals = (Signal(name="first", measure=lambda t: t.now("first_value"), reads=("first_value",)),)

        def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
            return Vote.compute()

    model, latents = toy.Toy(), [torch.full((1, 3), value) for value in (1.0, 2.0)]
    with (
        pytest.warns(mixcache.NothingReusedWarning),
        mixcache.enable(model, Reads(at="block"), adapter=toy.ADAPTER) as session,
    ):
        toy.walk(session, model, latents)
    assert [r.reading for r in session.records] == [{"first": 1.0}, {"first": 2.0}]


def test_mixcache_calibrators(plugin: Plugin) -> None:
    assert catalogue.calibrators()["counting"] is CALIBRATOR
    assert study.find_calibrator("counting") is CALIBRATOR


def test_mixcache_metrics(plugin: Plugin, wan_folder: Path) -> None:
    """A comparison measures what the plugin offers, of the uncached run and of every variant."""
    assert catalogue.metrics()["brightness"] is METRIC
    model = bench.load(str(wan_folder), device="cpu")
    tiny = model.arguments(num_inference_steps=3, num_frames=5, height=16, width=16)
    comparison = bench.Comparison(model=model, variants=["static"], prompts=["a cat"], arguments=tiny)
    frames = np.full((1, 2, 2, 3), 0.25, np.float32)
    assert comparison.metrics["brightness"](frames, frames, "a cat") == 0.25


def test_mixcache_recipe(plugin: Plugin, tiny_wan_random: Tiny) -> None:
    """The latest plugin's recipe is what `enable` takes where it is told nothing."""
    with mixcache.enable(tiny_wan_random.pipe) as session:
        assert session.recipe == Recipe.parse("static:every=7 @ basis=output")


def test_mixcache_models(plugin: Plugin) -> None:
    assert catalogue.models()["Nobody"] is ADAPTER
    assert catalogue.pipelines()["nowhere"] is FOLDER


def test_mixcache_run_started_and_mixcache_run_ended(plugin: Plugin, tiny_wan_random: Tiny) -> None:
    """Once a run each: also for a run that fails, and for one that `disable` ends."""

    def fail(*_: Any) -> dict[str, Any]:
        raise ZeroDivisionError

    with mixcache.enable(tiny_wan_random.pipe, "static") as session:
        tiny_wan_random.run(3)
        with pytest.raises(ZeroDivisionError):
            tiny_wan_random.run(4, callback_on_step_end=fail)
        tiny_wan_random.run(5)
        with pytest.raises(ZeroDivisionError):
            tiny_wan_random.run(6, callback_on_step_end=fail)
        assert len(plugin.of("ended")) == 3
        session.disable()
    started = plugin.of("started")
    assert plugin.of("ended") == started
    assert [(info.index, info.num_steps) for info in started] == [(0, 3), (1, 4), (2, 5), (3, 6)]
    assert [name for name, _ in plugin.seen if name in ("started", "ended")] == ["started", "ended"] * 4
    sigmas = [[level.sigma for level in info.levels] for info in started]
    assert [len(row) for row in sigmas] == [3, 4, 5, 6]
    assert all(row == sorted(row, reverse=True) for row in sigmas)


def test_mixcache_vote(plugin: Plugin) -> None:
    """A plugin votes beside the policies; with a veto it decides."""
    session, _ = run("easycache:first_steps=0")
    points = [point for point, _ in plugin.of("vote")]
    assert points == [record.point for record in session.records]
    assert [reading for _, reading in plugin.of("vote")] == [record.reading for record in session.records]
    assert reused_steps(run()[0]) == [1, 2, 3]
    plugin.answer = Vote.compute("I say so", veto=True).signed("tests")
    session, _ = run(rule="any")
    assert reused_steps(session) == []
    assert {record.outcome.reason for record in session.records} == {"tests: I say so"}


def test_mixcache_observe(plugin: Plugin) -> None:
    session, _ = run("static:every=2")
    assert plugin.of("observe") == [(record.point, record.outcome) for record in session.records]
    assert [point.age for point, _ in plugin.of("observe")] == [None, 1, 1, 2]


def test_a_plugin_registered_later_is_not_in_a_session_that_runs() -> None:
    """A session's panel is fixed when it is enabled."""
    model = Scripted()
    with mixcache.enable(model, "static") as session:
        late = mixcache.register(Plugin(), name="late")
        try:
            follow(session, model, [torch.zeros(1, 1)], [[torch.zeros(1, 1)]])
        finally:
            catalogue.manager().unregister(late)
    assert late.seen == []
    assert {record.point.granularity for record in session.records} == {Granularity.STEP}

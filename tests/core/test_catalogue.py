"""What plugins offer: specs and their errors, registering in a script, and an installed package's entry point."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attrs import field, frozen

import mixcache
from mixcache import (
    Anchor,
    Basis,
    Forecaster,
    ModelAdapter,
    PipelineFolder,
    Point,
    Policy,
    Reading,
    SideInput,
    Signal,
    Vote,
    catalogue,
    ge,
    study,
)
from mixcache_policies import EasyCache, Schedule, Static

ROOT = Path(__file__).parents[2]


def built(policies: Any) -> tuple[Policy, ...]:
    """The policies of a recipe."""
    return mixcache.Recipe.of(policies).policies


# specs


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("easycache", EasyCache()),
        ("easycache:threshold=0.1", EasyCache(threshold=0.1)),
        (" easycache : threshold = 0.1 , first_steps=3 ", EasyCache(threshold=0.1, first_steps=3)),
        ("static:every=3,longest_run=none", Static(every=3)),
        ("static:longest_run=2,at=cfg", Static(longest_run=2, at="cfg")),
        ("schedule:1101", Schedule("1101")),
        ("schedule:1101,longest_run=1", Schedule("1101", longest_run=1)),
        ("schedule:mask=1101", Schedule("1101")),
        (EasyCache, EasyCache()),
        (EasyCache(threshold=1), EasyCache(threshold=1)),
    ],
)
def test_a_spec_makes_a_policy(spec: Any, expected: Policy) -> None:
    assert built(spec) == (expected,)


def test_several_specs() -> None:
    both = (EasyCache(), Static(every=3))
    assert built("easycache + static:every=3") == both
    assert built(["easycache", Static(every=3)]) == both


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("easycahce", r"unknown policy 'easycahce'; there are: .*easycache.*static.*Did you mean 'easycache'\?"),
        ("", "cannot read '': a name is missing; write one name"),
        ("static +", r"cannot read 'static \+': a name is missing"),
        ("static+easycache", r"unknown policy 'static\+easycache'.* Did you mean 'static \+ easycache'\?"),
        ("easycache:treshold=1", "policy easycache has no parameter 'treshold'; it has: .*threshold, first_steps"),
        ("easycache:threshold=1,threshold=2", "threshold is given twice; give it once"),
        ("schedule:10,mask=10", "mask is given twice; give it once"),
        ("easycache:threshold=much", "policy easycache: threshold must be a number, got 'much'"),
        ("easycache:threshold=-0.1", r"`EasyCache\(threshold=\.\.\.\)` must be >= 0, got -0.1"),
        ("easycache:threshold=nan", r"`EasyCache\(threshold=\.\.\.\)` must be >= 0, got nan"),
        ("easycache:threshold=inf", r"`EasyCache\(threshold=\.\.\.\)` must be >= 0, got inf"),
        ("static:every=0", r"`Static\(every=\.\.\.\)` must be a whole number >= 1, got 0"),
        ("static:every=2.5", "policy static: every must be a whole number, got '2.5'"),
        ("static:every=", "every has no value; write key=value"),
        ("static:at=everywhere", "policy static: at must be one of step, cfg, block, got 'everywhere'"),
        ("schedule", "policy schedule needs a value for mask: 'schedule:mask=...'"),
        (Schedule, "schedule needs a value for mask"),
        ("schedule:0101", r"`Schedule\(mask=\.\.\.\)` must be a string of 1 .* that begins with 1, got '0101'"),
        ("schedule:", "an argument is empty; write key=value"),
        (3, "policy must be a spec such as"),
        ([3], "policy must be a spec such as 'name:parameter=value' or a Policy, got 3"),
        ([], "must name at least one policy"),
        (Basis, "policy must be a spec"),
    ],
)
def test_a_spec_that_is_wrong_says_what_would_be_right(spec: Any, said: str) -> None:
    with pytest.raises(mixcache.ConfigurationError, match=said):
        built(spec)


@pytest.mark.parametrize(
    ("kind", "name"), [("basis", "residuals"), ("forecaster", "tailor"), ("anchor", "nil"), ("rule", "al")]
)
def test_other_unknown_names_list_what_there_is(kind: str, name: str) -> None:
    with pytest.raises(mixcache.UnknownNameError, match=f"unknown {kind} '{name}'; there are: .*, "):
        catalogue.build_rule(name) if kind == "rule" else catalogue.build(kind, name)


@pytest.mark.parametrize(("kind", "spec"), [("basis", "easycache"), ("forecaster", Basis), ("anchor", EasyCache())])
def test_a_thing_of_another_kind_is_refused(kind: str, spec: Any) -> None:
    with pytest.raises(mixcache.ConfigurationError, match=kind):
        catalogue.build(kind, spec)


def test_a_boolean_parameter() -> None:
    @frozen(kw_only=True)
    class Switch(Policy):
        """Has a switch."""

        on: bool = False

    mixcache.register(Switch)
    try:
        assert built("switch:on=true")[0].on is True
        with pytest.raises(mixcache.ConfigurationError, match="policy switch: on must be true or false, got 'maybe'"):
            built("switch:on=maybe")
    finally:
        mixcache.unregister("policy", "switch")


# registering


@frozen
class EveryOther(Policy):
    """Recompute every `every`-th step."""

    every: int = field(default=2, validator=ge(1))

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        return Vote.compute() if point.step % self.every == 0 else Vote.reuse()


def test_registering_twice_is_once_and_a_taken_name_is_refused() -> None:
    assert mixcache.register(EveryOther) is EveryOther
    try:
        mixcache.register(EveryOther)
        assert built("everyother:every=3") == (EveryOther(every=3),)

        @frozen
        class Other(Policy):
            """Takes the name."""

            name = "everyother"

        with pytest.raises(mixcache.ConfigurationError, match="'everyother' is registered already, by"):
            mixcache.register(Other)
        with pytest.raises(mixcache.ConfigurationError, match="'static' is registered already"):
            mixcache.register(frozen(type("Static", (Policy,), {"__doc__": "Ours."})))
    finally:
        mixcache.unregister("policy", "everyother")
    with pytest.raises(mixcache.UnknownNameError, match="everyother"):
        mixcache.unregister("policy", "everyother")
    assert "everyother" not in catalogue.policies()


def test_a_policy_without_attrs_is_refused() -> None:
    class Bare(Policy):
        """Inherits attrs, but its own parameters would be no fields."""

        every: int = 2

    with pytest.raises(mixcache.ConfigurationError, match=r"policy Bare must be decorated with @attrs\.frozen"):
        mixcache.register(Bare)
    assert "bare" not in catalogue.policies()


def two(votes: Any) -> bool:
    """At least two want to."""
    return sum(vote.choice == "reuse" for vote in votes) >= 2


@frozen
class Middle(Basis):
    """Half of both."""

    def coefficients(self, point: Point) -> tuple[float, float]:
        return 0.5, 0.5


@frozen
class Older(Forecaster):
    """The older z."""

    name = "older"


@frozen
class Nowhere(Anchor):
    """Nowhere."""

    name = "nowhere"


@frozen
class Guessing(study.Calibrator):
    """Guesses."""

    name: str = "guess"

    def runs(self, job: Any) -> int:
        return 1

    def measure(self, job: Any, watch: Any) -> study.Fit:
        return study.Fit({}, "a guess")


def nothing(known: Any) -> None:
    return None


OTHERS = [
    ("basis", "middle", Middle),
    ("forecaster", "older", Older),
    ("anchor", "nowhere", Nowhere),
    ("signal", "silence", Signal(name="silence", measure=nothing)),
    ("side input", "shadow", SideInput(name="shadow", make=nothing)),
    ("model", "MyTransformer", ModelAdapter(model="MyTransformer")),
    ("pipeline", "mine", PipelineFolder(name="mine", path=Path("/mine"))),
    ("calibrator", "guess", Guessing()),
    ("metric", "brightness", mixcache.bench.Metric(name="brightness", measure=lambda frames, *_: frames.mean())),
]


@pytest.mark.parametrize(("kind", "name", "thing"), OTHERS, ids=[kind for kind, *_ in OTHERS])
def test_everything_that_is_offered_can_be_registered(kind: str, name: str, thing: Any) -> None:
    assert mixcache.register(thing) is thing
    try:
        assert catalogue.table(kind)[name] is thing
        mixcache.register(thing)
    finally:
        mixcache.unregister(kind, name)
    assert name not in catalogue.table(kind)
    with pytest.raises(mixcache.UnknownNameError, match=f"unknown {kind} '{name}'"):
        mixcache.unregister(kind, name)


def test_every_kind_is_covered_above() -> None:
    assert {kind for kind, *_ in OTHERS} | {"policy", "rule"} == set(catalogue.KINDS)


def test_a_rule_needs_a_name() -> None:
    with pytest.raises(mixcache.ConfigurationError, match=r"register\(two\) needs name="):
        mixcache.register(two)
    mixcache.register(two, name="two")
    try:
        assert catalogue.rules()["two"] is two
    finally:
        mixcache.unregister("rule", "two")
    assert "two" not in catalogue.rules()


@pytest.mark.parametrize(
    ("hook", "offered"),
    [
        ("mixcache_policies", [Middle]),
        ("mixcache_bases", ["residual"]),
        ("mixcache_anchors", [Older]),
        ("mixcache_signals", [SideInput(name="shadow", make=nothing)]),
        ("mixcache_side_inputs", [Signal(name="silence", measure=nothing)]),
        ("mixcache_models", [3]),
        ("mixcache_calibrators", [EasyCache()]),
        ("mixcache_metrics", [lambda frames, reference, prompt: 0.0]),
        ("mixcache_rules", {"odd": "rule"}),
        ("mixcache_signals", "silence"),
        ("mixcache_bases", Middle),
    ],
)
def test_a_plugin_that_offers_another_kind_of_thing_is_named(hook: str, offered: Any) -> None:
    plugin = mixcache.register(type("Plugin", (), {hook: mixcache.hookimpl(lambda self: offered)})(), name="odd")
    kind = next(kind for kind, entry in catalogue.KINDS.items() if entry.hook == hook)
    try:
        with pytest.raises(mixcache.PluginError, match=f"plugin 'odd' must offer .* in {hook}"):
            catalogue.table(kind)
    finally:
        catalogue.manager().unregister(plugin)


def test_a_plugin_that_fails_to_offer_is_named() -> None:
    class Plugin:
        @mixcache.hookimpl
        def mixcache_bases(self) -> list[type[Basis]]:
            raise ZeroDivisionError("no bases")

    plugin = mixcache.register(Plugin(), name="broken")
    try:
        with pytest.raises(mixcache.PluginError, match="plugin 'broken' raised ZeroDivisionError: no bases"):
            catalogue.bases()
    finally:
        catalogue.manager().unregister(plugin)


def test_a_misspelt_hook_is_an_error_and_leaves_nothing() -> None:
    class Plugin:
        @mixcache.hookimpl
        def mixcache_policys(self) -> list[type[Policy]]:
            return []

    before = catalogue.manager().list_name_plugin()
    with pytest.raises(mixcache.PluginError, match="mixcache_policys"):
        mixcache.register(Plugin(), name="misspelt")
    assert catalogue.manager().list_name_plugin() == before


def test_two_plugins_with_one_name_are_told_apart() -> None:
    class Plugin:
        @mixcache.hookimpl
        def mixcache_policies(self) -> list[type[Policy]]:
            return [frozen(type("Static", (Policy,), {"__doc__": "Also static."}))]

    plugin = mixcache.register(Plugin(), name="rival")
    try:
        with pytest.raises(mixcache.PluginError, match="two plugins offer a policy named 'static'"):
            catalogue.policies()
    finally:
        catalogue.manager().unregister(plugin)


# an installed package

USE = """
import torch, mixcache
from tests.helpers import Scripted, follow, reused_steps
bends = [0, 0, 1, 2, 3, 4, 9, 10, 11, 12]
model, anchors = Scripted(), [torch.full((1, 2), 100.0 + b) for b in bends]
with mixcache.enable(model, "slowdown:threshold=0.01", forecast="halfway") as session:
    results = follow(session, model, anchors, [[t + a] for t, a in enumerate(anchors)])
print(reused_steps(session), [round(float(r[0][0, 0]) - 100 - b, 3) for r, b in zip(results, bends)])
"""


def install(folder: Path, old: str = "", new: str = "") -> dict[str, str]:
    """Build the example package and install it into a folder; the environment of a python that finds it there."""
    source, target = folder / "source", folder / "site"
    shutil.copytree(ROOT / "examples" / "plugin", source)
    module = source / "slowdown" / "__init__.py"
    module.write_text(module.read_text().replace(old, new))
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)]
    subprocess.run(command, check=True, timeout=120)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(target), str(ROOT)])}


def python(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_an_installed_plugin_is_used_by_its_specs(tmp_path: Path) -> None:
    """Its signal lets its policy reuse where the latent goes straight on; its forecaster goes half of the way."""
    done = python(USE, install(tmp_path))
    assert done.returncode == 0, done.stderr
    # computed where the latent leaves the straight line by 1 % or more; 5 and 6 are stored, so 7 is halfway to 6.5
    assert done.stdout.strip() == "[1, 2, 3, 4, 7, 8, 9] [0.0, 0.0, 0.0, 0.0, 0.0, 5.0, 6.0, 6.5, 7.0, 7.5]"


def test_an_installed_plugin_with_a_misspelt_hook_is_an_error(tmp_path: Path) -> None:
    done = python(USE, install(tmp_path, "def mixcache_policies", "def mixcache_polices"))
    assert done.returncode != 0
    assert "PluginError: an installed mixcache plugin cannot be loaded" in done.stderr
    assert "mixcache_polices" in done.stderr

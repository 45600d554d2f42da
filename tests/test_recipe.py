"""The recipe: text, TOML and keyword arguments are views of one record, for every registered plugin and every value."""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mixcache
from mixcache import Basis, ConfigurationError, Point, Policy, Reading, Recipe, UnknownNameError, Vote, catalogue
from mixcache_policies import EasyCache, MagCache, MixCache, Scaled, Static, TeaCache, Window

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# every plugin, with any values that it takes

TEXTS = [
    "",
    " x ",
    "/a+b/t.json",
    "a,b",
    "a + b",
    "a @ b",
    "a=b",
    "none",
    "true",
    "5",
    "1e5",
    "nan",
    "#",
    "'",
    "[",
    "}",
]
TEXTS += ['a "quoted" one', "back\\slash", "tab\tline\nreturn\r", "\x7f\x85\u2028", "tüöß 😀", "C:\\t.json"]
TEXT = st.text(max_size=12) | st.sampled_from(TEXTS)
FLOATS = [0.0, -0.0, 1e0, 1e16, 1e22, 5e-324, sys.float_info.max, sys.float_info.min, 0.1, 1 / 3, 2**53 + 1.0, 3]
FLOAT = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(FLOATS)
INT = st.integers(0, 9) | st.integers()
LEVELS = ["step", "cfg", "block"]


def ratios(least: float) -> st.SearchStrategy[Any]:
    """Finite numbers by name."""
    row = st.lists(st.floats(least, 1e9), min_size=1, max_size=4)
    return st.dictionaries(TEXT, row, max_size=2).flatmap(lambda rest: row.map(lambda first: {**rest, "cond": first}))


influence = st.dictionaries(
    st.sampled_from(LEVELS[1:]), st.lists(st.floats(0, 1e9), min_size=1, max_size=4), max_size=2
).flatmap(lambda rest: st.lists(FLOAT, min_size=1, max_size=3).map(lambda row: {**rest, "step": list(map(abs, row))}))

SPECIAL: dict[tuple[str, str], st.SearchStrategy[Any]] = {
    ("schedule", "mask"): st.text("01", max_size=8).map(lambda rest: "1" + rest),
    ("mixcache", "among"): st.none()
    | st.sampled_from(["step", "step/cfg", "step/block", "cfg/step", "step/cfg/block"]),
    ("budget", "among"): st.none() | st.lists(st.sampled_from(LEVELS), min_size=1, max_size=3).map("/".join),
    ("teacache", "coefficients"): st.none() | st.lists(FLOAT, min_size=5, max_size=5).map(tuple),
    ("magcache", "ratios"): st.none() | ratios(5e-324),
    ("scaled", "ratios"): st.none() | ratios(5e-324) | st.lists(st.floats(1e-9, 1e9), max_size=4),
    ("mixcache", "influence"): st.none() | influence,
    ("sencache", "sensitivity"): st.none(),  # rows of a table, which no recipe spells out
    ("l2p", "grams"): st.just(()),
}
"""Values of the parameters whose type does not say what they take."""


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a type."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return st.sampled_from(inner)
    if origin in (Union, type(int | str)):
        return st.one_of(*map(values, inner))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(hint)
    known = {bool: st.booleans(), int: INT, float: FLOAT, str: TEXT, type(None): st.none()}
    assert hint in known, f"say in SPECIAL what a parameter of type {hint} takes"
    return known[hint]


def takes(kind: type[Any], given: Mapping[str, Any]) -> bool:
    try:
        kind(**given)
    except ConfigurationError:
        return False
    return True


@st.composite
def made(draw: st.DrawFn, what: str) -> Any:
    """A policy, basis, forecaster or anchor of any registered class, with parameters that it takes."""
    name, kind = draw(st.sampled_from(sorted(catalogue.table(what).items(), key=lambda item: item[0])))
    hints = get_type_hints(kind)
    chosen: dict[str, Any] = {}
    for parameter in sorted(attrs.fields(kind), key=lambda a: a.default is not attrs.NOTHING):  # required ones first
        required = parameter.default is attrs.NOTHING
        if not parameter.init or not (required or draw(st.booleans())):
            continue
        own = (name, parameter.name)
        strategy = SPECIAL[own] if own in SPECIAL else values(hints[parameter.name])
        chosen[parameter.name] = draw(strategy.filter(lambda v, n=parameter.name: takes(kind, {**chosen, n: v})))
    return kind(**chosen)


def by_level(what: str) -> st.SearchStrategy[Any]:
    """A choice: none, one for all, or some by level, one for all the others among them perhaps."""
    return st.none() | made(what) | st.dictionaries(st.sampled_from(["", *LEVELS]), made(what), max_size=3)


CHOICES = {
    "rule": st.sampled_from(sorted(catalogue.rules())),
    "basis": by_level("basis"),
    "forecast": by_level("forecaster"),
    "anchor": by_level("anchor"),
    "samples": st.sampled_from(["worst", "mean"]),
    "max_cache_bytes": st.none() | st.integers(0),
    "offload": st.sampled_from([None, "cpu"]),
    "audit": st.booleans(),
    "on_error": st.sampled_from(["raise", "compute"]),
}
POLICIES = st.lists(made("policy"), min_size=1, max_size=3)


def test_every_choice_is_drawn_here() -> None:
    assert {a.name for a in attrs.fields(Recipe)} == {"policies", "tuned", *CHOICES}


@st.composite
def a_recipe(draw: st.DrawFn) -> Recipe:
    return Recipe(policies=draw(POLICIES), **draw(st.fixed_dictionaries({}, optional=CHOICES)))


@given(a_recipe())
def test_what_a_recipe_says_as_text_is_the_recipe(recipe: Recipe) -> None:
    text = str(recipe)
    again = Recipe.parse(text)
    assert again == recipe
    assert hash(again) == hash(recipe)
    assert mixcache.parse(text) == Recipe.of(text) == Recipe.of(recipe) == recipe
    assert str(Recipe.parse(str(again))) == str(again)  # whole numbers are numbers now


@given(a_recipe())
def test_what_a_recipe_says_as_toml_is_the_recipe(recipe: Recipe) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "some.toml")
        file.write_text(recipe.to_toml(), encoding="utf-8")
        assert Recipe.from_toml(file) == recipe
        recipe.save(file)
        assert Recipe.of(file) == Recipe.of(str(file)) == recipe
    assert tomllib.loads(recipe.to_toml())["policies"] == [catalogue.spec_of(policy) for policy in recipe.policies]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_can_be_a_value(text: str, tmp_path: Path) -> None:
    recipe = Recipe.of(TeaCache(table=text), forecast={"": Scaled(table=text), "step": "hold"})
    assert Recipe.parse(str(recipe)) == recipe
    recipe.save(tmp_path / "some.toml")
    assert Recipe.from_toml(tmp_path / "some.toml") == recipe


@pytest.mark.parametrize("number", FLOATS)
def test_any_number_can_be_a_value(number: float, tmp_path: Path) -> None:
    recipe = Recipe.of(TeaCache(coefficients=[number, -number] * 2 + [0], threshold=abs(number)))
    for again in (Recipe.parse(str(recipe)), Recipe.parse(str(Recipe.parse(str(recipe))))):
        assert again == recipe
    recipe.save(tmp_path / "some.toml")
    assert Recipe.from_toml(tmp_path / "some.toml") == recipe


@given(st.sampled_from(["policy", "basis", "forecaster", "anchor"]).flatmap(lambda k: st.tuples(st.just(k), made(k))))
def test_the_spec_of_a_plugin_builds_its_equal(drawn: tuple[str, Any]) -> None:
    kind, item = drawn
    again = catalogue.build(kind, catalogue.spec_of(item))
    assert again == item
    assert type(again) is type(item)
    assert repr(again) == repr(item) or "-0.0" in repr(item) or any(isinstance(v, int) for v in attrs.astuple(item))


@pytest.mark.parametrize("what", ["policy", "basis", "forecaster", "anchor"])
def test_a_plugin_as_it_comes_is_its_name(what: str) -> None:
    for name, kind in catalogue.table(what).items():
        if all(a.default is not attrs.NOTHING for a in attrs.fields(kind) if a.init):
            assert catalogue.spec_of(kind()) == name


@pytest.mark.parametrize(
    ("item", "spec"),
    [
        (EasyCache(threshold=1e16), "easycache:threshold=1e+16"),
        (EasyCache(threshold=1.0), "easycache:threshold=1.0"),
        (TeaCache(table="/a+b/t,1.json"), 'teacache:table="/a+b/t,1.json"'),
        (TeaCache(table="/a+b/t.json"), "teacache:table=/a+b/t.json"),
        (TeaCache(coefficients=(1, 2.5, 1e-7, 0, -3)), "teacache:coefficients=[1.0, 2.5, 1e-07, 0.0, -3.0]"),
        (Static(longest_run=3), "static:longest_run=3"),
        (MagCache(longest_run=None), "magcache:longest_run=none"),
        (MagCache(ratios={"cond": [1, 0.5]}), 'magcache:ratios=[["cond", [1.0, 0.5]]]'),
        (MixCache(influence={"step": [1, 2]}), 'mixcache:influence=[["step", [1.0, 2.0]]]'),
        (Scaled(ratios={"cond": [1, 2], "b c": [3]}), 'scaled:ratios={"cond": [1.0, 2.0], "b c": [3.0]}'),
    ],
)
def test_how_values_are_written(item: Any, spec: str) -> None:
    assert catalogue.spec_of(item) == spec


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("easycache:threshold=1e+0", EasyCache(threshold=1.0)),
        ("easycache:threshold=1e16", EasyCache(threshold=1e16)),
        ("teacache:table=/a+b/t.json", TeaCache(table="/a+b/t.json")),
        ("teacache:table=/a@b/t.json", TeaCache(table="/a@b/t.json")),
        ('teacache:table="/a b + c, d/t.json"', TeaCache(table="/a b + c, d/t.json")),
        ("teacache:table=none", TeaCache()),
        ('teacache:table="none"', TeaCache(table="none")),
        ('magcache:ratios={"cond": [1, 0.5]},threshold=0.1', MagCache(ratios={"cond": [1, 0.5]}, threshold=0.1)),
    ],
)
def test_values_that_an_earlier_grammar_broke(text: str, policy: Policy) -> None:
    assert Recipe.parse(text).policies == (policy,)


def test_a_recipe_that_names_a_toml_file_is_a_text() -> None:
    recipe = Recipe.of("teacache:table=some.toml")
    assert recipe.policies == (TeaCache(table="some.toml"),)
    assert Recipe.of(str(recipe)) == recipe


# the three views agree

FROM_PARTS = Recipe(
    policies=[EasyCache(threshold=0.1), Window(first_steps=10)],
    rule="any",
    basis="noise",
    forecast={"step": "linear:abscissa=sigma", "block": "hold"},
    anchor="zero",
    samples="mean",
    max_cache_bytes=1000,
    offload="cpu",
    audit=True,
    on_error="compute",
)
AS_TEXT = (
    "easycache:threshold=0.1 + window:first_steps=10 @ rule=any basis=noise forecast.step=linear:abscissa=sigma "
    "forecast.block=hold anchor=zero samples=mean max_cache_bytes=1000 offload=cpu audit=true on_error=compute"
)
AS_TOML = """
policies = ["easycache:threshold=0.1", "window:first_steps=10"]
rule = "any"
basis = "noise"
anchor = "zero"
samples = "mean"
max_cache_bytes = 1000
offload = "cpu"
audit = true
on_error = "compute"

[forecast]
step = "linear:abscissa=sigma"
block = "hold"
"""


def test_text_toml_and_arguments_are_one(tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    file.write_text(AS_TOML)
    policies, _, choices = AS_TEXT.partition(" @ ")
    given: dict[str, Any] = {
        "rule": "any",
        "basis": {"step": "noise", "cfg": "noise", "block": "noise"},
        "forecast": {"block": "hold", "step": "linear:abscissa=sigma"},
        "anchor": "zero",
        "samples": "mean",
        "max_cache_bytes": 1000,
        "offload": "cpu",
        "audit": True,
        "on_error": "compute",
    }
    assert Recipe.parse(AS_TEXT) == Recipe.from_toml(file) == FROM_PARTS
    assert Recipe.of(policies, **{**given, "basis": "noise"}) == FROM_PARTS
    assert Recipe.of([policies], **{**given, "basis": mixcache.catalogue.build("basis", "noise")}) == FROM_PARTS
    assert str(FROM_PARTS) == AS_TEXT
    by_level = Recipe.of(policies, **given)
    assert by_level != FROM_PARTS  # said otherwise, and planned alike
    assert by_level.plan().basis == FROM_PARTS.plan().basis
    assert choices


def test_enable_takes_every_view(tmp_path: Path) -> None:
    from tests.helpers import Scripted

    file = tmp_path / "some.toml"
    file.write_text('policies = "static:every=3"\nforecast = "linear"\n')
    recipe = Recipe.of("static:every=3", forecast="linear")
    for view in (recipe, "static:every=3 @ forecast=linear", str(file), file):
        with mixcache.enable(Scripted(), view) as session:
            assert session.recipe == recipe
    with mixcache.enable(Scripted(), Static(every=3), forecast="linear") as session:
        assert session.recipe == recipe


def test_choices_hold_where_nothing_is_said(tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    file.write_text('policies = "static"\nrule = "any"\n')
    for view in ("static @ rule=any", file, Recipe.of("static", rule="any")):
        recipe = Recipe.of(view, rule="majority", samples="mean", audit=None)
        assert (recipe.rule, recipe.samples, recipe.audit) == ("any", "mean", False)


def test_one_for_all_levels_and_another_for_one() -> None:
    recipe = Recipe.parse("static @ forecast=linear forecast.block=hold")
    assert {str(g): type(f).__name__ for g, f in recipe.plan().forecast.items()} == {
        "step": "Linear",
        "cfg": "Linear",
        "block": "Hold",
    }


# what cannot be is one clear error

WRONG = [
    ("static @ budget=0.02", "there is no choice 'budget'; there are: "),
    ("static @ basis.step=noise basis.step=noise", r"basis\.step is given twice; give it once"),
    ("static @ rule=any rule=any", "rule is given twice"),
    ("static:every=2,every=2", "every is given twice"),
    ("static @ rule.step=any", r"rule\.step is no choice by level; only basis, forecast, anchor are"),
    ("static @ basis.everywhere=noise", "granularity must be one of step, cfg, block, got 'everywhere'"),
    ("static @ rule=all", "unknown rule 'all'; there are: any, "),
    ("static @ basis=nose", "unknown basis 'nose'.*Did you mean 'noise'"),
    ("static @ forecast=lines", "unknown forecaster 'lines'"),
    ("static @ anchor=output", "unknown anchor 'output'; there are: "),
    ("static @ forecast=taylor:order=-1", r"`Taylor\(order=\.\.\.\)` must be a whole number >= 0, got -1"),
    ("static @ samples=some", r"`Recipe\(samples=\.\.\.\)` must be one of 'worst', 'mean', got 'some'"),
    ("static @ max_cache_bytes=1GB", "`max_cache_bytes` must be a whole number or none, got '1GB'"),
    ("static @ max_cache_bytes=-1", r"`Recipe\(max_cache_bytes=\.\.\.\)` must be None or a whole number >= 0, got -1"),
    ("static @ offload=disk", r"`Recipe\(offload=\.\.\.\)` must be one of None, 'cpu', got 'disk'"),
    ("static @ audit=yes", "`audit` must be true or false, got 'yes'"),
    ("static @ on_error=ignore", r"`Recipe\(on_error=\.\.\.\)` must be one of 'raise', 'compute', got 'ignore'"),
    ("static @", "nothing follows the '@'"),
    ("static @ noise", "'noise' is not a choice; write key=value"),
    ("statics", "unknown policy 'statics'.*Did you mean 'static'"),
    ("static:evry=2", "policy static has no parameter 'evry'; it has: .*every"),
    ("static:every=two", "policy static: every must be a whole number, got 'two'"),
]


@pytest.mark.parametrize(("text", "said"), WRONG, ids=[text for text, _ in WRONG])
def test_a_text_that_cannot_be_is_one_clear_line(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        Recipe.parse(text)
    assert "\n" not in str(caught.value)


WRONG_TOML = [
    ("", "must set `policies`, such as 'easycache:threshold=0.05'"),
    ("policies = []", "must name at least one policy"),
    ("policies = 3", "policy must be a spec such as .* got 3"),
    ("policies = ['static', 3]", "policy must be a spec such as .* got 3"),
    ("policies = 'static'\nthreshold = 3", "there is no choice 'threshold'; there are: policies, rule, "),
    ("policies = 'static'\nrule = 3", "unknown rule '3'"),
    ("policies = 'static'\nrule = ['any']", r"unknown rule .*\['any'\]"),
    ("policies = 'static'\nbasis = 3", "basis must be a spec such as"),
    ("policies = 'static'\nforecast = ['hold']", r"forecaster must be a spec .* got \['hold'\]"),
    ("policies = 'static'\nforecast.steps = 'hold'", "granularity must be one of step, cfg, block, got 'steps'"),
    ("policies = 'static'\nforecast.step = 1", "forecaster must be a spec .* got 1"),
    ("policies = 'static'\naudit = 'yes'", r"`Recipe\(audit=\.\.\.\)` must be one of False, True, got 'yes'"),
    ("policies = 'static'\naudit = 1", r"`Recipe\(audit=\.\.\.\)` must be one of False, True, got 1"),
    ("policies = 'static'\nmax_cache_bytes = 1.5", r"must be None or a whole number >= 0, got 1\.5"),
    ("policies = 'static'\nmax_cache_bytes = true", "must be None or a whole number >= 0, got True"),
    ("policies = 'static'\npolicies = 'static'", "is no TOML file: "),
    ("policies = static", "is no TOML file: "),
]


@pytest.mark.parametrize(("content", "said"), WRONG_TOML, ids=[content for content, _ in WRONG_TOML])
def test_a_file_that_cannot_be_is_one_clear_line_that_names_it(content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    file.write_text(content)
    with pytest.raises(ConfigurationError, match=said) as caught:
        Recipe.from_toml(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("where", "said"), [("no.toml", "No such file"), (".", "directory"), ("b.toml", "is no TOML")])
def test_a_file_that_cannot_be_read_is_named(where: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match=said) as caught:
        Recipe.from_toml(tmp_path / where)
    assert str(tmp_path / where) in str(caught.value)


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"bases": "noise"}, "there is no choice 'bases'; there are: "),
        ({"basis": {"steps": "noise"}}, "granularity must be one of step, cfg, block, got 'steps'"),
        ({"basis": 3}, "basis must be a spec such as"),
        ({"basis": EasyCache()}, "basis must be a spec such as"),
        ({"rule": []}, r"unknown rule '\[\]'"),
        ({"audit": "yes"}, "must be one of False, True, got 'yes'"),
        ({"audit": 1}, "must be one of False, True, got 1"),
        ({"max_cache_bytes": "1GB"}, "must be None or a whole number >= 0, got '1GB'"),
        ({"max_cache_bytes": math.inf}, "must be None or a whole number >= 0, got inf"),
        ({"samples": True}, "must be one of 'worst', 'mean', got True"),
    ],
)
def test_an_argument_that_cannot_be_is_one_clear_line(choices: dict[str, Any], said: str) -> None:
    for view in ("static", Static(), Recipe.of("static")):
        with pytest.raises(ConfigurationError, match=said) as caught:
            Recipe.of(view, **choices)
        assert "\n" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.text(max_size=200), st.dictionaries(st.sampled_from([*CHOICES, "policies", "import"]), JSON, max_size=3))
def test_any_file_is_a_recipe_or_refused(text: str, told: dict[str, Any]) -> None:
    lines = [f"{key} = {json.dumps(value)}" for key, value in told.items()]
    with tempfile.TemporaryDirectory() as folder:
        for content in (text, "\n".join(lines), "policies = 'static'\n" + "\n".join(lines)):
            path = Path(folder, "some.toml")
            path.write_text(content, encoding="utf-8", errors="replace")
            try:
                recipe = Recipe.from_toml(path)
            except ConfigurationError:
                continue
            assert Recipe.parse(str(recipe)) == recipe


@given(
    st.text(max_size=40) | st.lists(st.sampled_from(["static", " ", "@", "+", ":", "=", ",", '"', "basis", "noise"]))
)
def test_any_text_is_a_recipe_or_refused(text: Any) -> None:
    try:
        recipe = Recipe.parse(text if isinstance(text, str) else "".join(text))
    except ConfigurationError:
        return
    assert Recipe.parse(str(recipe)) == recipe


# third parties


@attrs.frozen(kw_only=True)
class Mine(Policy):
    """A policy nobody registered."""

    object: Any = None

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        return Vote.reuse()


def test_what_nobody_registered_can_be_used_and_written_but_not_read() -> None:
    recipe = Recipe.of(Mine())
    assert str(recipe) == "mine"
    assert recipe.plan().policies == (Mine(),)
    with pytest.raises(UnknownNameError, match="unknown policy 'mine'"):
        Recipe.parse(str(recipe))
    mixcache.register(Mine)
    try:
        assert Recipe.parse(str(recipe)) == recipe
    finally:
        mixcache.unregister("policy", "mine")


def test_a_value_that_cannot_be_written_is_one_clear_line() -> None:
    recipe = Recipe.of(Mine(object=Basis()))
    for write in (str, Recipe.to_toml):
        with pytest.raises(ConfigurationError, match=r"Basis\(\) cannot be written in a recipe; use numbers, texts"):
            write(recipe)


def test_a_rule_is_written_by_its_name() -> None:
    def two(votes: Any) -> bool:
        """At least two."""
        return sum(vote.choice == "reuse" for vote in votes) > 1

    recipe = Recipe.of("static", rule=two)
    assert str(recipe) == "static @ rule=two"
    mixcache.register(two, name="two")
    try:
        assert Recipe.parse(str(recipe)).plan().rule is two
    finally:
        mixcache.unregister("rule", "two")

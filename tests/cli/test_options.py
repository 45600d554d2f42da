"""What --policy and the options beside it become: a recipe, or one clear error."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mixcache
from mixcache import ConfigurationError, Recipe
from mixcache.cli import compare, generate, options
from tests.conftest import built


def read(text: str, **given: Any) -> Recipe | None:
    """As a command reads it: `given` are the options beside --policy."""
    return options.recipe_of(text, SimpleNamespace(params={"policy": text, **given}))  # type: ignore[arg-type]


def test_the_options_are_the_choices_of_a_recipe() -> None:
    """`--help` must not load what a recipe needs, so its table is written down; here it is held to the fields."""
    fields = {a.name for a in attrs.fields(Recipe) if a.name not in ("policies", "tuned")}
    assert fields == set(options.CHOICES)
    for command in (generate.generate, compare.compare):
        assert fields - set(inspect.signature(command).parameters) <= {"audit"}


def test_a_recipe_says_what_follows_the_at_and_takes_the_rest_from_the_options() -> None:
    recipe = read("static:every=3 +  easycache @ basis=noise rule=any", forecast="linear", basis="clean", rule=None)
    assert recipe == Recipe.of("static:every=3 + easycache", rule="any", basis="noise", forecast="linear")
    assert str(recipe) in ("static + easycache @ rule=any basis=noise forecast=linear", str(recipe))


@given(
    policies=st.sampled_from(["static", "static:every=3 + easycache:threshold=0.1"]),
    rule=st.sampled_from(["unanimous", "any"]),
    basis=st.sampled_from(["residual", "noise"]),
    forecast=st.sampled_from(["hold", "taylor:order=2,abscissa=sigma", "step=linear cfg=hold"]),
    samples=st.sampled_from(["worst", "mean"]),
    max_cache_bytes=st.sampled_from([None, 1000]),
    on_error=st.sampled_from([None, "raise", "compute"]),
)
def test_a_label_is_a_text_of_the_same_recipe(policies: str, **choices: Any) -> None:
    recipe = read(policies, **choices)
    assert read(str(recipe)) == recipe


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("easycash", "Did you mean 'easycache'"),
        ("static:evry=2", "has no parameter 'evry'"),
        ("static:every=0", "must be a whole number >= 1"),
        ("static:every=two", "every must be a whole number, got 'two'"),
        ("static @ basis=nose", "noise"),
        ("static @ forecast=hold:order=2", "no parameter 'order'"),
        ("static @ rule=king", "unanimous"),
        ("static @ samples=best", "'worst' or 'mean'|one of 'worst', 'mean'"),
        ("static @ speed=3", "no choice 'speed'"),
        ("static @ rule.step=any", "no choice by level"),
        ("static @ forecast.stop=hold", "granularity must be one of"),
        ("static @ max_cache_bytes=1GB", "`max_cache_bytes` must be a whole number"),
        ("static @ offload=disk", "offload"),
        ("none @ basis=noise", "none"),
        ("static @ basis=", "is not a choice"),
        ("static @", "nothing follows"),
        ("", "name"),
        ("static+easycache", r"static \+ easycache"),
    ],
)
def test_a_bad_recipe_is_refused_with_a_remedy(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        read(text)


def test_none_is_no_recipe_and_takes_no_choices() -> None:
    assert read("none", basis=None) is None
    with pytest.raises(ConfigurationError, match=r"^--basis, --on-error: with --policy none nothing is cached"):
        read("none", basis="noise", on_error="compute")


def test_granularities_can_be_rebuilt_differently() -> None:
    recipe = read(
        "static:every=2 + cfg:every=2 @ forecast.step=linear:abscissa=sigma forecast.cfg=hold basis.step=noise"
    )
    same = read("static:every=2 + cfg:every=2 @ basis.step=noise", forecast="step=linear:abscissa=sigma cfg=hold")
    assert recipe is not None
    assert same == recipe
    plan = recipe.plan()
    names = {g.value: (plan.site(g).basis.name, plan.site(g).forecaster(None).name) for g in mixcache.Granularity}
    assert names == {"step": ("noise", "linear"), "cfg": ("residual", "hold"), "block": ("residual", "hold")}


# settings in a file


def test_a_settings_file_says_all_that_enable_takes(tmp_path: Path) -> None:
    file = tmp_path / "fast.toml"
    file.write_text(
        'policies = ["static:every=2", "cfg:every=3"]\nrule = "any"\nbasis = "noise"\nmax_cache_bytes = 1000000\n'
        'forecast.step = "linear:abscissa=sigma"\nforecast.cfg = "hold"\n'
    )
    recipe = read(str(file), samples="mean", rule="majority")
    spec = "static:every=2 + cfg:every=3 @ rule=any basis=noise forecast.step=linear:abscissa=sigma forecast.cfg=hold"
    assert recipe == Recipe.parse(f"{spec} max_cache_bytes=1000000 samples=mean")
    with mixcache.enable(built("wan").pipe, file) as session:
        assert [policy.policy_name() for policy in session.plan.policies] == ["static", "cfg"]
        assert session.plan.max_cache_bytes == 1000000


def test_choices_after_a_settings_file_hold_over_it(tmp_path: Path) -> None:
    file = tmp_path / "fast.toml"
    file.write_text('policies = "static:every=2"\nbasis = "noise"\nforecast = "linear"\n')
    recipe = read(f"{file} @ forecast=hold", basis="clean", samples="mean")
    assert recipe == Recipe.parse("static:every=2 @ basis=noise forecast=hold samples=mean")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must set `policies`"),
        ("policies = ", "no TOML"),
        ('policies = "static"\nspeed = 3', "no choice 'speed'"),
        ('policies = "easycash"', "Did you mean"),
        ("policies = 3", "policy must be a spec"),
        ('policies = [["static"]]', "policy must be a spec"),
        ('policies = "static"\nforecast.step = 3', "forecaster must be a spec"),
        ('policies = "static"\nforecast.stop = "hold"', "granularity must be one of"),
        ('policies = "static"\nmax_cache_bytes = -1', "max_cache_bytes"),
        ('policies = "static"\nrule = "king"', "unanimous"),
    ],
)
def test_a_bad_settings_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=says) as error:
        Recipe.from_toml(file)
    assert str(file) in str(error.value)
    with pytest.raises(ConfigurationError, match=says):
        read(str(file))


def test_a_settings_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml"):
        read(str(tmp_path / "nowhere.toml"))

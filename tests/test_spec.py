"""The grammar: what a text means, that every value comes back, and one clear error for every malformed text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any, Literal, Optional, Union

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mixcache.errors import ConfigurationError
from mixcache.spec import (
    Choice,
    Part,
    Text,
    Tree,
    convert,
    describe,
    format_part,
    format_recipe,
    format_value,
    hint_plus,
    parse_choices,
    parse_part,
    parse_recipe,
    split_parts,
)


class Level(str, Enum):
    """An enum of texts."""

    STEP = "step"
    NONE = "none"


class Place(Enum):
    """An enum of numbers."""

    FIRST = 1
    SECOND = 2


def read_back(value: object, wanted: Any) -> Any:
    """The value, written as an argument and read again as what is wanted."""
    part = parse_part(format_part("name", {"before": 1, "key": value, "after": "x"}))
    assert [key for key, _ in part.arguments] == ["before", "key", "after"]
    return convert(part.arguments[1][1], wanted, "key")


def same(one: Any, other: Any) -> bool:
    """Equal in type and value, the sign of zero and nan included."""
    if isinstance(one, float) and isinstance(other, float):
        return (math.isnan(one) and math.isnan(other)) or (
            one == other and math.copysign(1, one) == math.copysign(1, other)
        )
    return type(one) is type(other) and one == other


# what a text means


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("easycache", Tree((Part("easycache"),))),
        (" static : every = 3 ,\n at=cfg ", Tree((Part("static", (("every", Text("3")), ("at", Text("cfg")))),))),
        ("schedule:1101", Tree((Part("schedule", ((None, Text("1101")),)),))),
        ("schedule:1101,at=cfg", Tree((Part("schedule", ((None, Text("1101")), ("at", Text("cfg")))),))),
        ('schedule:"a=b, c"', Tree((Part("schedule", ((None, Text("a=b, c", quoted=True)),)),))),
        ("a:x=1e+0 + b", Tree((Part("a", (("x", Text("1e+0")),)), Part("b")))),
        ("a:table=/a+b/t@2.json", Tree((Part("a", (("table", Text("/a+b/t@2.json")),)),))),
        ('a:table="/a, b + c @ d/t.json"', Tree((Part("a", (("table", Text("/a, b + c @ d/t.json", quoted=True)),)),))),
        ('a:x="say \\"hi\\"",y=""', Tree((Part("a", (("x", Text('say "hi"', True)), ("y", Text("", True)))),))),
        ("a:book=0.08:3 0.16:2,x=1", Tree((Part("a", (("book", Text("0.08:3 0.16:2")), ("x", Text("1")))),))),
        ('a:x=[1, [2.5, "b"], {"c": null}]', Tree((Part("a", (("x", [1, [2.5, "b"], {"c": None}]),)),))),
        ("a:x=/d[1]/{y, z}.json", Tree((Part("a", (("x", Text("/d[1]/{y, z}.json")),)),))),
        ("a:x=b=c", Tree((Part("a", (("x", Text("b=c")),)),))),
        ("a+b", Tree((Part("a+b"),))),
        ("fast.toml @ basis=noise", Tree((Part("fast.toml"),), (Choice("basis", None, "noise"),))),
        (
            'a @ basis="my basis:x=1"  forecast=taylor:order=2,reach=0.6\nforecast.step=linear max=[1, 2]',
            Tree(
                (Part("a"),),
                (
                    Choice("basis", None, "my basis:x=1"),
                    Choice("forecast", None, "taylor:order=2,reach=0.6"),
                    Choice("forecast", "step", "linear"),
                    Choice("max", None, "[1, 2]"),
                ),
            ),
        ),
        (
            'a @ forecast=b:x="c d",y={"e f": 1}',
            Tree((Part("a"),), (Choice("forecast", None, 'b:x="c d",y={"e f": 1}'),)),
        ),
    ],
)
def test_a_text_and_its_tree(text: str, tree: Tree) -> None:
    assert parse_recipe(text) == tree
    assert parse_recipe(str(tree)) == tree
    if not tree.choices:
        assert tuple(map(parse_part, split_parts(text))) == tree.parts


def test_a_list_of_parts_is_split_and_not_read() -> None:
    assert split_parts(' a:x=1e+0 + b:y=" + ",z=[ + ]\n+ no name ') == ["a:x=1e+0", 'b:y=" + ",z=[ + ]', "no name"]


def test_choices_alone() -> None:
    assert parse_choices(" ") == ()
    assert parse_choices("step=linear") == (Choice("step", None, "linear"),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a name is missing; write one name"),
        ("a + ", "a name is missing; .*on each side of every"),
        ("+ a", "a name is missing"),
        ("a + + b", "a name is missing"),
        ("@ basis=noise", "a name is missing"),
        ("a @", "nothing follows the '@'; write a choice such as '@ basis=noise', or leave it out"),
        ("a @ x=1 @ y=2", "' @ ' stands there twice; write it once"),
        ("a @ basis=noise + b", r"'\+' is not a choice"),
        ("a @ basis", "'basis' is not a choice; write key=value or key.level=value"),
        ("a @ basis = noise", "'basis' is not a choice"),
        ("a @ basis=", "'basis=' is not a choice"),
        ("a @ =noise", "'=noise' is not a choice"),
        ("a @ .step=noise", r"'\.step=noise' is not a choice"),
        ("a @ basis.=noise", r"'basis\.=noise' is not a choice"),
        ("a @ basis.step.cond=noise", r"'basis\.step\.cond=noise' is not a choice"),
        ("a @ basis=noise basis=output", "basis is given twice; give it once"),
        ("a @ basis.step=noise basis.step=noise", r"basis\.step is given twice"),
        ('a @ basis="b"c', "'\"b\"c' begins like JSON and is not"),
        (":x=1", "'' is not a name; write name:key=value"),
        ("a b:x=1", r"'a b' is not a name; write name:key=value, and ' \+ ' between two"),
        ("a=1", "'a=1' is not a name"),
        ("a,b:x=1", "'a,b' is not a name"),
        ('"a":x=1', "'\"a\"' is not a name"),
        ("a:", "an argument is empty; write key=value after ':'"),
        ("a:x=1,", "an argument is empty"),
        ("a:,x=1", "an argument is empty"),
        ("a:x=", 'x has no value; write .*"" is the empty text'),
        ("a:x=,y=1", "x has no value"),
        ("a:=1", "'' is not a key; write key=value"),
        ("a:=", "an argument is empty"),
        ("a:x-y=1", "'x-y' is not a key; .*quote a text that holds '='"),
        ("a:x=1,2", "'2' has no key; write key=value; only the first argument"),
        ("a:1,2", "'2' has no key"),
        ("a:x=1,x=2", "x is given twice; give it once"),
        ('a:x="b', '" has no partner; balance quotes and brackets, or quote the value'),
        ("a:x=[1, 2", r"\[ has no partner"),
        ("a:x=1]", r"\] has no partner"),
        ("a:x=[1}", r"\[ has no partner"),
        ('a:x="b"c', "'\"b\"c' begins like JSON and is not .*; correct it, or put a text in double quotes"),
        ("a:x=[b]", r"'\[b\]' begins like JSON and is not"),
        ('a:x={"b": 1, "b": 2}', r"'\{.*\}' begins like JSON and is not \(a key is given twice\)"),
        ('a:x="\\q"', r"'\S+' begins like JSON and is not"),
    ],
)
def test_a_malformed_text_is_one_clear_error(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"(?s)^cannot read '.*': {said}.*\.$") as raised:
        parse_recipe(text)
    assert raised.value.__cause__ is None
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["a + b", "a @ x=1", "a:x=1 + 2", "a:x=1 @ 2"])
def test_where_one_name_is_wanted_separators_have_no_place(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"' \+ ' and ' @ ' have no place here; write one name"):
        parse_part(text)


def test_a_name_with_a_plus_in_it_gets_a_hint() -> None:
    assert hint_plus("static") == hint_plus("+") == ""
    assert hint_plus("a+b@c=1") == " Did you mean 'a + b @ c=1'? A separator needs white space on both sides."


# every value comes back

FLOATS = st.floats(allow_nan=True)
SCALARS = st.none() | st.booleans() | st.integers() | FLOATS | st.text()
NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.from_regex(r"[a-z_][a-z0-9_]{0,5}", fullmatch=True)
NAMES = st.from_regex(r'[^\s",:=\[\]{}]+', fullmatch=True).filter(lambda name: name not in ("+", "@"))


@given(SCALARS)
@example(5e-324)
@example(1e308)
@example(1e16)
@example(-0.0)
@example(math.inf)
@example(-math.inf)
@example(math.nan)
@example("none")
@example("True")
@example("1101")
@example("Infinity")
@example(" a")
@example("a + b @ c")
@example("/a, b/t.json")
@example('"')
@example("\\")
@example("\ud83d\ude00")
def test_a_scalar_comes_back_as_its_own_type_and_among_all_types(value: Any) -> None:
    assert same(read_back(value, type(value)), value)
    assert same(read_back(value, Any), value)
    assert same(read_back(value, str | int | float | bool | None), value)


@given(st.lists(NESTED) | st.dictionaries(st.text(), NESTED))
@example([-0.0, math.inf, 5e-324])
def test_a_list_or_mapping_comes_back(value: Any) -> None:
    assert read_back(value, type(value)) == value
    assert read_back(value, Any) == value
    assert repr(read_back(value, Any)) == repr(value)


@given(st.lists(FLOATS), st.lists(st.tuples(st.floats(allow_nan=False), st.integers())))
def test_tuples_come_back_with_the_types_of_their_elements(
    numbers: list[float], pairs: list[tuple[float, int]]
) -> None:
    back = read_back(tuple(numbers), tuple[float, ...] | None)
    assert isinstance(back, tuple)
    assert all(map(same, back, numbers))
    assert read_back(tuple(pairs), tuple[tuple[float, int], ...]) == tuple(pairs)


@st.composite
def parts(draw: st.DrawFn) -> Part:
    """A part as it is read: any name, any values; the first may lack its key."""
    values = draw(st.dictionaries(KEYS, SCALARS | NESTED, max_size=4))
    keys: list[str | None] = [*values]
    if keys and draw(st.booleans()):
        keys[0] = None
    name = draw(NAMES)
    return parse_part(format_part(name, zip(keys, values.values())))


CHOICES = st.lists(
    st.builds(Choice, KEYS, st.none() | KEYS, st.text()),
    max_size=4,
    unique_by=lambda choice: (choice.key, choice.level),
)


@given(st.lists(parts(), min_size=1, max_size=3), CHOICES)
@example([Part("a")], [Choice("x", None, ""), Choice("x", "y", '"'), Choice("z", None, "+"), Choice("z", "y", "@ =")])
@example([parse_part(format_part("a", [(None, "=")]))], [])
@example([Part("a")], [Choice("x", None, "b:c=1,d=/e+f"), Choice("y", None, "]"), Choice("z", None, 'b:c="d e"')])
def test_a_tree_comes_back(several: list[Part], choices: list[Choice]) -> None:
    tree = Tree(tuple(several), tuple(choices))
    assert parse_recipe(str(tree)) == tree
    texts = [str(part) for part in several]
    assert str(tree) == format_recipe(texts, [(choice.key, choice.level, choice.text) for choice in choices])
    assert split_parts(format_recipe(texts)) == texts


@given(st.text(st.sampled_from('ab1 :,=+@."[]{}\\\n-'), max_size=24) | st.text(max_size=24))
def test_any_text_is_a_tree_that_comes_back_or_one_error(text: str) -> None:
    try:
        tree = parse_recipe(text)
    except ConfigurationError:
        return
    assert parse_recipe(str(tree)) == tree


@pytest.mark.parametrize(
    "text",
    ["[" * 50_000, '"' * 50_001, "[" + "9" * 5_000 + "]"],
    ids=["open", "quotes", "digits"],
)
def test_a_text_beyond_all_bounds_is_one_error_too(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^cannot read "):
        parse_recipe(f"a:x={text}")


def test_nesting_may_be_deep_and_at_worst_is_an_error() -> None:
    deep = parse_recipe(f"a:x={'[' * 200}{']' * 200}")
    assert parse_recipe(str(deep)) == deep
    with suppress(ConfigurationError):  # how deep JSON may nest depends on Python
        parse_recipe(f"a:x={'[' * 3_000}{']' * 3_000}")


@given(st.sampled_from([*Level, *Place]))
def test_an_enum_member_comes_back(member: Enum) -> None:
    assert read_back(member, type(member)) is member
    assert read_back(member, type(member) | None) is member
    assert read_back({"x": [member]}, dict[str, list[type(member)]]) == {"x": [member]}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (None, "none"),
        (3, "3"),
        (0.1, "0.1"),
        (1e16, "1e+16"),
        (-0.0, "-0.0"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (math.nan, "nan"),
        (Level.STEP, "step"),
        (Level.NONE, '"none"'),
        (Place.FIRST, "1"),
        ("step", "step"),
        ("/a+b/t.json", "/a+b/t.json"),
        ("step/cfg", "step/cfg"),
        ("", '""'),
        ("1101", '"1101"'),
        ("None", '"None"'),
        ("a b", '"a b"'),
        ("a,b", '"a,b"'),
        ("a=b", '"a=b"'),
        ("grün", "grün"),
        ("grün, blau", '"grün, blau"'),
        ((1, 2.5, Level.STEP), '[1, 2.5, "step"]'),
        ({Level.STEP: (None, True)}, '{"step": [null, true]}'),
        (Text("none"), "none"),
        (Text("step", quoted=True), '"step"'),
        (np.float64(0.1), "0.1"),
        (np.int32(7), "7"),
        ([np.float32(0.5)], "[0.5]"),
    ],
)
def test_how_a_value_is_written(value: object, text: str) -> None:
    assert format_value(value) == text
    assert format_part("a", {"x": value}) == f"a:x={text}"
    assert format_part("a", {}) == "a"


@pytest.mark.parametrize("value", [object(), b"bytes", {1: 2}, {1, 2}, [object()], 1j])
def test_what_no_text_can_say_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError, match="cannot be written in a recipe; use numbers, texts, lists"):
        format_value(value)


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a=b", "a,b", '"a"', "a[0]"])
def test_a_name_that_could_not_be_read_is_not_written(name: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a name"):
        format_part(name, {})


# a value as what is wanted


@pytest.mark.parametrize(
    ("text", "wanted", "value"),
    [
        ("1e+0", float, 1.0),
        ("1e16", float, 1e16),
        ("3", float, 3.0),
        (".5", float, 0.5),
        ("-inf", float, -math.inf),
        ("-3", int, -3),
        ("007", int, 7),
        ("TRUE", bool, True),
        ("false", bool, False),
        ("none", str, "none"),
        ("none", str | None, None),
        ("None", Optional[int], None),  # noqa: UP045
        ("a", Optional[str], "a"),  # noqa: UP045
        ('"none"', str | None, "none"),
        ("3", float | int, 3.0),
        ("3", Union[int, float], 3),  # noqa: UP007
        ("3", str | int, 3),
        ('"3"', str | int, "3"),
        ("1101", str, "1101"),
        ("step", Level, Level.STEP),
        ('"step"', Level | None, Level.STEP),
        ("none", Level | None, None),
        ('"none"', Level | None, Level.NONE),
        ("2", Place, Place.SECOND),
        ("paper", Literal["saved", "paper"], "paper"),
        ("2", Literal[1, 2], 2),
        ("2", Literal["1", "2"], "2"),
        ("none", Literal["a", None], None),
        ("[1, 2]", tuple[float, ...] | None, (1.0, 2.0)),
        ("[1, 2]", tuple, (1, 2)),
        ('[1, "a"]', tuple[int, str], (1, "a")),
        ("[[1]]", Sequence[list[int]], ([1],)),
        ("[[1], null]", Sequence[Any], ([1], None)),
        ('["step"]', list[Level], [Level.STEP]),
        ('{"step": [1]}', Mapping[Level, tuple[float, ...]], {Level.STEP: (1.0,)}),
        ('{"a": 1}', Mapping, {"a": 1}),
        ('{"a": 1}', Mapping[str, float] | Sequence[float] | None, {"a": 1.0}),
        ("[1]", Mapping[str, float] | Sequence[float] | None, (1.0,)),
        ("1", Any, 1),
        ("one", object, "one"),
        ("[1]", Any, [1]),
    ],
)
def test_a_value_is_read_as_what_is_wanted(text: str, wanted: Any, value: Any) -> None:
    read = convert(parse_part(f"a:x={text}").arguments[0][1], wanted, "x")
    assert same(read, value)


@pytest.mark.parametrize(
    ("value", "wanted", "read"),
    [(3, int | None, 3), (3, float, 3.0), ("3", str, "3"), ("step", Level, Level.STEP), (None, str | None, None)],
)
def test_values_of_toml_are_taken_too(value: object, wanted: Any, read: Any) -> None:
    assert same(convert(value, wanted, "x"), read)


@pytest.mark.parametrize(
    ("text", "wanted", "said"),
    [
        ("x", float, "a number, got 'x'"),
        ("1_0", float, "a number, got '1_0'"),
        ("0x1", float, "a number"),
        ("\u0661", int, "a whole number"),
        ('"0.5"', float, "a number, got '0.5' in quotes"),
        ("0.1+window", float, "a number, got '0.1+window'. Did you mean '0.1 + window'? A separator needs"),
        ("2.5", int, "a whole number, got '2.5'"),
        ("1e3", int, "a whole number, got '1e3'"),
        pytest.param("9" * 5000, int, "a whole number", id="digits"),
        ("none", int, "a whole number, got 'none'"),
        ("yes", bool, "true or false, got 'yes'"),
        ("1", bool, "true or false, got '1'"),
        ("x", float | None, "a number or none, got 'x'"),
        ("[1]", str, "a text, got [1]"),
        ("everywhere", Level, "one of step, \"none\", got 'everywhere'"),
        ("3", Place, "one of 1, 2, got '3'"),
        ("all", Literal["saved", "paper"], "one of saved, paper, got 'all'"),
        ('"2"', Literal[1, 2], "one of 1, 2, got '2' in quotes"),
        ("true", Literal[1, 2], "one of 1, 2, got 'true'"),
        ("1", tuple[float, ...] | None, "a list [a number, ...] or none, got '1'"),
        ('[1, "a"]', tuple[float, ...], "a list [a number, ...], got [1, 'a']"),
        ("[true]", list[int], "a list [a whole number, ...], got [True]"),
        ("[1]", tuple[int, str], "a list [a whole number, a text], got [1]"),
        ("[1]", Sequence[str], "a list [a text, ...], got [1]"),
        pytest.param("[1" + "0" * 400 + "]", tuple[float, ...], "a list [a number, ...], got [1000", id="overflow"),
        ('{"a": 1}', tuple, "a list [a value, ...], got {'a': 1}"),
        ("[1]", dict[str, Any], "a mapping {a text: a value}, got [1]"),
        ("x", np.ndarray, "a ndarray, given in Python, got 'x'"),
    ],
)
def test_a_value_that_is_something_else_says_what_is_wanted(text: str, wanted: Any, said: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        convert(parse_part(f"a:x={text}").arguments[0][1], wanted, "policy a: x")
    assert str(raised.value).startswith(f"policy a: x must be {said}")
    assert raised.value.__suppress_context__


@pytest.mark.parametrize(
    ("value", "wanted"), [(True, int), (True, float), (1, bool), (1.0, int), ("1", int), (None, str)]
)
def test_a_value_of_toml_must_have_the_type_too(value: object, wanted: Any) -> None:
    with pytest.raises(ConfigurationError, match="x must be"):
        convert(value, wanted, "x")


def test_types_in_words() -> None:
    assert describe(Any) == describe(object) == "a value"
    assert (
        describe(tuple[tuple[str, tuple[float, ...]], ...]) == "a list [a list [a text, a list [a number, ...]], ...]"
    )

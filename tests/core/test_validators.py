"""Validators: what passes, and one error that names the class, the argument, what is wanted and the value."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch
from attrs import field, frozen, make_class

from mixcache.core.validators import Check, ge, gt, none_or, one_of
from mixcache.errors import ConfigurationError


def made(check: Check, value: Any) -> Any:
    """What a class keeps of `value` if `check` validates it."""
    return make_class("Kind", {"name": field(validator=check)}, frozen=True)(name=value).name


@pytest.mark.parametrize(
    ("check", "value"),
    [
        (ge(0), 0),
        (ge(0), -0.0),
        (ge(0), 5e-324),
        (ge(0), np.float32(0.5)),
        (ge(0), np.int64(3)),
        (ge(0.5), 0.5),
        (gt(0), 1e-300),
        (ge(1, whole=True), 1),
        (ge(1, whole=True), 10**400),
        (ge(1, whole=True), np.int16(1)),
        (gt(1, whole=True), 2),
        (one_of("a", "b"), "b"),
        (one_of(1, 2), np.int64(2)),
        (one_of(1, True), True),
        (none_or(ge(0)), None),
        (none_or(ge(0)), 0.5),
        (none_or(ge(1, whole=True)), 1),
        (none_or(one_of("a")), None),
    ],
)
def test_what_passes_is_kept_as_it_is(check: Check, value: Any) -> None:
    assert made(check, value) is value


@pytest.mark.parametrize(
    ("check", "wanted", "values"),
    [
        (ge(0), ">= 0", [-1, -5e-324, math.nan, math.inf, "1", None, True, np.True_, np.float32(math.nan), 10**400]),
        (ge(0), ">= 0", [1j, Decimal(1), [1], np.ones(2), torch.tensor(1.0)]),
        (ge(0.5), ">= 0.5", [0.49]),
        (gt(0), "> 0", [0, -0.0, math.inf]),
        (ge(1, whole=True), "a whole number >= 1", [0, 1.0, np.float64(2.0), "x", None, True, torch.tensor(True)]),
        (gt(1, whole=True), "a whole number > 1", [1, 2.5]),
        (one_of("a", "b"), "one of 'a', 'b'", ["c", "", None, 1, ["a"], np.ones(2)]),
        (one_of(1, 2), "one of 1, 2", [True, 3, "1"]),
        (none_or(ge(0)), "None or >= 0", [-1, math.nan, False, "none"]),
        (none_or(ge(0, whole=True)), "None or a whole number >= 0", [-1, 0.5]),
        (none_or(one_of("a", "b")), "None or one of 'a', 'b'", ["c"]),
    ],
)
def test_what_fails_is_named_with_what_is_wanted(check: Check, wanted: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ConfigurationError) as raised:
            made(check, value)
        assert str(raised.value) == f"`Kind(name=...)` must be {wanted}, got {value!r}."
        assert raised.value.__suppress_context__


def test_the_class_named_is_that_of_the_instance_and_the_annotation_does_not_matter() -> None:
    @frozen
    class Base:
        """Its field is annotated as a whole number, and validated as any."""

        every: int = field(default=2, validator=ge(1))

    @frozen
    class Derived(Base):
        """Inherits the field."""

    assert Base(every=1.5).every == 1.5  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"^`Derived\(every=\.\.\.\)` must be >= 1, got 0\.$"):
        Derived(every=0)

"""Fixed schedules: intervals against written-out lists and other tools' numbers, and explicit masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mixcache
from mixcache import Policy
from mixcache.testing import simulate
from mixcache_policies import CFGInterval, Schedule, Static
from tests.helpers import Scripted, follow, reused_steps
from tests.zoo.tiny import Tiny


def reused(policy: Policy, steps: int) -> list[int]:
    return [record.point.step for record in simulate([policy], [{}] * steps) if record.outcome.reused]


@pytest.mark.parametrize(
    ("policy", "steps", "wanted"),
    [
        (Static(), 10, [2, 4, 6, 8]),
        (Static(every=3), 12, [2, 3, 5, 6, 8, 9]),
        (Static(every=1), 12, []),
        (Static(every=4, first_steps=0, last_steps=0), 9, [1, 2, 3, 5, 6, 7]),
        (Static(every=4, first_steps=1, last_steps=2, longest_run=2), 12, [1, 2, 5, 6, 9]),
        (Static(every=3, first_steps=50), 20, []),
        (CFGInterval(), 10, [2, 4, 6, 8]),
        (CFGInterval(every=3, first_steps=1, last_steps=0), 8, [1, 2, 4, 5, 7]),
        # cache-dit 1.5.3, always hit, warm-up 4, at most 1 and at most 2 reuses in a row
        (Static(every=99, first_steps=4, last_steps=0, longest_run=1), 19, [4, 6, 8, 10, 12, 14, 16, 18]),
        (Static(every=99, first_steps=4, last_steps=0, longest_run=2), 19, [4, 5, 7, 8, 10, 11, 13, 14, 16, 17]),
        (Static(every=2, first_steps=4, last_steps=0), 19, [4, 6, 8, 10, 12, 14, 16, 18]),
        (Static(every=3, first_steps=4, last_steps=0), 19, [4, 5, 7, 8, 10, 11, 13, 14, 16, 17]),
    ],
)
def test_the_schedule_of_an_interval(policy: Policy, steps: int, wanted: list[int]) -> None:
    assert reused(policy, steps) == wanted


@given(st.integers(1, 50).flatmap(lambda blocks: st.tuples(st.integers(1, blocks), st.just(blocks))))
def test_spans_of_so_many_blocks_cover_every_block_once(drawn: tuple[int, int]) -> None:
    size, blocks = drawn
    spans = Static(blocks=size).spans(blocks)
    assert [block for first, last in spans for block in range(first, last)] == list(range(blocks))
    assert {last - first for first, last in spans[:-1]} <= {size}
    assert 0 < spans[-1][1] - spans[-1][0] <= size
    assert Static().spans(blocks) == ((0, blocks),)


@given(st.integers(1, 50), st.integers(1, 50))
def test_more_blocks_than_there_are_are_refused(blocks: int, more: int) -> None:
    with pytest.raises(
        mixcache.ConfigurationError, match=rf"blocks={blocks + more}\)` .*: the model has {blocks} block"
    ):
        Static(blocks=blocks + more).spans(blocks)


def test_every_block_is_decided_about_on_its_own(tiny_wan_random: Tiny) -> None:
    with mixcache.enable(tiny_wan_random.pipe, Static(at="block", blocks=1, every=2)) as session:
        tiny_wan_random.run(4, guidance_scale=1.0)
    visited = [(r.point.step, r.point.span, r.outcome.reused) for r in session.records]
    assert visited == [(step, (i, i + 1), step == 2) for step in range(4) for i in range(3)]


@given(st.text("01", min_size=1, max_size=20).map(lambda tail: "1" + tail))
def test_a_mask_is_followed_to_the_letter(mask: str) -> None:
    model, anchors = Scripted(), [torch.ones(1, 1)] * len(mask)
    with mixcache.enable(model, Schedule(mask)) as session:
        follow(session, model, anchors, [[a] for a in anchors])
    assert reused_steps(session) == [i for i, letter in enumerate(mask) if letter == "0"]
    assert model.calls == mask.count("1")


@pytest.mark.parametrize("mask", ["", "01", "12", "1 0", "abc", 101, None])
def test_a_mask_that_is_none_is_refused(mask: object) -> None:
    with pytest.raises(mixcache.ConfigurationError, match=r"`Schedule\(mask=\.\.\.\)` must be a string of 1"):
        Schedule(mask)  # type: ignore[arg-type]


def test_a_mask_of_another_length_refuses_the_run() -> None:
    with mixcache.enable(Scripted(), Schedule("1010")) as session:
        wrong = pytest.raises(mixcache.ConfigurationError, match="has 4 steps, but the run makes 5 evaluations")
        with wrong, session.run(5):
            pass
        with session.run(4):
            pass


def test_guards_hold_over_a_mask() -> None:
    assert reused(Schedule("1000000000", longest_run=3, first_steps=2, last_steps=1), 10) == [2, 3, 4, 6, 7, 8]


@pytest.mark.parametrize(
    ("name", "wrong"), [("every", 1.5), ("blocks", 2.5), ("blocks", "2"), ("first_steps", True), ("longest_run", 0.5)]
)
def test_what_counts_must_be_whole(name: str, wrong: Any) -> None:
    said = rf"`Static\({name}=\.\.\.\)` must be (None or )?a whole number >= [01], got {wrong!r}"
    with pytest.raises(mixcache.ConfigurationError, match=said):
        Static(**{name: wrong})
    assert Static(every=np.int64(3)) == Static(every=3)

"""What could never reuse is refused, and a run of which nothing was reused says why: once in a warning, and in the
report."""

from __future__ import annotations

import warnings

import pytest
import torch

import mixcache
from mixcache import ConfigurationError, NothingReusedWarning
from tests.helpers import Scripted, follow, state_of
from tests.zoo.pipelines import Tiny


def test_a_warm_up_as_long_as_the_run_is_said(tiny_wan_random: Tiny) -> None:
    bare = tiny_wan_random.run(4)
    with mixcache.enable(tiny_wan_random.pipe, "easycache:first_steps=10") as session:
        with pytest.warns(NothingReusedWarning) as told:
            assert torch.equal(tiny_wan_random.run(4), bare)
        said = "nothing was reused in a run of 4 evaluations: easycache: first 10 steps (4 visits)"
        assert [str(one.message) for one in told] == [f"mixcache: {said}"]
        assert said in session.report().notes
        assert said in " ".join(str(session.report()).split())
        with warnings.catch_warnings(record=True) as again:  # once a session
            warnings.simplefilter("always")
            tiny_wan_random.run(5)
        assert not again
    assert said.replace("4", "5") in session.report().notes


def outputs(steps: int) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
    """Latents, and outputs that change from step to step."""
    anchors = list(torch.arange(1.0, steps + 1).reshape(steps, 1, 1))
    return anchors, [[anchor**2] for anchor in anchors]


def test_every_reason_is_said_and_the_commonest_first() -> None:
    model = Scripted()
    policy = "easycache:threshold=1e-9,first_steps=2,last_steps=1"
    with mixcache.enable(model, policy) as session, pytest.warns(NothingReusedWarning) as told:
        follow(session, model, *outputs(7))
    (note,) = session.report().notes
    assert note == (
        "nothing was reused in a run of 7 evaluations: easycache: accumulated change reached 1e-09 (4 visits), "
        "easycache: first 2 steps (2 visits), easycache: last 1 steps (1 visits)"
    )
    assert str(told[0].message) == f"mixcache: {note}"


def test_a_run_that_reused_or_broke_off_says_nothing() -> None:
    model = Scripted()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with mixcache.enable(model, "static:every=2,first_steps=1,last_steps=0") as session:
            follow(session, model, *outputs(4))
            with session.run(4) as run, run.step(0):
                model(torch.ones(1, 1))
            with session.run(4):
                pass
        assert session.report().notes == ()


def test_a_warning_that_is_made_an_error_leaves_the_next_run_clean(tiny_wan_random: Tiny) -> None:
    bare = tiny_wan_random.run(4)
    with mixcache.enable(tiny_wan_random.pipe, "easycache:first_steps=10") as session:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(NothingReusedWarning):
                tiny_wan_random.run(4)
        assert torch.equal(tiny_wan_random.run(4), bare)
    assert session.report().runs == 2


@pytest.mark.parametrize(
    ("policies", "said"),
    [
        ("window:first_steps=2", "nothing could ever be reused: window"),
        ("budget:total=0.1", "nothing could ever be reused: budget"),
        ("window + budget", "nothing could ever be reused: window, budget"),
        ("firstblock:at=step", "prefix can be had at 'block' alone"),
        ("static:at=block,blocks=99", "`Static(blocks=99)` is more than there are: the model has 3 blocks"),
    ],
)
def test_what_can_never_reuse_is_refused(tiny_wan_random: Tiny, policies: str, said: str) -> None:
    before = state_of(tiny_wan_random.pipe.transformer)
    with pytest.raises(ConfigurationError) as error:
        mixcache.enable(tiny_wan_random.pipe, policies)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert state_of(tiny_wan_random.pipe.transformer) == before

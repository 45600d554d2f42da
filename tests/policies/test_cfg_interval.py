"""Reuse of the unconditional branch, against the increment written out: two calls a step, and one doubled batch."""

from __future__ import annotations

import pytest
import torch

import mixcache
from tests.conftest import built
from tests.helpers import recorded_calls, reused_steps
from tests.zoo.pipelines import Tiny

POLICY, COMPUTED = "cfg:every=3,first_steps=1,last_steps=1", (0, 3, 6, 7)


def test_two_calls_a_step(tiny_wan_random: Tiny) -> None:
    """uncond(t) = cond(t) + (uncond(c) - cond(c)); cond is always computed, from the latents of the cached run."""
    model = tiny_wan_random.pipe.transformer
    with mixcache.enable(tiny_wan_random.pipe, POLICY) as session, recorded_calls(model) as calls:
        tiny_wan_random.run(8)
    assert reused_steps(session, "cfg") == [1, 2, 4, 5]
    increment = None
    for step in range(8):
        (cond_arguments, cond), (uncond_arguments, uncond) = calls[2 * step : 2 * step + 2]
        with torch.no_grad():
            assert torch.equal(model(**cond_arguments)[0], cond)
            if step in COMPUTED:
                assert torch.equal(model(**uncond_arguments)[0], uncond)
                increment = uncond - cond
            else:
                assert not torch.equal(model(**uncond_arguments)[0], uncond)
        torch.testing.assert_close(uncond, cond + increment)


@pytest.mark.parametrize("name", ["ltx", "cogvideox", "sd3"])
@pytest.mark.parametrize("batch", [1, 2])
def test_one_doubled_batch(name: str, batch: int) -> None:
    """The first half is uncond; a reused step runs the model on the second half alone.

    After the first step that half is computed once by itself, and must be what the whole batch gave.
    """
    tiny = built(name)
    model = tiny.pipe.transformer
    rows: list[int] = []
    handle = model.proj_out.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[0]))
    with mixcache.enable(tiny.pipe, POLICY) as session, recorded_calls(model) as calls:
        tiny.run(8, batch=batch)
    handle.remove()
    steps = [2 * batch if step in COMPUTED else batch for step in range(8)]
    assert rows == [steps[0], batch, *steps[1:]]
    assert reused_steps(session, "cfg") == [1, 2, 4, 5]
    assert {r.point.branch for r in session.records} == {"uncond"}
    increment = None
    for step, (arguments, output) in enumerate(calls):
        with torch.no_grad():
            (whole,) = model(**arguments, **({} if "return_dict" in arguments else {"return_dict": False}))
        uncond, cond = output.chunk(2)
        torch.testing.assert_close(cond, whole[batch:])
        if step in COMPUTED:
            assert torch.equal(output, whole)
            increment = uncond - cond
        torch.testing.assert_close(uncond, cond + increment)


def test_the_first_half_of_a_doubled_batch_is_the_negative_prompt() -> None:
    """Which half the adapters call uncond, shown by what the pipeline puts there."""
    for name in ("ltx", "cogvideox", "sd3"):
        tiny = built(name)
        with recorded_calls(tiny.pipe.transformer) as calls:
            tiny.run(1)
        first, second = calls[0][0]["encoder_hidden_states"].chunk(2)
        assert torch.equal(first, tiny.arguments(1)["negative_prompt_embeds"])
        assert torch.equal(second, tiny.arguments(1)["prompt_embeds"])


def test_a_branch_at_cfg_saves_half_of_a_guided_step(tiny_wan_random: Tiny) -> None:
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = tiny_wan_random.pipe.transformer.proj_out.register_forward_hook(count)
    with mixcache.enable(tiny_wan_random.pipe, "cfg:every=2,first_steps=1,last_steps=0"):
        tiny_wan_random.run(8)
    handle.remove()
    assert calls == 8 + 4

"""Scenarios in which other caching tools went wrong, each by its name in the list of them (see the docstrings)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler

import mixcache
from mixcache import AttachError, Entry, Granularity, Point, catalogue
from mixcache.testing import simulate
from mixcache_policies import EasyCache, FirstBlock, Static
from tests.helpers import Scripted, follow, guidance_after, reused_steps, state_of, verdicts
from tests.zoo.pipelines import Tiny, wan, wan_transformer

POLICY = "static:every=3,first_steps=1"


def test_the_token_count_changes_between_requests(random_tiny: Tiny) -> None:
    """Elsewhere: RuntimeError in the middle of a run."""
    with mixcache.enable(random_tiny.pipe, [POLICY, "firstblock"]):
        want = random_tiny.run(**random_tiny.other_size)
    with mixcache.enable(random_tiny.pipe, [POLICY, "firstblock"]):
        random_tiny.run()
        assert torch.equal(random_tiny.run(**random_tiny.other_size), want)


def test_the_token_count_changes_within_a_request() -> None:
    """Computes, reported as "shape changed"."""
    model = Scripted()
    anchors = [torch.ones(1, n, 2) for n in (4, 4, 6, 6)]
    with mixcache.enable(model, "static:every=9,first_steps=1,last_steps=0") as session:
        results = follow(session, model, anchors, [[a] for a in anchors])
    assert reused_steps(session) == [1, 3]
    assert "shape changed from (1, 4, 2)" in session.records[2].outcome.reason
    assert [r[0].shape for r in results] == [a.shape for a in anchors]


def test_batch_2_then_batch_1(random_tiny: Tiny) -> None:
    """Elsewhere: silently returns batch 2."""
    with mixcache.enable(random_tiny.pipe, POLICY):
        want = random_tiny.run()
    with mixcache.enable(random_tiny.pipe, POLICY):
        assert random_tiny.run(batch=2).shape[0] == 2 * want.shape[0]
        assert torch.equal(random_tiny.run(), want)


def test_a_request_raises_at_step_6_then_the_next_one_starts(random_tiny: Tiny) -> None:
    """Elsewhere: first step computed, then four reuses with no warm-up, from the dead request's history."""

    def fail(pipe: Any, index: int, *_: Any) -> dict[str, Any]:
        if index == 6:
            raise ZeroDivisionError
        return {}

    policy = "easycache:threshold=0.5,first_steps=4"
    with mixcache.enable(random_tiny.pipe, policy) as session:
        want, first = random_tiny.run(10), verdicts(session)
    with mixcache.enable(random_tiny.pipe, policy) as session:
        with pytest.raises(ZeroDivisionError):
            random_tiny.run(10, callback_on_step_end=fail)
        assert torch.equal(random_tiny.run(10), want)
        assert verdicts(session) == first
        assert min(reused_steps(session)) >= 4


def test_two_pipelines_share_one_transformer(tiny_wan_random: Tiny) -> None:
    """Elsewhere: the second uses the first's context, never reset: all ten steps reused, step 0 included."""
    other = wan(tiny_wan_random.pipe.transformer)
    with mixcache.enable(tiny_wan_random.pipe.transformer, POLICY) as session:
        one, first = tiny_wan_random.run(10), verdicts(session)
        assert torch.equal(other.run(10), one)
        assert session.report().runs == 2
    assert verdicts(session) == first
    assert not first[0][2]


def test_two_pipelines_of_one_class_caching_disabled_on_one(tiny_wan_random: Tiny) -> None:
    """Elsewhere: AttributeError in the other (patched on the class)."""
    other = wan(wan_transformer(seed=2))
    before, bare = state_of(other.pipe.transformer), other.run()
    first, second = mixcache.enable(tiny_wan_random.pipe, POLICY), mixcache.enable(other.pipe, POLICY)
    first.disable()
    assert not torch.equal(other.run(), bare)
    assert reused_steps(second)
    second.disable()
    assert torch.equal(other.run(), bare)
    assert before.keys() == state_of(other.pipe.transformer).keys()
    assert "forward" not in vars(other.pipe.transformer)
    assert type(other.pipe).__call__ is type(tiny_wan_random.pipe).__call__


def test_guidance_stops_at_step_5_of_10(tiny_wan_random: Tiny) -> None:
    """Elsewhere: cond calls land in uncond's buffers; the next request is not refreshed."""
    with mixcache.enable(tiny_wan_random.pipe, POLICY) as session:
        want = tiny_wan_random.run(10)
        tiny_wan_random.run(10, callback_on_step_end=guidance_after({4: 1.0}))
        branches = [branch for _, branch, _ in verdicts(session)]
        assert torch.equal(tiny_wan_random.run(10), want)
    assert branches == ["cond", "uncond"] * 5 + ["cond"] * 5


def test_heun_makes_two_evaluations_a_step() -> None:
    """Elsewhere: every forward counts as a step."""
    tiny = wan(noise_scheduler=FlowMatchHeunDiscreteScheduler(shift=3.0))
    with mixcache.enable(tiny.pipe, "static:every=1,last_steps=2") as session:
        tiny.run(5)
    steps = [r.point.step for r in session.records]
    assert steps == [i // 2 for i in range(2 * 9)]
    last = [r.point.step for r in session.records if r.outcome.reason == "static: last 2 steps"]
    assert last == [7, 8]


def test_batch_of_8_with_one_fast_changing_sample() -> None:
    """Elsewhere: all reuse; that sample's error is 0.39, the others' 0.0."""
    slow = [torch.full((7, 16), 50.0 + 0.01 * t) for t in range(12)]
    fast = [torch.full((1, 16), float((-1) ** t)) for t in range(12)]
    anchors = [torch.cat(pair) for pair in zip(slow, fast)]
    model = Scripted()
    with mixcache.enable(model, EasyCache(threshold=0.1, first_steps=3)) as session:
        together = follow(session, model, anchors, [[2 * a] for a in anchors])
    assert reused_steps(session) == []
    assert all(torch.equal(r[0], 2 * a) for r, a in zip(together, anchors))
    with mixcache.enable(model, EasyCache(threshold=0.1, first_steps=3)) as session:
        follow(session, model, slow, [[2 * a] for a in slow])
    assert len(reused_steps(session)) == 8


def test_a_policy_name_with_a_typo() -> None:
    """Elsewhere: caching silently off."""
    with pytest.raises(mixcache.UnknownNameError, match=r"'eazycache'; there are: .*cfg, .*Did you mean 'easycache'\?"):
        mixcache.enable(Scripted(), "eazycache")


def test_attention_or_blocks_not_named_as_expected(tiny_wan_random: Tiny) -> None:
    """Elsewhere: zero hooks attached, silently."""
    unknown = type("MyTransformer", (torch.nn.Module,), {"forward": lambda self, hidden_states: hidden_states})()
    with pytest.raises(mixcache.AttachError, match="MyTransformer has no spans of blocks to skip"):
        mixcache.enable(unknown, "firstblock")
    with mixcache.enable(tiny_wan_random.pipe, [POLICY, "cfg"]) as session:
        assert "nothing was visited" in str(session.report())
        tiny_wan_random.run(guidance_scale=1.0)
    assert "'cfg' decided nothing" in str(session.report())


def test_threshold_reached_yet_nothing_is_reused(tiny_wan_random: Tiny) -> None:
    """Elsewhere users ask "what was cached?"; here every visit's verdict and reason is in the report."""
    with mixcache.enable(tiny_wan_random.pipe, "easycache:threshold=0.0001,first_steps=2") as session:
        tiny_wan_random.run(8)
    reasons = session.report().visits["step"].reasons
    assert reasons["computed: easycache: accumulated change reached 0.0001"] == 5
    assert sum(reasons.values()) == len(session.records) == 16
    assert all(reason in str(session.report()) for reason in reasons)


def test_taylor_forecast_with_steps_of_unequal_sigma() -> None:
    """Elsewhere the divided difference is taken per call; here the abscissa is a parameter: step index or sigma."""
    sigmas = [1.0, 0.9, 0.6, 0.1]
    anchors = [torch.zeros(1, 1, dtype=torch.float64)] * 4
    outputs = [[torch.full((1, 1), 2 + 3 * s, dtype=torch.float64)] for s in sigmas]
    results = {}
    for abscissa in ("sigma", "step"):
        model = Scripted()
        with mixcache.enable(model, "schedule:1110", forecast=f"taylor:order=1,abscissa={abscissa}") as session:
            results[abscissa] = follow(session, model, anchors, outputs, sigmas=sigmas)[3][0].item()
    assert results["sigma"] == pytest.approx(2 + 3 * 0.1)
    assert results["step"] == pytest.approx((2 + 3 * 0.6) + 3 * (0.6 - 0.9))


# numbers of theirs


@pytest.mark.parametrize(
    ("longest", "wanted"), [(1, [4, 6, 8, 10, 12, 14, 16, 18]), (2, [4, 5, 7, 8, 10, 11, 13, 14, 16, 17])]
)
def test_always_hit_schedules(longest: int, wanted: list[int]) -> None:
    """19 steps, warm-up 4, at most 1 or 2 reuses in a row."""
    always = Static(every=1000, first_steps=4, last_steps=0, longest_run=longest)
    assert [r.point.step for r in simulate([always], [{}] * 19) if r.outcome.reused] == wanted


@pytest.mark.parametrize(
    ("order", "f", "errors"),
    [
        (1, lambda s: 2 + 3 * s, [0, 0, 0]),
        (2, lambda s: 2 + 3 * s, [0, 0, 0]),
        (1, lambda s: 1 + s * s, [-2, -6, -12]),
        (2, lambda s: 1 + s * s, [0, 0, 0]),
        (3, lambda s: 1 + s * s, [0, 0, 0]),
    ],
)
def test_forecasters_after_seven_consecutive_points(order: int, f: Any, errors: list[float]) -> None:
    """Taylor-1 errs -2, -6, -12 on 1 + s^2; with plain factorials a second order errs -1, -2, -3, here it is exact."""
    forecaster = catalogue.build("forecaster", f"taylor:order={order}")

    def at(step: int) -> Point:
        return Point(granularity=Granularity.STEP, step=step, num_steps=20)

    history = [Entry(z=(torch.tensor([float(f(s))]),), point=at(s)) for s in range(7)]
    kept = history[-forecaster.depth :]
    ahead = [forecaster.forecast(kept, at(6 + k), {})[0].item() - f(6 + k) for k in (1, 2, 3)]
    assert ahead == pytest.approx(errors, abs=1e-4)


@pytest.mark.parametrize(("first", "last"), [(2, 1), (3, 0), (8, 8)])
def test_first_f_and_last_b_blocks_with_f_and_b_above_n(tiny_wan_random: Tiny, first: int, last: int) -> None:
    """Elsewhere: blocks run twice, silently; here an error naming F, B and N."""
    named = rf"`DBCache\(first_blocks={first}, last_blocks={last}\)` leaves nothing to skip: the model has 3 blocks"
    with pytest.raises(mixcache.ConfigurationError, match=named):
        mixcache.enable(tiny_wan_random.pipe, f"dbcache:first_blocks={first},last_blocks={last}")


def test_first_and_last_blocks_are_never_run_twice(tiny_wan_random: Tiny) -> None:
    """Whatever spans two policies ask for, each block runs at most once a call."""
    model = tiny_wan_random.pipe.transformer
    seen: list[int] = []
    handles = [
        block.attn1.register_forward_pre_hook(lambda *_, i=i: seen.append(i)) for i, block in enumerate(model.blocks)
    ]
    policies = [FirstBlock(threshold=0.2), Static(at="block", every=2)]
    with mixcache.enable(tiny_wan_random.pipe, policies, rule="any") as session:
        tiny_wan_random.run(guidance_scale=1.0)
    for handle in handles:
        handle.remove()
    for step in range(8):
        spans = {r.point.span: r.outcome.reused for r in session.records if r.point.step == step}
        assert set(spans) == {(0, 1), (1, 3)}
    ran = sum((b - a) for r in session.records if not r.outcome.reused for a, b in [r.point.span])
    assert len(seen) == ran


# compile


class Graphs:
    """A backend of torch.compile that runs what it is given as it is, and counts it."""

    def __init__(self) -> None:
        self.compiled = 0
        self.runs = 0

    def __call__(self, graph: Any, _examples: Any) -> Any:
        self.compiled += 1

        def run(*args: Any) -> Any:
            self.runs += 1
            return graph.forward(*args)

        return run


@pytest.fixture
def compiled(tiny_wan_random: Tiny) -> Iterator[tuple[Tiny, Graphs]]:
    """A pipeline whose blocks are compiled, each in one graph, by the recipe that the README gives."""
    torch.compiler.reset()
    graphs = Graphs()
    blocks = tiny_wan_random.pipe.transformer.blocks
    for block in blocks:
        block.forward = torch.compile(block.forward, backend=graphs, fullgraph=True)
    try:
        yield tiny_wan_random, graphs
    finally:
        for block in blocks:
            del block.forward


@pytest.mark.parametrize("policy", ["static:every=2", "static:every=2,at=block", "firstblock:threshold=0.5"])
def test_caching_on_and_compile(compiled: tuple[Tiny, Graphs], policy: str) -> None:
    """Elsewhere `fullgraph=True` fails, or the blocks silently stay eager; what is computed here runs compiled."""
    tiny, graphs = compiled
    blocks = len(tiny.pipe.transformer.blocks)
    plain, branches = tiny.run(8), 2
    assert graphs.runs == 8 * branches * blocks
    graphs.compiled = graphs.runs = 0
    with mixcache.enable(tiny.pipe, policy) as session:
        tiny.run(8)
    report = session.report()
    computed = graphs.runs / (blocks * branches)
    assert graphs.compiled == 0  # nothing of ours is traced
    assert reused_steps(session, "block" if policy != "static:every=2" else "step")
    assert computed < 8
    if "firstblock" not in policy:
        assert computed == report.evaluations / branches
    with mixcache.enable(tiny.pipe, policy.replace("every=2", "every=1").replace("0.5", "0.0")):
        assert torch.equal(tiny.run(8), plain)
    assert torch.equal(tiny.run(8), plain)


def test_compiled_as_a_whole_is_refused_with_the_recipe(tiny_wan_random: Tiny) -> None:
    model = tiny_wan_random.pipe.transformer
    recipe = r"block\.forward = torch\.compile\(block\.forward\)"
    with pytest.raises(AttachError, match=f"WanTransformer3DModel was compiled as a whole.*{recipe}"):
        mixcache.enable(torch.compile(model, backend="eager"), "static")
    for module, policy in ((model, "static"), (model.blocks[1], "static:at=block")):
        module.compile(backend="eager")
        try:
            with pytest.raises(AttachError, match=recipe):
                mixcache.enable(model, policy)
        finally:
            module._compiled_call_impl = None
    assert not any("forward" in vars(module) for module in model.modules())


def test_blocks_compiled_by_diffusers_are_cached_by_steps(tiny_wan_random: Tiny) -> None:
    """Where no policy decides about blocks they have no hook, and stay compiled."""
    torch.compiler.reset()
    graphs, model = Graphs(), tiny_wan_random.pipe.transformer
    model.compile_repeated_blocks(fullgraph=True, backend=graphs)
    try:
        with mixcache.enable(tiny_wan_random.pipe, "static:every=2") as session:
            tiny_wan_random.run(8)
        assert graphs.runs == session.report().evaluations * len(model.blocks)
    finally:
        for block in model.blocks:
            block._compiled_call_impl = None

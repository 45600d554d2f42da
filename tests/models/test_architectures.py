"""Transformers of many architectures, called as by their pipelines: what is passed over leaves the same result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attrs import frozen

import mixcache
from mixcache import Granularity, Point, Policy, Reading, Vote, catalogue
from mixcache.host.adapter import adapter_for
from tests.helpers import listed_blocks
from tests.zoo.architectures import MORE, TRANSFORMERS, build

pytestmark = [
    pytest.mark.filterwarnings("ignore:In CPU autocast"),  # diffusers asks for float32 there
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated"),
]
DESCRIBED = [name for name in TRANSFORMERS if name not in ("sana", "bria")]


@frozen(kw_only=True)
class OneSpan(Policy):
    """Reuse `span` from the second evaluation on."""

    at: Granularity = Granularity.BLOCK
    span: tuple[int, int]

    def spans(self, blocks: int) -> tuple[tuple[int, int], ...]:
        return (self.span,)

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        return Vote.reuse() if point.step else Vote.compute()


def twice(model: Any, arguments: dict[str, Any], policy: Any) -> tuple[mixcache.Session, list[Any], int]:
    """The results of the same call twice, and how many blocks the second one really ran."""
    ran: list[int] = []
    blocks = listed_blocks(model)
    with mixcache.enable(model, policy) as session, session.run(2) as run, torch.no_grad():
        results = []
        handles = []
        for step in range(2):
            if step:  # a reuse does not call what is inside of a block
                inner = [next(m for m in block.modules() if isinstance(m, torch.nn.Linear)) for block in blocks]
                handles = [m.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, m in enumerate(inner)]
            with run.step(step):
                results.append(model(**arguments)[0])
        for handle in handles:
            handle.remove()
    return session, results, len(set(ran))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_whole_call_is_rebuilt(name: str) -> None:
    """Also where nobody described the model, and where it is given conditions beside the latent."""
    model, arguments = build(name)
    session, (first, second), _ = twice(model, arguments, "static:every=2,first_steps=1,last_steps=0")
    assert session.report().evaluations == 1
    torch.testing.assert_close(second, first)


@pytest.mark.parametrize("name", DESCRIBED)
def test_every_block_a_point_changes_no_bit(name: str) -> None:
    model, arguments = build(name)
    assert not adapter_for(model, catalogue.models().values()).generic
    with torch.no_grad():
        bare = model(**arguments)[0]
    session, results, ran = twice(model, arguments, "static:every=1,at=block,blocks=1")
    assert all(torch.equal(result, bare) for result in results)
    assert session.report().visits["block"].computed == 2 * len(listed_blocks(model)) == 2 * ran


@pytest.mark.parametrize("name", DESCRIBED)
def test_any_span_is_rebuilt_with_all_that_later_blocks_need(name: str) -> None:
    """Every span, so also those over the place where the blocks' streams change."""
    model, arguments = build(name)
    count = len(listed_blocks(model))
    for span in [(a, b) for a in range(count) for b in range(a + 1, count + 1)]:
        session, (first, second), ran = twice(model, arguments, OneSpan(span=span))
        assert ran == count - (span[1] - span[0]), span
        assert session.report().visits["block"].reused >= 1
        torch.testing.assert_close(second, first, msg=lambda text, span=span: f"{span}: {text}")


def test_blocks_that_nobody_described_are_found_by_watching_a_call() -> None:
    """The first call is watched, the next one stores, and from then on the span is passed over; they stay known."""
    model, arguments = build("sana")
    assert adapter_for(model, catalogue.models().values()).generic
    ran: list[int] = []
    inner = [next(m for m in block.modules() if isinstance(m, torch.nn.Linear)) for block in model.transformer_blocks]
    handles = [m.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, m in enumerate(inner)]
    with torch.no_grad():
        bare = model(**arguments)[0]
    assert set(ran) == {0, 1}
    for expected in ([{0, 1}, {0, 1}, {1}, {1}], [{0, 1}, {1}, {1}, {1}]):
        with mixcache.enable(model, OneSpan(span=(0, 1))) as session, session.run(4) as run, torch.no_grad():
            for step, blocks in enumerate(expected):
                ran.clear()
                with run.step(step):
                    torch.testing.assert_close(model(**arguments)[0], bare)
                assert set(ran) == blocks
        assert session.report().visits["block"].reused == expected.count({1})
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("name", DESCRIBED)
def test_the_first_block_decides_for_all_others(name: str) -> None:
    """Behind a seam of the streams too: there the first block's increment is the last that is known."""
    model, arguments = build(name)
    _, (first, second), ran = twice(model, arguments, "firstblock:threshold=0.01")
    assert ran == 1
    torch.testing.assert_close(second, first)
    changed = {**arguments, "hidden_states": arguments["hidden_states"] * 1.5}
    with mixcache.enable(model, "firstblock:threshold=1e-6") as session, session.run(2) as run, torch.no_grad():
        for step, given in enumerate((arguments, changed)):
            with run.step(step):
                model(**given)
    assert session.report().visits["block"].reused == 0


@pytest.mark.parametrize("name", MORE)
def test_their_pipelines_are_followed(name: str) -> None:
    """Steps and branches are told apart: bits stay where nothing is reused, and what is asked for is reused."""
    tiny = MORE[name]()
    bare = tiny.run()
    branches = 1 if name == "flux2" else 2
    for policy, reused in (
        ("static:every=1 + cfg:every=1 + static:every=1,at=block", {}),
        ("static:every=2", {"step": 3 * branches}),
        ("cfg:every=2", {"cfg": 3} if branches == 2 else {}),
        ("static:every=2,at=block", {"block": 3 * branches * (2 if name in ("flux2", "chroma") else 1)}),
    ):
        with mixcache.enable(tiny.pipe, policy) as session:
            result = tiny.run()
        report = session.report()
        assert torch.equal(result, bare) is not bool(reused)
        assert {g: visit.reused for g, visit in report.visits.items() if visit.reused} == reused
        assert (report.runs, report.evaluations_uncached, report.foreign_calls) == (1, 8 * branches, 0)

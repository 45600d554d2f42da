"""Law 3 for requests: whatever is interleaved, each request's outputs are those of running it alone, to the bit.

What is told by key is always told apart, in one thread, in many, and in asyncio tasks. What is told by nothing is
computed and noted, or refused.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mixcache
from mixcache import RunError
from mixcache.host.requests import AMBIGUOUS
from tests.helpers import runs_of, verdicts
from tests.zoo.denoisings import (
    ADAPTER,
    POLICIES,
    WAYS,
    WIDTH,
    Denoising,
    Drawn,
    Request,
    Told,
    Toy,
    alone,
    around,
    check,
    in_threads,
    interleaved,
    remembered,
)


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.mark.parametrize("policy", POLICIES)
def test_the_policies_of_this_file_reuse(toy: Toy, policy: str) -> None:
    with mixcache.enable(toy, policy, adapter=ADAPTER) as session, session.run(6) as run:
        denoising = Denoising(toy, Request("alone", 6), "step", run)
        for call in denoising.request.calls:
            denoising.call(*call)
    assert any(visit.reused for visit in session.report().visits.values())


# told by key


@pytest.mark.parametrize("policy", POLICIES)
@given(drawn=interleaved(), data=st.data())
def test_in_one_thread(policy: str, drawn: Drawn, data: st.DataObject) -> None:
    """Runs are opened up front and closed in any order; around each call stands its step, its request, or both."""
    requests, order = drawn
    told = data.draw(st.sampled_from(["step"] if "sigma" in policy else ["step", "timestep"]))
    keyed = told == "timestep" or data.draw(st.booleans())
    model = Toy()
    with mixcache.enable(model, policy, adapter=ADAPTER) as session:
        opened, found = [], []
        for request in requests:
            with session.request(request.key):
                opened.append(session.run(request.steps))
                found.append(Denoising(model, request, told, opened[-1].__enter__()))
        waiting = [iter(request.calls) for request in requests]
        for turn in order:
            with session.request(requests[turn].key) if keyed else nullcontext():
                found[turn].call(*next(waiting[turn]))
        for i in data.draw(st.permutations(range(len(opened)))):
            opened[i].__exit__(None, None, None)
        assert not remembered(session)
        assert session.report().runs == len(requests)
    check(found, policy)


@pytest.mark.parametrize("policy", POLICIES)
@given(drawn=interleaved())
def test_in_one_thread_without_runs(policy: str, drawn: Drawn) -> None:
    """The calls tell where they stand by `cache_context`; the key around them says whose they are."""
    requests, order = drawn
    model = Toy()
    with mixcache.enable(model, policy, adapter=ADAPTER) as session:
        found = [Denoising(model, request, "context") for request in requests]
        waiting = [iter(request.calls) for request in requests]
        for turn in order:
            with session.request(requests[turn].key):
                found[turn].call(*next(waiting[turn]))
        for request in requests:
            with session.request(request.key):
                model._reset_stateful_cache()  # as a pipeline does when it is done
        assert not remembered(session)
        assert session.report().foreign_calls == 0
        assert AMBIGUOUS not in session.report().notes
    check(found, policy)


class Turns:
    """Makes threads, or tasks, go on in a given order: each waits until it is its turn."""

    def __init__(self, order: Sequence[int]) -> None:
        self._order = [*order, -1]
        self._at = 0
        self._changed = threading.Condition()

    @contextmanager
    def of(self, who: int) -> Iterator[None]:
        """In a thread: wait for the turn, and pass it on."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.is_of(who), timeout=30)
        yield
        with self._changed:
            self._at += 1
            self._changed.notify_all()

    def is_of(self, who: int) -> bool:
        return self._order[self._at] == who

    def pass_on(self) -> None:
        self._at += 1


def ways(policy: str) -> st.SearchStrategy[tuple[Told, bool]]:
    """What the calls tell, and whether there is a key: a thread or task of its own needs none."""
    return st.sampled_from([way for way in WAYS if way[0] != "timestep" or "sigma" not in policy])


@pytest.mark.parametrize("policy", POLICIES)
@given(drawn=interleaved(), data=st.data())
def test_in_threads(policy: str, drawn: Drawn, data: st.DataObject) -> None:
    requests, order = drawn
    told, keyed = data.draw(ways(policy))
    model, turns = Toy(), Turns(order)

    def job(i: int) -> Denoising:
        with around(session, requests[i], told, keyed) as run:
            denoising = Denoising(model, requests[i], told, run)
            for call in requests[i].calls:
                with turns.of(i):
                    denoising.call(*call)
        return denoising

    with mixcache.enable(model, policy, adapter=ADAPTER) as session:
        found = in_threads([lambda i=i: job(i) for i in range(len(requests))])
        assert not remembered(session)
        assert session.report().runs == len(requests)
        assert session.report().evaluations_uncached == len(order)
    check(found, policy)


@pytest.mark.parametrize("policy", POLICIES)
@given(drawn=interleaved(), data=st.data())
def test_in_tasks(policy: str, drawn: Drawn, data: st.DataObject) -> None:
    requests, order = drawn
    told, keyed = data.draw(ways(policy))
    model, turns = Toy(), Turns(order)

    async def job(i: int) -> Denoising:
        with around(session, requests[i], told, keyed) as run:
            denoising = Denoising(model, requests[i], told, run)
            for call in requests[i].calls:
                while not turns.is_of(i):
                    await asyncio.sleep(0)
                denoising.call(*call)
                turns.pass_on()
        return denoising

    async def main() -> list[Denoising]:
        return await asyncio.gather(*(job(i) for i in range(len(requests))))

    with mixcache.enable(model, policy, adapter=ADAPTER) as session:
        found = asyncio.run(main())
        assert not remembered(session)
        assert session.report().runs == len(requests)
        assert session.report().evaluations_uncached == len(order)
    check(found, policy)


def test_one_request_may_go_on_in_any_thread(toy: Toy) -> None:
    """A task that has its model called by whatever thread is free, as servers do."""
    requests = [Request(f"request {i}", 6, seed=i) for i in range(3)]

    async def job(request: Request) -> Denoising:
        with session.request(request.key), session.run(request.steps) as run:
            denoising = Denoising(toy, request, "step", run)
            for call in request.calls:
                await asyncio.to_thread(denoising.call, *call)
        return denoising

    async def main() -> list[Denoising]:
        return await asyncio.gather(*map(job, requests))

    with mixcache.enable(toy, POLICIES[2], adapter=ADAPTER) as session:
        found = asyncio.run(main())
    check(found, POLICIES[2])


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads are switched as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("told", ["step", "context"])
def test_threads_that_wait_for_nobody(toy: Toy, hasty: None, told: Told, tmp_path: Path) -> None:
    """Their results are their own, and what is counted over all of them is exact."""
    requests = [Request(f"request {i}", 8, seed=i) for i in range(8)]

    def job(request: Request) -> list[Denoising]:
        found = []
        for _ in range(4):
            with around(session, request, told, keyed=True) as run:
                found.append(Denoising(toy, request, told, run))
                for call in request.calls:
                    found[-1].call(*call)
        return found

    with mixcache.enable(toy, POLICIES[2], adapter=ADAPTER, trace=tmp_path / "trace") as session:
        found = in_threads([lambda request=request: job(request) for request in requests])
    check([denoising for several in found for denoising in several], POLICIES[2])
    report, runs = session.report(), runs_of(tmp_path / "trace")
    records = [record for run in runs.values() for record in run]
    assert report.runs == len(runs) == 32
    assert report.evaluations_uncached == 32 * 16
    for granularity, visit in report.visits.items():
        visits = [record for record in records if record.point.granularity == granularity]
        assert visit.reused == sum(record.outcome.reused for record in visits)
        assert visit.computed + visit.reused == len(visits) == sum(visit.reasons.values())
    by_request: dict[Any, set[Any]] = {}
    for run in runs.values():
        assert len({record.point.request for record in run}) == 1
        by_request.setdefault(run[0].point.request, set()).add(tuple(verdicts(run)))
    assert {key: len(seen) for key, seen in by_request.items()} == {request.key: 1 for request in requests}


# told by nothing


@given(drawn=interleaved())
def test_what_nothing_tells_apart_is_computed_and_noted(drawn: Drawn) -> None:
    """Each request's outputs are those of running it alone until it was mixed with another, and computed from then on.

    The calls tell their steps, and whoever enters the model last says nothing about whose they are.
    """
    requests, order = drawn
    model, plain = Toy(), Toy()
    with mixcache.enable(model, POLICIES[0], adapter=ADAPTER) as session:
        found = [Denoising(model, request, "context") for request in requests]
        waiting = [iter(request.calls) for request in requests]
        for turn in order:
            found[turn].call(*next(waiting[turn]))
        report = session.report()
    mixed = order != sorted(order, key=order.index)
    assert (AMBIGUOUS in report.notes) is (report.foreign_calls > 0) is mixed
    for denoising in found:
        wanted, together = alone(denoising.request, POLICIES[0], "context"), True
        for (given_to, output), want in zip(denoising.seen, wanted):
            together = together and torch.equal(output, want)
            with torch.no_grad():
                assert together or torch.equal(output, plain(**given_to))


def test_a_second_request_after_the_first_step_is_computed(toy: Toy) -> None:
    """A0 B0 A1: once, A1 was rebuilt from what B had stored."""
    policy = "static:every=2,first_steps=0,last_steps=0"
    ours, theirs = (Denoising(toy, Request("", 4, ("cond",), seed), "context") for seed in (1, 2))
    uncached = [Denoising(Toy(), each.request, "context") for each in (ours, theirs)]
    with mixcache.enable(toy, policy, adapter=ADAPTER) as session:
        for step in range(4):
            ours.call(step, 0)
            theirs.call(step, 0)
    for denoising, bare in zip((ours, theirs), uncached):
        for step in range(4):
            bare.call(step, 0)
        assert all(torch.equal(one, two) for one, two in zip(denoising.outputs, bare.outputs, strict=True))
    report = session.report()
    assert not any(visit.reused for visit in report.visits.values())
    assert report.notes == (AMBIGUOUS,)
    assert report.foreign_calls == 7
    assert AMBIGUOUS[:50] in str(report)
    with mixcache.enable(toy, policy, adapter=ADAPTER) as session:  # the remedy that the note gives
        named = [Denoising(toy, each.request, "context") for each in (ours, theirs)]
        for step in range(4):
            for key, denoising in enumerate(named):
                with session.request(key):
                    denoising.call(step, 0)
    assert session.report().visits["step"].reused == 4
    check(named, policy)


def test_calls_that_tell_nothing_are_refused(toy: Toy) -> None:
    with mixcache.enable(toy, POLICIES[0], adapter=ADAPTER) as session:
        with pytest.raises(RunError, match="cannot tell which step this call is"):
            toy(torch.zeros(1, WIDTH), timestep=1.0)
        with session.request("a"), pytest.raises(RunError, match="cannot tell which step this call is"):
            toy(torch.zeros(1, WIDTH), timestep=1.0)
        with session.run(2), pytest.raises(RunError, match="cannot tell the step of this call"):
            toy(torch.zeros(1, WIDTH))


def test_a_branch_that_is_called_again_in_its_step_is_computed(toy: Toy) -> None:
    """Not the loop that the run follows; told or not, the run goes on with its own history."""
    request, policy = Request("a", 5, ("cond",)), POLICIES[0]
    with mixcache.enable(toy, policy, adapter=ADAPTER) as session, session.request("a"):
        denoising = Denoising(toy, request, "context")
        for call in request.calls:
            denoising.call(*call)
            if call == (2, 0):
                with torch.no_grad(), toy.cache_context("cond", step_index=2, num_inference_steps=5):
                    given_to = {"hidden_states": torch.ones(1, WIDTH), "timestep": 0.3}
                    assert torch.equal(toy(**given_to), Toy()(**given_to))
    check([denoising], policy)
    assert session.report().foreign_calls == 1

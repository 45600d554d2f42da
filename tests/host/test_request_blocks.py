"""The blocks around calls: which go together, and what is left when a thread, a task or a generator breaks off."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Generator
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor

import mixcache
from mixcache import RunError, Session
from tests.zoo.denoisings import (
    ADAPTER,
    POLICIES,
    WAYS,
    Denoising,
    Request,
    Told,
    Toy,
    alone,
    around,
    check,
    held_by,
    in_threads,
    remembered,
)


@pytest.fixture
def toy() -> Toy:
    return Toy()


# blocks that do not go together


def generated(session: Session, toy: Toy, request: Request, keyed: bool = True) -> Generator[Tensor, None, Denoising]:
    """A denoising as a generator that keeps its blocks open while it waits: it hands out every output."""
    with around(session, request, "step", keyed) as run:
        denoising = Denoising(toy, request, "step", run)
        for call in request.calls:
            denoising.call(*call)
            yield denoising.outputs[-1]
    return denoising


@pytest.mark.parametrize("keyed", [True, False])
def test_generators_that_take_turns_in_one_thread_are_refused(toy: Toy, keyed: bool) -> None:
    """They share the context of whoever drives them, so one would speak for the other. The first goes on unharmed."""
    requests = [Request(f"request {i}", 4, ("cond",), seed=i) for i in range(2)]
    with mixcache.enable(toy, POLICIES[0], adapter=ADAPTER) as session:
        first, second = (generated(session, toy, request, keyed) for request in requests)
        begun = [next(first)]
        said = "is opened inside of request 'request 0'" if keyed else "this thread or task has a run open"
        with pytest.raises(RunError, match=said):
            next(second)
        begun += list(first)
        assert not remembered(session)
        later = list(generated(session, toy, requests[1], keyed))
    for request, outputs in zip(requests, (begun, later)):
        assert all(torch.equal(one, two) for one, two in zip(outputs, alone(request, POLICIES[0]), strict=True))


def test_generators_may_take_turns_with_a_block_around_each_call(toy: Toy) -> None:
    """What the refusal says to do."""

    def around_each_call(request: Request) -> Generator[None, None, None]:
        for call in request.calls:
            with session.request(request.key):
                found[request.key].call(*call)
            yield

    requests = [Request(f"request {i}", 5, seed=i) for i in range(3)]
    found = {request.key: Denoising(toy, request, "context") for request in requests}
    with mixcache.enable(toy, POLICIES[2], adapter=ADAPTER) as session:
        waiting = [around_each_call(request) for request in requests]
        for _ in range(10):
            for generator in waiting:
                next(generator)
    check(list(found.values()), POLICIES[2])


def test_runs_do_not_nest(toy: Toy) -> None:
    def again() -> None:
        with session.request("a"), session.run(3):
            pass

    with mixcache.enable(toy, POLICIES[0], adapter=ADAPTER) as session:
        with session.run(3) as run:
            with pytest.raises(RunError, match="this thread or task has a run open"), session.run(3):
                pass
            with pytest.raises(RunError, match="opened inside of request"), session.request("a"), session.run(3):
                pass
            assert remembered(session) == (run,)
        with session.request("a"), session.run(3):
            with pytest.raises(RunError, match="this thread or task has a run open"), session.run(3):
                pass
            with session.request("a"):  # its own key again says nothing new
                pass
            with pytest.raises(RunError, match="request 'a' has a run open"):
                in_threads([again])
        assert not remembered(session)
        with session.run(3):
            pass
    assert session.report().runs == 3


def test_a_key_must_be_hashable(toy: Toy) -> None:
    with mixcache.enable(toy, POLICIES[0], adapter=ADAPTER) as session:
        with pytest.raises(mixcache.ConfigurationError, match=r"must be hashable, got \[1\]"), session.request([1]):
            pass
        for key in (None, 0, "", ("a", 1), object()):
            with session.request(key), session.run(1) as run:
                assert run.key is key


@pytest.mark.parametrize("keyed", [True, False])
def test_as_many_tasks_as_one_likes(toy: Toy, keyed: bool) -> None:
    requests = [Request(f"request {i}", 3, seed=i) for i in range(50)]

    async def job(request: Request) -> Denoising:
        with around(session, request, "step", keyed) as run:
            denoising = Denoising(toy, request, "step", run)
            for call in request.calls:
                denoising.call(*call)
                await asyncio.sleep(0)
        return denoising

    async def main() -> list[Denoising]:
        return await asyncio.gather(*map(job, requests))

    with mixcache.enable(toy, POLICIES[2], adapter=ADAPTER) as session:
        found = asyncio.run(main())
        assert not remembered(session)
    check(found, POLICIES[2])
    assert session.report().runs == 50


def test_a_task_that_a_request_starts_belongs_to_it(toy: Toy) -> None:
    """Until it says otherwise: with a key of its own it is a request of its own."""
    ours, theirs = Request("ours", 4, seed=1), Request("theirs", 4, seed=2)

    async def calls(denoising: Denoising) -> None:
        for call in denoising.request.calls:
            denoising.call(*call)
            await asyncio.sleep(0)

    async def other() -> Denoising:
        with session.request(theirs.key), session.run(4) as run:
            denoising = Denoising(toy, theirs, "step", run)
            await calls(denoising)
        return denoising

    async def main() -> list[Denoising]:
        with session.request(ours.key), session.run(4) as run:
            denoising = Denoising(toy, ours, "timestep", run)
            return [denoising, (await asyncio.gather(calls(denoising), other()))[1]]

    with mixcache.enable(toy, POLICIES[0], adapter=ADAPTER) as session:
        check(asyncio.run(main()), POLICIES[0])


# what is left of what broke off


def test_a_generator_that_is_dropped_leaves_nothing(toy: Toy) -> None:
    with mixcache.enable(toy, POLICIES[1], adapter=ADAPTER) as session:
        generator = generated(session, toy, Request("a", 6))
        for _ in range(5):
            next(generator)
        (run,) = remembered(session)
        held = held_by(session)
        assert held
        assert all(tensor() is not None for tensor in held)
        del run, generator
        gc.collect()
        assert not remembered(session)
        assert not any(tensor() is not None for tensor in held)
        check_next(session, toy, POLICIES[1])


def check_next(session: Session, toy: Toy, policy: str) -> None:
    """The next run of the session, in this thread, is like any other."""
    request = Request("next", 5, seed=9)
    with session.run(5) as run:
        denoising = Denoising(toy, request, "step", run)
        for call in request.calls:
            denoising.call(*call)
    check([denoising], policy)


@pytest.mark.parametrize(("told", "keyed"), WAYS)
def test_a_thread_that_died_leaves_nothing(toy: Toy, told: Told, keyed: bool) -> None:
    """By an error, between two calls, also while somebody still holds the `Thread`."""
    held: list[weakref.ref[Tensor]] = []

    def work() -> None:
        request = Request("a", 6)
        with around(session, request, told, keyed) as run:
            denoising = Denoising(toy, request, told, run)
            for call in request.calls[:5]:
                denoising.call(*call)
            held.extend(held_by(session))
            raise Broken

    def job() -> None:
        with pytest.raises(Broken):
            work()

    with mixcache.enable(toy, POLICIES[0], adapter=ADAPTER) as session:
        thread = threading.Thread(target=job)
        thread.start()
        thread.join()
        gc.collect()
        assert held
        assert not remembered(session)
        assert not any(tensor() is not None for tensor in held)
        check_next(session, toy, POLICIES[0])


class Broken(Exception):
    pass


@pytest.mark.parametrize(("told", "keyed"), WAYS)
def test_a_task_that_is_cancelled_leaves_nothing(toy: Toy, told: Told, keyed: bool) -> None:
    """Also while somebody still holds the `Task`; its neighbour goes on unharmed."""
    begun: list[weakref.ref[Tensor]] = []

    async def job(request: Request) -> Denoising:
        with around(session, request, told, keyed) as run:
            denoising = Denoising(toy, request, told, run)
            for call in request.calls:
                denoising.call(*call)
                await asyncio.sleep(0)
        return denoising

    async def main() -> Denoising:
        doomed = asyncio.create_task(job(Request("doomed", 50, seed=1)))
        for _ in range(8):
            await asyncio.sleep(0)
        begun.extend(held_by(session))
        other = asyncio.create_task(job(Request("other", 6, seed=2)))
        for _ in range(4):
            await asyncio.sleep(0)
        doomed.cancel()
        await asyncio.wait([doomed])
        assert doomed.cancelled()
        gc.collect()
        assert len(remembered(session)) == 1
        assert begun
        assert not any(tensor() is not None for tensor in begun)
        return await other

    with mixcache.enable(toy, POLICIES[0], adapter=ADAPTER) as session:
        found = asyncio.run(main())
        assert not remembered(session)
        check_next(session, toy, POLICIES[0])
    check([found], POLICIES[0])


def test_disabling_forgets_every_request(toy: Toy) -> None:
    with ExitStack() as stack:
        session = mixcache.enable(toy, POLICIES[0], adapter=ADAPTER)
        runs = []
        for key in "abc":
            with session.request(key):
                runs.append(stack.enter_context(session.run(4)))
        for run in runs:
            denoising = Denoising(toy, Request("", 4), "step", run)
            for call in denoising.request.calls[:4]:
                denoising.call(*call)
        held = held_by(session)
        assert len(remembered(session)) == 3
        session.disable()
        gc.collect()
        assert held
        assert not remembered(session)
        assert not any(tensor() is not None for tensor in held)
    assert not remembered(session)

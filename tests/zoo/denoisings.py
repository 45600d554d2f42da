"""Denoisings of a toy model, in any order and from any thread or task: what requests are tested on."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from attrs import frozen
from diffusers import CacheMixin
from hypothesis import strategies as st
from torch import Tensor, nn

import mixcache
from mixcache import BlockList, ModelAdapter, Session

WIDTH = 4


class Block(nn.Module):
    """x -> x + tanh(W x)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + torch.tanh(hidden_states @ self.weight.T)


class Toy(CacheMixin, nn.Module):
    """Three blocks, told the latent, the noise level and a prompt. As in diffusers, `cache_context` tells the rest."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.blocks = nn.ModuleList(Block(torch.randn(WIDTH, WIDTH, generator=generator)) for _ in range(3))

    def forward(self, hidden_states: Tensor, timestep: Any = None, prompt: float = 0.0) -> Tensor:
        x = hidden_states + prompt + float(timestep)
        for block in self.blocks:
            x = block(hidden_states=x)
        return x


ADAPTER = ModelAdapter(model="Toy", blocks=(BlockList(path="blocks"),))
POLICIES = [
    "static:every=2,first_steps=1,last_steps=0",
    "static:every=3,first_steps=1,last_steps=0 @ basis=noise forecast=linear:abscissa=sigma",
    "easycache:threshold=0.5,first_steps=1 + cfg:every=2,first_steps=1",
    "cfg:every=2,first_steps=1,last_steps=0 + static:every=2,at=block,first_steps=1,last_steps=0",
    "firstblock:threshold=0.5",
]
"""Every granularity, policies with a state and without, several entries of history."""

Told = str
"""What says where a call stands: "step" (`run.step`), "timestep", or "context" (diffusers' `cache_context`)."""


@frozen
class Request:
    """One denoising of a toy by Euler's method: from a latent of its own, with a prompt of its own."""

    key: str
    steps: int
    branches: tuple[str, ...] = ("cond", "uncond")
    seed: int = 0

    @property
    def calls(self) -> list[tuple[int, int]]:
        """(step, branch) of every model call."""
        return [(step, branch) for step in range(self.steps) for branch in range(len(self.branches))]


class Denoising:
    """One request under way. seen: what every call of the model was given, and what it gave."""

    def __init__(self, model: Toy, request: Request, told: Told, run: Any = None) -> None:
        self.model, self.request, self.told, self.run = model, request, told, run
        self.latent = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(request.seed))
        self.seen: list[tuple[dict[str, Any], Tensor]] = []

    @property
    def outputs(self) -> list[Tensor]:
        return [output for _, output in self.seen]

    def call(self, step: int, branch: int) -> None:
        """Make one call of the model; after the last branch of a step, step the latent."""
        request, sigma = self.request, 1 - step / self.request.steps
        given = {"hidden_states": self.latent, "timestep": sigma, "prompt": request.seed % 7 + 0.5 * branch}
        with torch.no_grad(), self._where(step, request.branches[branch], sigma):
            self.seen.append((given, self.model(**given)))
        if branch == len(request.branches) - 1:
            values = self.outputs[-len(request.branches) :]
            self.latent = self.latent - sum(values) / len(values) / request.steps

    @contextmanager
    def _where(self, step: int, branch: str, sigma: float) -> Iterator[None]:
        if self.told == "step":
            with self.run.step(step, sigma=sigma), self.run.branch(branch):
                yield
        elif self.told == "timestep":
            with self.run.branch(branch):
                yield
        else:
            steps = self.request.steps
            with self.model.cache_context(branch, step_index=step, num_inference_steps=steps, sigma=sigma):
                yield


def alone(request: Request, policy: str, told: Told = "step") -> list[Tensor]:
    """Every output of the model for a request that nobody else runs beside."""
    model = Toy()
    with mixcache.enable(model, policy, adapter=ADAPTER) as session, ExitStack() as stack:
        run = None if told == "context" else stack.enter_context(session.run(request.steps))
        denoising = Denoising(model, request, told, run)
        for call in request.calls:
            denoising.call(*call)
    return denoising.outputs


Drawn = tuple[list[Request], list[int]]


@st.composite
def interleaved(draw: st.DrawFn) -> Drawn:
    """2 to 4 requests, and whose turn it is at every call of the model."""
    requests = [
        Request(
            key=f"request {i}",
            steps=draw(st.integers(2, 6)),
            branches=draw(st.sampled_from([("cond",), ("cond", "uncond")])),
            seed=draw(st.integers(0, 99)),
        )
        for i in range(draw(st.integers(2, 4)))
    ]
    return requests, draw(st.permutations([i for i, request in enumerate(requests) for _ in request.calls]))


def check(found: Sequence[Denoising], policy: str) -> None:
    """Law 3: each request's outputs are those of running it alone, to the bit."""
    for denoising in found:
        wanted = alone(denoising.request, policy, denoising.told)
        assert len(denoising.outputs) == len(wanted)
        for position, (output, want) in enumerate(zip(denoising.outputs, wanted)):
            assert torch.equal(output, want), f"{denoising.request} differs at call {position}"


def remembered(session: Session) -> tuple[Any, ...]:
    """The runs that a session has not forgotten."""
    return session._calls.requests.open_runs


def held_by(session: Session) -> list[weakref.ref[Tensor]]:
    """Every tensor that the open runs of a session remember."""
    slots = [slot for run in remembered(session) for slot in run.memory.store._slots.values()]
    return [weakref.ref(tensor) for slot in slots for tensor in slot.tensors()]


def in_threads(jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    """What jobs that run at once return; raises what the first of them raised."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result() for future in [pool.submit(job) for job in jobs]]


@contextmanager
def around(session: Session, request: Request, told: Told, keyed: bool) -> Iterator[Any]:
    """The request's key and run, as far as they are told."""
    with ExitStack() as stack:
        if keyed:
            stack.enter_context(session.request(request.key))
        yield None if told == "context" else stack.enter_context(session.run(request.steps))


WAYS = [("step", True), ("step", False), ("timestep", True), ("timestep", False), ("context", True), ("context", False)]

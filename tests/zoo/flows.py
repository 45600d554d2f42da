"""Models whose Lipschitz constants are known, and a denoising loop around them: what error bounds are tested on.

All take hidden_states [B, D] and a timestep (here: sigma), and know `branch`, the guidance branch they stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from attrs import field, frozen
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor, nn

import mixcache
from mixcache import BlockList, ModelAdapter, Session

WIDTH = 6
BRANCHES = {"none": ("cond",), "sequential": ("cond", "uncond"), "doubled": ("uncond", "cond")}


def norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2))


def drawn(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


class Block(nn.Module):
    """x -> x + W x."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + hidden_states @ self.weight.T


class Flow(nn.Module):
    """Base: `lipschitz(sigma)` bounds ||f(x) - f(y)|| / ||x - y|| at that noise level."""

    def forward(self, hidden_states: Tensor, timestep: Any = None, shift: Any = 0.0) -> Tensor:
        return self.value(hidden_states, float(timestep)) * (1 - shift)

    def value(self, x: Tensor, sigma: float) -> Tensor:
        raise NotImplementedError

    def lipschitz(self, sigma: float) -> float:
        raise NotImplementedError


class Affine(Flow):
    """f(x) = P (I + W_3)(I + W_2)(I + W_1) x + sigma b: three blocks, so spans of them can be skipped too."""

    def __init__(self, generator: torch.Generator, constant: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(0.3 * drawn(generator, WIDTH, WIDTH) / WIDTH**0.5) for _ in range(3))
        whole = drawn(generator, WIDTH, WIDTH)
        for block in self.blocks:
            whole = whole @ torch.linalg.inv(torch.eye(WIDTH) + block.weight.detach())
        self.head = nn.Parameter(whole)
        total = self.head.detach()
        for block in reversed(list(self.blocks)):
            total = total @ (torch.eye(WIDTH) + block.weight.detach())
        self.head.data *= constant / norm(total)
        self.drift = nn.Parameter(drawn(generator, WIDTH))
        self.constant = constant

    def value(self, x: Tensor, sigma: float) -> Tensor:
        for block in self.blocks:
            x = block(hidden_states=x)
        return x @ self.head.T + sigma * self.drift

    def lipschitz(self, sigma: float) -> float:
        return self.constant


class Network(Flow):
    """f(x) = W_2 tanh(W_1 x + sigma b), its matrices scaled so that ||W_2|| ||W_1|| = the constant."""

    def __init__(self, generator: torch.Generator, constant: float) -> None:
        super().__init__()
        first, second = drawn(generator, 12, WIDTH), drawn(generator, WIDTH, 12)
        self.first = nn.Parameter(2.0 * first / norm(first))
        self.second = nn.Parameter(0.5 * constant * second / norm(second))
        self.drift = nn.Parameter(drawn(generator, 12))
        self.constant = constant

    def value(self, x: Tensor, sigma: float) -> Tensor:
        return torch.tanh(x @ self.first.T + sigma * self.drift) @ self.second.T

    def lipschitz(self, sigma: float) -> float:
        return self.constant


class Mixture(Flow):
    """The exact velocity of flow matching for data from a mixture of Gaussians N(m_k, s^2 I) of equal weights.

    With x = alpha x_0 + sigma eps, alpha = 1 - sigma and tau^2 = alpha^2 s^2 + sigma^2,
    E[x_0 | x] = (alpha s^2 x + sigma^2 m(x)) / tau^2, m(x) the posterior mean of the m_k; v = (x - E[x_0 | x]) / sigma.
    grad m = alpha / tau^2 Cov(m_k | x), whose eigenvalues lie in [0, D^2 / 4], D the largest distance of two means.
    """

    def __init__(self, generator: torch.Generator, spread: float = 0.8, distance: float = 0.6, count: int = 3) -> None:
        super().__init__()
        self.means = nn.Parameter(distance * drawn(generator, count, WIDTH))
        self.spread = spread

    def value(self, x: Tensor, sigma: float) -> Tensor:
        alpha, s = 1.0 - sigma, self.spread
        tau2 = alpha**2 * s**2 + sigma**2
        distances = ((x[:, None] - alpha * self.means[None]) ** 2).sum(-1)
        mean = torch.softmax(-distances / (2 * tau2), dim=1) @ self.means
        if sigma == 0.0:
            return -mean  # the limit: x - E[x_0 | x] vanishes with sigma^2 (x - m) / s^2
        return (x - (alpha * s**2 * x + sigma**2 * mean) / tau2) / sigma

    def lipschitz(self, sigma: float) -> float:
        alpha, s = 1.0 - sigma, self.spread
        tau2 = alpha**2 * s**2 + sigma**2
        width = float(torch.cdist(self.means.detach(), self.means.detach()).max()) ** 2 / 4
        a = (1 - alpha * s**2 / tau2) / sigma
        return max(abs(a), abs(a - sigma * alpha / tau2**2 * width))


FAMILIES: dict[str, Callable[[torch.Generator, float], Flow]] = {
    "affine": Affine,
    "network": Network,
    "mixture": lambda generator, constant: Mixture(generator),
}


def euler(sigmas: Sequence[float]) -> Any:
    """Euler's method at these noise levels, and 0 after them."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=list(sigmas))
    return scheduler


def unipc(steps: int, shift: float = 3.0) -> Any:
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    scheduler.set_timesteps(steps)
    return scheduler


def ddim(steps: int) -> Any:
    scheduler = DDIMScheduler(clip_sample=False, beta_end=0.006)
    scheduler.set_timesteps(steps)
    return scheduler


@frozen(kw_only=True)
class Trial:
    """A model, a noise scheduler, guidance, and an initial latent [B, D]: `run` denoises, with mixcache or without."""

    model: Flow
    scheduler: Callable[[], Any] = field(repr=False)
    layout: str = "none"
    guidance: float = 1.0
    batch: int = 1
    seed: int = 0
    dtype: torch.dtype = torch.float32

    @property
    def adapter(self) -> ModelAdapter:
        """What mixcache needs to know of the model."""
        blocks = (BlockList(path="blocks"),) if hasattr(self.model, "blocks") else ()
        branches = "doubled" if self.layout == "doubled" else "sequential"
        return ModelAdapter(model=type(self.model).__name__, branches=branches, blocks=blocks)

    @property
    def sigmas(self) -> list[float]:
        """The noise level of every evaluation, as the model is told it."""
        solver = self.scheduler()
        if isinstance(solver, DDIMScheduler):
            return [float((1 - solver.alphas_cumprod[int(t)]) ** 0.5) for t in solver.timesteps]
        return [min(float(s), 1.0) for s in solver.sigmas[: len(solver.timesteps)]]

    @property
    def lipschitz(self) -> list[float]:
        """One constant an evaluation."""
        return [self.model.lipschitz(sigma) for sigma in self.sigmas]

    def run(self, session: Session | None = None) -> Tensor:
        """The final latent."""
        model, solver = self.model.to(self.dtype), self.scheduler()
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randn(self.batch, WIDTH, generator=generator).to(self.dtype)
        count = len(solver.timesteps)
        kind = "epsilon" if isinstance(solver, DDIMScheduler) else "flow"
        opened = None if session is None else session.run(count, kind, noise_scheduler=self.scheduler())
        with torch.no_grad():
            run = None if opened is None else opened.__enter__()
            for i, (time, sigma) in enumerate(zip(solver.timesteps, self.sigmas)):
                value = self._guided(model, x, sigma, run, i)
                x = solver.step(value, time, x, return_dict=False)[0].to(self.dtype)
            if opened is not None:
                opened.__exit__(None, None, None)
        return x

    def _guided(self, model: Flow, x: Tensor, sigma: float, run: Any, i: int) -> Tensor:
        def call(branch: str, latent: Tensor, shift: Any) -> Tensor:
            if run is None:
                return model(hidden_states=latent, timestep=sigma, shift=shift)  # type: ignore[no-any-return]
            with run.step(i, sigma=sigma), run.branch(branch):
                return model(hidden_states=latent, timestep=sigma, shift=shift)  # type: ignore[no-any-return]

        if self.layout == "none":
            return call("cond", x, 0.0)
        if self.layout == "doubled":
            shift = torch.cat([torch.full_like(x, 0.3), torch.zeros_like(x)])
            uncond, cond = call("cond_uncond", torch.cat([x, x]), shift).chunk(2)
        else:
            cond, uncond = call("cond", x, 0.0), call("uncond", x, 0.3)
        return uncond + self.guidance * (cond - uncond)

    def cached(self, policies: Any, **how: Any) -> tuple[Tensor, Session]:
        """The final latent of a run with mixcache, audited, and the session."""
        with mixcache.enable(self.model, policies, adapter=self.adapter, audit=True, **how) as session:
            return self.run(session), session

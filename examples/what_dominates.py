"""Whose error is it, the cache's or the solver's? Where the exact velocity is known: python examples/what_dominates.py

The data are a mixture of three Gaussians in eight dimensions, so v(x, sigma) is a formula and the true solution of the
ODE is a fine Runge-Kutta integration of it. `solver`: Euler's method without a cache, `cached`: with EasyCache, both as
relative L2 distances from the true solution; `cache`: from the uncached run.
"""

import torch
from torch import nn

import mixcache


class Mixture(nn.Module):
    """v = (x - E[x_0 | x]) / sigma for x = (1 - sigma) x_0 + sigma noise, x_0 from N(m_k, s^2) with equal weights."""

    def __init__(self) -> None:
        super().__init__()
        self.means, self.s = torch.randn(3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64), 0.3

    def forward(self, hidden_states: torch.Tensor, timestep: float) -> tuple[torch.Tensor]:
        x, sigma, alpha = hidden_states, timestep, 1 - timestep
        tau2 = alpha**2 * self.s**2 + sigma**2
        near = ((x[:, None] - alpha * self.means) ** 2).sum(-1)
        mean = torch.softmax(-near / (2 * tau2), dim=1) @ self.means
        # (x - (alpha s^2 x + sigma^2 mean) / tau2) / sigma, multiplied out so that sigma = 0 is no division
        return (((sigma - alpha * self.s**2) * x - sigma * mean) / tau2,)


def true_solution(model: Mixture, x: torch.Tensor, steps: int = 4000) -> torch.Tensor:
    """Classical Runge-Kutta from sigma = 1 to 0."""
    h = -1 / steps
    for i in range(steps):
        t = 1 + i * h
        a = model(x, t)[0]
        b = model(x + h / 2 * a, t + h / 2)[0]
        c = model(x + h / 2 * b, t + h / 2)[0]
        d = model(x + h * c, t + h)[0]
        x = x + h / 6 * (a + 2 * b + 2 * c + d)
    return x


def euler(model: Mixture, x: torch.Tensor, steps: int, run: mixcache.Run | None = None) -> torch.Tensor:
    """Euler's method, in a run of mixcache if one is open."""
    for i in range(steps):
        sigma = 1 - i / steps
        if run is None:
            (v,) = model(x, sigma)
        else:
            with run.step(i, sigma=sigma), run.branch("cond"):
                (v,) = model(x, sigma)
        x = x - v / steps
    return x


def main() -> None:
    """Print the table."""
    model, noise = Mixture(), torch.randn(64, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    true = true_solution(model, noise)

    def off(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a - b).norm() / true.norm())

    print("steps  threshold  evaluations          solver   cached    cache")
    for steps in (25, 100):
        plain = euler(model, noise, steps)
        for threshold in (0.05, 0.2, 0.5):
            policy = f"easycache:threshold={threshold},first_steps=2,last_steps=1"
            with mixcache.enable(model, policy) as session, session.run(num_steps=steps) as run:
                cached = euler(model, noise, steps, run)
            made = session.report().evaluations
            errors = f"{off(plain, true):8.4f} {off(cached, true):8.4f} {off(cached, plain):8.4f}"
            count = f"{made:.0f} of {steps} evaluations" if steps == 100 else f"{made:.0f} of {steps}"
            print(f"{steps:5d}  {threshold:9g}  {count:21s}{errors}")


if __name__ == "__main__":
    with torch.no_grad():
        main()

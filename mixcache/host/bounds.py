"""How far a cached run can have gone from the uncached one: a bound on the deviation of the final latent.

Norms are L2 over the whole tensor. d_i: the deviation of the latent at evaluation i, e_i: the L2 error of the value
that the noise scheduler was given there (0 where it was computed), L_i: that value's Lipschitz constant in the latent.

A deterministic noise scheduler is affine in its model outputs: the latent after evaluation i is A_i x_0 + sum over
j <= i of B_ij m_j. Both runs begin at the same x_0, and the outputs differ by at most L_j d_j + e_j, so

    d_(i+1) <= sum over j <= i of |B_ij| (L_j d_j + e_j),    d_0 = 0

For Euler's x_(i+1) = x_i + h_i v_i this is d_(i+1) <= (1 + |h_i| L_i) d_i + |h_i| e_i. B is not written down for each
scheduler but measured: `response` lets a copy of it answer unit impulses, and refuses one that is not affine.

With guidance g the value is g cond - (g - 1) uncond, so e = |g| e_cond + |g - 1| e_uncond, and L likewise.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from attrs import define, field, frozen
from numpy.typing import NDArray
from torch import Tensor

from mixcache.errors import ConfigurationError

Matrix = NDArray[np.float64]
NO_BOUND = "no bound for this noise scheduler"


@frozen(kw_only=True)
class Bound:
    """A bound on ||cached latent - uncached latent||_2 at the end of a run.

    kind: "certificate" holds if the Lipschitz constants that were given do: all else was measured. "estimate" stands
    on constants that were seen in the run and may be too small. "none": there is no number, and `why` says why not.
    value: L2, in units of the latent. relative: over the norm of the last latent that the model was given.
    deviations: the bound after every evaluation.
    """

    kind: Literal["certificate", "estimate", "none"]
    why: str
    value: float | None = None
    relative: float | None = None
    deviations: tuple[float, ...] = ()

    def __str__(self) -> str:
        if self.value is None:
            return f"no bound on the deviation of the final latent: {self.why}"
        share = "" if self.relative is None else f" ({self.relative:.3g} of the latent)"
        return f"{self.kind}: the final latent deviates by at most {self.value:.3g}{share} in L2; {self.why}"


def deviations(response: Matrix, errors: Sequence[float], lipschitz: Sequence[float]) -> list[float]:
    """d_1 .. d_n of the recursion above, for n evaluations. response: B, n x n."""
    found = [0.0]
    pushed: list[float] = []
    for i, (error, constant) in enumerate(zip(errors, lipschitz)):
        pushed.append((constant * found[i] if found[i] else 0.0) + error)
        found.append(float(np.abs(response[i, : i + 1]) @ np.array(pushed)))
    return found[1:]


def response(noise_scheduler: Any) -> Matrix | None:
    """B of a diffusers noise scheduler whose timesteps are set; `None` if it is not affine, or scales its inputs.

    All impulses go through one loop, each in a channel of its own, and three more that show whether it is affine:
    nothing, the initial latent alone, and the initial latent with outputs drawn at random.
    """
    solver = _on_cpu(noise_scheduler)
    begin = getattr(solver, "begin_index", None) or 0
    times = solver.timesteps[begin:]
    if hasattr(solver, "set_begin_index"):
        solver.set_begin_index(begin)
    count = len(times)
    drawn = np.random.default_rng(0).uniform(-1, 1, count)
    latent = torch.zeros(1, count + 3)
    latent[:, count + 1 :] = 1.0
    rows = []
    try:
        for i, time in enumerate(times):
            if hasattr(solver, "scale_model_input") and not torch.equal(solver.scale_model_input(latent, time), latent):
                return None
            output = torch.zeros_like(latent)
            output[:, i], output[:, -1] = 1.0, float(drawn[i])
            latent = solver.step(output, time, latent, return_dict=False)[0].to(torch.float32)
            rows.append(latent[0].double().numpy())
    except (TypeError, ValueError, NotImplementedError, RuntimeError):  # it wants what only its pipeline can give
        return None
    table = np.array(rows).reshape(count, count + 3)
    found = table[:, :count]
    expected = table[:, count + 1] + found @ drawn
    size = 1.0 + np.abs(found).sum(axis=1) + np.abs(table[:, count + 1])
    affine = np.all(np.abs(table[:, -1] - expected) <= 1e-3 * size) and not table[:, count].any()
    return found if affine and np.all(np.isfinite(table)) else None


def _on_cpu(noise_scheduler: Any) -> Any:
    solver = copy.deepcopy(noise_scheduler)
    for name, value in list(vars(solver).items()):
        if isinstance(value, Tensor):
            setattr(solver, name, value.cpu())
    return solver


@frozen(kw_only=True)
class Call:
    """What the ledger keeps of one branch of an evaluation: its name, and the L2 error of the value used."""

    step: int
    branch: str
    error: float


@define
class Ledger:
    """The audited errors of one run, and how fast the guided value changed with the latent.

    solver: a copy of the noise scheduler as it was when the run began, or `None`. watched: whether its steps are seen.
    shares: by evaluation, the weights of its branches, as they were read off the solver's input. rates: by evaluation,
    the L2 change of the true value over that of the latent, both since the evaluation before.
    """

    solver: Any = None
    num_steps: int = 0
    watched: bool = False
    calls: list[Call] = field(factory=list)
    rates: dict[int, float] = field(factory=dict)
    shares: dict[int, tuple[float, ...]] = field(factory=dict)
    scale: float = 0.0
    _step: int = -1
    _latent: Tensor | None = None
    _values: list[Tensor] = field(factory=list)
    _before: tuple[Tensor, Tensor] | None = None

    def note(self, step: int, branches: Sequence[str], *, latent: Tensor, used: Tensor, true: Tensor) -> None:
        """A model call: the values that the run goes on with beside those that the model gives, a part a branch."""
        count = len(branches)
        if step != self._step:
            self._end_step()
            self._step, self._latent, self._values = step, latent.chunk(count)[0].detach().double(), []
            self.scale = float(torch.linalg.vector_norm(self._latent))
        pairs = zip(used.detach().double().chunk(count), true.detach().double().chunk(count))
        for branch, (value, truth) in zip(branches, pairs):
            error = 0.0 if used is true else float(torch.linalg.vector_norm(value - truth))
            self.calls.append(Call(step=step, branch=branch, error=error))
            self._values.append(truth)

    def weigh(self, step: int, weights: tuple[float, ...] | None) -> None:
        """How the branches of this evaluation made what the noise scheduler was given, where that was read off it."""
        if weights is not None:
            self.shares[step] = weights

    def _end_step(self) -> None:
        calls = [call for call in self.calls if call.step == self._step]
        shares = self._shares(calls)
        if self._latent is None or shares is None:
            self._before = None
            return
        value = torch.stack([share * one for one, share in zip(self._values, shares)]).sum(0)
        if self._before is not None and self._before[0].shape == self._latent.shape:
            moved = float(torch.linalg.vector_norm(self._latent - self._before[0]))
            if moved > 0.0:
                self.rates[self._step] = float(torch.linalg.vector_norm(value - self._before[1])) / moved
        self._before = self._latent, value

    def _shares(self, calls: Sequence[Call], guidance: float | None = None) -> Sequence[float] | None:
        """How the branches of an evaluation make the value that the noise scheduler gets; `None` where nobody knows.

        What was read off the solver's input counts; in a loop of one's own, whose solver nobody watches, what is told.
        """
        seen = self.shares.get(calls[0].step) if calls else None
        if seen is not None and len(seen) == len(calls):
            return seen
        if self.watched:
            return None
        branches = [call.branch for call in calls]
        if len(calls) == 1:
            return [1.0]
        if sorted(branches) != ["cond", "uncond"] or guidance is None or not math.isfinite(guidance):
            return None
        return [guidance if branch == "cond" else 1.0 - guidance for branch in branches]

    def _why_not(self, step: int, calls: Sequence[Call]) -> str:
        branches = ", ".join(call.branch for call in calls)
        if not calls:
            return f"evaluation {step} was not seen: the run was cut off, or is still under way"
        if not self.watched and sorted(call.branch for call in calls) == ["cond", "uncond"]:
            return "the guidance scale is not known; give bound(guidance=...)"
        return f"how the branches {branches} of evaluation {step} are combined is not known"

    def close(self) -> None:
        """The run is over: keep numbers, drop tensors."""
        self._end_step()
        self._latent, self._before, self._values, self._step = None, None, [], -1

    def bound(self, lipschitz: float | Sequence[float] | None, guidance: float | None, safety: float) -> Bound:
        """The bound of this run; see `Session.bound`."""
        for name, value in (("guidance", guidance), ("safety", safety)):
            if value is not None and not (isinstance(value, (int, float)) and math.isfinite(value)):
                raise ConfigurationError(f"`bound({name}=...)` must be a finite number, got {value!r}.")
        table = None if self.solver is None else response(self.solver)
        if table is None or len(table) != self.num_steps:
            told = "the run has none" if self.solver is None else f"{NO_BOUND}, {type(self.solver).__name__}"
            return Bound(kind="none", why=f"{told}; a deterministic one that is affine in its outputs has a bound")
        errors, factors = [], []
        for step in range(self.num_steps):
            calls = [call for call in self.calls if call.step == step]
            shares = self._shares(calls, guidance)
            if shares is None:
                return Bound(kind="none", why=self._why_not(step, calls))
            errors.append(sum(abs(share) * call.error for share, call in zip(shares, calls)))
            factors.append(sum(map(abs, shares)))
        if lipschitz is None:
            constants = [safety * max(self.rates.get(i, 0.0), self.rates.get(i + 1, 0.0)) for i in range(len(errors))]
            why = f"from audited errors and {safety:g} times the rates of change seen in the run"
        else:
            constants = [factor * given for factor, given in zip(factors, _one_each(lipschitz, len(errors)))]
            why = "from audited errors and the Lipschitz constants given"
        path = deviations(table, errors, constants)
        kind: Literal["certificate", "estimate"] = "estimate" if lipschitz is None else "certificate"
        relative = path[-1] / self.scale if self.scale > 0.0 else None
        return Bound(kind=kind, why=why, value=path[-1], relative=relative, deviations=tuple(path))


def _one_each(lipschitz: float | Sequence[float], count: int) -> list[float]:
    try:
        given = [float(lipschitz)] * count if isinstance(lipschitz, (int, float)) else [float(x) for x in lipschitz]
    except (TypeError, ValueError):
        given = []
    if len(given) != count or not all(math.isfinite(x) and x >= 0 for x in given):
        raise ConfigurationError(
            f"`bound(lipschitz=...)` must be a finite number >= 0, or one for each of {count} evaluations, got "
            f"{lipschitz!r}."
        )
    return given

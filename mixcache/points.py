"""The vocabulary of the loop: where a decision is taken, what is known there, what is voted and what came of it.

Nothing here holds a tensor: a policy is written, tested and replayed with these records alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from typing import Literal

from attrs import field, frozen

from mixcache.errors import ConfigurationError

Reading = Mapping[str, float | None]
"""Signal name -> value (relative ones are dimensionless); `None` where there is no history to measure against."""

Prediction = Literal["flow", "epsilon", "v_prediction", "sample"]


class Granularity(str, Enum):
    """How much is skipped at once: the whole step, one guidance branch, or a span of blocks."""

    STEP = "step"
    CFG = "cfg"
    BLOCK = "block"

    def __str__(self) -> str:
        return self.value


def parse_granularity(value: str | Granularity) -> Granularity:
    """`"step"` -> `Granularity.STEP`; raises `ConfigurationError` for a name that is none."""
    try:
        return Granularity(value)
    except ValueError:
        known = ", ".join(member.value for member in Granularity)
        raise ConfigurationError(f"granularity must be one of {known}, got {value!r}.") from None


@frozen(kw_only=True)
class NoiseLevel:
    """How noisy the latent is: x = alpha * clean + sigma * noise (flow matching: alpha = 1 - sigma).

    `prediction` says what the model returns; "flow" is v = noise - clean. `until`: sigma after this step, if known.
    """

    sigma: float
    alpha: float
    prediction: Prediction = "flow"
    until: float | None = None

    @classmethod
    def flow(cls, sigma: float, until: float | None = None) -> NoiseLevel:
        """The level of a flow-matching model at `sigma` in [0, 1]."""
        return cls(sigma=sigma, alpha=1.0 - sigma, until=until)


@frozen(kw_only=True)
class Point:
    """One visit of a skip point.

    step: 0-based index of the model evaluation in execution order (a second-order noise scheduler has two a step).
    num_steps: evaluations in the whole run. branch: guidance branch ("cond", "uncond", ...).
    site: which model component or span of blocks; empty where there is only one. leads: whether this is the first
    branch visited in this step, the one that decides for all under a joint policy. span: at BLOCK, the blocks it stands
    for, first and one past the last, of `blocks` in the model. share: the part of a whole model call's work that
    reusing here saves, from 0 to 1.
    """

    granularity: Granularity
    step: int
    num_steps: int
    branch: str = "cond"
    site: str = ""
    leads: bool = True
    span: tuple[int, int] | None = None
    blocks: int = 0
    share: float = 1.0
    level: NoiseLevel | None = None

    @property
    def sigma(self) -> float | None:
        """Noise level at this step, or `None` if the run does not know it."""
        return None if self.level is None else self.level.sigma

    def spanning(self, span: tuple[int, int], blocks: int) -> Point:
        """The BLOCK point of blocks `span` of `blocks`, within the call that this STEP point stands for."""
        first, last = span
        return Point(
            granularity=Granularity.BLOCK,
            step=self.step,
            num_steps=self.num_steps,
            branch=self.branch,
            site=f"{self.site}[{first}:{last}]",
            leads=self.leads,
            span=span,
            blocks=blocks,
            share=(last - first) / blocks,
            level=self.level,
        )


@frozen
class Vote:
    """What one policy wants at a point. Make it with `Vote.reuse()`, `Vote.compute()` or `Vote.abstain()`.

    error: predicted relative error of reusing (relative L1, dimensionless). veto: a compute that no rule overrules.
    """

    choice: Literal["reuse", "compute"] | None
    error: float | None = None
    weight: float = 1.0
    veto: bool = False
    reason: str = ""
    policy: str = ""

    def __attrs_post_init__(self) -> None:
        if not 0.0 <= self.weight < math.inf:
            raise ConfigurationError(f"`Vote(weight=...)` must be finite and >= 0, got {self.weight!r}.")
        if self.veto and self.choice != "compute":
            raise ConfigurationError(f"`Vote(veto=True)` must be a compute vote, got choice={self.choice!r}.")

    @classmethod
    def reuse(cls, reason: str = "", *, error: float | None = None, weight: float = 1.0) -> Vote:
        """Vote for rebuilding the output from the cache."""
        return cls("reuse", error, weight, False, reason)

    @classmethod
    def compute(cls, reason: str = "", *, error: float | None = None, weight: float = 1.0, veto: bool = False) -> Vote:
        """Vote for running the model; with `veto=True` nothing overrules it."""
        return cls("compute", error, weight, veto, reason)

    @classmethod
    def abstain(cls, reason: str = "") -> Vote:
        """No opinion: the rule counts this vote on neither side."""
        return cls(None, None, 1.0, False, reason)

    def signed(self, policy: str) -> Vote:
        """The same vote under a policy's name."""
        return Vote(self.choice, self.error, self.weight, self.veto, self.reason, policy)


@frozen(kw_only=True)
class Verdict:
    """What the voting rule made of the votes. `error` is the largest error predicted by those who voted to reuse."""

    reuse: bool
    reason: str
    error: float | None = None


@frozen(kw_only=True)
class Outcome:
    """What happened at a point: `reused`, the reason, what was measured there before the vote, the predicted error,
    the true error of a reuse (relative L1, known under `audit=True` alone), and `age`: steps since the last compute
    (`None` before the first)."""

    reused: bool
    reason: str
    reading: Reading = field(factory=dict)
    predicted_error: float | None = None
    true_error: float | None = None
    age: int | None = None


@frozen(kw_only=True)
class RunInfo:
    """One denoising run: its ordinal in the session, its number of model evaluations and its sigmas, if known."""

    index: int
    num_steps: int
    sigmas: tuple[float, ...] | None = None

"""The vocabulary of the loop: where a decision is taken, what is known there, what is voted and what came of it.

Nothing here holds a tensor: a policy is written, tested and replayed with these records alone.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
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
    """`"step"` -> `Granularity.STEP`. Raises `ConfigurationError` for any other name."""
    try:
        return Granularity(value)
    except ValueError:
        known = ", ".join(member.value for member in Granularity)
        raise ConfigurationError(f"granularity must be one of {known}, got {value!r}.") from None


@frozen(kw_only=True)
class NoiseLevel:
    """How noisy the latent is: x = alpha * clean + sigma * noise (flow matching: alpha = 1 - sigma).

    `prediction` says what the model returns; "flow" is v = noise - clean. `until`: sigma after this step, if known.
    `sign`: -1 where the model returns the negative of that; `None` while nobody knows it.
    """

    sigma: float
    alpha: float
    prediction: Prediction = "flow"
    until: float | None = None
    sign: float | None = 1.0

    @classmethod
    def flow(cls, sigma: float, until: float | None = None) -> NoiseLevel:
        """The level of a flow-matching model at `sigma` in [0, 1]."""
        return cls(sigma=sigma, alpha=1.0 - sigma, until=until)


@frozen(cache_hash=True)
class Address:
    """The one address of a place: whose it is, and where in the model. Memory, votes, trace and report are keyed by it.

    request: which denoising (any hashable key). component: the pipeline's name of the model ("transformer",
    "transformer_2"). branch: the guidance branch ("cond", "uncond", ...). path: where in the model: "step", "cfg",
    or a span of blocks such as "blocks[2:12]".
    """

    request: Hashable = ""
    component: str = "transformer"
    branch: str = "cond"
    path: str = "step"

    def __str__(self) -> str:
        return f"{self.request}/{self.component}/{self.branch}/{self.path}"


@frozen(kw_only=True)
class Point:
    """One visit of a place where a decision is taken.

    step: 0-based index of the model evaluation in execution order (a second-order noise scheduler makes two per step).
    num_steps: evaluations in the whole run. address: which place. leads: whether this is the first branch of its model
    visited in this step, the one that decides for all under a joint policy. span: at BLOCK, the blocks it stands for,
    first and one past the last, of `blocks` in the model. share: the part of a whole model call's work that is done
    here, from 0 to 1; a reuse saves that share, less what its anchor costs.

    What the core counted, for every policy alike: age, evaluations since the last computed visit that was stored here
    (`None` before the first); gap, evaluations between the last two of them (`None` before the second); run_length,
    visits in a row that were reused here, up to now.
    """

    granularity: Granularity
    step: int
    num_steps: int
    address: Address = Address()
    leads: bool = True
    span: tuple[int, int] | None = None
    blocks: int = 0
    share: float = 1.0
    level: NoiseLevel | None = None
    age: int | None = None
    gap: int | None = None
    run_length: int = 0

    @property
    def request(self) -> Hashable:
        """Which denoising this belongs to."""
        return self.address.request

    @property
    def component(self) -> str:
        """Which model of the pipeline this is."""
        return self.address.component

    @property
    def branch(self) -> str:
        """The guidance branch."""
        return self.address.branch

    @property
    def path(self) -> str:
        """Where in the model this is."""
        return self.address.path

    @property
    def last(self) -> bool:
        """Whether this is the run's last evaluation."""
        return self.step == self.num_steps - 1

    @property
    def sigma(self) -> float | None:
        """Noise level at this step, or `None` if the run does not know it."""
        return None if self.level is None else self.level.sigma

    def counted(self, age: int | None, gap: int | None, run_length: int) -> Point:
        """The same visit with what the core counted."""
        return Point(
            granularity=self.granularity,
            step=self.step,
            num_steps=self.num_steps,
            address=self.address,
            leads=self.leads,
            span=self.span,
            blocks=self.blocks,
            share=self.share,
            level=self.level,
            age=age,
            gap=gap,
            run_length=run_length,
        )


@frozen
class Vote:
    """What one policy wants at a point. Make it with `Vote.reuse()`, `Vote.compute()` or `Vote.abstain()`.

    error: predicted relative error of reusing (relative L1, dimensionless). veto: a compute that no rule overrules.
    forecast, anchor: how a reuse is to be rebuilt, as specs that the policy names in its `forecasts` and `anchors`;
    `None`: as the recipe says. Of several votes the one with the smallest predicted error has its way.
    """

    choice: Literal["reuse", "compute"] | None
    error: float | None = None
    weight: float = 1.0
    veto: bool = False
    reason: str = ""
    policy: str = ""
    forecast: str | None = None
    anchor: str | None = None

    def __attrs_post_init__(self) -> None:
        if not 0.0 <= self.weight < math.inf:
            raise ConfigurationError(f"`Vote(weight=...)` must be finite and >= 0, got {self.weight!r}.")
        if self.veto and self.choice != "compute":
            raise ConfigurationError(f"`Vote(veto=True)` must be a compute vote, got choice={self.choice!r}.")

    @classmethod
    def reuse(
        cls,
        reason: str = "",
        *,
        error: float | None = None,
        weight: float = 1.0,
        forecast: str | None = None,
        anchor: str | None = None,
    ) -> Vote:
        """Vote for rebuilding the output from the cache."""
        return cls("reuse", error, weight, False, reason, "", forecast, anchor)

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
        return Vote(self.choice, self.error, self.weight, self.veto, self.reason, policy, self.forecast, self.anchor)


@frozen(kw_only=True)
class Verdict:
    """What the voting rule made of the votes.

    error: the largest error predicted by those who voted to reuse. forecast, anchor: how to rebuild, where a vote says.
    """

    reuse: bool
    reason: str
    error: float | None = None
    forecast: str | None = None
    anchor: str | None = None


@frozen(kw_only=True)
class Outcome:
    """What came of a visit.

    reading: what was measured before the vote. predicted_error: of a reuse, as its votes predicted it. true_error: of a
    reuse (relative L1), known where somebody computed beside it. saved: the share of a model call that was saved here;
    negative where an anchor was made in addition to computing.
    """

    reused: bool
    reason: str
    reading: Reading = field(factory=dict)
    predicted_error: float | None = None
    true_error: float | None = None
    saved: float = 0.0


@frozen(kw_only=True)
class RunInfo:
    """One denoising run: its ordinal in the session, its number of model evaluations, the noise level of each as the
    noise scheduler tells them (`None` if it does not), and the request that it belongs to."""

    index: int
    num_steps: int
    levels: tuple[NoiseLevel, ...] | None = None
    request: Hashable = ""

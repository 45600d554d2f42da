"""MagCache (arXiv 2506.09045): a table of the residual's growth from step to step tells how long it can be held."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from attrs import Attribute, define, evolve, field, frozen

from mixcache import (
    Calibrations,
    ConfigurationError,
    Granularity,
    Outcome,
    Point,
    Policy,
    Reading,
    RunInfo,
    Vote,
    ge,
    nearest,
    none_or,
    parse_granularity,
    tunable,
)
from mixcache_policies.first_share import FirstShare

Ratios = tuple[tuple[str, tuple[float, ...]], ...]

_MISSING = (
    "MagCache needs the magnitude ratios of this model, and none are known: measure them with `mixcache calibrate "
    "magcache --model ... --prompts ... --out TABLE.json` and give MagCache(table='TABLE.json'), or give "
    "MagCache(ratios={'cond': [1.0, ...], 'uncond': [1.0, ...]})."
)


def _by_branch(ratios: Mapping[str, Sequence[float]] | Sequence[Any] | None) -> Ratios | None:
    """Ratios by branch in a hashable form, from a mapping or from what this function returned before."""
    try:
        pairs = None if ratios is None else dict(ratios)
        return None if pairs is None else tuple((str(b), tuple(map(float, pairs[b]))) for b in sorted(pairs))
    except (TypeError, ValueError):
        raise ConfigurationError(f"`MagCache(ratios=...)` must map branches to numbers, got {ratios!r}.") from None


@frozen(kw_only=True)
class MagCache(FirstShare):
    """Reuse all blocks while the calibrated growth of their residual, multiplied up, stays near 1.

    With r_t what all blocks add to the hidden states, gamma_t = mean over tokens of ||r_t|| / ||r_(t-1)|| is measured
    once per checkpoint, without caching (section 3 of the paper). From the last computed evaluation on, where rho = 1:

        rho *= gamma_t;  E += |1 - rho|;   reuse while E < threshold and for at most `longest_run` evaluations

    The first `first_share` of a run is computed. Each guidance branch decides on its own, by its own ratios. Nothing
    is measured in a run, so it costs no transfer. A reuse adds what all blocks added at the last computed evaluation.
    Raises `ConfigurationError` if no ratios are known.

    threshold, longest_run: published 0.12 with 2 or 4 for Wan 2.1 and 4 for HunyuanVideo, 0.24 with 5 or 6 for faster
    runs, 0.06 with 2 for Qwen-Image. first_share: share of the run computed at the start; 0.2, FLUX.1 0.1. inclusive:
    whether to reuse at E = threshold too, as FLUX, HunyuanVideo and diffusers do (diffusers: threshold 0.06,
    longest_run 3). ratios: gamma by branch, one per step, the first of which is 1. A branch that is not there takes
    those of "cond". For a run of another length, the nearest step counts. table: a JSON file of
    `mixcache calibrate magcache`. Without table and ratios, the model's published ratios are used.

    Deviations: first_share rounds down (diffusers and the authors' FLUX round to nearest: give first_steps). At "step"
    the residual is v - x, as the paper writes it. The published ratios are of the blocks' residual, as in the authors'
    code.
    """

    name: ClassVar[str] = "magcache"
    branches = "independent"

    at: Granularity = field(default=Granularity.BLOCK, converter=parse_granularity)
    threshold: float = field(default=0.12, validator=ge(0), metadata=tunable(0.01, 0.5, log=True))
    longest_run: int | None = field(default=4, validator=none_or(ge(0, whole=True)))
    inclusive: bool = False
    ratios: Mapping[str, tuple[float, ...]] | Ratios | None = field(default=None, converter=_by_branch, repr=False)
    table: str | None = None

    @define
    class State:
        """rho and E since the last computed evaluation."""

        ratio: float = 1.0
        error: float = 0.0

    @ratios.validator
    def _check(self, _attribute: Attribute[Any], value: Ratios | None) -> None:
        numbers = [number for _, row in value or () for number in row or (math.nan,)]
        if value is not None and ("cond" not in dict(value) or not all(math.isfinite(n) and n > 0 for n in numbers)):
            raise ConfigurationError(
                f"`MagCache(ratios=...)` must hold finite numbers > 0 for 'cond' at least, got {dict(value)!r}."
            )

    def calibrated(self, tables: Calibrations) -> Policy:
        """Itself with the ratios that were given, those of the table that was named, or the published ones."""
        if self.ratios is not None:
            return self
        found = tables.read("magcache", "ratios", self.table, lambda ratios: evolve(self, ratios=ratios))
        if found is None:
            raise ConfigurationError(_MISSING)
        return found

    def started(self, run: RunInfo) -> None:
        """Refuse to run without ratios."""
        if self.ratios is None:
            raise ConfigurationError(_MISSING)

    def held(self, point: Point, state: Any) -> tuple[float, float]:
        """rho and E if this point is reused as well."""
        known = dict(self.ratios or ())
        gamma = nearest(known.get(point.branch, known["cond"]), point.num_steps, point.step)
        ratio = state.ratio * gamma
        return ratio, state.error + abs(1.0 - ratio)

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Reuse while E stays below the threshold."""
        _, error = self.held(point, state)
        if error < self.threshold or (self.inclusive and error == self.threshold):
            return Vote.reuse(f"accumulated drift of the residual within {self.threshold:g}", error=error)
        return Vote.compute(f"accumulated drift of the residual reached {self.threshold:g}", error=error)

    def observe(self, point: Point, outcome: Outcome, state: Any) -> None:
        """Keep rho and E on a reuse, start again on a compute."""
        state.ratio, state.error = self.held(point, state) if outcome.reused else (1.0, 0.0)

"""TaylorSeer (arXiv 2503.06923): compute at a fixed interval, forecast the others by a Taylor series."""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import field, frozen

from mixcache import Granularity, Point, Policy, Reading, Vote, ge, none_or, parse_granularity, tunable


@frozen(kw_only=True)
class TaylorSeer(Policy):
    """Compute every `every`-th evaluation, and forecast the others with finite differences up to order `order`.

    With F_c the feature at the last computed evaluation c, derivatives from the last computed ones, and k = t - c:

        F_t = F_c + dF/dt k + d2F/dt2 k^2 / 2! + ...     (gaps as they are, as in the authors' code)

    No signal is read, so it costs no transfer.

    every: interval of computed evaluations; 5 for HunyuanVideo and Wan 2.1, 6 for FLUX. first_steps: computed at the
    start; 1, and 3 for FLUX. order: of the series, published 1. next_full: evaluations from the last of the first steps
    to the next computed one; the later ones are counted from there. It is `every` by default, as the authors do.
    diffusers' TaylorSeerCacheConfig is first_steps=3, next_full=2.

    Deviations: the paper forecasts the output of every attention and MLP, and runs the norms and gates between. Here
    what all blocks together added (residual) is forecast, so nothing runs between, at a fraction of the memory. It can
    also be used at "step". Orders above 1 use the interpolating polynomial (`taylor` says why).
    """

    name: ClassVar[str] = "taylorseer"

    at: Granularity = field(default=Granularity.BLOCK, converter=parse_granularity)
    every: int = field(default=5, validator=ge(1, whole=True), metadata=tunable(2, 8))
    order: int = field(default=1, validator=ge(0, whole=True))
    first_steps: int = field(default=1, validator=ge(0, whole=True))
    next_full: int | None = field(default=None, validator=none_or(ge(1, whole=True)))

    def rebuilt(self, granularity: Granularity, span: tuple[int, int] | None = None) -> tuple[str | None, str | None]:
        """The increment, by a Taylor series."""
        return "residual", f"taylor:order={self.order}"

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Reuse until the next full evaluation is due."""
        due = max(self.first_steps - 1, 0) + (self.every if self.next_full is None else self.next_full)
        if (point.step - due) % self.every == 0:
            return Vote.compute(f"every {self.every} steps")
        return Vote.reuse(f"between computed steps, every {self.every}")

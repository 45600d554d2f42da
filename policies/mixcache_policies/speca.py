"""SpeCa (arXiv 2509.11628): forecast all blocks but the last, run that one for real, and compare."""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import Attribute, define, field, frozen

from mixcache import (
    ConfigurationError,
    Granularity,
    Point,
    Policy,
    Reading,
    Vote,
    ge,
    gt,
    none_or,
    tunable,
)


@frozen(kw_only=True)
class SpeCa(Policy):
    """Speculate and verify: forecast blocks 0 to L-2, run block L-1 on the forecast, compare with its own forecast.

    With h_t what the forecast of blocks 0 to L-2 gives at evaluation t, F_t what the last block makes of it, and d_t
    the forecast of what the last block adds, from evaluations that were computed in full (section 3 of the paper):

        F'_t = h_t + d_t;   e_t = mean|F_t - F'_t| / mean|F'_t|
        if e_t > threshold * decay^(t / T): evaluation t + 1 is computed in full

    T is the number of evaluations of the run, so the check grows stricter as the run goes on. As in the authors' public
    code nothing is rolled back: the error decides about the next evaluation alone. The check costs one block of every
    evaluation, 1.7 to 3.5 % in the paper. Each guidance branch decides on its own. Raises `ConfigurationError` for a
    model of fewer than two blocks.

    threshold: tau_0, relative L1 of the last block's output. decay: beta, above 0 and at most 1. order: of the Taylor
    forecast. longest_run: the most forecasts in a row; then an evaluation is computed, whatever the checks say.

    The paper tunes threshold and decay for each model. The defaults here were chosen on one model, tiny_wan, with its
    16 tuning prompts and 50 steps: 15 full evaluations and 45.0 dB PSNR between cached and uncached frames. The check
    gained nothing there: without any check it is 45.7 dB at the same cost, and 45.1 dB at a fixed interval of 4.

    Deviations: the forecast is of what the blocks add together, not of every attention and feed-forward. The error is
    relative L1 for each sample, and the worst sample counts.
    """

    name: ClassVar[str] = "speca"
    signals = ("verify_error",)
    branches = "independent"
    exact_history = True
    one_state = True

    at: Granularity = field(default=Granularity.BLOCK, init=False, repr=False)  # no choice: a block verifies
    threshold: float = field(default=0.1, validator=ge(0), metadata=tunable(0.02, 0.6, log=True))
    decay: float = field(default=0.5, validator=gt(0))
    order: int = field(default=1, validator=ge(0, whole=True))
    first_steps: int = field(default=3, validator=ge(0, whole=True))
    last_steps: int = field(default=1, validator=ge(0, whole=True))
    longest_run: int | None = field(default=3, validator=none_or(ge(0, whole=True)))

    @define
    class State:
        """By branch, the evaluation whose check failed last."""

        failed: dict[str, int] = field(factory=dict)

    @decay.validator
    def _check_decay(self, _attribute: Attribute[Any], value: float) -> None:
        if value > 1:
            raise ConfigurationError(f"`SpeCa(decay=...)` must be at most 1, got {value!r}.")

    def spans(self, blocks: int) -> tuple[tuple[int, int], ...]:
        """All blocks but the last, and the last."""
        if blocks < 2:
            raise ConfigurationError(
                f"`SpeCa` needs a block to verify by: the model has {blocks} blocks, not 2 or more."
            )
        return (0, blocks - 1), (blocks - 1, blocks)

    def rebuilt(self, granularity: Granularity, span: tuple[int, int] | None = None) -> tuple[str | None, str | None]:
        """What the blocks add, by a Taylor series."""
        return "residual", f"taylor:order={self.order}"

    def allowed(self, point: Point) -> float:
        """The largest error that passes at this evaluation: threshold * decay^progress."""
        return float(self.threshold * self.decay ** (point.step / point.num_steps))

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        """Reuse until a check fails; the last block always runs."""
        if _verifies(point):
            return Vote.compute("the last block verifies")
        if state.failed.get(point.branch) == point.step - 1:
            return Vote.compute("the last check failed")
        return Vote.reuse("the last check passed")

    def learn(self, point: Point, reading: Reading, state: Any) -> None:
        """Note a failed check of the last block."""
        error = reading.get("verify_error")
        if _verifies(point) and error is not None and not error <= self.allowed(point):
            state.failed[point.branch] = point.step


def _verifies(point: Point) -> bool:
    """Whether this is the last block."""
    return point.span is not None and point.span[1] == point.blocks

"""What a search found, and how it does on held-out prompts: in numbers and in words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from attrs import evolve, field, frozen

from mixcache.bench.statistics import Spread, spread
from mixcache.core.files import write_whole
from mixcache.errors import ConfigurationError
from mixcache.host.tuned import Tuned
from mixcache.recipe import Recipe
from mixcache.study.targets import Measured, Target

NEAR = 1.0
"""Of a metric in dB: a miss by no more than that is called near."""


@frozen(kw_only=True)
class Tuning:
    """What a search found. recipe: as text. tuning, held_out: its clips; held_out is empty if it was not tried.

    trials, pruned: finished trials, and those of them that were broken off. fewer_steps, rival: of the plain pipeline
    with about as many evaluations, its steps and the held-out clips (none where that cannot be had). settings: the
    recipe with what it was tuned for.
    """

    target: Target
    recipe: str
    tuning: Measured
    trials: int
    pruned: int
    held_out: Measured = field(factory=lambda: Measured(()))
    fewer_steps: int | None = None
    rival: Measured = field(factory=lambda: Measured(()))
    settings: Recipe | None = None

    def for_model(self, tuned: Tuned) -> Tuning:
        """With the recipe that says what it was tuned for."""
        return evolve(self, settings=evolve(Recipe.parse(self.recipe), tuned=tuned))

    def save(self, path: str | Path) -> None:
        """Write the settings file that `mixcache.enable` takes. Raises `ConfigurationError` if it was not tried."""
        if self.settings is None:
            raise ConfigurationError("what was not tried on held-out prompts is not written; tune with confirm=True.")
        header = "".join(f"# {line}\n" for line in ("written by `mixcache tune`", *self.lines()[-2:]))
        write_whole(path, header + self.settings.to_toml())

    @property
    def above_fewer_steps(self) -> Spread | None:
        """How much better than the plain pipeline with about as many evaluations, clip by clip, on held-out prompts."""
        sign = 1.0 if self.target.metric.higher_is_better else -1.0
        pairs = zip(self.held_out.clips, self.rival.clips)
        apart = [sign * (own.value - other.value) for own, other in pairs]
        return Spread.of(apart, min) if apart else None

    @property
    def _how(self) -> str:
        if self.target.speed:
            return f", the best {self.target.metric.name}"
        return " by the worse end of the 95 % interval" if self.target.sure else " in the mean"

    def lines(self) -> list[str]:
        """What is to be said of it."""
        found = [
            f"{self.recipe}",
            f"{self.target}{self._how}; {self.trials} trials, {self.pruned} of them broken off",
            f"tuning prompts:   {in_words(self.target, self.tuning)}",
        ]
        if not self.held_out.clips:
            return found
        found.append(f"held-out prompts: {in_words(self.target, self.held_out)}")
        if self.above_fewer_steps is not None:
            metric = self.target.metric
            above = f"{spread(self.above_fewer_steps, metric.digits, '+')} {metric.unit}".rstrip()
            found.append(f"better than the plain pipeline with {self.fewer_steps} steps by {above}")
        return [*found, *self._verdict()]

    def _verdict(self) -> Iterator[str]:
        """Whether the held-out clips keep the target, and whether they are like the tuning ones."""
        beyond = self.target.beyond(self.held_out)
        unit = "x" if self.target.speed else f" {self.target.metric.unit}".rstrip()
        if beyond >= -1e-9:
            yield f"held out it meets {self.target}, with {beyond:.2g}{unit} to spare"
        else:
            near = self.target.metric.unit == "dB" and not self.target.speed and -beyond <= NEAR
            yield (
                f"held out it misses {self.target} by {-beyond:.2g}{unit}"
                + (f": within {NEAR:g} dB" if near else "; ask for more, or give more prompts to tune on")
            )
        yield self._difference()

    def _difference(self) -> str:
        """Of the means on tuning and on held-out clips, against the 95 % interval of that difference."""
        metric = self.target.metric
        halves = [self.target.spread(one).half_width for one in (self.tuning, self.held_out)]
        off = self.held_out.mean - self.tuning.mean
        told = f"held-out less tuning prompts: {off:+.{metric.digits}f} {metric.unit}".rstrip()
        if halves[0] is None or halves[1] is None or not math.isfinite(off):
            return f"{told}; too few clips for an interval"
        width = math.hypot(halves[0], halves[1])
        inside = abs(off) <= width
        within = "within" if inside else "beyond"
        more = (
            "" if inside else ": they differ, so it is fitted to its prompts, or these are harder; tune on more prompts"
        )
        return f"{told}, {within} the 95 % interval (±{width:.{metric.digits}f}){more}"


def in_words(target: Target, measured: Measured) -> str:
    """ "psnr 40.8 ±1.6 (34.0) dB, 12.0 of 50 evaluations: 4.17x"."""
    metric, clips = target.metric, measured.clips
    made = sum(clip.evaluations for clip in clips) / len(clips)
    all_ = sum(clip.evaluations_uncached for clip in clips) / len(clips)
    value = f"{metric.name} {spread(target.spread(measured), metric.digits)} {metric.unit}".rstrip()
    return f"{value}, {made:.1f} of {all_:.0f} evaluations: {measured.speedup:.2f}x, {len(clips)} clips"

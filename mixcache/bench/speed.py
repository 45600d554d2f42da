"""What mixcache costs on a bare transformer, and what it gains: against the same run uncached, paired and resumable.

Time and synchronisations are all that is measured here. With random weights the outputs mean nothing, so quality is
not: `compare` measures that, on real checkpoints.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from attrs import asdict, frozen
from torch import Tensor

from mixcache.bench.bare import Bare, roomy, schedule
from mixcache.bench.loading import environment
from mixcache.bench.meter import LOOP, OWN, Clock, Gauge, Meter, counter, metered
from mixcache.bench.published import GUIDANCE
from mixcache.bench.rows import Row, RowFile
from mixcache.bench.watch import Watch
from mixcache.core.points import Granularity
from mixcache.errors import AttachError, ConfigurationError
from mixcache.recipe import Recipe
from mixcache.session import Session, enable

STATIC = "static:every=3 @ basis=noise forecast=linear:abscissa=sigma"
MEASURING = "easycache:threshold=1000,first_steps=2,longest_run=2"
RECIPES = (STATIC, MEASURING)
"""What is timed if nothing is asked for: a policy that reads nothing, and one that measures at every step.

Random weights change as no trained ones do, so the threshold of the second is out of reach: its windows decide.
"""


@frozen(kw_only=True)
class Bench:
    """What is to be timed. repeats: pairs of runs per row. compiled: add rows with compiled blocks."""

    bare: Bare
    recipes: tuple[Recipe, ...]
    steps: int
    repeats: int
    compiled: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """What must not differ between rows that are put side by side; it is compared as JSON gives it back."""
        bare = self.bare
        return {
            "model": bare.name,
            "weights": bare.weights,
            "parameters": bare.parameters,
            "blocks": len(bare.blocks),
            "size": asdict(bare.size),
            "tokens": bare.inputs.tokens,
            "branches": len(bare.inputs.branches),
            "dtype": str(bare.transformer.dtype).removeprefix("torch."),
            "steps": self.steps,
            "repeats": self.repeats,
            "environment": environment(bare.device),
        }

    @property
    def keys(self) -> list[tuple[str, bool]]:
        """The rows, in the order in which they are measured: compiling cannot be undone."""
        return [(str(r), compiled) for compiled in (False, True)[: 1 + self.compiled] for r in self.recipes]


def measure(bench: Bench, file: RowFile, watch: Watch | None = None) -> list[Row]:
    """Time every row that `file` does not hold; return all, in order.

    Raises `ConfigurationError` or `AttachError` before the first run for a recipe that does not fit the model, and
    `KeyboardInterrupt` with a message that says what is kept.
    """
    watch = watch or Watch()
    settings = bench.settings
    missing = [key for key in bench.keys if file.find(settings, key) is None]
    warm_ups = len({compiled for _, compiled in missing})
    watch.started(warm_ups + len(missing) * (1 + 3 * bench.repeats), bench.steps)
    gc.collect()
    gc.freeze()  # so that collecting before each run is quick
    try:
        with roomy(bench.bare.name, bench.bare.device):
            for row in _rows(bench, missing, watch):
                file.add(row)
                watch.case(row)
    except KeyboardInterrupt:
        done = sum(file.find(settings, key) is not None for key in bench.keys)
        kept = f"{done} of {len(bench.keys)} rows are kept in {file.path}; the same command goes on from there."
        raise KeyboardInterrupt(kept) from None
    finally:
        gc.unfreeze()
    found = (file.find(settings, key) for key in bench.keys)
    return [row for row in found if row is not None]


def _rows(bench: Bench, missing: Sequence[tuple[str, bool]], watch: Watch) -> Iterator[Row]:
    """The rows that are missing, after a run to warm up; compiled where the first compiled one is due."""
    recipes = {str(recipe): recipe for recipe in bench.recipes}
    if missing:
        _check_fit(bench)
    warm = None
    for variant, compiled in missing:
        if warm is not compiled:
            if compiled:
                bench.bare.compile()
            run(bench, None, watch)
            warm = compiled
        yield _row(bench, recipes[variant], compiled, watch)


def _check_fit(bench: Bench) -> None:
    """Put every recipe on and take it off again, so that one that does not fit costs no run of others."""
    for recipe in bench.recipes:
        try:
            enable(bench.bare.transformer, recipe).disable()
        except (AttachError, ConfigurationError) as error:
            raise type(error)(f"--policy {str(recipe)!r}: {error}") from error


def _row(bench: Bench, recipe: Recipe, compiled: bool, watch: Watch) -> Row:
    """Count the synchronisations of one run, which warms up as well; then time pairs in alternation, and own time."""
    with counter(bench.bare.device) as gauge:
        counted = run(bench, recipe, watch, gauge)
    assert counted.session is not None
    uncached: list[float] = []
    cached: list[float] = []
    own: list[list[float]] = []
    for repeat in range(bench.repeats):
        order = [(None, uncached), (recipe, cached)]
        for chosen, seconds in order if repeat % 2 == 0 else reversed(order):
            seconds.append(run(bench, chosen, watch).seconds)
        own.append(run(bench, recipe, watch, Clock(bench.bare.wait)).own)
    report = counted.session.report()
    read = Counter(
        r.point.step
        for r in counted.session.records
        if r.learned or any(value is not None for value in r.reading.values())
    )
    return Row(
        settings=bench.settings,
        variant=str(recipe),
        compiled=compiled,
        uncached_seconds=tuple(uncached),
        cached_seconds=tuple(cached),
        own_seconds=tuple(map(sum, own)),
        own_by_step=tuple(statistics.median(step) for step in zip(*own)),
        syncs=tuple(map(int, counted.own)),
        measured=tuple(read[step] for step in range(bench.steps)),
        evaluations=report.evaluations,
        evaluations_uncached=report.evaluations_uncached,
        cache_bytes=report.peak_bytes,
    )


@frozen(kw_only=True)
class Ran:
    """One run. own: what a gauge went forward by in mixcache, by step; empty without one."""

    seconds: float
    session: Session | None
    own: list[float]


def run(bench: Bench, recipe: Recipe | None, watch: Watch, gauge: Gauge | None = None) -> Ran:
    """Denoise once, uncached if there is no recipe; with a gauge, tell what mixcache has of it."""
    bare = bench.bare
    meter = None if gauge is None else Meter(gauge, bench.steps)
    with ExitStack() as stack:
        if meter is not None:
            stack.enter_context(metered(meter, bare.transformer))
            inside = recipe is not None and recipe.plan().uses(Granularity.BLOCK)
            for block in bare.blocks if inside else ():
                stack.enter_context(metered(meter, block, inside=True))
        session = None if recipe is None else stack.enter_context(enable(bare.transformer, recipe))
        gc.collect()
        gc.disable()
        try:
            seconds = denoise(bare, bench.steps, session, meter, watch.step)
        finally:
            gc.enable()
    watch.call()
    return Ran(seconds=seconds, session=session, own=[] if meter is None else meter.own)


def denoise(
    bare: Bare, steps: int, session: Session | None, meter: Meter | None, on_step: Callable[[], None] = lambda: None
) -> float:
    """The denoising loop, with Euler's steps; its seconds. With a meter, all is mixcache's but model and solver."""

    def at(who: str) -> AbstractContextManager[None]:
        return nullcontext() if meter is None else meter.at(who)

    inputs, levels, dtype = bare.inputs, schedule(steps), bare.transformer.dtype
    times = [torch.full((1,), inputs.time_scale * level, device=bare.device) for level in levels]
    x = inputs.latent.clone()
    bare.wait()
    start = time.perf_counter()
    with torch.no_grad(), at(OWN), nullcontext() if session is None else session.run(steps) as told:
        for i in range(steps):
            with at(LOOP):
                latent = x.to(dtype)
            if meter is not None:
                meter.step = i
            outputs: list[Tensor] = []
            with nullcontext() if told is None else told.step(i, sigma=levels[i]):
                for name, arguments in inputs.branches.items():
                    with nullcontext() if told is None else told.branch(name):
                        outputs += bare.transformer(latent, timestep=times[i], **arguments, return_dict=False)
            with at(LOOP):
                first, last = outputs[0].float(), outputs[-1].float()
                x = x + (levels[i + 1] - levels[i]) * (last + GUIDANCE * (first - last))
                on_step()
    bare.wait()
    return time.perf_counter() - start

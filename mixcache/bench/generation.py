"""One generation: call a pipeline with a recipe or without one, and time its denoising loop.

Arrays carry their layout in their names: F frames, H height, W width, C colour channels.
"""

from __future__ import annotations

import gc
import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import frozen

from mixcache.bench.flags import check_seed
from mixcache.bench.loading import Model, first_line
from mixcache.core.files import write_whole
from mixcache.core.metrics import Frames
from mixcache.core.points import Granularity
from mixcache.core.report import Report
from mixcache.core.trace import Record
from mixcache.errors import ConfigurationError, MixcacheError
from mixcache.host.bounds import Bound
from mixcache.host.diffusers import models_of
from mixcache.host.tuned import Conditions
from mixcache.recipe import Recipe
from mixcache.session import Session, enable


@frozen(kw_only=True)
class Generation:
    """What one call gave.

    frames_FHWC: in [0, 1]. latents: the final ones, or `None` if the pipeline does not show them. seconds: in the
    denoising loop. calls: of the transformers. report: `None` if uncached. mask: one character per step, "1" computed,
    "0" reused, "+" in part. records: every visit of the run. bound: of an audited call.
    conditions: under which a call with a recipe was made.
    """

    frames_FHWC: Frames
    latents: torch.Tensor | None
    seconds: float
    calls: int
    report: Report | None = None
    mask: str = ""
    records: tuple[Record, ...] = ()
    bound: Bound | None = None
    conditions: Conditions | None = None


class LoopClock:
    """Times one denoising loop: from the start of the first transformer call to the end of the last step.

    The end is the pipeline's last `callback_on_step_end`, or the end of the last transformer call if it has none.
    """

    def __init__(self, pipeline: Any) -> None:
        self._models = list(models_of(pipeline).values())
        self._pipeline = pipeline
        self._told = "callback_on_step_end" in inspect.signature(pipeline.__call__).parameters
        self._start: float | None = None
        self._end: float | None = None
        self.calls = 0

    @contextmanager
    def running(self) -> Iterator[LoopClock]:
        """Watch the transformers while inside."""
        handles = [model.register_forward_pre_hook(self._before) for model in self._models]
        handles += [model.register_forward_hook(self._after) for model in self._models]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    @property
    def seconds(self) -> float:
        """Wall-clock seconds; 0 if the transformer was never called."""
        return 0.0 if self._start is None or self._end is None else self._end - self._start

    def _before(self, *_: Any) -> None:
        if self._start is None:
            self._wait()
            self._start = time.perf_counter()

    def _after(self, *_: Any) -> None:
        self.calls += 1
        if not self._told:  # nobody says when the last step ends, so every call is waited for
            self._wait()
        self._end = time.perf_counter()

    def step_ended(self, step: int) -> None:
        """A step is over; on an accelerator the last one is waited for."""
        last = getattr(self._pipeline, "num_timesteps", None)
        if last is None or step >= last - 1:
            self._wait()
        self._end = time.perf_counter()

    def _wait(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def generate(
    model: Model,
    prompt: str,
    seed: int = 0,
    arguments: Mapping[str, Any] | None = None,
    recipe: Recipe | str | None = None,
    *,
    on_step: Callable[[], None] = lambda: None,
    trace: str | Path | None = None,
) -> Generation:
    """Call the pipeline once, cached as `recipe` says; `None` is uncached. The session is on for this call alone.

    seed: of the noise, from 0 to 2**64 - 1. arguments: of the pipeline's call, by default the model's own.
    on_step: called after every denoising step. trace: a file for every decision; at the end its header names prompt and
    seed. Raises `ConfigurationError` for a bad seed and for a call that the pipeline refuses.
    """
    check_seed(seed)
    clock = LoopClock(model.pipeline)
    latents: list[torch.Tensor] = []

    def step_ended(_pipeline: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        clock.step_ended(step)
        latents[:] = [tensors["latents"]]
        on_step()
        return tensors

    call = dict(model.arguments() if arguments is None else arguments, prompt=prompt)
    call |= {"generator": torch.Generator("cpu").manual_seed(seed), "output_type": "np"}
    if "callback_on_step_end" in inspect.signature(model.pipeline.__call__).parameters:
        call |= {"callback_on_step_end": step_ended, "callback_on_step_end_tensor_inputs": ["latents"]}
    session = None if recipe is None else enable(model.pipeline, recipe, trace=trace)
    gc.collect(1)  # what the call before left is young, as nothing grew old meanwhile; the whole heap takes long
    gc.disable()
    try:
        with session or nullcontext(), clock.running():
            output = model.pipeline(**call)
    except MixcacheError:
        raise
    except ValueError as error:
        raise ConfigurationError(f"{type(model.pipeline).__name__} refused the call: {first_line(error)}") from error
    finally:
        gc.enable()
    if session is not None and trace is not None:
        _sign(Path(trace), session, prompt, seed)
    records = () if session is None else tuple(session.records)
    return Generation(
        frames_FHWC=_frames(output),
        latents=latents[0].detach().float().cpu() if latents else None,
        seconds=clock.seconds,
        calls=clock.calls,
        report=None if session is None else session.report(),
        mask=_mask(records),
        records=records,
        bound=session.bound() if session is not None and session.recipe.audit else None,
        conditions=None if session is None else session.conditions,
    )


def _sign(trace: Path, session: Session, prompt: str, seed: int) -> None:
    """Name prompt and seed in the header of a finished trace; while it is written, nobody knows them."""
    _, _, records = trace.read_text(encoding="utf-8").partition("\n")
    write_whole(trace, f"{session.header(prompt, seed).to_json()}\n{records}")


def _frames(output: Any) -> Frames:
    found = getattr(output, "frames", None)
    found = getattr(output, "images", None) if found is None else found
    first = np.asarray((output[0] if found is None else found)[0], dtype=np.float32)
    return first if first.ndim == 4 else first[None]


def _mask(records: Iterable[Record]) -> str:
    steps: dict[tuple[int, int], list[Record]] = {}
    for record in records:
        steps.setdefault((record.run, record.point.step), []).append(record)
    return "".join(_character(records) for records in steps.values())


def _character(records: list[Record]) -> str:
    if not any(record.outcome.reused for record in records):
        return "1"
    whole = all(r.outcome.reused and r.point.granularity is Granularity.STEP for r in records)
    return "0" if whole else "+"

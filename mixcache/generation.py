"""One generation: call a pipeline with a way of caching, and time its denoising loop.

Arrays carry their layout in their names: F frames, H height, W width, C colour channels.
"""

from __future__ import annotations

import gc
import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import asdict, fields, frozen
from numpy.typing import NDArray

from mixcache.attach import transformers_of
from mixcache.bounds import Bound
from mixcache.errors import ConfigurationError, MixcacheError
from mixcache.loading import Model, first_line
from mixcache.plan import make_plan
from mixcache.points import Granularity
from mixcache.report import Report
from mixcache.session import Session, enable
from mixcache.settings import read_settings
from mixcache.trace import Record

Frames = NDArray[np.float32]
"""A clip [F, H, W, C] with values in [0, 1]; an image is a clip of one frame."""


@frozen(kw_only=True)
class Variant:
    """One way of caching: policies ("a:x=1 + b:y=2", or "none") and the other choices of `mixcache.enable`, as text.

    basis and forecast: one spec for all granularities, or "step=linear cfg=hold"; empty: as published.
    max_cache_bytes and budget: a number; empty: no limit.
    """

    policies: str
    rule: str = "unanimous"
    basis: str = ""
    forecast: str = ""
    samples: str = "worst"
    max_cache_bytes: str = ""
    offload: str = ""
    budget: str = ""
    on_error: str = "raise"

    @classmethod
    def parse(cls, text: str, **defaults: str) -> Variant:
        """From "POLICIES @ basis=... forecast=... rule=... samples=..."; what it does not say comes from `defaults`.

        In the place of policies may stand the name of a TOML file (see `mixcache.read_settings`).
        Raises `ConfigurationError` for a name or value that cannot be, before any model is loaded.
        """
        policies, at, rest = text.partition("@")
        given = dict(defaults)
        if policies.strip().endswith(".toml"):
            told = _texts(read_settings(policies.strip()))
            policies, given = told.pop("policies"), {**given, **told}
        if at and not rest.strip():
            raise ConfigurationError(f"--policy {text!r}: nothing follows the @; write e.g. '@ basis=noise'.")
        own: dict[str, str] = {}
        known = [a.name for a in fields(cls)[1:]]
        for part in rest.split():
            key, equals, value = part.partition("=")
            what, dot, granularity = key.partition(".")
            if what not in known or not equals or not value or (dot and what not in ("basis", "forecast")):
                raise ConfigurationError(
                    f"--policy {text!r}: after the @ write {', '.join(f'{name}=' for name in known)} or, for one "
                    f"granularity, forecast.step=; got {part!r}."
                )
            own[what] = f"{own.get(what, '')} {granularity}={value}".strip() if dot else value
        given |= own
        variant = cls(policies=" ".join(policies.split()), **given)
        variant.check()
        return variant

    def check(self) -> None:
        """Build everything once; raises `ConfigurationError` for what does not exist or has a bad value."""
        if not self.policies:
            raise ConfigurationError("--policy must name a policy, or be 'none'; see `mixcache plugins`.")
        make_plan(**self._choices() if self.caches else {**self._choices(), "policies": "static"})

    def _choices(self) -> dict[str, Any]:
        """As arguments of `mixcache.enable`."""
        limit = self.max_cache_bytes
        return {
            **asdict(self),
            "max_cache_bytes": int(limit) if limit.isdigit() else limit or None,
            "offload": self.offload or None,
            "budget": _number(self.budget),
        }

    @property
    def caches(self) -> bool:
        """Whether there is a policy at all."""
        return self.policies != "none"

    @property
    def label(self) -> str:
        """A short text that tells variants apart: what differs from the defaults of `mixcache.enable`."""
        how = [a for a in fields(type(self))[1:] if getattr(self, a.name) != a.default]
        parts = [(a.name, part) for a in how for part in getattr(self, a.name).split()]
        several = {g.value for g in Granularity}
        texts = [f"{name}.{part}" if part.partition("=")[0] in several else f"{name}={part}" for name, part in parts]
        return f"{self.policies} @ {' '.join(texts)}" if texts else self.policies

    def enable(self, pipeline: Any, trace: Path | None = None, *, audit: bool = False) -> Session | None:
        """A session on the pipeline, or `None` if nothing is to be cached."""
        if not self.caches:
            return None
        return enable(pipeline, **self._choices(), trace=trace, audit=audit)


def _texts(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings of a file in the words of a command line."""

    def text(key: str, value: Any) -> str:
        if isinstance(value, Mapping):
            return " ".join(f"{granularity}={spec}" for granularity, spec in value.items())
        return " + ".join(value) if isinstance(value, list) else str(value)

    return {key: text(key, value) for key, value in settings.items()}


def _number(text: str) -> float | str | None:
    """The number that a text is; a text that is none stays, for `make_plan` to refuse; an empty one is no choice."""
    try:
        return float(text) if text else None
    except ValueError:
        return text


UNCACHED = Variant(policies="none")


@frozen(kw_only=True)
class Generation:
    """What one call gave: frames_FHWC in [0, 1], the final latents, seconds in the denoising loop, the session's
    report (`None` uncached) and its mask: a character a step, "1" computed, "0" reused, "+" in part.
    records and bound: of an audited call."""

    frames_FHWC: Frames
    latents: torch.Tensor | None
    seconds: float
    report: Report | None = None
    mask: str = ""
    records: tuple[Record, ...] = ()
    bound: Bound | None = None


class LoopClock:
    """Times one denoising loop: from the start of the first transformer call to the end of the last step.

    The end is the pipeline's last `callback_on_step_end`, or the end of the last transformer call if it has none.
    """

    def __init__(self, pipeline: Any) -> None:
        self._models = list(transformers_of(pipeline).values())
        self._pipeline = pipeline
        self._told = "callback_on_step_end" in inspect.signature(pipeline.__call__).parameters
        self._start: float | None = None
        self._end: float | None = None

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
    seed: int,
    arguments: Mapping[str, Any],
    variant: Variant = UNCACHED,
    *,
    on_step: Callable[[], None] = lambda: None,
    trace: Path | None = None,
    audit: bool = False,
) -> Generation:
    """Call the pipeline once, cached by `variant`. The session is on for this call alone.

    audit: measure the error of every reuse, which takes as long as computing.
    on_step: called after every denoising step. Raises `ConfigurationError` for a call that the pipeline refuses.
    """
    clock = LoopClock(model.pipeline)
    latents: list[torch.Tensor] = []

    def step_ended(_pipeline: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        clock.step_ended(step)
        latents[:] = [tensors["latents"]]
        on_step()
        return tensors

    call = dict(arguments, prompt=prompt, generator=torch.Generator("cpu").manual_seed(seed), output_type="np")
    if "callback_on_step_end" in inspect.signature(model.pipeline.__call__).parameters:
        call |= {"callback_on_step_end": step_ended, "callback_on_step_end_tensor_inputs": ["latents"]}
    session = variant.enable(model.pipeline, trace, audit=audit)
    gc.collect()
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
    return Generation(
        frames_FHWC=_frames(output),
        latents=latents[0].detach().float().cpu() if latents else None,
        seconds=clock.seconds,
        report=session.report() if session is not None else None,
        mask=_mask(session) if session is not None else "",
        records=tuple(session.records) if session is not None and audit else (),
        bound=session.bound() if session is not None and audit else None,
    )


def _frames(output: Any) -> Frames:
    found = getattr(output, "frames", None)
    found = getattr(output, "images", None) if found is None else found
    first = np.asarray((output[0] if found is None else found)[0], dtype=np.float32)
    return first if first.ndim == 4 else first[None]


def _mask(session: Session) -> str:
    steps: dict[tuple[int, int], list[Record]] = {}
    for record in session.records:
        steps.setdefault((record.run, record.point.step), []).append(record)
    return "".join(_character(records) for records in steps.values())


def _character(records: list[Record]) -> str:
    if not any(record.outcome.reused for record in records):
        return "1"
    whole = all(r.outcome.reused and r.point.granularity is Granularity.STEP for r in records)
    return "0" if whole else "+"

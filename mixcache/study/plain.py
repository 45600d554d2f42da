"""The uncached clips of a search: each made once and kept, with the numbers by which masks are priced."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import asdict, define

from mixcache.bench.flags import UNCACHED
from mixcache.bench.loading import Model
from mixcache.bench.references import Reference, References
from mixcache.core.metrics import Frames
from mixcache.errors import ConfigurationError
from mixcache.host.diffusers import models_of
from mixcache.host.tuned import Identity, scheduler_told
from mixcache.study.recorder import Recorder
from mixcache.study.recording import Recording, file_of

Run = Callable[..., Any]
"""(prompt, seed, recipe or `None`, number of steps if not the usual one) -> a `Generation`."""


def told_of(model: Model, call: Mapping[str, Any]) -> dict[str, Any]:
    """What determines an uncached clip beside its prompt and seed."""
    return {
        "models": {name: asdict(Identity.of(one)) for name, one in models_of(model.pipeline).items()},
        "noise scheduler": scheduler_told(model.pipeline.scheduler),
        "call": dict(call),
        "dtype": str(model.pipeline.dtype),
    }


@define(eq=False)
class Plain:
    """Uncached clips of one model and call, in a folder of their own.

    refused: why runs cannot be recorded, once that is known.
    """

    model: Model
    run: Run
    folder: Path
    refused: str | None = None

    @classmethod
    def of(cls, model: Model, call: Mapping[str, Any], run: Run, folder: Path) -> Plain:
        """In a folder below `folder` that belongs to this model, noise scheduler, call, dtype and kind of device."""
        told = {**told_of(model, call), "device": model.pipeline.device.type}
        text = json.dumps(told, sort_keys=True, default=str)
        own = folder / f"uncached-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        try:
            own.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"`folder` {str(folder)!r} cannot be written: {error.strerror}.") from error
        return cls(model, run, own)

    @property
    def _kept(self) -> References:
        return References(self.folder)

    def missing(self, pairs: Sequence[tuple[str, int]]) -> int:
        """How many have to be made."""
        return sum(not self._kept.has(prompt, seed, UNCACHED) for prompt, seed in pairs)

    def prepare(self, pairs: Sequence[tuple[str, int]], count: int) -> list[Recording]:
        """Make what is missing; the recordings of the first `count`, none where runs cannot be followed (`refused`)."""
        found: list[Recording] = []
        for place, (prompt, seed) in enumerate(pairs):
            file = file_of(self.folder, prompt, seed)
            wanted = place < count and self.refused is None
            if not self._kept.has(prompt, seed, UNCACHED) or (wanted and not file.is_file()):
                self._make(prompt, seed, file if wanted else None)
            if wanted and self.refused is None:
                found.append(Recording.load(file))
        return [] if self.refused else found

    def _make(self, prompt: str, seed: int, file: Path | None = None) -> None:
        """Make a clip; and, if there is a file for it, its recording."""
        if file is None:
            made = self.run(prompt, seed)
        else:
            made, numbers = Recorder(self.model).follow(lambda recipe: self.run(prompt, seed, recipe), prompt, seed)
            try:
                numbers().save(file)
            except ConfigurationError as error:
                self.refused = str(error)
        plain = Reference(frames_FHWC=made.frames_FHWC, latents=made.latents, calls=made.calls)
        self._kept.save(prompt, seed, UNCACHED, plain)

    def frames(self, prompt: str, seed: int) -> Frames:
        """Of an uncached clip; made now, if it was not."""
        if not self._kept.has(prompt, seed, UNCACHED):
            self._make(prompt, seed)
        kept = self._kept.load(prompt, seed, UNCACHED)
        assert kept is not None
        return kept.frames_FHWC

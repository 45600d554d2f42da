"""What variants are compared with, kept in the folder: the uncached runs, and (`--truth`) runs with many steps.

Each is made once for a prompt and a seed, and read by every variant.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import frozen

from mixcache.bench.media import slug
from mixcache.core.files import replacing
from mixcache.core.metrics import Frames


@frozen(kw_only=True)
class Reference:
    """Frames and final latents (`None` if the pipeline does not show them) of a plain run, and its model calls."""

    frames_FHWC: Frames
    latents: torch.Tensor | None
    calls: int


@frozen
class References:
    """A folder of them, one .npz (float32, without loss) for a prompt, a seed and a label."""

    folder: Path

    def has(self, prompt: str, seed: int, label: str) -> bool:
        """Whether it is there."""
        return self._path(prompt, seed, label).is_file()

    def load(self, prompt: str, seed: int, label: str) -> Reference | None:
        """It, or `None` if it was never kept."""
        if not self.has(prompt, seed, label):
            return None
        with np.load(self._path(prompt, seed, label)) as kept:
            latents = torch.from_numpy(kept["latents"]) if "latents" in kept else None
            return Reference(frames_FHWC=kept["frames_FHWC"], latents=latents, calls=int(kept["calls"]))

    def save(self, prompt: str, seed: int, label: str, reference: Reference) -> None:
        """Keep it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {"frames_FHWC": reference.frames_FHWC, "calls": np.asarray(reference.calls)}
        if reference.latents is not None:
            arrays["latents"] = reference.latents.numpy()
        with replacing(self._path(prompt, seed, label)) as partial:
            np.savez(partial, **arrays)

    def forget(self) -> None:
        """Remove them all."""
        for path in self.folder.glob("*-seed*.npz"):
            path.unlink()

    def _path(self, prompt: str, seed: int, label: str) -> Path:
        return self.folder / f"{slug(prompt)}-seed{seed}-{slug(label)}.npz"

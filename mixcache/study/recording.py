"""What one uncached run leaves for pricing: the Gram matrix of its outputs and anchors, and numbers about its solver.

Every basis is affine and most forecasters weigh stored values, so what a reuse gives is a sum of recorded outputs and
latents, and its error has the norm sqrt(v' G v). No tensor is needed once G is known.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import cattrs
import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from mixcache.core.files import write_whole
from mixcache.core.points import Address, Granularity, NoiseLevel, Point
from mixcache.errors import ConfigurationError

Matrix = NDArray[np.float64]

SCHEMA = 1

_COLUMNS = 1 << 16


@frozen(kw_only=True, eq=False)
class Recording:
    """One uncached run of n evaluations with B guidance branches, as numbers.

    gram: [(B + 1) n, (B + 1) n], scalar products over all elements: the outputs of each branch in turn, then the
    latents as the model was given them. guidance: [n, B], how the outputs of an evaluation made what the solver got.
    solver: [n], what an output does to the final latent (`mixcache.host.bounds.response`); `None` where the noise
    scheduler is not affine. scale: L2 norm of the final latent. levels, components: by evaluation. dtype: of the
    latents.
    """

    gram: Matrix
    guidance: Matrix
    solver: Matrix | None
    scale: float
    levels: tuple[NoiseLevel | None, ...]
    components: tuple[str, ...]
    dtype: str
    model: str
    prompt: str
    seed: int

    @property
    def steps(self) -> int:
        """Evaluations of the run."""
        return len(self.levels)

    def point(self, step: int) -> Point:
        """Where an evaluation stood."""
        address = Address(component=self.components[step])
        return Point(
            granularity=Granularity.STEP, step=step, num_steps=self.steps, address=address, level=self.levels[step]
        )

    def save(self, path: str | Path) -> None:
        """Write it as an .npz file, replacing what was there."""
        told = cattrs.unstructure(self)
        arrays = {name: told.pop(name) for name in ("gram", "guidance", "solver")}
        content = io.BytesIO()
        held = {name: array for name, array in arrays.items() if array is not None}
        np.savez_compressed(content, told=np.array(json.dumps({"schema": SCHEMA, **told})), **held)
        write_whole(path, content.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> Recording:
        """Read a file of `save`. Raises `ConfigurationError` for any other. Nothing in it is ever executed."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                told = json.loads(str(arrays["told"]))
                if told.pop("schema") != SCHEMA:
                    raise ValueError("another schema")
                told["levels"] = cattrs.structure(told["levels"], tuple[NoiseLevel | None, ...])
                told["components"] = tuple(told["components"])
                solver = arrays.get("solver", None)
                return cls(gram=arrays["gram"], guidance=arrays["guidance"], solver=solver, **told)
        except (OSError, ValueError, KeyError, TypeError, cattrs.BaseValidationError) as error:
            raise ConfigurationError(
                f"cannot read the recording {str(path)!r}: {error}; record it again with `mixcache.study.record`."
            ) from error


def file_of(folder: Path, prompt: str, seed: int) -> Path:
    """Where the recording of a clip is kept in `folder`."""
    name = hashlib.sha256(f"{seed} {prompt}".encode()).hexdigest()[:16]
    return folder / f"recording-{name}.npz"


def gram(tensors: Sequence[Tensor]) -> Matrix:
    """Scalar products of tensors of one size, in float64."""
    flat = [tensor.detach().flatten() for tensor in tensors]
    total = np.zeros((len(flat), len(flat)))
    for start in range(0, flat[0].numel(), _COLUMNS):
        block = torch.stack([one[start : start + _COLUMNS].cpu().double() for one in flat]).numpy()
        total += block @ block.T
    return total

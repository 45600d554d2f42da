"""Real hand-written digits, as scikit-learn carries them: 1,797 pictures of 8x8, smoothly enlarged when drawn.

1,500 are for training. The other 297 are never drawn in training: the classifier's accuracy is measured on them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

CELLS: Final = 8  # a digit's cells, high and wide
TRAINING: Final = 1500
TYPICAL: Final = 24  # pictures of each digit that clips show
_THRESHOLD: Final = 0.25  # ink from which a stroke is seen
_SLOPE: Final = 0.4  # ink from there to a full stroke: crisper than the 8x8 picture, still smooth

Plane = NDArray[np.float32]


@lru_cache(maxsize=1)
def _every() -> tuple[Plane, NDArray[np.int64]]:
    """All pictures, 0 to 1, ``[1797, 8, 8]``, and what they show; in a fixed random order."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return (data.images[order] / 16).astype(np.float32), data.target[order].astype(np.int64)


def training_digits() -> tuple[Plane, NDArray[np.int64]]:
    """Pictures ``[1500, 8, 8]``, 0 to 1, and their labels ``[1500]``."""
    pictures, labels = _every()
    return pictures[:TRAINING], labels[:TRAINING]


@lru_cache(maxsize=16)
def typical(label: int) -> NDArray[np.int64]:
    """Places in `training_digits` of the pictures of ``label`` that clips show: those nearest to their mean.

    All 150 of a digit differ so much that a transformer of this size needs far longer to learn what a digit is.
    """
    pictures, labels = training_digits()
    places = np.flatnonzero(labels == label)
    distances = ((pictures[places] - pictures[places].mean(axis=0)) ** 2).sum(axis=(1, 2))
    return places[np.argsort(distances, kind="stable")[:TYPICAL]]


def unseen_digits() -> tuple[Plane, NDArray[np.int64]]:
    """Pictures ``[297, 8, 8]`` that training never draws, and their labels."""
    pictures, labels = _every()
    return pictures[TRAINING:], labels[TRAINING:]


def _kernel(distance: Plane) -> Plane:
    """The cubic B-spline's weight at ``distance`` cells."""
    x = np.abs(distance)
    near = 2 / 3 - x**2 + x**3 / 2
    far = np.clip(2 - x, 0, None) ** 3 / 6
    return np.where(x < 1, near, far).astype(np.float32)


def _weights(pixels: int, middle: float, size: float) -> Plane:
    """How much each cell counts in each pixel of a line, ``[pixels, CELLS]``; the digit is ``size`` pixels long."""
    place = (np.arange(pixels, dtype=np.float32) - np.float32(middle)) / np.float32(size) * CELLS + (CELLS - 1) / 2
    return _kernel((place[:, None] - np.arange(CELLS, dtype=np.float32)).astype(np.float32))


def coverage(picture: Plane, centre_xy: tuple[float, float], size: float, height: int, width: int) -> Plane:
    """How much of each pixel the digit covers, 0 to 1, ``[height, width]``; its centre and ``size`` are in pixels."""
    ink = _weights(height, centre_xy[1], size) @ picture @ _weights(width, centre_xy[0], size).T
    return np.clip((ink - np.float32(_THRESHOLD)) / np.float32(_SLOPE), 0, 1).astype(np.float32)

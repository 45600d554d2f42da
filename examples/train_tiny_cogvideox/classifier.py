"""The frozen classifier of the scores: two layers, fitted on drawn digits and kept as a small file of half precision.

``python -m examples.train_tiny_cogvideox.classifier`` fits it again, writes it into the package and prints how many of
the real digits that training never draws it knows. It sees clips as the scores do, from their pixels.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import numpy as np
from numpy.typing import NDArray

from examples.train_tiny_cogvideox import clips, digits
from mixcache_models.drawn import DIRECTIONS, masks
from mixcache_models.tiny_cogvideox import score

UNITS: Final = 64
VIEWS: Final = 8  # frames drawn of each training picture, in various places and sizes
PENALTY: Final = 0.3  # on the squared weights
SEED: Final = 5


def views(
    pictures: digits.Plane, labels: NDArray[np.int64], count: int, rng: np.random.Generator
) -> tuple[score.Planes, NDArray[np.int64]]:
    """Features ``[count x pictures, 256]`` of single frames that show ``pictures``, and the label of each."""
    result = []
    every = [(digit, direction) for digit in score.DIGITS for direction in DIRECTIONS]
    for picture in pictures:
        for _ in range(count):
            spec = dataclasses.replace(clips.sample_spec(rng, every), size=float(rng.uniform(19, 25)))
            frame = clips.draw(spec, int(rng.integers(clips.FRAMES)), 1, picture)
            result.append(score.features(masks(score.as_levels(frame))[0]))
    return np.stack(result), np.repeat(labels, count)


def fit() -> dict[str, NDArray[np.float16]]:
    """The weights, fitted on the training digits alone."""
    from sklearn.neural_network import MLPClassifier

    inputs, labels = views(*digits.training_digits(), VIEWS, np.random.default_rng(SEED))
    network = MLPClassifier((UNITS,), alpha=PENALTY, max_iter=60, early_stopping=False, random_state=SEED, tol=0.0)
    network.fit(inputs, labels)
    names = ("hidden", "hidden_offset", "output", "output_offset")
    values = (network.coefs_[0], network.intercepts_[0], network.coefs_[1], network.intercepts_[1])
    return {name: value.astype(np.float16) for name, value in zip(names, values, strict=True)}


def accuracy() -> float:
    """Part of the 297 unseen real digits, drawn once each, that the classifier in the package knows."""
    inputs, labels = views(*digits.unseen_digits(), 1, np.random.default_rng(SEED + 1))
    return float((score.classify(inputs).argmax(axis=1) == labels).mean())


def main() -> None:
    """Fit, write and report."""
    np.savez_compressed(score.CLASSIFIER, **fit())
    print(f"{score.CLASSIFIER}: knows {100 * accuracy():.1f} % of {len(digits.unseen_digits()[1])} unseen digits")


if __name__ == "__main__":
    main()

"""Bases: the change of variable in which the cache stores an output.

Every basis here is affine in anchor and output with scalar coefficients, z = p * anchor + q * output, so that encoding
and decoding are written once. p and q depend on the noise level alone.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from attrs import frozen
from torch import Tensor

from mixcache.core.points import NoiseLevel, Point
from mixcache.core.streams import Streams
from mixcache.errors import ConfigurationError, PluginError

SINGULAR = 1e-6
"""A coefficient smaller than this is not divided by: the point computes instead."""


@frozen
class Basis:
    """An invertible affine change of variable. Subclasses give `coefficients`; any shape, dtype and device."""

    name: ClassVar[str] = ""

    def coefficients(self, point: Point) -> tuple[float, float] | None:
        """(p, q) with z = p * anchor + q * output at this point, or `None` where the change of variable is singular."""
        raise NotImplementedError(f"{type(self).__name__} must define coefficients(point)")

    def checked(self, point: Point) -> tuple[float, float] | None:
        """`coefficients`, if they are two finite numbers or `None`; raises `PluginError` otherwise."""
        pair = self.coefficients(point)
        if pair is None:
            return None
        good = isinstance(pair, tuple) and len(pair) == 2
        if not good or not all(isinstance(c, (int, float)) and math.isfinite(c) for c in pair):
            raise PluginError(
                f"basis {self.name or type(self).__name__!r} must return two finite numbers from coefficients(), or "
                f"None where it is singular; it returned {pair!r}."
            )
        return pair

    def encode(self, output: Streams, anchor: Streams, point: Point) -> Streams | None:
        """z of `output`, in its dtype; `None` where z cannot be formed (the point is then not stored)."""
        pair = self.checked(point)
        if pair is None:
            return None
        p, q = pair
        for a, o in zip(anchor, output):
            if p != 0.0 and a.shape != o.shape:
                raise ConfigurationError(
                    f"basis={self.name!r} relates the output to the anchor, but their shapes differ: "
                    f"{tuple(o.shape)} and {tuple(a.shape)}; use basis='output'."
                )
        return tuple([_mix(p, a, q, o) for a, o in zip(anchor, output)])

    def decode(self, z: Streams, anchor: Streams, point: Point) -> Streams | None:
        """The output that z stands for at this anchor, in z's dtype; `None` where q is singular."""
        pair = self.checked(point)
        if pair is None or abs(pair[1]) < SINGULAR:
            return None
        p, q = pair
        return tuple([_mix(-p / q, a, 1.0 / q, s) for a, s in zip(anchor, z)])


def _mix(p: float, a: Tensor, q: float, b: Tensor) -> Tensor:
    """p * a + q * b, in at least float32, as a new tensor of b's dtype."""
    mixed = b.to(torch.promote_types(b.dtype, torch.float32))
    if p == 0.0 or q != 1.0:
        mixed = mixed * q
    if p != 0.0:
        mixed = torch.add(mixed, a, alpha=p)
    return mixed.to(b.dtype).detach()


@frozen
class Residual(Basis):
    """z = output - anchor: EasyCache's transformation vector, TeaCache's and First-Block-Cache's residual."""

    name: ClassVar[str] = "residual"

    def coefficients(self, point: Point) -> tuple[float, float]:
        return -1.0, 1.0


@frozen
class Output(Basis):
    """z = output, as FORA and Pyramid Attention Broadcast reuse it."""

    name: ClassVar[str] = "output"

    def coefficients(self, point: Point) -> tuple[float, float]:
        return 0.0, 1.0


def _level(point: Point, basis: str) -> NoiseLevel:
    if point.level is None:
        raise ConfigurationError(
            f"basis={basis!r} needs the noise level of every step, and this run has none: enable a pipeline, or give "
            "sigma to `run.step(i, sigma=...)`; basis='residual' needs none."
        )
    return point.level


@frozen
class Noise(Basis):
    """z = the noise that the prediction implies; for flow matching z = x + (1 - sigma) v. Singular at alpha = 0."""

    name: ClassVar[str] = "noise"

    def coefficients(self, point: Point) -> tuple[float, float] | None:
        level = _level(point, self.name)
        if level.prediction == "flow":
            return 1.0, 1.0 - level.sigma
        if level.prediction == "epsilon":
            return 0.0, 1.0
        if level.prediction == "v_prediction":
            return level.sigma, level.alpha
        return None if abs(level.sigma) < SINGULAR else (1.0 / level.sigma, -level.alpha / level.sigma)


@frozen
class Clean(Basis):
    """z = the clean latent that the prediction implies; for flow matching z = x - sigma v. Singular at sigma = 0."""

    name: ClassVar[str] = "clean"

    def coefficients(self, point: Point) -> tuple[float, float] | None:
        level = _level(point, self.name)
        if level.prediction == "flow":
            return 1.0, -level.sigma
        if level.prediction == "v_prediction":
            return level.alpha, -level.sigma
        if level.prediction == "sample":
            return 0.0, 1.0
        return None if abs(level.alpha) < SINGULAR else (1.0 / level.alpha, -level.sigma / level.alpha)


BASES: tuple[type[Basis], ...] = (Residual, Output, Noise, Clean)

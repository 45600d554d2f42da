"""Bases: the change of variable in which the cache stores an output.

Every basis here is affine in anchor and output with scalar coefficients, z = p * anchor + q * output, so that encoding
and decoding are written once. p and q depend on the noise level alone.
"""

from __future__ import annotations

import math
from itertools import zip_longest
from typing import ClassVar

import torch
from attrs import frozen
from torch import Tensor

from mixcache.core.points import Granularity, NoiseLevel, Point
from mixcache.core.streams import Streams
from mixcache.errors import ConfigurationError, PluginError, called

SINGULAR = 1e-6
"""A coefficient smaller than this is not divided by: the point computes instead."""

ROUNDING = 0.25
"""The error of rounding to a dtype, root mean square, as a share of its eps."""

LOST = 0.05
"""How much of the output the rounding of its anchor may make up; where a basis makes more of it, the point computes."""


class UnfitAnchor(ConfigurationError):
    """An output is told around an anchor of another shape: it cannot be stored."""


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
        """z of `output`, in its dtype, at STEP in at least float32; `None` where z cannot be formed (it is not stored).

        An output stream that has no anchor is taken around zero.
        """
        pair = self.checked(point)
        if pair is None:
            return None
        p, q = pair
        for a, o in zip(anchor, output):
            if p != 0.0 and a.shape != o.shape:
                raise UnfitAnchor(
                    f"output of {tuple(o.shape)} beside an anchor of {tuple(a.shape)}, which wants basis='output',"
                )
        wide = point.granularity is Granularity.STEP  # small there, and a change of variable may amplify its rounding
        pairs = zip_longest(anchor[: len(output)], output)
        return tuple([_mix(p, a, q, o, _wide(o.dtype) if wide else o.dtype) for a, o in pairs])

    def decode(self, z: Streams, anchor: Streams, point: Point) -> Streams | None:
        """The output that z stands for at this anchor, in z's dtype.

        `None` where q is singular, or makes too much of the rounding of the anchor.
        """
        pair = self.checked(point)
        if pair is None or abs(pair[1]) < SINGULAR:
            return None
        p, q = pair
        if anchor and anchor[0].is_floating_point() and abs(p / q) * ROUNDING * torch.finfo(anchor[0].dtype).eps > LOST:
            return None
        return tuple([_mix(-p / q, a, 1.0 / q, s, s.dtype) for a, s in zip_longest(anchor[: len(z)], z)])


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _mix(p: float, a: Tensor | None, q: float, b: Tensor, dtype: torch.dtype) -> Tensor:
    """p * a + q * b, worked out in at least float32, as a new tensor of this dtype."""
    mixed = b.to(_wide(b.dtype))
    if a is None or p == 0.0 or q != 1.0:
        mixed = mixed * q
    if a is not None and p != 0.0:
        mixed = torch.add(mixed, a, alpha=p)
    return mixed.to(dtype).detach()


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
        if level.sign is None:
            return None
        if level.prediction == "flow":
            return 1.0, level.sign * (1.0 - level.sigma)
        if level.prediction == "epsilon":
            return 0.0, level.sign
        if level.prediction == "v_prediction":
            return level.sigma, level.sign * level.alpha
        return None if abs(level.sigma) < SINGULAR else (1.0 / level.sigma, -level.sign * level.alpha / level.sigma)


@frozen
class Clean(Basis):
    """z = the clean latent that the prediction implies; for flow matching z = x - sigma v. Singular at sigma = 0."""

    name: ClassVar[str] = "clean"

    def coefficients(self, point: Point) -> tuple[float, float] | None:
        level = _level(point, self.name)
        if level.sign is None:
            return None
        if level.prediction == "flow":
            return 1.0, -level.sign * level.sigma
        if level.prediction == "v_prediction":
            return level.alpha, -level.sign * level.sigma
        if level.prediction == "sample":
            return 0.0, level.sign
        return None if abs(level.alpha) < SINGULAR else (1.0 / level.alpha, -level.sign * level.sigma / level.alpha)


BASES: tuple[type[Basis], ...] = (Residual, Output, Noise, Clean)


def encoded(basis: Basis, output: Streams, anchor: Streams, point: Point) -> tuple[Streams | None, str | None]:
    """z of an output, `None` where it cannot be stored; and why, where it does not fit its anchor."""
    try:
        return called(("basis", basis), basis.encode, output, anchor, point), None
    except UnfitAnchor as error:
        return None, str(error)

"""Anchors: what a place is compared with and rebuilt around.

    output ~ decode(forecast(history of encode(output)), anchor)

An anchor is whatever is cheap to know before the place is computed: nothing at all, what enters the place, or an
estimate of the output itself. It has a cost, and may keep a state, which lives and dies with the history.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from attrs import define, frozen

from mixcache.core.points import Point
from mixcache.core.streams import Beside, Streams


@frozen
class Anchor:
    """Base of the anchors: subclasses give `make`, and `cost` if it costs anything.

    stateful: whether `make` reads what earlier visits left in `state`. What such an anchor gives is not exact, because
    history went into it.
    """

    name: ClassVar[str] = ""
    stateful: ClassVar[bool] = False

    @define
    class State:
        """What the anchor remembers of one place; nothing by default. Tensors in its fields count as cache."""

    @property
    def cost(self) -> float:
        """What making it costs, as a share of the place's own work, from 0 to 1."""
        return 0.0

    def make(self, entering: Streams, point: Point, state: Any, beside: Beside) -> Streams:
        """The anchor's streams, one per output stream and of its form.

        entering: what enters the place (at CFG the conditional prediction). beside: the side inputs that are known.
        """
        raise NotImplementedError(f"{type(self).__name__} must define make(entering, point, state, beside)")


@frozen
class Entering(Anchor):
    """What enters the place: the latent at STEP, the conditional prediction at CFG, the hidden states at BLOCK."""

    name: ClassVar[str] = "input"

    def make(self, entering: Streams, point: Point, state: Any, beside: Beside) -> Streams:
        return entering


@frozen
class Zero(Anchor):
    """Nothing: z is the output itself, in every basis that adds the anchor."""

    name: ClassVar[str] = "zero"

    def make(self, entering: Streams, point: Point, state: Any, beside: Beside) -> Streams:
        return tuple(torch.zeros_like(stream) for stream in entering)


ANCHORS: tuple[type[Anchor], ...] = (Entering, Zero)

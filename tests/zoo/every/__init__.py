"""Pipelines of diffusers as they are, tiny and random: real `__call__`, real noise scheduler, no network.

One function for each pipeline, without arguments, returning a `Tiny`. `PIPELINES` lists them by class name; a name
with something behind it is a way of calling that class.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.zoo.every import a_to_c, d_to_h, i_to_o, p_to_sk, st_to_z
from tests.zoo.tiny import Tiny

PIPELINES: dict[str, Callable[[], Tiny]] = {
    **a_to_c.PIPELINES,
    **d_to_h.PIPELINES,
    **i_to_o.PIPELINES,
    **p_to_sk.PIPELINES,
    **st_to_z.PIPELINES,
}

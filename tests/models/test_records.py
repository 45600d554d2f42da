"""Every record of blocks says what watching one call of that class shows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mixcache import BlockList, ModelAdapter
from mixcache.host.inspect import described, find_row, watched
from mixcache.host.rows import Row
from mixcache_models import plugin
from tests.zoo.denoisers import build

pytestmark = [
    pytest.mark.filterwarnings("ignore:In CPU autocast"),  # diffusers asks for float32 there
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated"),
]
RECORDS = {one.model: one for one in plugin.mixcache_models() if isinstance(one, ModelAdapter) and one.blocks}


def seen_in(model: nn.Module, arguments: dict[str, Any]) -> Row:
    """The blocks that one call shows."""
    seen: list[Any] = []
    with watched(model, seen), torch.no_grad():
        model(**arguments)
    return find_row(model, seen)


def told(blocks: tuple[BlockList, ...]) -> list[tuple[str, set[str], tuple[str, ...]]]:
    """What a record and watching can agree on: which stream is the image's is for the record alone to say."""
    return [(kind.path, set(kind.streams), kind.returns) for kind in blocks]


def test_there_are_records_to_hold() -> None:
    assert {"WanTransformer3DModel", "FluxTransformer2DModel", "SD3Transformer2DModel"} <= set(RECORDS)


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_says_what_watching_shows(name: str) -> None:
    """The same lists in the same order, all of their blocks, the same streams, and what a block returns in order."""
    model, arguments = build(name)
    row = seen_in(model, arguments)
    record = RECORDS[name]
    assert told(described(model, row)) == told(record.blocks)
    wanted = Row.of(model, record.blocks)
    assert len(wanted.modules) == len(row.modules) >= 2
    assert all(one is other for one, other in zip(row.modules, wanted.modules))
    assert [kind.path for kind in row.kinds] == [kind.path for kind in wanted.kinds]

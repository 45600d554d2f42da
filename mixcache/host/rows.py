"""The blocks of a model: what each takes and returns, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import frozen
from torch import Tensor
from torch import distributed as dist

if dist.is_available():  # some builds of torch have no ranks
    from torch.distributed.fsdp import FullyShardedDataParallel

Probe = Callable[[Any, Mapping[str, Any]], Tensor]


@frozen(kw_only=True)
class BlockList:
    """One list of blocks of a model, in the order in which `forward` runs them.

    path: the attribute that holds it. streams: the arguments of a block's `forward` that it transforms, the image or
    video stream first. returns: the same names in the order in which a block returns them. probe: for the first list,
    what TeaCache measures there, from the first block and its arguments by name.
    """

    path: str
    streams: tuple[str, ...] = ("hidden_states",)
    returns: tuple[str, ...] = ("hidden_states",)
    probe: Probe | None = None


def unwrapped(module: Any) -> Any:
    """What FSDP's first version wraps (`FullyShardedDataParallel`); any other module itself."""
    return module.module if dist.is_available() and isinstance(module, FullyShardedDataParallel) else module


@frozen
class Row:
    """The blocks of a model in the order in which they run.

    modules, kinds: one for each block. seams: the blocks before which something enters from elsewhere. notes: what was
    seen and could not be used.
    """

    modules: tuple[Any, ...]
    kinds: tuple[BlockList, ...]
    seams: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: Any, blocks: Sequence[BlockList]) -> Row:
        """The row that a record describes."""
        pairs = [(unwrapped(module), kind) for kind in blocks for module in model.get_submodule(kind.path)]
        return cls(tuple(module for module, _ in pairs), tuple(kind for _, kind in pairs))

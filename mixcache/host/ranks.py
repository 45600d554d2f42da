"""Over which ranks a model is sharded, and what they must find alike: a block is gathered by all of them, or hangs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from mixcache.errors import AttachError, ConfigurationError

if dist.is_available():  # some builds of torch have no ranks
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
    from torch.distributed.tensor import DTensor


def group_over(models: Iterable[Any]) -> Any:
    """The process group over which models are sharded; `None` if they are not.

    It is that of diffusers' context or tensor parallel, of FSDP's wrappers, and of every mesh dimension along which a
    parameter is sharded; of several the one that holds the ranks of all.
    Raises `ConfigurationError` if none of them does.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return None
    found = {frozenset(dist.get_process_group_ranks(group)): group for model in models for group in _groups(model)}
    found = {ranks: group for ranks, group in found.items() if len(ranks) > 1}
    if not found:
        return None
    largest = max(found, key=len)
    if any(not ranks <= largest for ranks in found):
        told = " and ".join(str(sorted(ranks)) for ranks in found)
        raise ConfigurationError(
            f"the model is sharded over several groups of ranks ({told}), none of which holds the others; give one "
            "that does: enable(..., group=torch.distributed.group.WORLD), or one of torch.distributed.new_group."
        )
    return found[largest]


def _groups(model: Any) -> Iterator[Any]:
    """The process groups over which parts of a model are sharded."""
    parallel = getattr(model, "_parallel_config", None)
    context, tensor = (getattr(parallel, f"{kind}_parallel_config", None) for kind in ("context", "tensor"))
    mesh = getattr(context, "_flattened_mesh", None) or getattr(tensor, "_mesh", None)
    if mesh is not None:
        yield mesh.get_group()
    for module in model.modules() if isinstance(model, torch.nn.Module) else ():
        if isinstance(module, FullyShardedDataParallel) and module.sharding_strategy is not ShardingStrategy.NO_SHARD:
            yield module.process_group
        for parameter in module.parameters(recurse=False):
            if isinstance(parameter, DTensor):
                mesh = parameter.device_mesh
                split = [i for i, placement in enumerate(parameter.placements) if not placement.is_replicate()]
                everywhere = len(split) > 1 and mesh.size() == dist.get_world_size()
                yield from [dist.group.WORLD] if everywhere else map(mesh.get_group, split)


def check_sharding(model: Any, group: Any) -> None:
    """Raise `AttachError` if a model is sharded over ranks that do not decide together. group: those that do."""
    found = group_over([model])
    if found is None:
        return
    ranks = sorted(dist.get_process_group_ranks(found))
    deciding = [] if group is None else dist.get_process_group_ranks(group)
    if not set(ranks) <= set(deciding):
        raise AttachError(
            f"this {type(model).__name__} is sharded over the ranks {ranks}, and they do not decide together: one "
            "would wait for the others for ever. Shard a model before enable(), or give enable() a `group` of them all."
        )


def alike(numbers: Sequence[float], group: Any, like: Tensor) -> list[bool]:
    """For each number whether it is the same on every rank of `group`, which all have to ask; without a group it is.

    Ranks with prompts of their own may see different things in one model; what decides which of its blocks run must not
    differ. like: a tensor on the device that the ranks talk over.
    """
    if group is None:
        return [True] * len(numbers)
    told = torch.tensor([*numbers, *(-number for number in numbers)], device=like.device)
    dist.all_reduce(told, op=dist.ReduceOp.MAX, group=group)
    most, least = told.chunk(2)
    return (most == -least).tolist()

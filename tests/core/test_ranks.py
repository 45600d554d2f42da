"""Ranks that hold shards of one model decide alike, replicas beside them alone: real processes, over gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models._modeling_parallel import ParallelConfig, TensorParallelConfig
from torch import distributed, multiprocessing
from torch.distributed.device_mesh import DeviceMesh

import mixcache
from mixcache import ConfigurationError
from tests.helpers import Scripted, follow, reused_steps

STEPS = {0: 12, 1: 12, 2: 6, 3: 6}
"""Evaluations of each rank: the second pair finishes early."""

Found = dict[str, list[int]]


def _anchors(rank: int, what: str, steps: int) -> list[torch.Tensor]:
    """All but constant on every rank, but for the second one's shard: it grows, or holds a NaN at step 5."""
    calm = [torch.full((1, 6), 1.0 + t / 1000) for t in range(steps)]
    if rank == 1 and what == "grows":
        return [anchor * 2.0**t for t, anchor in enumerate(calm)]
    if rank == 1 and what == "broken":
        calm[5] = torch.full((1, 6), torch.nan)
    return calm


def _configured(rank: int, group: Any) -> Any:
    """What diffusers' `enable_parallelism` leaves on a model that is sharded over this group."""
    mesh = DeviceMesh.from_group(group, "cpu", mesh_dim_names=("tp",))
    config = ParallelConfig(tensor_parallel_config=TensorParallelConfig(tp_degree=2))
    config.setup(rank % 2, 2, torch.device("cpu"), mesh=mesh)
    return config


def _rank(rank: int, folder: Path) -> None:
    """Ranks 0 and 1 hold shards of one model, 2 and 3 of its replica."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(STEPS))
    pairs = [distributed.new_group([0, 1]), distributed.new_group([2, 3])]
    model, steps, found = Scripted(), STEPS[rank], Found()
    for what in ("grows", "broken", "output"):
        anchors = _anchors(rank, what, steps)
        outputs = [[anchor + 1.0] for anchor in anchors]
        if rank == 1 and what == "output":
            outputs[5] = [torch.full((1, 6), torch.inf)]
        for how, group in (("alone", None), ("together", pairs[rank // 2]), ("configured", None)):
            model._parallel_config = _configured(rank, pairs[rank // 2]) if how == "configured" else None
            # the longest run has each computed step read the error that the broken output leaves
            policy = "easycache:threshold=0.5,first_steps=2,last_steps=0,longest_run=1"
            with mixcache.enable(model, policy, group=group) as session:
                follow(session, model, anchors, outputs)
            found[f"{what} {how}"] = reused_steps(session)
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """The reused steps of every rank, by what its shard did and whether it knew of its group."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(_rank, (folder,), nprocs=len(STEPS))  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{rank}.pt") for rank in STEPS]


def test_one_ranks_input_is_constant_its_data_parallel_neighbours_is_not(found: list[Found]) -> None:
    """Elsewhere: no reuse on either, and an error when one finishes early."""
    alternating = [2, 4, 6, 8, 10]
    assert [rank["grows alone"] for rank in found] == [alternating, [], [2, 4], [2, 4]]
    assert [rank["grows together"] for rank in found] == [[], [], [2, 4], [2, 4]]


@pytest.mark.parametrize("what", ["grows", "broken", "output"])
def test_the_group_is_read_off_the_parallel_configuration_of_diffusers(found: list[Found], what: str) -> None:
    assert [rank[f"{what} configured"] for rank in found] == [rank[f"{what} together"] for rank in found]


@pytest.mark.parametrize("what", ["broken", "output"])
def test_what_is_not_finite_on_one_rank_is_computed_on_all_of_its_model(found: list[Found], what: str) -> None:
    for group in (found[:2], found[2:]):
        assert group[0][f"{what} together"] == group[1][f"{what} together"]
    assert found[0][f"{what} alone"] == [2, 4, 6, 8, 10] != found[0][f"{what} together"]
    assert found[2][f"{what} together"] == [2, 4]


def test_a_group_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"`group` must be the process group .* got 'world'"):
        mixcache.enable(Scripted(), "easycache", group="world")


@pytest.mark.parametrize("choice", [{"max_cache_bytes": 100}, {"on_error": "compute"}])
def test_one_rank_must_not_compute_alone(choice: dict[str, Any], tmp_path: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        with pytest.raises(ConfigurationError, match="does not go with"):
            mixcache.enable(Scripted(), "easycache", group=distributed.group.WORLD, **choice)
    finally:
        distributed.destroy_process_group()

"""A model that FSDP has sharded: its ranks decide alike, whatever they denoise. Real processes, over gloo."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import distributed, multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

import mixcache
from mixcache import AttachError, ConfigurationError
from mixcache.host.diffusers import fingerprint, group_of
from tests.helpers import state_of, verdicts
from tests.zoo.pipelines import sd3, wan
from tests.zoo.tiny import Tiny, randn

RANKS = 2
STATIC, ADAPTIVE = "static:every=2", "easycache:threshold=0.3,first_steps=2"
RECIPES = {
    "step": STATIC,
    "adaptive": ADAPTIVE,
    "blocks": "firstblock:threshold=0.14",
    "branches": f"{STATIC},at=cfg",
    "noise": f"{STATIC} @ basis=noise",
}
FSDP = {"second": tuple(RECIPES), "first": ("adaptive", "blocks")}
CASES = [(which, name) for which, names in FSDP.items() for name in names]
Found = dict[str, Any]


def _shard(pipe: Any, which: str) -> None:
    """Shard the transformer over all ranks, each of its blocks by itself, with this version of FSDP."""
    model = pipe.transformer
    blocks = model.blocks if hasattr(model, "blocks") else model.transformer_blocks
    for i, block in enumerate(blocks):
        if which == "second":
            fully_shard(block)
        else:
            blocks[i] = _wrapped(block)
    if which == "second":
        fully_shard(model)
    else:
        pipe.transformer = _wrapped(model)


def _wrapped(module: torch.nn.Module) -> torch.nn.Module:
    return FullyShardedDataParallel(module, device_id=torch.device("cpu"), use_orig_params=True)


def _prompt(rank: int, kind: str) -> dict[str, Any]:
    """What a rank denoises: what all do; one of its own; or, on the second alone, an empty prompt."""
    if kind == "own" and rank == 1:
        return {"prompt_embeds": 4.0 * randn(2, 8, 16, seed=3), "batch": 2, "seed": 7}
    return {"prompt_embeds": torch.zeros(1, 8, 16)} if kind == "empty" and rank == 1 else {}


def _cached(tiny: Tiny, recipe: str, **given: Any) -> Found:
    with mixcache.enable(tiny.pipe, recipe) as session:
        output = tiny.run(6, **given)
        return {"output": output, "verdicts": verdicts(session), "notes": session.report().notes}


def _both(found: Found, name: str, alone: Tiny, sharded: Tiny, recipe: str, **given: Any) -> None:
    found[name] = {"alone": _cached(alone, recipe, **given), "sharded": _cached(sharded, recipe, **given)}


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    meet, limit = f"file://{folder}/meet", datetime.timedelta(seconds=60)
    distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=RANKS, timeout=limit)
    found: Found = {"fingerprint": fingerprint(wan().pipe.transformer)}
    for which in FSDP:
        alone, sharded = wan(), wan()
        _shard(sharded.pipe, which)
        sharded.run(1)
        before = state_of(sharded.pipe.transformer)
        for name in FSDP[which]:
            for kind in ("same", "own"):
                _both(found, f"{which} {name} {kind}", alone, sharded, RECIPES[name], **_prompt(rank, kind))
        found[f"{which} restored"] = state_of(sharded.pipe.transformer) == before
        found[f"{which} fingerprint"] = fingerprint(sharded.pipe.transformer)
    alone, sharded = sd3(), sd3()
    _shard(sharded.pipe, "second")
    _both(found, "one batch", alone, sharded, RECIPES["branches"])

    alone, sharded = wan(), wan()
    _shard(sharded.pipe, "second")
    _both(found, "empty", alone, sharded, RECIPES["branches"], **_prompt(rank, "empty"))
    for tiny in (alone, sharded):
        kind = diffusers.FlowMatchEulerDiscreteScheduler
        tiny.pipe.scheduler = kind(stochastic_sampling=rank == 1)
    _both(found, "one draws noise", alone, sharded, RECIPES["noise"])

    late = wan()
    with mixcache.enable(late.pipe, STATIC):
        _shard(late.pipe, "second")
        with pytest.raises(AttachError, match=r"sharded over the ranks \[0, 1\], .* before enable"):
            late.run(2)

    replicated = wan()  # over both ranks alike, and "sharded" over each alone
    fully_shard(replicated.pipe.transformer, mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("copies", "shards")))
    found["group of replicas"] = group_of(replicated.pipe) is None
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """What each rank saw."""
    folder = tmp_path_factory.mktemp("sharded")
    multiprocessing.spawn(_rank, (folder,), nprocs=RANKS)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


def _decided(rank: Found) -> list[tuple[int, bool]]:
    return [(step, reused) for step, _, reused in rank["sharded"]["verdicts"]]


@pytest.mark.parametrize(("which", "name"), CASES)
def test_ranks_that_denoise_the_same_give_what_one_process_gives(found: list[Found], which: str, name: str) -> None:
    for rank in found:
        both = rank[f"{which} {name} same"]
        assert torch.equal(both["sharded"]["output"], both["alone"]["output"])
        assert both["sharded"]["verdicts"] == both["alone"]["verdicts"]
        assert both["sharded"]["notes"] == both["alone"]["notes"]
        assert any(reused for _, _, reused in both["sharded"]["verdicts"])


@pytest.mark.parametrize(("which", "name"), CASES)
def test_ranks_with_prompts_of_their_own_decide_alike(found: list[Found], which: str, name: str) -> None:
    first, second = (rank[f"{which} {name} own"] for rank in found)
    assert _decided(first) == _decided(second)
    assert any(reused for _, reused in _decided(first))
    if name in ("adaptive", "blocks"):
        assert first["alone"]["verdicts"] != second["alone"]["verdicts"]  # each would have gone its own way
    else:
        for rank in (first, second):
            assert torch.equal(rank["sharded"]["output"], rank["alone"]["output"])


@pytest.mark.parametrize("which", FSDP)
def test_nothing_is_left_on_a_sharded_model(found: list[Found], which: str) -> None:
    assert all(rank[f"{which} restored"] for rank in found)


def test_branches_of_one_batch_are_proven_on_all_ranks(found: list[Found]) -> None:
    for rank in found:
        both = rank["one batch"]
        assert torch.equal(both["sharded"]["output"], both["alone"]["output"])
        assert both["sharded"]["verdicts"] == both["alone"]["verdicts"]


def test_an_empty_prompt_on_one_rank_tells_no_branch_and_the_other_does_not_wait(found: list[Found]) -> None:
    """Its two branches are the same, so guidance goes towards neither: alone, that rank would skip nothing."""
    first, second = (rank["empty"] for rank in found)
    assert [bool(one["alone"]["verdicts"]) for one in (first, second)] == [True, False]
    assert _decided(first) == _decided(second)


def test_noise_levels_that_one_rank_cannot_confirm_are_used_by_none(found: list[Found]) -> None:
    first, second = (rank["one draws noise"] for rank in found)
    assert any(reused for _, _, reused in first["alone"]["verdicts"])
    assert _decided(first) == _decided(second)
    for one in (first["sharded"], second["sharded"], second["alone"]):
        assert not any(reused for _, _, reused in one["verdicts"])
        assert any("noise levels" in note for note in one["notes"])


@pytest.fixture
def mesh() -> Iterator[Any]:
    """Four ranks, two by two, of which this process is the first; they say nothing to each other."""
    distributed.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    yield init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    distributed.destroy_process_group()


def _split(*parts: tuple[Any, list[Any]]) -> torch.nn.Module:
    """A model with a parameter for each (mesh, placements)."""
    model = torch.nn.Module()
    for i, (mesh, placements) in enumerate(parts):
        part = DTensor.from_local(torch.zeros(2, 2), mesh, placements, run_check=False)
        model.register_parameter(f"p{i}", torch.nn.Parameter(part))
    return model


def test_the_group_is_that_of_the_dimensions_along_which_parameters_are_sharded(mesh: Any) -> None:
    each = [group_of(_split((mesh, one))) for one in ([Shard(0), Replicate()], [Replicate(), Shard(1)])]
    assert [distributed.get_process_group_ranks(group) for group in each] == [[0, 2], [0, 1]]
    assert group_of(_split((mesh, [Shard(0), Shard(1)]))) is distributed.group.WORLD
    assert group_of(_split((mesh, [Replicate(), Replicate()]))) is None
    both = _split((mesh["a"], [Shard(0)]), (mesh, [Shard(0), Shard(1)]))
    assert group_of(both) is distributed.group.WORLD


def test_groups_that_do_not_hold_each_other_are_refused(mesh: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"\[0, 2\] and \[0, 1\].*enable\(\.\.\., group="):
        mixcache.enable(_split((mesh["a"], [Shard(0)]), (mesh["b"], [Shard(0)])), STATIC)


def test_copies_of_a_model_need_not_decide_alike(found: list[Found]) -> None:
    assert all(rank["group of replicas"] for rank in found)


@pytest.mark.parametrize("what", ["fingerprint", *(f"{which} fingerprint" for which in FSDP)])
def test_a_model_has_one_fingerprint_in_all_processes(found: list[Found], what: str) -> None:
    assert found[0][what] == found[1][what]

"""TeaCache decides as a direct unrolling of its formula does, on the probes of three models; where its numbers are."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import mixcache
from mixcache import Calibration, Calibrations, catalogue
from mixcache.testing import simulate
from mixcache_policies import TeaCache
from tests.conftest import built
from tests.policies.blocks import Seen, recorded_blocks, relative
from tests.zoo.tiny import Tiny

PLAIN = (0.0, 0.0, 0.0, 1.0, 0.0)
BENT = (40.0, -20.0, 6.0, 0.9, -0.004)
"""Degree 4, and negative near 0, as some of the published ones."""


def unroll(
    changes: list[float | None], polynomial: tuple[float, ...], threshold: float, first: int, last: int
) -> tuple[list[bool], float]:
    """The published rule: which evaluations are reused, and how near E came to the threshold."""
    E, reused, margin = 0.0, [], float("inf")
    for t, change in enumerate(changes):
        reuse = False
        if first <= t < len(changes) - last and change is not None:
            E += float(np.polyval(polynomial, change))
            margin = min(margin, abs(E - threshold) / threshold)
            reuse = threshold > E
        if not reuse:
            E = 0.0
        reused.append(reuse)
    return reused, margin


def probe_of(name: str, block: Any, seen: Seen) -> Tensor:
    """The signal, written out: the time embedding as it is; else LayerNorm, scaled and shifted by it."""
    if name in ("wan", "cogvideox"):
        return seen.arguments["temb"]
    hidden, temb = seen.entered, seen.arguments["temb"]
    shift, scale = torch.nn.functional.linear(
        torch.nn.functional.silu(temb), block.norm1.linear.weight, block.norm1.linear.bias
    ).chunk(6, dim=1)[:2]
    centred = hidden - hidden.mean(-1, keepdim=True)
    normal = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return (normal * (1 + scale[:, None]) + shift[:, None]).detach()


def decisions(
    tiny: Tiny, name: str, policy: TeaCache, samples: str = "worst", batch: int = 1
) -> tuple[list[list[bool]], list[list[bool]], float]:
    """For every branch: what was decided and what the formula says; and how near it came to the threshold."""
    model = tiny.pipe.transformer
    with mixcache.enable(tiny.pipe, policy, samples=samples) as session, recorded_blocks(model) as calls:
        tiny.run(16, batch=batch)
    found, wanted, margins = [], [], []
    branches = 2 if name == "wan" else 1
    block = (
        next(model.children())
        if name == "none"
        else getattr(model, "blocks" if name == "wan" else "transformer_blocks")[0]
    )
    for i in range(branches):
        mine = calls[i::branches]
        probes = [probe_of(name, block, call[0]) for call in mine]
        changes = [None, *(relative(b, a, pooled=samples == "mean") for a, b in pairwise(probes))]
        reused, margin = unroll(
            changes, policy.coefficients or (), policy.threshold, policy.first_steps, policy.last_steps
        )
        wanted.append(reused)
        margins.append(margin)
        found.append([r.outcome.reused for r in session.records][i::branches])
        assert [not any(block.ran for block in call) for call in mine] == found[-1]
        check_outputs(mine, reused)
    return found, wanted, min(margins)


def check_outputs(calls: list[list[Seen]], reused: list[bool]) -> None:
    """A reused call adds what all blocks added at the last computed one."""
    increment = torch.empty(0)
    for call, reuse in zip(calls, reused):
        if reuse:
            torch.testing.assert_close(call[-1].left, call[0].entered + increment)
        else:
            increment = call[-1].left - call[0].entered


CASES = [
    ("wan", PLAIN, 0.5, 1, 1),
    ("wan", BENT, 1.3, 5, 0),
    ("flux", PLAIN, 0.15, 1, 1),
    ("flux", BENT, 0.25, 1, 1),
    ("hunyuan", PLAIN, 0.12, 3, 1),
    ("hunyuan", BENT, 0.2, 1, 2),
    ("cogvideox", PLAIN, 0.9, 1, 1),
]


@pytest.mark.parametrize(("name", "polynomial", "threshold", "first", "last"), CASES)
def test_decides_as_the_formula_does(
    name: str, polynomial: tuple[float, ...], threshold: float, first: int, last: int
) -> None:
    """The probe is taken from the run itself, whose reused calls change what comes after."""
    policy = TeaCache(coefficients=polynomial, threshold=threshold, first_steps=first, last_steps=last)
    found, wanted, margin = decisions(built(name), name, policy)
    assert margin > 1e-4, "choose another threshold: rounding could decide"
    assert found == wanted
    assert 2 < sum(found[0]) < 14, "choose another threshold: nothing is decided here"


@pytest.mark.parametrize("samples", ["worst", "mean"])
def test_the_worst_sample_decides_unless_pooled(samples: str) -> None:
    policy = TeaCache(coefficients=PLAIN, threshold=0.17)
    found, wanted, margin = decisions(built("flux"), "flux", policy, samples, batch=2)
    assert margin > 1e-4
    assert found == wanted


@given(
    st.lists(st.none() | st.floats(0, 0.5), min_size=1, max_size=20),
    st.sampled_from(
        [
            PLAIN,
            BENT,
            *(
                c.values["coefficients"]
                for c in catalogue.models()["WanTransformer3DModel"].calibrations
                if c.policy == "teacache"
            ),
        ]
    ),
    st.floats(0.01, 1),
    st.integers(0, 6),
    st.integers(0, 2),
)
def test_decides_as_the_formula_does_on_any_changes(
    changes: list[float | None], polynomial: tuple[float, ...], threshold: float, first: int, last: int
) -> None:
    """Also where the published polynomials are far below zero; there is nothing to reuse at the first evaluation."""
    changes[0] = None
    policy = TeaCache(coefficients=polynomial, threshold=threshold, first_steps=first, last_steps=last)
    records = simulate([policy], [{"probe_change": change} for change in changes])
    wanted, margin = unroll(changes, polynomial, threshold, first, last)
    if margin > 1e-9:
        assert [r.outcome.reused for r in records] == wanted


# where the coefficients come from


class Model:
    """Only its configuration counts."""

    def __init__(self, **config: Any) -> None:
        self.config = config


def published(name: str, **config: Any) -> Calibration | None:
    return catalogue.models()[name].tables(Model(**config)).get("teacache")


WAN, FLUX = "WanTransformer3DModel", "FluxTransformer2DModel"
COG, HUNYUAN = "CogVideoXTransformer3DModel", "HunyuanVideoTransformer3DModel"
I2V = {"num_layers": 40, "num_attention_heads": 40, "in_channels": 36, "image_dim": 1280}


@pytest.mark.parametrize(
    ("name", "config", "first"),
    [
        (WAN, {"num_layers": 30, "num_attention_heads": 12, "in_channels": 16}, -5.21862437e04),
        (WAN, {"num_layers": 40, "num_attention_heads": 40, "in_channels": 16}, -3.03318725e05),
        (WAN, I2V, 2.57151496e05),
        (FLUX, {"num_layers": 19, "num_single_layers": 38, "in_channels": 64, "guidance_embeds": True}, 498.651651),
        (COG, {"num_layers": 30, "in_channels": 16, "patch_size_t": None}, -31.0658903),
        (COG, {"num_layers": 42, "in_channels": 16, "patch_size_t": None}, -1538.80483),
        (COG, {"num_layers": 42, "in_channels": 32, "patch_size_t": 2}, 122.842302),
    ],
)
def test_published_coefficients_go_by_the_configuration(name: str, config: dict[str, Any], first: float) -> None:
    record = published(name, **config)
    assert record is not None
    assert record.source.startswith("ali-vilab/TeaCache")
    assert record.values["coefficients"][0] == first
    policy = TeaCache().calibrated(Calibrations({"teacache": record}))
    assert isinstance(policy, TeaCache)
    estimate = policy.signals[0]
    told = estimate.derive({"probe_change": 0.1})
    assert told == pytest.approx(np.polyval(record.values["coefficients"], 0.1))
    assert estimate.derive({"probe_change": None}) is None


def test_other_checkpoints_of_a_class_get_none() -> None:
    """Schnell, VACE-sized Wan, first-last-frame, Wan 2.2 image to video, CogVideoX-Fun, HunyuanVideo with an image."""
    assert published(FLUX, num_layers=19, num_single_layers=38, in_channels=64, guidance_embeds=False) is None
    assert published(WAN, num_layers=30, num_attention_heads=24, in_channels=48) is None
    assert published(WAN, **I2V, pos_embed_seq_len=514) is None
    assert published(WAN, **{**I2V, "image_dim": None}) is None
    assert published(COG, num_layers=42, in_channels=33, patch_size_t=None) is None
    hunyuan = {"num_layers": 20, "num_single_layers": 40, "guidance_embeds": True}
    assert published(HUNYUAN, **hunyuan, in_channels=16) is not None
    assert published(HUNYUAN, **hunyuan, in_channels=33, image_condition_type="latent_concat") is None


def test_coefficients_come_from_the_policy_its_table_or_the_model(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"schema": 1, "policy": "teacache", "values": {"coefficients": list(BENT)}}))
    model = Calibrations({"teacache": Calibration(policy="teacache", values={"coefficients": PLAIN})})
    for policy, wanted in (
        (TeaCache(), PLAIN),
        (TeaCache(table=str(path)), BENT),
        (TeaCache(table=str(path), coefficients=(1, 2, 3, 4, 5)), (1.0, 2.0, 3.0, 4.0, 5.0)),
    ):
        found = policy.calibrated(model)
        assert isinstance(found, TeaCache)
        assert found.coefficients == wanted
        assert found.calibrated(Calibrations()) == found


def test_without_coefficients_it_says_how_to_get_some(tiny_wan_random: Tiny) -> None:
    """The random Wan is nobody's checkpoint."""
    remedy = r"`mixcache calibrate teacache --model \.\.\. --prompts \.\.\. --out TABLE\.json`"
    with pytest.raises(mixcache.ConfigurationError, match=remedy):
        mixcache.enable(tiny_wan_random.pipe, "teacache:threshold=0.1")
    with pytest.raises(mixcache.ConfigurationError, match=remedy):
        simulate([TeaCache()], [{"probe_change": 0.1}])


@pytest.mark.parametrize("wrong", [(1, 2), (1, 2, 3, 4, float("nan")), "abcde", 3, (1, 2, 3, 4, None)])
def test_coefficients_that_are_none_are_refused(wrong: Any) -> None:
    with pytest.raises(mixcache.ConfigurationError, match=r"`TeaCache\(coefficients=\.\.\.\)` must be"):
        TeaCache(coefficients=wrong)


def test_a_table_without_coefficients_is_refused() -> None:
    with pytest.raises(mixcache.ConfigurationError, match="the teacache table of here holds no `coefficients`"):
        TeaCache().calibrated(Calibrations({"teacache": Calibration(policy="teacache", values={}, source="here")}))


def test_a_model_without_a_probe_is_refused() -> None:
    model = Strange()
    adapter = mixcache.ModelAdapter(model="Strange", blocks=(mixcache.BlockList(path="blocks"),))
    with pytest.raises(mixcache.AttachError, match="no adapter says what to probe on Strange"):
        mixcache.enable(model, TeaCache(coefficients=PLAIN), adapter=adapter)


class Strange(torch.nn.Module):
    """One block, and nobody said what to probe."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Identity()])

    def forward(self, hidden_states: Tensor) -> tuple[Tensor]:
        return (self.blocks[0](hidden_states),)

"""MagCache: the published tables give the published schedules, and it decides and gives what diffusers' own does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS, MagCacheConfig

import mixcache
from mixcache import Calibration, Calibrations, ConfigurationError, catalogue, save_calibration
from mixcache.testing import simulate
from mixcache_models.magcache_tables import MAGCACHE, OTHER
from mixcache_policies import MagCache, Schedule
from tests.conftest import built
from tests.policies.test_first_block import LAST, computing_calls

WAN = "WanTransformer3DModel"


def table(model: str, **config: Any) -> Calibration:
    """What the adapter of a class says about a checkpoint with this configuration."""
    return catalogue.models()[model].tables(SimpleNamespace(config=config))["magcache"]


WAN_1_3B = table(WAN, num_layers=30, num_attention_heads=12, in_channels=16)
WAN_14B = table(WAN, num_layers=40, num_attention_heads=40, in_channels=16)
WAN_I2V = table(WAN, num_layers=40, num_attention_heads=40, in_channels=36, image_dim=1280)
HUNYUAN = table("HunyuanVideoTransformer3DModel", num_layers=20, num_single_layers=40, num_attention_heads=24)
QWEN = table("QwenImageTransformer2DModel", num_layers=60, num_attention_heads=24)
FLUX = table("FluxTransformer2DModel", num_layers=19, num_single_layers=38, guidance_embeds=True)


def computed(records: list[mixcache.Record], branch: str = "cond") -> list[int]:
    return [r.point.step for r in records if r.point.branch == branch and not r.outcome.reused]


def made(calibration: Calibration, **parameters: Any) -> MagCache:
    return MagCache(**parameters).calibrated(Calibrations({"magcache": calibration}))  # type: ignore[return-value]


SLOW_1_3B = [*range(10), 14, 19, 24, 29, 34, 38, 41, 44, 46, 48, 49]


@pytest.mark.parametrize(
    ("calibration", "steps", "parameters", "wanted"),
    [
        (WAN_1_3B, 50, {}, SLOW_1_3B),
        (
            WAN_1_3B,
            50,
            {"longest_run": 2},
            [*range(10), 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 42, 44, 46, 48, 49],
        ),
        (WAN_14B, 50, {"threshold": 0.24, "longest_run": 6}, [*range(10), 16, 23, 30, 36, 41, 44, 47, 49]),
        (WAN_14B, 50, {}, SLOW_1_3B),
        (WAN_I2V, 40, {"threshold": 0.24, "longest_run": 6}, [*range(8), 14, 20, 25, 30, 34, 37, 39]),
        (
            QWEN,
            50,
            {"threshold": 0.06, "longest_run": 2},
            [*range(16), 17, 18, 19, 21, 23, 25, 27, 29, 31, 34, 37, 39, *range(41, 50)],
        ),
    ],
)
def test_published_schedules_of_two_branches(
    calibration: Calibration, steps: int, parameters: dict[str, Any], wanted: list[int]
) -> None:
    policy = made(calibration, **parameters)
    records = simulate([policy], [{}] * (2 * steps), branches=("cond", "uncond"))
    assert computed(records) == wanted
    if calibration is not QWEN:
        assert computed(records, "uncond") == wanted


@pytest.mark.parametrize(
    ("parameters", "wanted"),
    [
        ({"threshold": 0.24, "longest_run": 6}, [*range(10), 14, 18, 23, 29, 34, 41, 46, 48, 49]),
        ({}, [*range(10), 12, 15, 18, 22, 25, 29, 33, 38, 43, 46, 48, 49]),
    ],
)
def test_published_schedules_of_hunyuan_video(parameters: dict[str, Any], wanted: list[int]) -> None:
    policy = made(HUNYUAN, inclusive=True, **parameters)
    assert computed(simulate([policy], [{}] * 50)) == wanted


def test_published_schedule_of_flux_with_a_mask_for_the_step_that_it_always_computes() -> None:
    """The authors compute step 11 of 28 whatever the table says: another policy's wish, under "unanimous"."""
    policy = made(FLUX, threshold=0.24, longest_run=5, first_share=0.1, first_steps=3, inclusive=True)
    mask = Schedule("".join("1" if step in (0, 11) else "0" for step in range(28)), at="block")
    assert computed(simulate([policy, mask], [{}] * 28)) == [0, 1, 2, 5, 9, 11, 17, 23, 26]


def test_the_table_of_flux_is_that_of_diffusers() -> None:
    assert FLUX.values["ratios"]["cond"] == pytest.approx(FLUX_MAG_RATIOS.tolist())


def test_every_table_can_be_used_and_names_its_source() -> None:
    for calibration in (*OTHER.values(), *(row for rows in MAGCACHE.values() for row in rows)):
        policy = made(calibration)
        assert {len(row) for _, row in policy.ratios or ()} <= {25, 28, 40, 50}
        assert all(row[0] == 1.0 for _, row in policy.ratios or ())
        assert "MagCache" in calibration.source


def test_a_table_for_another_number_of_steps_is_resampled() -> None:
    """Half as many steps: every second ratio, both ends kept."""
    policy = made(WAN_1_3B, threshold=1e9, longest_run=None, first_share=0.0)
    records = simulate([policy], [{}] * 25)
    errors = [r.votes[0].error for r in records]
    ratios = [WAN_1_3B.values["ratios"]["cond"][round(i * 49 / 24)] for i in range(25)]
    rho, total = 1.0, 0.0
    for error, gamma in list(zip(errors, ratios))[1:]:
        rho *= gamma
        total += abs(1 - rho)
        assert error == pytest.approx(total)


def test_branches_go_by_their_own_ratios() -> None:
    ratios = {"cond": [1.0] * 8, "uncond": [1.0, 1.0, 1.0, 1.5, 1.0, 1.0, 1.0, 1.0]}
    policy = MagCache(ratios=ratios, first_share=0.0, longest_run=None)
    records = simulate([policy], [{}] * 24, branches=("cond", "uncond", "third"))
    assert [computed(records, b) for b in ("cond", "uncond", "third")] == [[0], [0, 3], [0]]


# against diffusers


RATIOS = [1.0, 0.99, 1.03, 1.0, 0.97, 1.02, 1.01, 0.99, 0.98, 1.0, 0.96, 1.02, 0.99, 0.95, 0.9, 0.8]


@pytest.mark.parametrize("threshold", [0.025, 0.065, 0.205])
@pytest.mark.parametrize("name", ["wan", "flux"])
def test_decides_and_gives_what_diffusers_does(name: str, threshold: float) -> None:
    """The same calls run the last block, and the final latents are the same to the bit.

    The thresholds are none that sums of these ratios reach: diffusers adds up in float32.
    """
    tiny = built(name)
    model = tiny.pipe.transformer
    last = getattr(model, LAST[name])[-1]
    config = MagCacheConfig(threshold=threshold, max_skip_steps=3, num_inference_steps=16, mag_ratios=RATIOS)
    model.enable_cache(config)
    try:
        with computing_calls(model, last) as theirs:
            wanted = tiny.run(16, batch=2)
    finally:
        model.disable_cache()
    policy = MagCache(threshold=threshold, longest_run=3, inclusive=True, ratios={"cond": RATIOS})
    with mixcache.enable(tiny.pipe, policy) as session, computing_calls(model, last) as ours:
        found = tiny.run(16, batch=2)
    assert ours == theirs
    assert 0 < sum(ours) < len(ours)
    assert [not r.outcome.reused for r in session.records] == ours
    assert torch.equal(found, wanted)


# where the ratios come from


def test_without_a_table_the_error_says_how_to_make_one() -> None:
    with pytest.raises(ConfigurationError, match="mixcache calibrate magcache --model") as caught:
        mixcache.enable(built("wan").pipe, "magcache")
    assert "MagCache(table=" in str(caught.value)
    with pytest.raises(ConfigurationError, match="mixcache calibrate magcache"):
        simulate([MagCache()], [{}])


def test_a_table_in_a_file_counts_before_that_of_the_model(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    save_calibration(path, Calibration(policy="magcache", values={"ratios": {"cond": [1.0] * 8}}))
    with mixcache.enable(built("wan").pipe, f"magcache:table={path},longest_run=none") as session:
        built("wan").run(8)
    assert computed(session.records) == [0]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "holds no `ratios`"),
        ({"ratios": {"uncond": [1.0]}}, "for 'cond' at least"),
        ({"ratios": {"cond": []}}, "finite numbers > 0"),
        ({"ratios": {"cond": [1.0, -1.0]}}, "finite numbers > 0"),
        ({"ratios": {"cond": ["much"]}}, "must map branches to numbers"),
        ({"ratios": 3}, "must map branches to numbers"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_by_name(values: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        made(Calibration(policy="magcache", values=values, source="somewhere"))
    assert "somewhere" in str(caught.value)


def test_checkpoints_with_tables_are_told_apart() -> None:
    def source(**config: Any) -> str:
        return table(WAN, **config).source

    assert "1.3B" in WAN_1_3B.source
    assert "14B" in WAN_14B.source
    assert "480P" in source(num_layers=40, num_attention_heads=40, in_channels=36, image_dim=1280)
    assert "2.2 image" in source(num_layers=40, num_attention_heads=40, in_channels=36, image_dim=None)
    assert "5B" in source(num_layers=30, num_attention_heads=24, in_channels=48)
    assert "magcache" not in catalogue.models()[WAN].tables(built("wan").pipe.transformer)

"""`mixcache bench`: what it counts and keeps on a small CPU; the times themselves are never asserted."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attrs import evolve
from torch import nn
from typer.testing import CliRunner

from mixcache.bench import bare, speed
from mixcache.bench.comparison import check_recipes
from mixcache.bench.meter import LOOP, MODEL, OWN, Meter, Reads, Waits, counter, metered
from mixcache.bench.published import FLUX, MODELS, Published, Size
from mixcache.bench.published import WAN as WAN_FAMILY
from mixcache.bench.rows import SETTLED, Middle, RowFile, aims, cells
from mixcache.bench.watch import Watch
from mixcache.cli import app
from tests.helpers import state_of

STEPS = 5
SMALL = ["--layers", 1, "--frames", 1, "--height", 32, "--width", 32, "--steps", STEPS, "--repeats", 1]
WAN = ["bench", "--model", "wan-1.3b", "--random-weights", "--device", "cpu", *SMALL]
NARROW = ["bench", "--model", "narrow", "--random-weights", "--device", "cpu", "--steps", 4, "--repeats", 1]


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more model, which takes no time: an entry of the table is all that it needs."""
    size = Size(frames=1, height=16, width=16, text=2)
    config = {"num_layers": 2, "num_attention_heads": 1, "attention_head_dim": 16, "ffn_dim": 16, "text_dim": 8}
    monkeypatch.setitem(MODELS, "narrow", Published(family=WAN_FAMILY, config=config, full=size, small=size))


def run(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="mixcache")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The command with what it measures by itself, run once for all tests; and the file that it wrote."""
    out = tmp_path_factory.mktemp("bench") / "bench.json"
    return run(*WAN, "--out", out), out


def test_what_is_counted_is_what_the_recipes_say(measured: tuple[Any, Path]) -> None:
    result, out = measured
    assert result.exit_code == 0, result.stderr
    static, measuring = RowFile(out).rows
    assert [static.variant.split(":")[0], measuring.variant.split(":")[0]] == ["static", "easycache"]
    for row in (static, measuring):  # both compute 3 steps of 5: 0, 3, 4 and 0, 1, 4
        assert (row.evaluations, row.evaluations_uncached, row.ideal_speedup) == (6, 10, 10 / 6)
        assert len(row.uncached_seconds) == len(row.cached_seconds) == len(row.own_seconds) == 1
        assert len(row.own_by_step) == len(row.syncs) == len(row.measured) == STEPS
        assert 0 < row.own_seconds[0] < row.cached_seconds[0] * 2
        assert row.cache_bytes > 0
        assert not row.compiled
    assert static.most_syncs == sum(static.measured) == 0
    assert measuring.most_syncs == 1
    assert measuring.measured[SETTLED:] == (1, 1, 1)
    assert static.needless_syncs == measuring.needless_syncs == 0


def test_the_table_says_it_all(measured: tuple[Any, Path]) -> None:
    result, out = measured
    for text in (
        "of ideal",
        "own, %",
        "syncs",
        "6 of 10",
        "wan-1.3b, random weights",
        "1 blocks",
        "2 branches",
        "cpu (",
    ):
        assert text in result.stdout
    for line in aims(RowFile(out).rows):
        assert line in result.stdout
    assert "reached: at most one synchronisation per measured visit" in result.stdout
    assert f"the rows are kept in {out}" in result.stdout
    assert "9/9 runs; easycache" in result.stderr


def test_a_second_call_measures_nothing_and_other_settings_stand_beside(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    first = run(*NARROW, "--out", out)
    before = out.read_text()
    again = run(*NARROW, "--out", out)
    assert (again.exit_code, again.stdout, again.stderr) == (0, first.stdout, "")
    assert out.read_text() == before
    assert run(*NARROW, "--repeats", 2, "--out", out).exit_code == 0
    rows = RowFile(out).rows
    assert [len(row.cached_seconds) for row in rows] == [1, 1, 2, 2]
    assert json.loads(out.read_text())["rows"][:2] == json.loads(before)["rows"]
    assert run(*NARROW, "--out", out, "--restart").exit_code == 0
    anew = RowFile(out).rows
    assert [len(row.cached_seconds) for row in anew] == [2, 2, 1, 1]
    assert anew[:2] == rows[2:]
    assert anew[2] != rows[0]


def test_an_interruption_keeps_the_rows_that_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, words = tmp_path / "bench.json", [*NARROW, "--policy", "static:every=2", "--policy", "static:every=3"]
    own, done = speed._row, []

    def interrupted(*given: Any) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(own(*given))
        return done[0]

    monkeypatch.setattr(speed, "_row", interrupted)
    result = run(*words, "--out", out)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == (
        f"mixcache: interrupted: 1 of 2 rows are kept in {out}; the same command goes on from there."
    )
    monkeypatch.setattr(speed, "_row", own)
    assert run(*words, "--out", out).exit_code == 0
    assert [row.variant for row in RowFile(out).rows] == ["static", "static:every=3"]
    assert RowFile(out).rows[0] == done[0]


def test_a_pipeline_of_ones_own_is_timed_with_its_weights(wan_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    words = ["bench", "--model", wan_folder, "--out", out, "--device", "cpu", "--steps", 6, "--repeats", 1]
    result = run(*words, "--policy", "static:every=3,at=block,first_steps=1 + cfg:first_steps=1")
    assert result.exit_code == 0, result.stderr
    (row,) = RowFile(out).rows
    assert row.settings["weights"] != "random"
    assert row.needless_syncs <= 0
    assert row.evaluations < row.evaluations_uncached
    assert "weights of its own" in result.stdout


def test_compiled_rows_are_measured_after_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What compiling does is torch's; here only that it is done once, to every block, and inside of the hooks."""
    compiled: list[Any] = []

    def compile_(forward: Any) -> Any:
        compiled.append(forward.__self__)
        return lambda *args, **kwargs: forward(*args, **kwargs)

    monkeypatch.setattr(torch, "compile", compile_)
    policies = ["--policy", "static:every=2,at=block", "--policy", "static:every=2"]
    result = run(*NARROW, *policies, "--compile", "--out", tmp_path / "bench.json")
    assert result.exit_code == 0, result.stderr
    assert len(compiled) == len(set(map(id, compiled))) == 2
    rows = RowFile(tmp_path / "bench.json").rows
    assert [row.compiled for row in rows] == [False, False, True, True]
    assert [row.evaluations for row in rows[:2]] == [row.evaluations for row in rows[2:]]


# models


@pytest.mark.parametrize(
    ("name", "billions", "blocks"), [("wan-1.3b", 1.42, 30), ("wan-14b", 14.3, 40), ("flux", 11.9, 57)]
)
def test_the_models_are_as_large_as_the_published_ones(name: str, billions: float, blocks: int) -> None:
    model = MODELS[name]
    made = bare._made(model.family, model.config, torch.device("meta"), torch.bfloat16)
    assert sum(p.numel() for p in made.parameters()) / 1e9 == pytest.approx(billions, rel=0.01)
    assert sum(len(made.get_submodule(path)) for path in model.family.blocks) == blocks
    assert made.dtype is torch.bfloat16
    kept = {name for name, parameter in made.named_parameters() if parameter.dtype is torch.float32}
    assert bool(kept) == (name != "flux")


def test_flux_is_called_as_its_pipeline_calls_it() -> None:
    tiny = evolve(
        MODELS["flux"],
        config={
            "num_layers": 3,
            "num_single_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "joint_attention_dim": 8,
            "pooled_projection_dim": 8,
            "guidance_embeds": True,
            "axes_dims_rope": (4, 6, 6),
        },
    )
    size = evolve(tiny.small, height=64, width=32, text=3)
    config = {**tiny.config, **bare._fewer(tiny, 2)}
    made = bare._ready("flux", "random", FLUX, bare._made(FLUX, config, torch.device("cpu"), torch.float32), size)
    assert (len(made.blocks), made.inputs.tokens) == (4, 8)
    assert made.inputs.branches["cond"]["img_ids"][-1].tolist() == [0, 3, 1]
    before = torch.get_rng_state()
    (recipe,) = check_recipes(["static:every=2,first_steps=1"])
    row = speed._row(speed.Bench(bare=made, recipes=(recipe,), steps=5, repeats=1), recipe, False, Watch())
    assert (row.evaluations, row.evaluations_uncached, row.most_syncs) == (3, 5, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_levels_go_from_noise_to_clean() -> None:
    levels = bare.schedule(7)
    assert (levels[0], levels[-1], len(levels)) == (1.0, 0.0, 8)
    assert levels == sorted(levels, reverse=True)


# the meter


class Ticks:
    """A gauge that goes forward when it is told to."""

    now = 0.0

    def read(self) -> float:
        return self.now

    def watch(self, own: bool) -> None:
        """Nothing."""


def test_a_meter_charges_whoever_is_at_work() -> None:
    ticks = Ticks()
    meter = Meter(ticks, 2)

    def work(amount: float) -> None:
        ticks.now += amount

    block, model = nn.Module(), nn.Module()
    block.forward = lambda: work(10)  # type: ignore[method-assign]
    model.forward = lambda: (work(100), block(), work(100))  # type: ignore[method-assign]
    before = state_of(model), state_of(block)
    with metered(meter, model), metered(meter, block, inside=True):
        inner = block.forward
        block.forward = lambda: (work(2), inner(), work(3))  # what mixcache puts around a block
        work(1000)
        with meter.at(OWN):
            work(1)
            model()
            meter.step = 1
            work(4)
            with meter.at(LOOP):
                work(1000)
        block.forward = inner
    assert meter.own == [6, 4]
    assert ticks.now == 2220
    assert (state_of(model), state_of(block)) == before


def test_reads_are_counted_while_mixcache_is_at_work_alone() -> None:
    x = torch.ones(2)
    with counter(torch.device("cpu")) as gauge:
        assert isinstance(gauge, Reads)
        meter = Meter(gauge, 1)
        x.tolist()
        with meter.at(OWN):
            assert bool((x == 1).all())
            float(x[0])
            x.numpy()
            (x + x).sum()
            with meter.at(MODEL):
                x[0].item()
            x.cpu()
        x.tolist()
    assert meter.own == [3]


def test_on_cuda_the_warnings_of_its_sync_debug_mode_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text is that of c10/cuda/CUDAFunctions.cpp."""
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with counter(torch.device("cuda")) as gauge:
        assert isinstance(gauge, Waits)
        meter = Meter(gauge, 1)
        with meter.at(OWN):
            for text in (
                "called a synchronizing CUDA operation",
                "something else",
                "called a synchronizing CUDA operation",
            ):
                warnings.warn(text, stacklevel=1)
    assert meter.own == [2]
    assert modes == ["warn", "default", "default"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_a_measured_visit_waits_once(tmp_path: Path) -> None:
    words = [word if word != "cpu" else "cuda" for word in WAN]
    result = run(*words, "--out", tmp_path / "bench.json")
    assert result.exit_code == 0, result.stderr
    static, measuring = RowFile(tmp_path / "bench.json").rows
    assert (static.most_syncs, measuring.most_syncs) == (0, 1)


def test_a_median_comes_with_its_ends(measured: tuple[Any, Path]) -> None:
    assert Middle.of([3.0, 1.0, 2.0]) == Middle(median=2.0, low=1.0, high=3.0)
    row = evolve(
        RowFile(measured[1]).rows[0],
        evaluations=5,
        uncached_seconds=(8.0, 9.0),
        cached_seconds=(4.0, 6.0),
        own_seconds=(0.008, 0.016),
    )
    assert row.of_ideal == Middle(median=0.875, low=0.75, high=1.0)
    assert row.step_seconds.median == pytest.approx(8.5 / STEPS)
    assert row.own_step_seconds.high == pytest.approx(0.016 / STEPS)
    assert row.own_share == pytest.approx(0.012 / 8.5)
    assert "0.875\n0.750-1.000" in cells(row)
    told = "\n".join(aims([row, evolve(row, variant="worse", syncs=(0, 5, 2, *row.syncs[3:]))]))
    assert "missed: own time below 0.1 %" in told
    assert "missed: at least 0.99" in told
    assert "missed: at most one synchronisation per measured visit (worst: 2 beyond that, worse)" in told


# errors

RANDOM = ["--model", "wan-1.3b", "--random-weights"]
BAD = {
    "no weights": (["--model", "wan-1.3b"], "give --random-weights. `mixcache compare"),
    "weights of others": (["--model", "tiny_wan", "--random-weights"], "goes with --model wan-1.3b, wan-14b, flux"),
    "no model": (["--model", "wan-2b"], "With --random-weights there are: wan-1.3b"),
    "layers": ([*RANDOM, "--layers", "31"], "--layers must be from 1 to 30, got 31"),
    "layers of others": (["--model", "tiny_wan", "--layers", "2"], "'tiny_wan' has its own; leave it out"),
    "frames": (
        [*RANDOM, "--device", "cpu", "--frames", "18"],
        "--frames 18: WanTransformer3DModel takes 4n + 1 here; give 17 or 21",
    ),
    "height": ([*RANDOM, "--device", "cpu", "--height", "100"], "a multiple of 16 here; give 96 or 112"),
    "width": (
        [*RANDOM, "--device", "cpu", "--width", "3"],
        "--width 3: WanTransformer3DModel takes a multiple of 16 here; give 16",
    ),
    "frames of images": (["--model", "flux", "--random-weights", "--frames", "5"], "makes images; leave it out"),
    "device": ([*RANDOM, "--device", "cuda:99"], "device 'cuda:99' is not there"),
    "dtype": ([*RANDOM, "--device", "cpu", "--dtype", "float12"], "dtype must be one of float32"),
    "policy": ([*RANDOM, "--policy", "easycash"], "easycache"),
    "none": ([*RANDOM, "--policy", "none"], "name one that caches"),
    "suffix": ([*RANDOM, "--out", "{tmp}/rows.txt"], "--out must name a .json file, got '{tmp}/rows.txt'"),
    "folder": ([*RANDOM, "--out", "{tmp}/no/rows.json"], "there is no folder {tmp}/no; make it first"),
    "other file": (
        [*RANDOM, "--out", "{tmp}/other.json"],
        "holds no rows of `mixcache bench` (ValueError: its schema is 9",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_an_error_is_one_line_and_comes_before_anything_is_made(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was made before the arguments were checked")

    monkeypatch.setattr(bare, "_made", made)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.json").write_text('{"schema": 9}')
    words, says = BAD[case]
    result = run("bench", *[word.format(tmp=tmp_path) for word in words])
    assert (result.exit_code, result.stderr.count("\n"), result.stdout) == (2, 1, "")
    assert says.format(tmp=tmp_path) in result.stderr


def test_a_recipe_that_does_not_fit_costs_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "run", lambda *_: pytest.fail("something was run"))
    words = ["--policy", "static", "--policy", "dbcache:first_blocks=1,last_blocks=1", "--out", tmp_path / "bench.json"]
    result = run(*NARROW, *words)
    assert result.exit_code == 2
    assert "--policy 'dbcache:" in result.stderr


def test_a_transformer_that_needs_its_pipeline_is_sent_to_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = type("StrangeTransformer", (nn.Linear,), {})(1, 1)
    monkeypatch.setattr(bare, "load", lambda *_: SimpleNamespace(pipeline=None))
    monkeypatch.setattr(bare, "models_of", lambda _: {"transformer": stranger})
    result = run("bench", "--model", "strange", "--device", "cpu")
    assert result.exit_code == 2
    assert "its StrangeTransformer is not one that can be called without its pipeline" in result.stderr
    assert "mixcache compare" in result.stderr


def test_a_model_that_does_not_fit_says_what_to_give_less_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate much.\nMore.")

    monkeypatch.setattr(speed, "run", full)
    result = run(*NARROW, "--out", tmp_path / "bench.json")
    assert result.exit_code == 2
    assert (
        "narrow does not fit on cpu: CUDA out of memory. Tried to allocate much. Give fewer --layers" in result.stderr
    )

"""The command line: what it writes and prints, and errors that are one line with exit code 2."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import evolve, field, frozen
from typer.testing import CliRunner

import mixcache
from mixcache import Point, Policy, Reading, Recipe, Vote, catalogue, ge
from mixcache.bench import as_uint8, generate, generation, load
from mixcache.cli import app
from mixcache.cli.commands import COMMANDS
from mixcache.core import trace
from tests.zoo.clips import read_clip

PROMPT = "a red circle moving left"
STATIC = "static:every=2"


def run(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="mixcache")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text(f"{PROMPT}\na blue square moving up\n")
    return path


# generate


def test_generate_writes_the_clip_and_prints_the_report(wan_folder: Path, small: list[str], tmp_path: Path) -> None:
    out = tmp_path / "new" / "clip.mp4"
    result = run("generate", "--prompt", PROMPT, "--policy", STATIC, "--model", wan_folder, "--out", out, *small)
    assert result.exit_code == 0, result.stderr
    model = load(str(wan_folder), device="cpu")
    arguments = model.arguments(num_inference_steps=4, num_frames=5, height=16, width=16)
    made = generate(model, PROMPT, 0, arguments, Recipe.parse(STATIC))
    back = read_clip(out)
    assert back.shape == (5, 16, 16, 3)
    assert np.abs(back.astype(int) - as_uint8(made.frames_FHWC)).mean() < 16
    assert "6 of 8 evaluations made in 1 run(s): 1.33x" in result.stdout
    assert f"wrote {out}" in result.stdout
    assert result.stderr == ""


def test_generate_into_a_folder_with_a_trace_and_another_way_of_rebuilding(
    wan_folder: Path, small: list[str], tmp_path: Path
) -> None:
    common = ["generate", "--prompt", PROMPT, "--model", wan_folder, "--out", tmp_path / "clips", *small]
    file = tmp_path / "trace.jsonl"
    words = ["--policy", f"{STATIC} @ basis=noise", "--basis", "output", "--forecast", "linear", "--seed", 7]
    result = run(*common, *words, "--trace", file)
    assert result.exit_code == 0, result.stderr
    assert len(trace.read(file).records) == 8
    (clip,) = (tmp_path / "clips").iterdir()
    assert clip.name.endswith("-seed7.mp4")


def test_generate_without_a_policy_is_uncached(wan_folder: Path, small: list[str], tmp_path: Path) -> None:
    out = tmp_path / "clip.gif"
    result = run("generate", "--prompt", PROMPT, "--model", wan_folder, "--out", out, *small)
    assert result.exit_code == 0, result.stderr
    assert "uncached" in result.stdout
    assert len(read_clip(out)) == 5


# compare


def test_compare_prints_the_table_and_writes_results_and_pictures(
    wan_folder: Path, small: list[str], tmp_path: Path, prompts: Path
) -> None:
    words = ["compare", "--policy", STATIC, "--policy", "static @ basis=noise", "--forecast", "linear"]
    words += ["--out", tmp_path / "out", "--model", wan_folder, "--prompts", prompts, "--seeds", 1, *small]
    result = run(*words)
    assert result.exit_code == 0, result.stderr
    files = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {"contact_sheet.png", "speed_quality.png", "index.html", "clips", "references"}
    assert files == {"cases.jsonl", "settings.json", "results.md", "results.json", *pictures}
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    labels = [variant["label"] for variant in results["variants"]]
    assert labels == ["static @ forecast=linear", "static @ basis=noise forecast=linear"]
    rows = [item["variant"] for item in results["summaries"]]
    assert rows == ["none", *labels, "steps=3"]  # three of four steps are computed
    assert len(results["cases"]) == 2 * len(rows)
    for item in results["summaries"][1:3]:
        assert f"{item['speedup']:.3f}x" in result.stdout
        assert item["above_fewer_steps"] is not None
    assert "above fewer" in result.stdout
    first = (tmp_path / "out" / "results.md").read_text().splitlines()[0].strip("`")
    assert shlex.split(first)[0] == "mixcache"
    again = run(*shlex.split(first)[1:])  # the command it prints is the command that was run
    assert again.exit_code == 0, again.stderr
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results


def test_compare_says_which_policy_reused_nothing_and_why(
    wan_folder: Path, small: list[str], tmp_path: Path, prompts: Path
) -> None:
    words = ["compare", "--policy", "easycache", "--policy", STATIC, "--out", tmp_path / "out", "--model", wan_folder]
    result = run(*words, "--prompts", prompts, "--limit", 1, "--seeds", 1, *small)
    assert result.exit_code == 0, result.stderr
    told = [line for line in result.stdout.splitlines() if " reused nothing: " in line]
    assert len(told) == 1
    assert told[0].startswith("easycache reused nothing: ")
    assert "first 10 steps" in told[0]


def test_compare_without_timing_beside_fewer_steps_and_many(
    wan_folder: Path, small: list[str], tmp_path: Path, prompts: Path
) -> None:
    words = ["compare", "--policy", STATIC, "--policy", "steps=3", "--quality-only", "--no-rival", "--truth", 8]
    words += ["--out", tmp_path / "out", "--model", wan_folder, "--prompts", prompts, "--limit", 1, "--seeds", 1]
    result = run(*words, *small)
    assert result.exit_code == 0, result.stderr
    assert "not timed" in result.stdout
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["variant"] for row in results["summaries"]] == ["none", STATIC.removesuffix(":every=2"), "steps=3"]
    assert all(row["speedup"] is None and row["truth_error"] for row in results["summaries"])
    first, _, header = (tmp_path / "out" / "results.md").read_text().splitlines()[:3]
    assert "--quality-only" in first
    assert "--no-rival" in first
    assert "| ideal speed-up |" in header
    assert "| to 8 steps: latents (worst) |" in header
    bad = run(*words[:4], "steps=4", *words[5:], *small)
    assert (bad.exit_code, bad.stderr.count("\n")) == (2, 1)
    assert "--policy 'steps=4': the uncached run has 4 steps; give fewer" in bad.stderr


def test_compare_needs_prompts_of_a_model_without(wan_folder: Path, tmp_path: Path) -> None:
    result = run("compare", "--policy", STATIC, "--model", wan_folder, "--out", tmp_path)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "--prompts" in result.stderr


def test_compare_refuses_a_folder_measured_with_other_settings(
    wan_folder: Path, small: list[str], tmp_path: Path, prompts: Path
) -> None:
    words = ["compare", "--policy", STATIC, "--out", tmp_path / "out", "--model", wan_folder]
    words += ["--prompts", prompts, "--limit", 1, "--seeds", 1, *small]
    assert run(*words).exit_code == 0
    other = run(*words, "--guidance", 2.5)
    assert (other.exit_code, other.stderr.count("\n")) == (2, 1)
    assert "guidance_scale was not given, is 2.5" in other.stderr
    assert "--restart" in other.stderr
    assert run(*words, "--guidance", 2.5, "--restart").exit_code == 0
    first = (tmp_path / "out" / "results.md").read_text().splitlines()[0]
    assert "--guidance 2.5" in first
    assert "--restart" not in first


def test_a_comparison_that_is_interrupted_by_a_signal_goes_on(
    wan_folder: Path, small: list[str], tmp_path: Path, prompts: Path
) -> None:
    words = ["compare", "--policy", STATIC, "--out", tmp_path / "out", "--model", wan_folder]
    words += ["--prompts", prompts, "--seeds", 40, *small]
    command = [sys.executable, "-m", "mixcache.cli", *(str(word) for word in words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # whoever started the tests in the background may have had this signal ignored, which children inherit
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    cases = tmp_path / "out" / "cases.jsonl"
    give_up = time.monotonic() + 300
    while not (cases.is_file() and cases.read_bytes().count(b"\n") >= 2) and time.monotonic() < give_up:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors + output
    kept = cases.read_text()
    last = errors.strip().splitlines()[-1]
    assert last == (
        f"mixcache: interrupted: {len(kept.splitlines())} of 160 cases are kept in {tmp_path / 'out'}; "
        "the same command goes on from there."
    )
    index = words.index("--seeds") + 1
    words[index] = 1  # all the rest would take long
    assert run(*words).exit_code == 0
    assert cases.read_text().startswith(kept)


# demo


@pytest.fixture
def offered(wan_folder: Path) -> Iterator[str]:
    """The tiny pipeline under a name, as a plugin offers one."""
    defaults = {"num_frames": 5, "height": 16, "width": 16, "num_inference_steps": 12}
    folder = mixcache.PipelineFolder(name="toy", path=wan_folder, defaults=defaults, held_out=("one", "two", "three"))
    mixcache.register(folder)
    yield "toy"
    mixcache.unregister("pipeline", "toy")


DEMO = catalogue.pipelines()["tiny_wan"].demo


def test_demo_makes_clips_a_table_and_a_page(offered: str, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    result = run("demo", "--model", offered, "--out", out)
    assert result.exit_code == 0, result.stderr
    page = (out / "index.html").read_text()
    for text in DEMO:
        label = str(Recipe.parse(text))
        assert label in page
        assert label.split(" @")[0] in result.stdout
    assert page.count("<video") == 6
    assert len(list((out / "clips").glob("*.mp4"))) == 6
    assert (out / "contact_sheet.png").is_file()
    assert str(out) in result.stdout
    assert "three" not in page
    before = (out / "cases.jsonl").read_text()
    assert run("demo", "--model", offered, "--out", out, "--steps", 6).exit_code == 0  # always anew
    assert (out / "cases.jsonl").read_text() != before


def test_the_demos_policies_can_be_built() -> None:
    assert len({str(Recipe.parse(text)) for text in DEMO}) >= 2


# plugins and help


@frozen(kw_only=True)
class EveryFifth(Policy):
    """Compute every fifth step or so.

    This paragraph is not shown.
    """

    often: int = field(default=5, validator=ge(1))

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        return Vote.compute() if point.step % self.often == 0 else Vote.reuse()


def test_plugins_lists_what_is_installed_and_what_a_script_registers() -> None:
    assert "everyfifth" not in run("plugins").stdout
    mixcache.register(EveryFifth)
    try:
        result = run("plugins")
        policies = run("plugins", "--kind", "policies")
    finally:
        mixcache.unregister("policy", "everyfifth")
    assert result.exit_code == 0
    for word in ("everyfifth", "easycache", "residual", "taylor", "unanimous", "anchor_change", "tiny_wan", "WanTrans"):
        assert word in result.stdout
    assert "often=5" in policies.stdout
    assert "Compute every fifth step or so." in policies.stdout
    assert "not shown" not in policies.stdout
    assert "unanimous" not in policies.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_example(command: str) -> None:
    assert command in run("--help").stdout
    result = run(command, "--help")
    assert result.exit_code == 0
    assert result.stdout.count(f"mixcache {command}") >= 2  # the usage, and an example at least


def test_version() -> None:
    assert run("--version").stdout == f"mixcache {mixcache.__version__}\n"


HEAVY = ("torch", "diffusers", "transformers", "numpy", "matplotlib", "skimage", "imageio")
COMPLETION = {"_MIXCACHE_COMPLETE": "complete_bash", "COMP_WORDS": "mixcache compare --p", "COMP_CWORD": "2"}


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (["--help"], {}),
        (["--version"], {}),
        ([], COMPLETION),
        ([], {**COMPLETION, "COMP_WORDS": "mixcache com", "COMP_CWORD": "1"}),
        *[([command, "--help"], {}) for command in COMMANDS],
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "completion" if value else "",
)
def test_help_version_and_completion_load_nothing_heavy(words: list[str], environment: dict[str, str]) -> None:
    """They answer at once: the time is not measured here, but what takes it."""
    code = "import atexit, sys; from mixcache.cli import main; atexit.register(lambda: print(*sys.modules)); main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer, _, modules = done.stdout.strip().rpartition("\n")
    assert answer
    assert not {module.partition(".")[0] for module in modules.split()} & set(HEAVY)
    if environment:
        assert ("--policy" if "compare" in environment["COMP_WORDS"] else "compare") in answer


def explained(name: str, *more: str) -> str:
    result = run("plugins", name, *more)
    assert result.exit_code == 0, result.stderr
    return str(result.stdout)


def test_plugins_explains_a_policy() -> None:
    text = explained("easycache")
    assert text.startswith("policy easycache\n")
    assert "Runtime-adaptive caching by the transformation rate K." in text
    assert "threshold=0.05  (a number)" in text
    assert "accumulated predicted relative change (relative L1, dimensionless)" in text
    assert "https://arxiv.org/abs/2507.02860" in text
    assert 'mixcache generate --prompt "a red circle moving left" --out clip.mp4 --policy "easycache:thr' in text


def test_plugins_explains_one_of_every_kind() -> None:
    for kind, name in {
        "basis": "noise",
        "forecaster": "taylor",
        "anchor": "input",
        "rule": "unanimous",
        "signal": "anchor_change",
        "side input": "prefix",
        "model": "WanTransformer3DModel",
        "pipeline": "tiny_wan",
    }.items():
        text = explained(name)
        assert text.startswith(f"{kind} {name}\n")
        assert "\nexample:\n" in text
    assert "how far ahead orders above 1 are trusted" in explained("taylor")


def test_plugins_explains_every_one_that_has_a_name() -> None:
    both = explained("magcache")
    assert both.startswith("policy magcache\n")
    assert "\ncalibrator magcache\n" in both
    assert "mixcache calibrate magcache --out magcache.json" in both
    assert explained("magcache", "--kind", "calibrators").startswith("calibrator magcache\n")


@pytest.mark.parametrize("name", sorted(mixcache.catalogue.policies()))
def test_the_example_of_every_policy_can_be_built(name: str) -> None:
    example = explained(name, "--kind", "policies").strip().splitlines()[-1]
    words = shlex.split(example)
    assert words[:2] == ["mixcache", "generate"]
    if name != "schedule":  # its mask is as long as the run, so there is no example of it
        assert Recipe.parse(words[words.index("--policy") + 1]).policies


# errors

GENERATE = ["generate", "--prompt", PROMPT]
BAD = {
    "unknown policy": ([*GENERATE, "--out", "{tmp}/a.mp4", "--policy", "easycash"], "easycache"),
    "unknown parameter": ([*GENERATE, "--out", "{tmp}/a.mp4", "--policy", "static:evry=2"], "it has: "),
    "bad value": ([*GENERATE, "--out", "{tmp}/a.mp4", "--policy", "static:every=0"], "must be a whole number >= 1"),
    "unknown basis": ([*GENERATE, "--out", "{tmp}/a.mp4", "--policy", "static", "--basis", "x"], "residual"),
    "unknown rule": ([*GENERATE, "--out", "{tmp}/a.mp4", "--policy", "static", "--rule", "x"], "unanimous"),
    "missing model": ([*GENERATE, "--out", "{tmp}/a.mp4", "--model", "{tmp}/nowhere"], "no such folder"),
    "no pipeline": ([*GENERATE, "--out", "{tmp}/a.mp4", "--model", "{tmp}"], "no diffusers pipeline"),
    "unwritable": ([*GENERATE, "--out", "{tmp}/file/a.mp4"], "cannot write to"),
    "unwritable trace": (
        [*GENERATE, "--out", "{tmp}/a.mp4", "--policy", "static", "--trace", "{tmp}/file/t.jsonl"],
        "there is no folder {tmp}/file",
    ),
    "bad suffix": ([*GENERATE, "--out", "{tmp}/a.avi"], ".mp4"),
    "no device": ([*GENERATE, "--out", "{tmp}/a.mp4", "--device", "cuda:99"], "cuda:99"),
    "no dtype": ([*GENERATE, "--out", "{tmp}/a.mp4", "--dtype", "float12"], "bfloat16"),
    "compare: unknown policy": (["compare", "--policy", "easycash", "--out", "{tmp}/x"], "easycache"),
    "compare: twice": (["compare", "--policy", "static", "--policy", "static", "--out", "{tmp}/x"], "twice"),
    "compare: unwritable": (["compare", "--policy", "static", "--out", "{tmp}/file"], "cannot write to"),
    "compare: no prompts": (
        ["compare", "--policy", "static", "--out", "{tmp}/x", "--prompts", "{tmp}/no"],
        "--prompts",
    ),
    "demo: unwritable": (["demo", "--out", "{tmp}/file/x"], "cannot write to"),
    "plugins: kind": (["plugins", "--kind", "colours"], "policies"),
    "plugins: name": (["plugins", "easycash"], "Did you mean 'easycache'?"),
    "plugins: name of another kind": (["plugins", "easycache", "--kind", "bases"], "nothing installed is named"),
    "plugins: empty name": (["plugins", ""], "NAME is empty"),
    "huge seed": (
        [*GENERATE, "--out", "{tmp}/a.mp4", "--seed", "9" * 20],
        "from 0 to 2**64 - 1, got 9999",
    ),
    "negative seed": ([*GENERATE, "--out", "{tmp}/a.mp4", "--seed", "-1"], "got -1"),
    "demo: huge seed": (["demo", "--out", "{tmp}/x", "--seed", "9" * 20], "--seed must be a whole number from 0"),
    "empty prompt": (["generate", "--prompt", " ", "--out", "{tmp}/a.mp4"], "--prompt is empty; say what to show"),
    "trace of nothing": ([*GENERATE, "--out", "{tmp}/a.mp4", "--trace", "{tmp}/t.jsonl"], "--policy none nothing is"),
    "trace in no folder": (
        [*GENERATE, "--out", "{tmp}/a.mp4", "--policy", "static", "--trace", "{tmp}/no/t.jsonl"],
        "there is no folder",
    ),
    "trace is a folder": ([*GENERATE, "--out", "{tmp}/a.mp4", "--policy", "static", "--trace", "{tmp}"], "is a folder"),
    "choices of nothing": ([*GENERATE, "--out", "{tmp}/a.mp4", "--basis", "noise"], "--basis: with --policy none"),
    "bad on_error": ([*GENERATE, "--out", "{tmp}/a.mp4", "--policy", "static", "--on-error", "ignore"], "compute"),
    "bad cache size": ([*GENERATE, "--out", "{tmp}/a.mp4", "--policy", "static", "--max-cache-bytes", "-1"], ">= 0"),
    "compare: none": (["compare", "--policy", "none", "--out", "{tmp}/x"], "what every policy is compared with"),
    "compare: audit": (["compare", "--policy", "static @ audit=true", "--out", "{tmp}/x"], "give --audit"),
    "calibrate: no table": (
        ["calibrate", "easycache", "--out", "{tmp}/t.json"],
        "needs no table; those that can",
    ),
    "calibrate: unknown": (["calibrate", "magcash", "--out", "{tmp}/t.json"], "Did you mean 'magcache'?"),
    "calibrate: a forecaster": (["calibrate", "linear", "--out", "{tmp}/t.json"], "forecaster linear needs no table"),
    "calibrate: suffix": (["calibrate", "magcache", "--out", "{tmp}/t.txt"], "must name a .json file"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_error_is_one_line_and_comes_before_anything_is_loaded(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffusers

    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded before the arguments were checked")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", loaded)
    (tmp_path / "file").write_text("")
    words, says = BAD[case]
    result = run(*[word.format(tmp=tmp_path) for word in words])
    assert result.exit_code == 2
    assert result.stderr.startswith("mixcache: error: ")
    assert result.stderr.count("\n") == 1
    assert says.format(tmp=tmp_path) in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_frames_that_the_pipeline_would_change_are_refused_with_the_nearest(
    wan_folder: Path, small: list[str], tmp_path: Path
) -> None:
    """WanPipeline makes 4n + 1 frames, and 17 of 18 with a log line that nobody sees."""
    words = ["generate", "--prompt", PROMPT, "--model", wan_folder, "--out", tmp_path / "a.mp4", *small]
    result = run(*words, "--frames", 18)
    assert result.exit_code == 2
    assert result.stderr == "mixcache: error: --frames 18: WanPipeline makes 4n + 1 frames; give 17 or 21.\n"
    assert run(*words, "--frames", 1).exit_code == 0


def test_a_size_that_the_pipeline_changes_is_said(
    wan_folder: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cropped(*given: Any, **options: Any) -> Any:
        made = generate(*given, **options)
        return evolve(made, frames_FHWC=made.frames_FHWC[:, :8])

    monkeypatch.setattr(generation, "generate", cropped)
    result = run("generate", "--prompt", PROMPT, "--model", wan_folder, "--out", tmp_path / "a.gif", *small)
    assert "note: height=16 was asked for, and the pipeline made 8" in result.stdout


@pytest.mark.parametrize("place", ["first", "last"])
def test_debug_shows_the_traceback(tmp_path: Path, place: str) -> None:
    words = [*GENERATE, "--out", tmp_path / "a.mp4", "--policy", "easycash"]
    result = run("--debug", *words) if place == "first" else run(*words, "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("mixcache: error: unknown policy 'easycash'")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, wan_folder: Path, tmp_path: Path) -> Callable[[BaseException], Any]:
    def fail(error: BaseException) -> Any:
        def broken(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(generation, "generate", broken)
        return run(*GENERATE, "--model", wan_folder, "--out", tmp_path / "a.mp4")

    return fail


def test_an_interruption_is_one_line_and_130(failing: Callable[[BaseException], Any]) -> None:
    result = failing(KeyboardInterrupt())
    assert (result.exit_code, result.stderr) == (130, "mixcache: interrupted: nothing was written.\n")


def test_a_failure_nobody_foresaw_is_one_line_and_1(failing: Callable[[BaseException], Any]) -> None:
    result = failing(RuntimeError("out of memory\nlots of detail"))
    assert result.exit_code == 1
    assert result.stderr.startswith("mixcache: error: RuntimeError: out of memory")
    assert result.stderr.count("\n") == 1


def test_a_usage_error_is_exit_code_2_too() -> None:
    assert run("generate", "--prompt", PROMPT).exit_code == 2
    assert run("compare", "--policy", "static", "--out", "x", "--seeds", 0).exit_code == 2
    assert run("paint").exit_code == 2


def test_a_real_process_says_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mixcache.cli", *GENERATE, "--policy", "easycash", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)

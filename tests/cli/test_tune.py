"""`mixcache tune`: a file that other commands take, an interruption, helpers that share a search, and clear errors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mixcache import Recipe, settings
from mixcache.cli import app


def run(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="mixcache")


@pytest.fixture
def words(wan_folder: Path, small: list[str], tmp_path: Path) -> list[str]:
    """A search that takes a few seconds: two prompts to tune on, two held out, and one policy beside the masks."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square\na green triangle\na white square\n")
    out = ["--folder", str(tmp_path / "search"), "--out", str(tmp_path / "tuned.toml")]
    return ["tune", "--model", str(wan_folder), "--prompts", str(prompts), *out, "--policy", "static", *small]


def start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mixcache.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # whoever started the tests in the background may have had this signal ignored, which children inherit
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def trials(folder: Path) -> dict[str, list[str]]:
    """By search, the recipes of its finished trials."""
    import optuna

    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "search.log")))
    studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    return {
        study.study_name: [t.user_attrs["recipe"] for t in study.trials if t.state.name in ("COMPLETE", "PRUNED")]
        for study in studies
    }


def test_tune_writes_a_file_that_generate_takes(words: list[str], small: list[str], tmp_path: Path) -> None:
    result = run(*words, "--target", "psnr>=20", "--trials", 4)
    assert result.exit_code == 0, result.stderr
    file = tmp_path / "tuned.toml"
    told = settings.read(file)[1]["tuned"]
    assert told["target"] == "psnr>=20"
    assert told["command"].startswith("mixcache tune ")
    assert "--trials 4" in told["command"]
    lines = result.stdout.splitlines()
    assert lines[0] == str(Recipe.from_toml(file))
    assert f"tuning prompts:   {told['tuning']}" in lines
    assert f"held-out prompts: {told['held_out']}" in lines
    assert any(line.startswith(("held out it meets psnr>=20", "held out it misses psnr>=20 by")) for line in lines)
    assert any("the 95 % interval" in line for line in lines)
    assert "trial 4: " in result.stderr
    assert "s left" in result.stderr

    generate = ["generate", "--prompt", "a dog", "--model", words[2], "--out", tmp_path / "clip.gif", "--policy", file]
    made = run(*generate, *small)
    assert made.exit_code == 0, made.stderr
    assert "tuned for other runs" not in made.stdout
    other = run(*generate, *small, "--guidance", 2)
    assert "this recipe was tuned for other runs, and not measured for guidance 2, not 5" in " ".join(
        other.stdout.split()
    )
    refused = run("generate", "--prompt", "a dog", "--out", tmp_path / "clip.gif", "--policy", file)  # tiny_wan
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "and this is another model: it has 4,709,344 parameters" in refused.stderr
    assert "mixcache tune --model" in refused.stderr


def test_tune_that_is_interrupted_by_a_signal_goes_on(words: list[str], tmp_path: Path) -> None:
    asked = [*words, "--target", "psnr>=20", "--trials", "200"]
    process = start(asked)
    give_up = time.monotonic() + 300
    log = tmp_path / "search" / "search.log"
    while not (log.is_file() and log.read_text().count('"met"') >= 2) and time.monotonic() < give_up:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors + output
    ((_, kept),) = trials(tmp_path / "search").items()
    last = errors.strip().splitlines()[-1]
    assert last == (
        f"mixcache: interrupted: {len(kept)} of 200 trials are kept in {tmp_path / 'search'}; "
        "the same command goes on from there."
    )
    assert not (tmp_path / "tuned.toml").exists()
    asked[-1] = str(len(kept) + 1)  # all the rest would take long
    result = run(*asked)
    assert result.exit_code == 0, result.stderr
    assert f"goes on after {len(kept)} trials" in result.stderr
    ((_, more),) = trials(tmp_path / "search").items()
    assert more[: len(kept)] == kept
    assert len(more) == len(kept) + 1


@pytest.mark.slow
def test_two_processes_add_to_one_search(words: list[str], tmp_path: Path) -> None:
    asked = [*words, "--target", "psnr>=20", "--trials", "12", "--trials-only"]
    processes = [start(asked), start(asked)]
    told = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    ((_, made),) = trials(tmp_path / "search").items()
    assert 12 <= len(made) <= 13, "each may have begun its last one while the other made the twelfth"
    by_process = [sum(": trial " in line for line in errors.splitlines()) for _, errors in told]
    assert sum(by_process) == len(made)
    assert min(by_process) >= 1
    assert not (tmp_path / "tuned.toml").exists()
    result = run(*asked[:-1])
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "tuned.toml").exists()
    assert list(trials(tmp_path / "search").values()) == [made], "nothing but the held-out clips was left to do"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--target", "psnr>=x"], "`target` must be a measure and a bound, such as 'psnr>=40' or 'speedup>=2.5'"),
        (["--target", "pnsr>=40"], "unknown target 'pnsr'"),
        (["--target", "psnr>=20", "--policy", "statik"], "unknown policy 'statik'"),
        (["--target", "psnr>=20", "--out", "tuned.json"], "--out must name a .toml file in a folder that is there"),
        (["--target", "speedup>=2", "--quality", "sharp"], "unknown metric 'sharp'"),
    ],
)
def test_what_cannot_be_tuned_is_one_line(more: list[str], says: str, words: list[str]) -> None:
    result = run(*words, *more)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert says in result.stderr


def test_prompts_are_for_one_of_two_uses(words: list[str], tmp_path: Path) -> None:
    place = words.index("--prompts")
    alone = [*words[:place], *words[place + 2 :], "--target", "psnr>=20"]
    result = run(*alone)
    assert result.exit_code == 2
    assert "comes with no tuning prompts; give some of both: --prompts FILE --held-out FILE" in result.stderr
    (tmp_path / "held.txt").write_text("a dog\n")
    result = run(*alone, "--held-out", tmp_path / "held.txt")
    assert (result.exit_code, "needs --prompts FILE" in result.stderr) == (2, True)
    (tmp_path / "one.txt").write_text("a cat\n")
    result = run(*alone, "--prompts", tmp_path / "one.txt")
    assert (result.exit_code, "holds one prompt" in result.stderr) == (2, True)

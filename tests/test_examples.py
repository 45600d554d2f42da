"""The examples run, as a user would run them, and say what they save."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_an_example_runs(script: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "error::DeprecationWarning:__main__", str(script)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    made, uncached = map(int, re.search(r"(\d+) of (\d+) evaluations", done.stdout).groups())
    assert 0 < made < uncached == 100
    assert not list(tmp_path.iterdir())


def test_what_dominates_knows_the_true_solution() -> None:
    """Of one Gaussian N(m, s^2) it is x(0) = m + s x(1); and Euler's error is of first order."""
    example = runpy.run_path(str(EXAMPLES[0].with_name("what_dominates.py")))
    model = example["Mixture"]()
    noise = torch.randn(5, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    mixture = example["true_solution"](model, noise, 800)
    errors = [float((example["euler"](model, noise, steps) - mixture).norm()) for steps in (50, 100, 200)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)
    model.means = model.means[:1].repeat(3, 1)
    torch.testing.assert_close(example["true_solution"](model, noise, 800), model.means[0] + model.s * noise)

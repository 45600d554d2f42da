"""Auditing: the true error of every reuse is recorded, and changes nothing of the run."""

from __future__ import annotations

import pytest
import torch

import mixcache
from mixcache.core import trace
from tests.conftest import built
from tests.helpers import Scripted, follow, verdicts

MIXED = ["static:every=3", "cfg:every=2,first_steps=1", "static:every=2,at=block"]


@pytest.mark.parametrize("policies", [MIXED, MIXED[:1], MIXED[1:2], MIXED[2:]], ids=" ".join)
@pytest.mark.parametrize("name", ["wan", "hunyuan", "cogvideox"])
def test_an_audited_run_is_the_same_run(name: str, policies: list[str]) -> None:
    tiny = built(name)
    with mixcache.enable(tiny.pipe, policies) as plain:
        expected = tiny.run(8)
    with mixcache.enable(tiny.pipe, policies, audit=True) as audited:
        assert torch.equal(tiny.run(8), expected)
    assert verdicts(audited) == verdicts(plain)
    reused = [r for r in audited.records if r.outcome.reused]
    assert all(r.outcome.true_error is not None for r in reused)
    assert all(r.outcome.true_error is None for r in audited.records if not r.outcome.reused)
    assert all(r.outcome.true_error is None for r in plain.records)
    assert any(r.outcome.true_error > 0 for r in reused) or (name == "hunyuan" and policies == MIXED[1:2])
    assert [trace.Record.from_json(r.to_json()) for r in audited.records] == audited.records


@pytest.mark.parametrize("samples", ["worst", "mean"])
def test_the_true_error_is_its_formula(samples: str) -> None:
    generator = torch.Generator().manual_seed(3)
    anchors = list(torch.randn(5, 2, 6, generator=generator))
    outputs = list(torch.randn(5, 2, 6, generator=generator))
    model = Scripted()
    with mixcache.enable(model, "schedule:10010", audit=True, samples=samples) as session:
        results = follow(session, model, anchors, [[o] for o in outputs])
    assert model.calls == 5
    for t in (1, 2, 4):
        c = 0 if t < 3 else 3
        rebuilt = anchors[t] + outputs[c] - anchors[c]
        torch.testing.assert_close(results[t][0], rebuilt)
        away, size = (outputs[t] - rebuilt).abs(), outputs[t].abs()
        ratio = (away.mean(1) / size.mean(1)).max() if samples == "worst" else away.mean() / size.mean()
        assert session.records[t].outcome.true_error == pytest.approx(float(ratio), rel=1e-5)
    errors = [r.outcome.true_error or 0.0 for r in session.records]
    told = session.report().visits["step"].true
    assert (told.count, told.worst) == (3, max(errors))
    assert told.total == pytest.approx(sum(errors))
    assert told.at == f"run 0, step {errors.index(max(errors))}, cond"
    assert session.report().visits["step"].predicted is None
    for number in (f"{told.total:.4f}", f"{told.worst:.4f}", told.at):
        assert number in str(session.report())

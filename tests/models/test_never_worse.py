"""Law 10 on every embedded model: at equal evaluations the recommended recipe is not below fewer plain steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixcache import bench

BEDS = {
    "tiny_wan": [(50, 2.0, 4.0), (50, 3.0, 4.0), (20, 2.0, 0.0)],
    "tiny_cogvideox": [(50, 2.0, 4.0), (50, 3.0, 4.0), (20, 2.0, 0.0)],
    "tiny_flux": [(28, 2.0, 4.0), (12, 2.0, 0.0)],
}
"""Steps, the speed-up that is ordered, and dB above fewer steps that it has to gain in the mean."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bed", "steps", "speedup", "gain"), [(bed, *case) for bed, cases in BEDS.items() for case in cases]
)
def test_it_is_above_fewer_steps(bed: str, steps: int, speedup: float, gain: float, tmp_path: Path) -> None:
    """Over 8 held-out prompts; nothing was chosen on tiny_cogvideox and tiny_flux, or on any held-out prompt."""
    model = bench.load(bed)
    comparison = bench.Comparison(
        model=model,
        variants=[f"spread:speedup={speedup}"],
        prompts=model.held_out[:8],
        seeds=[0],
        arguments={**model.arguments(), "num_inference_steps": steps},
        quality_only=True,
    )
    store = bench.CaseStore(tmp_path / "results").open(comparison.settings)
    cases = bench.compare(comparison, store)
    row = next(row for row in bench.summarize(comparison, cases) if row.variant.startswith("spread"))
    assert row.evaluations.mean <= row.evaluations_uncached / speedup
    above = row.above_fewer_steps
    assert above is not None
    assert above.high is not None
    assert above.high >= gain

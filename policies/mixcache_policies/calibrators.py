"""How the tables of these policies are measured on a model: `mixcache calibrate magcache` (teacache, mixcache)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mixcache import ConfigurationError, Granularity, Signal, Tensors
from mixcache.study import Calibrator, Fit, Observed, Observing, Probing

DEGREE = 4
"""Of TeaCache's polynomial."""


def _magnitude_ratio(t: Tensors) -> Tensor | None:
    output, anchor = t.computed("output"), t.computed("anchor")
    if t.output is None or output is None or anchor is None:
        return None
    now = torch.linalg.vector_norm((t.output - t.anchor).float(), dim=-1)
    before = torch.linalg.vector_norm((output - anchor).float(), dim=-1)
    ratio: Tensor = (now / (before + 1e-8)).mean()
    return ratio.reshape(1)


def fit_magcache(observed: Sequence[Observed]) -> Fit:
    """The mean ratio of every step by branch, over all runs; 1 where there is none. The leading branch is "cond"."""
    names = {o.point.branch for o in observed}
    leading = {o.point.branch for o in observed if o.point.leads} if "cond" not in names else set()
    ratios: dict[str, list[float]] = {}
    for branch in sorted(names):
        found: dict[int, list[float]] = {}
        for o in observed:
            if o.point.branch == branch and o.value is not None:
                found.setdefault(o.point.step, []).append(o.value)
        steps = range(observed[0].point.num_steps)
        means = [math.fsum(found[step]) / len(found[step]) if step in found else 1.0 for step in steps]
        ratios["cond" if branch in leading else branch] = [round(mean, 6) for mean in means]
    if not ratios or not any(o.value is not None for o in observed):
        raise ConfigurationError("there is no ratio to measure: the run has a single step; give --steps 2 or more.")
    low, high = (extreme(value for row in ratios.values() for value in row) for extreme in (min, max))
    count = len(next(iter(ratios.values())))
    return Fit({"ratios": ratios}, f"{count} ratios for {', '.join(ratios)}, from {low:.3f} to {high:.3f}")


def fit_teacache(observed: Sequence[Observed]) -> Fit:
    """The least-squares polynomial from the change of the probe to that of the output, highest power first."""
    probe = {o.call: o.value for o in observed if o.signal == "probe_change" and o.value is not None}
    output = {o.call: o.value for o in observed if o.signal == "output_change" and o.value is not None}
    pairs = [(probe[call], output[call]) for call in probe if call in output]
    x, y = (np.array([pair[i] for pair in pairs], dtype=np.float64) for i in (0, 1))
    too_few = ConfigurationError(
        f"the probe took {len(set(x.tolist()))} different value(s), too few for a polynomial of degree {DEGREE}; give "
        "more --steps or more prompts."
    )
    if len(set(x.tolist())) <= DEGREE:
        raise too_few
    with warnings.catch_warnings():
        warnings.simplefilter("error", np.exceptions.RankWarning)
        try:
            fitted = np.polynomial.Polynomial.fit(x, y, DEGREE)
        except np.exceptions.RankWarning:
            raise too_few from None
    rising = [*fitted.convert().coef.tolist(), *[0.0] * DEGREE][: DEGREE + 1]
    spread = float(((y - y.mean()) ** 2).sum())
    explained = 1 - float(((y - fitted(x)) ** 2).sum()) / spread if spread else 1.0
    return Fit(
        {"coefficients": rising[::-1]}, f"{len(pairs)} pairs, of whose spread the polynomial explains {explained:.0%}"
    )


MAGCACHE = Observing(
    name="magcache",
    signals={
        Granularity.BLOCK: Signal(
            name="magnitude_ratio",
            measure=_magnitude_ratio,
            when="after",
            reads=frozenset({"computed:anchor", "computed:output"}),
            summary="mean over tokens of ||r_t|| / ||r_last||, r = output - anchor: MagCache's gamma",
        )
    },
    fit=fit_magcache,
    summary="growth of the residual of all blocks from step to step, by branch (arXiv 2506.09045); one run per prompt",
)

TEACACHE = Observing(
    name="teacache",
    signals={Granularity.BLOCK: "probe_change", Granularity.STEP: "output_change"},
    fit=fit_teacache,
    summary="polynomial from the change of the probe to that of the output (arXiv 2411.19108); one run per prompt",
)

MIXCACHE = Probing(
    name="mixcache",
    summary="influence of an error at each step on the final latent; up to 49 runs per prompt",
)

CALIBRATORS: tuple[Calibrator, ...] = (MAGCACHE, TEACACHE, MIXCACHE)

"""How L2P's table is measured: inner products between the steps of runs in which everything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from mixcache import ConfigurationError, Granularity, Point, Recipe, Signal, Tensors, catalogue
from mixcache.bench import Watch, generate
from mixcache.study import Calibrator, Fit, Job, observer
from mixcache_policies.l2p import fit

DIGITS = 9
"""Of each number in the table: neighbouring steps differ in the later ones."""

Products = Mapping[str, Any]
"""By branch, the inner products [2, 2, steps, steps] of anchors (0) and outputs (1) between steps."""


@frozen(kw_only=True)
class InnerProducts(Calibrator):
    """A calibrator that measures the inner products of z between all steps of a run, by basis and branch.

    Every basis is an affine change of variable of anchor and output, so the products of these give those of z in every
    basis. They are summed over the prompts and seeds and divided by their mean square. The table's entry is "grams".
    """

    name: str = "l2p"
    summary: str = "inner products between the outputs of all steps (arXiv 2604.26365); one run per prompt"

    def runs(self, job: Job) -> int:
        """One run gives all its numbers."""
        return 1

    def measure(self, job: Job, watch: Watch) -> Fit:
        """Record every prompt and seed. Raises `ConfigurationError` where a run has a single step."""
        if job.steps < 2:
            raise ConfigurationError("there is nothing to forecast: the run has a single step; give --steps 2 or more.")
        sums: dict[str, Any] = {}
        places: dict[str, list[Point]] = {}
        for pair in job.pairs:
            for branch, (points, products) in _record(job, pair, watch).items():
                sums[branch] = sums.get(branch, 0.0) + products
                places[branch] = points
            watch.call()
        grams: dict[str, dict[str, list[list[float]]]] = {}
        for name in catalogue.bases():
            basis = catalogue.build("basis", name)
            found = {b: _in_basis(basis, places[b], sums[b]) for b in sums}
            if all(gram is not None for gram in found.values()):
                grams[name] = {branch: _triangle(gram) for branch, gram in found.items()}
        explained = np.mean([_explained(rows) for rows in grams["output"].values()])
        return Fit(
            {"grams": grams},
            f"inner products of {job.steps} steps for {', '.join(sums)} in the bases {', '.join(grams)}; three steps "
            f"explain all but {1 - explained:.2g} of the third one after them",
        )


def _record(job: Job, pair: tuple[str, int], watch: Watch) -> dict[str, tuple[list[Point], Any]]:
    """Of one run, by branch: its points, and the inner products of anchors and outputs between its steps."""
    taken: list[list[list[float]]] = []
    signal = Signal(name="recorded", measure=_products(taken), when="after", keeps=True)

    recipe = Recipe.of(observer(signal), basis="output", forecast="hold")
    made = generate(job.model, *pair, job.arguments, recipe, on_step=watch.step)
    visits = [record.point for record in made.records if record.point.granularity is Granularity.STEP]
    rows = taken[:: max(len(taken) // max(len(visits), 1), 1)]  # of several outputs the first is taken
    found: dict[str, tuple[list[Point], Any]] = {}
    leading = {point.branch for point in visits if point.leads}
    named = "cond" in {point.branch for point in visits}
    for point, row in zip(visits, rows, strict=True):
        branch = "cond" if point.branch in leading and not named else point.branch
        points, products = found.setdefault(branch, ([], np.zeros((2, 2, point.num_steps, point.num_steps))))
        points.append(point)
        first = point.step + 1 - len(row[0])
        for (p, q), numbers in zip(((0, 0), (0, 1), (1, 0), (1, 1)), row):
            products[p, q, point.step, first : point.step + 1] = numbers
    return found


def _products(taken: list[list[list[float]]]) -> Any:
    """A measurement that leaves in `taken` the mean products with all visits of the same place up to now."""

    def measure(t: Tensors) -> Tensor | None:
        if t.output is None:
            return None
        if t.output.shape != t.anchor.shape:
            raise ConfigurationError(
                f"l2p weighs outputs of the shape of the latent; here they have {tuple(t.output.shape)} and "
                f"{tuple(t.anchor.shape)}."
            )
        count = len(t.own) // 2
        for name, tensor in (("anchor", t.anchor), ("output", t.output)):
            t.own[f"{name}{count}"] = tensor.detach().flatten().to("cpu", torch.float64)
        taken.append(
            [
                [float(t.own[f"{now}{count}"] @ t.own[f"{then}{i}"]) / t.anchor.numel() for i in range(count + 1)]
                for now in ("anchor", "output")
                for then in ("anchor", "output")
            ]
        )
        return t.norm(t.output)

    return measure


def _in_basis(basis: Any, points: Sequence[Point], products: Any) -> Any:
    """The inner products [steps, steps] of z, lower triangle; `None` where the basis cannot be told."""
    try:
        pairs = {point.step: basis.coefficients(point) for point in points}
    except (ConfigurationError, NotImplementedError):
        return None
    if any(pair is None for pair in pairs.values()):
        return None
    weights = np.zeros((2, products.shape[-1]))
    for step, pair in pairs.items():
        weights[:, step] = pair
    gram = np.einsum("ps,qi,pqsi->si", weights, weights, products)
    return gram / (np.mean(np.diag(gram)) or 1.0)


def _triangle(gram: Any) -> list[list[float]]:
    return [[float(f"{value:.{DIGITS}g}") for value in row[: s + 1]] for s, row in enumerate(gram)]


def _explained(rows: Sequence[Sequence[float]]) -> float:
    """The share of a step that three steps before it give, three steps ahead, on the runs that were recorded."""
    shares = []
    for step in range(5, len(rows)):
        at = [step - 5, step - 4, step - 3, step]
        gram = np.array([[rows[max(i, j)][min(i, j)] for j in at] for i in at])
        residue = np.array([*fit(gram, 1e-8), -1.0])
        shares.append(1.0 - float(residue @ gram @ residue) / (gram[-1, -1] or 1.0))
    return float(np.mean(shares)) if shares else 1.0


L2P_TABLE = InnerProducts()

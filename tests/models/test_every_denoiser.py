"""Every denoiser of diffusers, in a loop of one's own: each cell of the support table works, or is refused truly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mixcache import catalogue
from tests.models.support import CELLS, FLOAT32_ONLY, Case, check, leaves, matrix
from tests.zoo import denoisers
from tests.zoo.denoisers import BUILT, NOT_BUILT, classes, latent_argument

pytestmark = [
    pytest.mark.filterwarnings("ignore:In CPU autocast"),  # diffusers asks for float32 there
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight"),  # kept in float32, in bfloat16
]

STEP = ("step", "step in bfloat16", "step, basis output")
BLOCKS = ("blocks", "blocks in bfloat16")

REFUSED: dict[str, tuple[str, ...]] = {
    "BriaFiboTransformer2DModel": BLOCKS,
    "BriaTransformer2DModel": BLOCKS,
    "HiDreamImageTransformer2DModel": BLOCKS,
    "Kandinsky6Transformer3DModel": STEP,
    "LTX2VideoTransformer3DModel": STEP,
    "LatteTransformer3DModel": BLOCKS,
    "MiniMaxH3Transformer3DModel": STEP,
    "RFD4ProteinaTransformer": STEP,
    "WanAnimateTransformer3DModel": BLOCKS,
    "WanVACETransformer3DModel": BLOCKS,
}
"""Cells that are refused, with a reason that is true. STEP: several outputs, of which this loop steps one. BLOCKS: what
a block returns is not what the next one takes."""

RECORDED = {name for name, adapter in catalogue.models().items() if adapter.blocks}
"""Classes whose blocks a record lists; the records themselves are not used here."""

QUICK = RECORDED | {
    "AuraFlowTransformer2DModel",  # two lists of blocks that nobody described
    "Cosmos3OmniTransformer",  # a latent of another name, in a list
    "DiTTransformer2DModel",  # a variance beside the prediction
    "HiDreamImageTransformer2DModel",  # another name for the timestep
    "Ideogram4Transformer2DModel",  # text and image in one sequence
    "Kandinsky5Transformer3DModel",  # channels last, and more of them in than out; a bare tensor out
    "LTX2VideoTransformer3DModel",  # sound beside video
    "PriorTransformer",  # a record with a field of another name
    "QwenImage21Transformer2DModel",  # text before the prediction
    "T5FilmDecoder",  # a latent of another name, no choice of form
    "WanVACETransformer3DModel",  # residuals between blocks
    "ZImageTransformer2DModel",  # lists in and out
}
"""A third of the classes, of every kind there is: these run in `make test`."""


def every(names: Any) -> list[Any]:
    """Those of the quick third as they are, the others marked slow."""
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


def cells() -> Iterator[Any]:
    for name in BUILT:
        for column in CELLS:
            marks = [] if name in QUICK else [pytest.mark.slow]
            yield pytest.param(name, column, marks=marks, id=f"{name}-{column}")


def test_every_class_of_the_installed_diffusers_is_built_or_left_out_with_a_reason() -> None:
    """A class that diffusers adds fails here until it works, or stands on the short list."""
    assert set(classes()) == {*BUILT, *NOT_BUILT}
    assert not set(BUILT) & set(NOT_BUILT)
    assert len(NOT_BUILT) <= 3
    assert {*REFUSED, *FLOAT32_ONLY, *QUICK} <= set(BUILT)
    assert all(NOT_BUILT.values())
    assert len(REFUSED) <= len(BUILT) - 64  # steps and blocks together


def test_a_new_class_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class TomorrowTransformer2DModel(torch.nn.Module):
        pass

    monkeypatch.setattr(denoisers.diffusers, "TomorrowTransformer2DModel", TomorrowTransformer2DModel, raising=False)
    assert set(classes()) - {*BUILT, *NOT_BUILT} == {"TomorrowTransformer2DModel"}


@pytest.mark.parametrize("name", every(BUILT))
def test_the_tiny_model_is_alive_and_the_same_every_time(name: str) -> None:
    """Its output is finite, depends on the latent, and comes again to the bit; else no cell would mean anything."""
    case, again = Case.of(name), Case.of(name)
    _, results = case.bare()
    first, moved = (next(leaves(results[i])) for i in (0, -1))
    assert all(tensor.isfinite().all() for tensor in leaves(results))
    assert all(map(torch.equal, leaves(results), leaves(again.bare()[1])))
    assert float((moved - first).norm()) > 1e-4 * float(first.norm())
    assert latent_argument(name) in case.arguments


@pytest.mark.parametrize(("name", "column"), cells())
def test_every_cell_works(name: str, column: str) -> None:
    """With nothing told about the model: no record, and no name of an argument means anything."""
    cell = check(name, column)
    if cell.verdict == "refused":
        assert column in REFUSED.get(name, ()), cell.why
    else:
        assert column not in REFUSED.get(name, ()), f"{name} works at {column!r} by now"
        assert cell.verdict == "works" or name in FLOAT32_ONLY


def test_the_table_shows_every_class_and_counts_every_column(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.models import support

    monkeypatch.setattr(support, "BUILT", ("DiTTransformer2DModel", "ZImageTransformer2DModel"))
    lines = matrix().splitlines()
    assert lines[0].count("|") == lines[1].count("|") == len(CELLS) + 2
    assert [line.split(" | ")[0] for line in lines[2:5]] == [
        "| DiTTransformer2DModel",
        "| ZImageTransformer2DModel",
        "| **works**",
    ]
    assert "WRONG" not in matrix()
    assert all(name in lines[-1 - i] for i, name in enumerate(reversed(NOT_BUILT)))

"""Every denoiser of diffusers, in a loop of one's own: each cell of the support table works, or is refused truly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import mixcache
from mixcache import AttachError, catalogue
from tests.models.support import CELLS, FLOAT32_ONLY, Case, check, leaves, matrix
from tests.zoo import denoisers
from tests.zoo.denoisers import BUILT, NOT_BUILT, build, classes, latent_argument

pytestmark = [
    pytest.mark.filterwarnings("ignore:In CPU autocast"),  # diffusers asks for float32 there
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight"),  # kept in float32, in bfloat16
]

ALL = tuple(column for column in CELLS if column not in ("blocks", "blocks in bfloat16", "restored"))
STEP = ("step", "step in bfloat16")
ANCHORED = ("exact", *STEP)


class Refused(Exception):
    """A cell that should work is refused."""


CHANNELS = "more channels in than out, not in the dimension or by the names by which `ModelAdapter.latent` looks"
SEVERAL = "several tensors out: computed, never cached"
LISTED = "the latent is in a list, and the prediction in another"
AT_END = "SILENT: of an output with more tokens than the latent, the first are taken for the prediction; it is the last"

KNOWN: dict[str, str] = {
    "ConsisIDTransformer3DModel": CHANNELS,
    "Cosmos3OmniTransformer": LISTED,
    "Kandinsky5Transformer3DModel": CHANNELS,
    "Kandinsky6SRTransformer3DModel": CHANNELS,
    "Kandinsky6Transformer3DModel": SEVERAL,
    "LTX2VideoTransformer3DModel": SEVERAL,
    "MiniMaxH3Transformer3DModel": SEVERAL,
    "QwenImage21Transformer2DModel": AT_END,
    "RFD4ProteinaTransformer": SEVERAL,
    "WanAnimate2Transformer3DModel": LISTED,
    "ZImageTransformer2DModel": LISTED,
}
"""Classes of which some cells should work and do not, each with the cause; mending one fails its test here."""

AFFECTED: dict[str, tuple[tuple[str, ...], type[BaseException]]] = {
    CHANNELS: (ANCHORED, Refused),
    SEVERAL: ((*STEP, "step, basis output"), Refused),
    LISTED: (ALL, Refused),
    AT_END: (STEP, AssertionError),
}
"""The cells that a cause spoils, and what their tests end with."""

RECORDED = {name for name, adapter in catalogue.models().items() if adapter.blocks}
"""Classes whose blocks an adapter lists."""

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
            columns, ends = AFFECTED[KNOWN[name]] if name in KNOWN else ((), Refused)
            if column in columns:
                marks.append(pytest.mark.xfail(reason=KNOWN[name], raises=ends, strict=True))
            yield pytest.param(name, column, marks=marks, id=f"{name}-{column}")


def test_every_class_of_the_installed_diffusers_is_built_or_left_out_with_a_reason() -> None:
    """A class that diffusers adds fails here until it works, or stands on the short list."""
    assert set(classes()) == {*BUILT, *NOT_BUILT}
    assert not set(BUILT) & set(NOT_BUILT)
    assert len(NOT_BUILT) <= 3
    assert {*KNOWN, *FLOAT32_ONLY, *QUICK} <= set(BUILT)
    assert all(NOT_BUILT.values())
    assert set(KNOWN.values()) == set(AFFECTED)


def test_a_new_class_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class TomorrowTransformer2DModel(torch.nn.Module):
        pass

    monkeypatch.setattr(denoisers.diffusers, "TomorrowTransformer2DModel", TomorrowTransformer2DModel, raising=False)
    assert set(classes()) - {*BUILT, *NOT_BUILT} == {"TomorrowTransformer2DModel"}


@pytest.mark.parametrize("name", every(BUILT))
def test_the_tiny_model_is_alive_and_the_same_every_time(name: str) -> None:
    """Its output is finite, depends on the latent, and comes again to the bit; else no cell would mean anything."""
    case, again = Case.of(name), Case.of(name)
    still, moved = case.bare([case.calls(False)[0], case.calls(True)[-1]])
    (rebuilt,) = again.bare(again.calls(False)[:1])
    first = next(leaves(still))
    assert all(tensor.isfinite().all() for tensor in leaves(still))
    assert all(map(torch.equal, leaves(still), leaves(rebuilt)))
    assert float((next(leaves(moved)) - first).norm()) > 1e-3 * float(first.norm())
    assert latent_argument(name) in case.arguments


@pytest.mark.parametrize(("name", "column"), cells())
def test_every_cell_works(name: str, column: str) -> None:
    """Or is refused where no adapter lists the blocks, which is what only watching could mend."""
    cell = check(name, column)
    undescribed = column.startswith("blocks") and name not in RECORDED
    if cell.verdict == "refused" and not undescribed:
        raise Refused(cell.why)
    assert cell.verdict != "not applicable" or name in FLOAT32_ONLY


@pytest.mark.parametrize("name", every(name for name in BUILT if latent_argument(name) != "hidden_states"))
def test_a_latent_of_another_name_is_asked_for(name: str) -> None:
    """Nothing is guessed: the refusal says what to pass."""
    model, _ = build(name)
    with pytest.raises(AttachError, match=r"takes no `hidden_states`; pass.*latent_argument="):
        mixcache.enable(model, "static")


def test_the_table_shows_every_class_and_counts_every_column(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.models import support

    monkeypatch.setattr(support, "BUILT", ("DiTTransformer2DModel", "ZImageTransformer2DModel"))
    lines = matrix().splitlines()
    assert lines[0].count("|") == lines[1].count("|") == len(CELLS) + 2
    assert [line.split(" | ")[0] for line in lines[2:6]] == [
        "| DiTTransformer2DModel",
        "| ZImageTransformer2DModel",
        "| **refused**",
        "| **works**",
    ]
    assert "WRONG" not in matrix()
    assert all(name in lines[-1 - i] for i, name in enumerate(reversed(NOT_BUILT)))

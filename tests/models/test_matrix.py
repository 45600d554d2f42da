"""The page of what is supported says what is true now, of every class and pipeline there is."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.models import matrix
from tests.models.matrix import COLUMNS, PAGE, Found, Kept, everything, has_branches, merged, page, short, shown
from tests.models.piped import CELLS
from tests.models.support import Cell
from tests.zoo.denoisers import BUILT
from tests.zoo.every import PIPELINES

CLASSES = 64
"""How many denoiser classes must be exact, step, adapt and be restored; of at least so many spans are skipped:"""
SPANNED = 55

Rows = dict[str, list[str]]


def section(text: str, heading: str) -> Rows:
    """The rows of the table under a heading, by their first cell, without the table's head."""
    part = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in part.splitlines() if row.startswith("| ")]
    return {row[0]: row[1:] for row in rows[1:]}


@pytest.fixture(scope="module")
def written() -> str:
    """The page as it is in the guide."""
    return PAGE.read_text(encoding="utf-8")


def test_every_class_and_pipeline_is_a_row_of_the_page(written: str) -> None:
    """Whoever looks up a model finds it, in the table and with the classes or pipelines that belong to it."""
    by_class, by_pipeline = section(written, "By class"), section(written, "By pipeline")
    assert list(by_class) == list(BUILT)
    assert list(by_pipeline) == list(PIPELINES)
    assert {len(row) for row in by_class.values()} == {len(COLUMNS) + 1}
    assert {len(row) for row in by_pipeline.values()} == {len(CELLS) + 1}
    for name, (pipelines, *_) in by_class.items():
        assert pipelines == (", ".join(pipe for pipe, row in by_pipeline.items() if name in row[0].split(", ")) or "-")
    assert all(set(row[0].split(", ")) <= set(BUILT) for row in by_pipeline.values())


def test_every_cell_of_the_page_works_or_is_refused_with_a_reason_or_does_not_apply(written: str) -> None:
    cell = re.compile(r"works(, own loop|, unchecked)?|refused: [\w ,]+|-")
    for heading in ("By class", "By pipeline"):
        for name, (_, *cells) in section(written, heading).items():
            assert all(cell.fullmatch(one) for one in cells), (name, cells)


def test_the_page_says_what_a_cell_of_every_column_means(written: str) -> None:
    assert all(f"| {column} | {meaning} |" in written.splitlines() for column, meaning in COLUMNS.items())


def test_the_summary_counts_the_tables(written: str) -> None:
    counted = section(written, "Summary")
    assert list(counted) == list(COLUMNS)
    by_class, by_pipeline = section(written, "By class"), section(written, "By pipeline")
    for i, column in enumerate(COLUMNS):
        classes = Counter(re.split("[:,]", row[1 + i])[0] for row in by_class.values())
        numbers = [int(count.split()[0]) for count in counted[column]]
        assert numbers[:3] == [classes["works"], classes["refused"], classes["-"]]
        assert sum(numbers[:3]) == len(BUILT)
        assert sum(numbers[3:]) == len(PIPELINES)
        if column in CELLS:
            at = [one for one in COLUMNS if one in CELLS].index(column)
            pipelines = Counter(re.split("[:,]", row[1 + at])[0] for row in by_pipeline.values())
            assert numbers[3:] == [pipelines["works"], pipelines["refused"], pipelines["-"]]


def test_as_many_classes_work_as_must(written: str) -> None:
    """What mixcache promises of the denoisers of diffusers."""
    works = {column: int(row[0].split()[0]) for column, row in section(written, "Summary").items()}
    assert min(works[column] for column in ("exact", "step", "default", "restored")) >= CLASSES
    assert works["block"] >= SPANNED
    assert section(written, "Summary")["restored"][1] == section(written, "Summary")["restored"][4] == "0"


def test_the_page_is_that_of_the_installed_diffusers(written: str) -> None:
    """Another version of diffusers wants the page made again; so does one of mixcache."""
    now, head = matrix.versions(), written.split("\n## ")[0]
    assert f"made with mixcache {now['mixcache']}, diffusers {now['diffusers']}, torch " in head


def test_a_reason_that_nobody_knows_is_an_error() -> None:
    """So that it is noticed: also where a known one stands beside it."""
    known = "spans of blocks were not skipped: A has no spans (x; y). Use policies at 'step' or 'cfg'."
    assert short(f"'static' decided nothing at 'block'; {known}") == "no block hands on to the next"
    with pytest.raises(ValueError, match="nobody shortened: 'the moon is full'"):
        short(f"{known}; the moon is full")
    with pytest.raises(ValueError, match="no reason at all"):
        short("'static' decided nothing at 'block'")


def test_the_weightiest_reason_is_shown() -> None:
    """A step that was not cached has no branches; that its latent was not found says why."""
    none = "'static' decided nothing at 'cfg': the model's guidance is embedded, off, or makes no second branch"
    why = "calls were computed and not cached: A: its latent was not found among the arguments; pass adapter=A(b, c)"
    assert short(none) == "no second branch"
    assert short(f"{none}; {why}; nothing was reused in a run of 8 evaluations: {why}") == "its latent was not found"


def test_a_class_works_where_it_does_in_one_of_its_pipelines() -> None:
    assert shown(None) == shown(Cell("not applicable")) == "-"
    assert merged("-", ["refused: a", "works, unchecked", "works", "-"]) == "works"
    assert merged("works", ["refused: a"]) == "works, own loop"
    assert merged("works", []) == "works"
    assert merged("refused: b", ["refused: a", "refused: a"]) == "refused: a"
    assert merged("works", ["WRONG: it raises", "works"]) == "WRONG: it raises"
    assert merged("-", ["-"]) == "-"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("name", "branches"),
    [
        ("FluxPipeline", False),  # embedded
        ("FluxPipeline true_cfg", True),  # two calls
        ("AuraFlowPipeline", True),  # two rows
        ("FluxKontextPipeline", False),  # twice the tokens
        ("DiTPipeline", True),  # and twice the channels
        ("VisualClozePipeline", False),  # two runs
        ("CosmosTextToWorldPipeline", True),  # its solver is called twice a step
        ("LTX2DFRPipeline", False),  # sound beside video
        ("ZImagePipeline", True),  # lists
    ],
)
def test_guidance_branches_are_counted_beside_mixcache(name: str, branches: bool) -> None:
    assert has_branches(PIPELINES[name]()) is branches


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done is not done again; what was wrong is."""
    made: list[str] = []

    def make(name: str) -> Found:
        made.append(name)
        if name == "c" and len(made) == 3:
            raise KeyboardInterrupt
        return Found({"exact": Cell("WRONG" if made == ["a"] else "works")}, ("a",), 1.0)  # type: ignore[arg-type]

    monkeypatch.setattr(matrix, "RUN", {"class": (("a", "b", "c"), make)})
    with pytest.raises(KeyboardInterrupt):
        everything(Kept.at(tmp_path / "kept.json"))
    found = everything(Kept.at(tmp_path / "kept.json"))
    assert made == ["a", "b", "c", "a", "c"]
    assert [one.cells["exact"].verdict for one in found["class"].values()] == ["works"] * 3
    assert everything(Kept.at(tmp_path / "kept.json")) == found
    assert len(made) == 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_page_made_again_is_the_same(written: str, tmp_path: Path) -> None:
    """Nothing on it is remembered from an older mixcache: every cell is checked again, in some minutes."""
    again = page(everything(Kept.at(tmp_path / "kept.json")))
    assert "WRONG" not in again
    assert section(again, "Summary") == section(written, "Summary")
    for heading in ("By class", "By pipeline"):
        now, before = section(again, heading), section(written, heading)
        changed = {name: (before.get(name), row) for name, row in now.items() if before.get(name) != row}
        assert not changed, "make the page again: `python -m tests.models.matrix > examples/guide/support.md`"

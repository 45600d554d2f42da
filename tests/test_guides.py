"""README and guide are true: their code runs, their commands exist, and they name what there is."""

from __future__ import annotations

import inspect
import itertools
import re
import shlex
import sys
import types
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
import typer

from mixcache import Recipe, catalogue, enable
from mixcache.bench.cases import Audit, Case, Reuse
from mixcache.bench.comparison import as_variant
from mixcache.bench.rows import Row
from mixcache.bench.statistics import Spread
from mixcache.bench.summaries import Summary
from mixcache.core import hookspecs, trace
from mixcache.core.points import Address, NoiseLevel, Outcome, Point, Verdict, Vote
from mixcache.core.report import Errors, GranularityReport, Report
from mixcache.host.adapter import BlockList, ModelAdapter, PipelineFolder
from mixcache.host.sites import Scene
from tests.zoo.tiny import Tiny

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "examples" / "guide"
PAGES = [ROOT / "README.md", *(GUIDE / f"{name}.md" for name in ("users", "policies", "research", "models"))]
PAGES += [GUIDE / "contributing.md", GUIDE / "support.md"]
MARKED = re.compile(r"^```(\w+)( notest)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CONTINUED = re.compile(r"\\\n\s*")


def blocks(page: Path, language: str) -> list[tuple[int, str, bool]]:
    """(line of its first line, text, whether it is run) of every block of a page in one language."""
    text = page.read_text(encoding="utf-8")
    found = [match for match in MARKED.finditer(text) if match[1] == language]
    return [(text[: match.start(3)].count("\n"), match[3], not match[2]) for match in found]


@pytest.fixture
def fresh_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed, and nothing that a page or another test registers."""
    monkeypatch.setattr(catalogue, "_manager", None)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(
    page: Path, fresh_catalogue: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All blocks in order, in one module; a block marked `notest` must be Python at least."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType(f"guide_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    torch.manual_seed(0)
    for line, source, runs in blocks(page, "python"):
        code = compile("\n" * line + source, str(page), "exec", dont_inherit=True)
        if runs:
            exec(code, vars(module))


def signature(function: Any) -> str:
    """As it is written, without the quotes around annotations."""
    return f"{function.__name__}{inspect.signature(function)}".replace("'", "")


def test_every_hook_has_its_signature_as_a_heading() -> None:
    """So that the guide cannot fall behind `hookspecs.py`."""
    hooks = {name: f for name, f in vars(hookspecs).items() if name.startswith("mixcache_")}
    headings = re.findall(r"^#+ `(mixcache_.*)`$", (GUIDE / "policies.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(headings) == sorted(map(signature, hooks.values()))


@pytest.mark.parametrize("kind", ["policy", "basis", "forecaster", "anchor", "rule", "signal", "side input"])
def test_everything_that_is_installed_is_named(kind: str, fresh_catalogue: None) -> None:
    """In the guide for users, or in that for authors of policies."""
    text = "".join((GUIDE / f"{name}.md").read_text(encoding="utf-8") for name in ("users", "policies"))
    missing = [name for name in catalogue.table(kind) if f"`{name}`" not in text]
    assert not missing, f"no guide names the {kind} {', '.join(missing)}"


EXPLAINED = {
    "users": [Recipe, Report, GranularityReport, Errors],
    "policies": [Point, NoiseLevel, Vote, Outcome],
    "research": [
        *(trace.Header, trace.Record, trace.Learned, Address, Point, NoiseLevel, Vote, Verdict, Outcome),
        *(Case, Audit, Reuse, Report, GranularityReport, Errors, Summary, Spread, Row),
    ],
    "models": [ModelAdapter, BlockList, PipelineFolder, Scene],
}
"""The records whose fields a page explains, every one."""


@pytest.mark.parametrize(
    ("page", "record"), [(page, record) for page, records in EXPLAINED.items() for record in records]
)
def test_every_field_of_a_record_is_explained(page: str, record: type[Any]) -> None:
    """By its name in backquotes, alone or with a value: `rule`, `rule="majority"`, `basis.step`."""
    text = (GUIDE / f"{page}.md").read_text(encoding="utf-8")
    public = [field.name for field in attrs.fields(record) if not field.name.startswith("_")]
    missing = [name for name in public if not re.search(rf"`(?:[\w.\[\]]+\.)?{name}(?:[.=(][^`]*)?`", text)]
    assert not missing, f"{page}.md does not explain {record.__name__}'s {', '.join(missing)}"


def slug(heading: str) -> str:
    """The anchor that a heading gets on a page."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / "models").rglob("*.md")], ids=lambda page: page.stem)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    """Files exist, and so do the headings that are linked to."""
    prose = MARKED.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"\w+:", link):
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        if heading:
            headings = re.findall(r"^#+ (.+)$", MARKED.sub("", target.read_text(encoding="utf-8")), re.MULTILINE)
            assert heading in map(slug, headings), f"{page.name} links to {link}"


def commands(page: Path) -> list[list[str]]:
    """The command lines of `mixcache` in a page's shell blocks, in words; `$N` and its like are replaced."""
    found = []
    for _, text, _ in blocks(page, "sh"):
        lines = [line.strip() for line in CONTINUED.sub(" ", text).splitlines()]
        told = {}
        for line in lines:
            for name, value in re.findall(r'(?:^|; )([A-Z]+)="([^"]*)"', line):
                told[name] = value
            for name, value in told.items():
                line = line.replace(f"${name}", value)
            if line.startswith("mixcache "):
                found.append(shlex.split(line, comments=True))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_exists(page: Path, fresh_catalogue: None, tmp_path: Path) -> None:
    """The command, its options, and every policy that it names."""
    from mixcache.cli import app

    group = typer.main.get_command(app)
    context = typer.Context(group)
    for words in commands(page):
        if words[1].startswith("-"):
            continue
        command = group.get_command(context, words[1])
        assert command is not None, words
        options = {flag for parameter in command.params for flag in parameter.opts} | {"--help"}
        assert {word for word in words if word.startswith("--")} <= options, words
        for flag, value in itertools.pairwise(words):
            if flag == "--policy" and value not in ("none", "...") and ".toml" not in value:
                as_variant(value)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_settings_file_of_a_page_can_be_read(page: Path, fresh_catalogue: None, tmp_path: Path) -> None:
    """A block of TOML that sets `policies` is one."""
    for _, text, _ in blocks(page, "toml"):
        if re.search("^policies", text, re.MULTILINE):
            file = tmp_path / "settings.toml"
            file.write_text(text, encoding="utf-8")
            Recipe.from_toml(file)


def walk(heading: str) -> list[str]:
    """The files that a section of the guide for contributors links to in its numbered list, in order."""
    text = (GUIDE / "contributing.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    steps = re.findall(r"^\d+\. (.*(?:\n   .*)*)", section, re.MULTILINE)
    return [link for step in steps for link in re.findall(r"\]\(\.\./\.\./([\w/.]+\.py)\)", step)]


class Entered:
    """The files of the project that control passes through, in order: entered by a call, or again by a return."""

    def __init__(self) -> None:
        self.files: list[str] = []

    def __enter__(self) -> Entered:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: Any, event: str, _: Any) -> None:
        here = frame if event == "call" else frame.f_back if event == "return" else None
        if here is None or not here.f_code.co_filename.startswith(str(ROOT)):
            return
        file = Path(here.f_code.co_filename).relative_to(ROOT).as_posix()
        if not file.startswith(("tests/", ".venv/")) and self.files[-1:] != [file]:
            self.files.append(file)


def assert_in_order(wanted: list[str], seen: list[str]) -> None:
    """`wanted` is part of `seen`, in its order."""
    rest = iter(seen)
    for place, file in enumerate(wanted):
        assert file in rest, f"{file} (number {place + 1} of the walk) was not entered after {wanted[:place]}"


def test_the_walks_through_the_code_are_those_that_control_takes(
    tiny_wan_random: Tiny, fresh_catalogue: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spec from `enable` to its vote; and one latent from the pipeline to a reuse and back."""
    tiny, reused = tiny_wan_random, Entered()
    with Entered() as enabling:
        session = enable(tiny.pipe, "easycache:threshold=10,first_steps=2")
    hooked = tiny.pipe.transformer.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        if len(session.records) != 5:  # the sixth call, of a step that is reused
            return hooked(*args, **kwargs)
        with reused:
            return hooked(*args, **kwargs)

    with session, monkeypatch.context() as patch:
        patch.setattr(tiny.pipe.transformer, "forward", watched)
        tiny.run(**tiny.unguided)
    assert session.records[5].outcome.reused
    assert_in_order(walk("A latent, from the pipeline to a reuse and back"), reused.files)
    assert_in_order(walk("A spec, from `enable` to its vote"), [*enabling.files, *reused.files])
    rooms = [file.split("/")[1] for file in walk("A latent, from the pipeline to a reuse and back")]
    assert [room for room, _ in itertools.groupby(rooms)] == ["host", "core", "host"]


def test_the_pages_are_all_there() -> None:
    """A page that nobody tests is a page that lies."""
    assert {page for page in PAGES if page.parent == GUIDE} == set(GUIDE.glob("*.md"))

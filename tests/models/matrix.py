"""The page of what is supported, generated: every denoiser class and every pipeline, a cell at a time.

`python -m tests.models.matrix > examples/guide/support.md` writes it, on one thread in some minutes. Progress goes to
stderr. Interrupted, it goes on where it stopped: what is done is kept in the system's temporary folder, under the
contents of all that a cell depends on.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import field, frozen
from torch import Tensor

from mixcache import MixcacheError
from tests.models import piped, support
from tests.models.support import STEPS, Case, Cell, leaves, noted, same, truth
from tests.zoo.denoisers import BUILT
from tests.zoo.denoisers import NOT_BUILT as NO_CLASS
from tests.zoo.every import PIPELINES
from tests.zoo.tiny import Tiny

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "examples" / "guide" / "support.md"
COMMAND = "python -m tests.models.matrix > examples/guide/support.md"
DEPENDS_ON = ("mixcache", "models", "policies", "tests/zoo", "tests/models/support.py", "tests/models/piped.py")

COLUMNS = {
    "exact": "A policy that never reuses changes no bit; every call was followed, and the run is as long as told.",
    "step": "A reused step repeats a computed output, to the bit in basis `output`; the default basis reuses too.",
    "default": "An adaptive policy (`easycache`) decides; computed calls are the model's to the bit, others held ones.",
    "noise": "In basis `noise` the solver goes on with the noise that the last computed step implied.",
    "cfg": "Guidance branches stay as far from the conditional one as they were, and that one is what the model gives.",
    "block": "Spans of blocks: exact where nothing is reused, and a span is passed over.",
    "restored": "After enabling, running and disabling, nothing is left on model and noise scheduler.",
    "step, bfloat16": "As `step`, with the model in bfloat16; in a loop of one's own.",
    "block, bfloat16": "As `block`, with the model in bfloat16; in a loop of one's own.",
}
"""The columns of the page, and what a cell of each means."""

OWN_LOOP = {
    "exact": "exact",
    "step": "step",
    "block": "blocks",
    "restored": "restored",
    "step, bfloat16": "step in bfloat16",
    "block, bfloat16": "blocks in bfloat16",
}
"""The columns that `support.CELLS` checks in a loop of one's own, with their names there; `default` is checked here."""

UNCHECKED = "reused; the noise could not be worked out beside it"

OUT_OF_ONE = "embedded, off, or makes no second branch"
NOT_CACHED = r"calls were computed and not cached: \w+"
NOTES: tuple[tuple[str, str | None], ...] = (
    (
        rf"{NOT_CACHED} returned what is no tensor or list of equal ones \([\w, ]*\); use policies at 'block'",
        "returns more than tensors",
    ),
    (rf"{NOT_CACHED}: what it returned is no tensor", "returns more than tensors"),
    (rf"{NOT_CACHED}: its latent was not found among the arguments; pass \S+ \S+\)", "its latent was not found"),
    (
        r"guidance branches were not skipped: the conditional samples computed alone are not what the whole batch "
        r"gives \((?:the model fails on them: \w+: .*?|they are off by [\d.e+-]+)\)(?=;|$)",
        "conditional samples give something else alone",
    ),
    (
        r"guidance branches were not skipped: what the noise scheduler was given is no combination of them that is "
        r"known, so nothing tells which of them is the conditional one; use policies at 'step' or 'block'",
        "combines its branches in an unknown way",
    ),
    (
        r"nothing was reused in a basis that needs noise levels: the first step that the noise scheduler took is not "
        r"the one that its noise levels imply\. It draws fresh noise, or what the model returns is combined in a way "
        r"that is not known; use basis='residual' or 'output', or a deterministic noise scheduler",
        "its solver steps otherwise than its noise levels imply",
    ),
    (r"raised: basis='noise' needs the noise level of every step, and this run has none: .*", "noise levels unknown"),
    (r"spans of blocks were not skipped: .*? Use policies at 'step' or 'cfg'\.", "no block hands on to the next"),
    (r"several outputs, of which a step shows one", "several outputs, of which a step shows one"),
    (r"returns what is no tensor", "returns more than tensors"),
    (r"its blocks hand on to nobody", "no block hands on to the next"),
    (rf"{NOT_CACHED}: it returned more than one tensor, and nothing showed what output \d+ is", "an unknown output"),
    (rf"{NOT_CACHED} returned something else than before: tensors of \([\d, ]+\)", "outputs of changing form"),
    (rf"'\w+' decided nothing at 'cfg': the model's guidance is {OUT_OF_ONE}", "no second branch"),
    (r"(?:static: first \d+ steps|static: last \d+ steps) \(\d+ visits\)", "runs of too few steps"),
    (r"'\w+' decided nothing at '\w+'", None),
    (r"nothing was reused in a run of \d+ evaluations:", None),
    (r"static: [^;(]*\(\d+ visits\)", None),
    (r"(?:no history|singular basis) to reuse", None),
    (r"something enters \w+ before block [\d, ]+; spans end there", None),
)
"""Parts of what mixcache gives as reasons, the weightiest first: a pattern, and what the page says in short; `None` for
what says nothing without another."""


@frozen
class Found:
    """What came of a class or pipeline. models: the classes of its denoisers. seconds: how long it took."""

    cells: dict[str, Cell]
    models: tuple[str, ...] = ()
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        cells = {column: [cell.verdict, cell.why] for column, cell in self.cells.items()}
        return {"cells": cells, "models": self.models, "seconds": self.seconds}

    @classmethod
    def of(cls, kept: dict[str, Any]) -> Found:
        return cls({c: Cell(*cell) for c, cell in kept["cells"].items()}, tuple(kept["models"]), kept["seconds"])


Everything = dict[str, dict[str, Found]]
"""By "class" or "pipeline", then by name."""


# what is checked here


def default(case: Case) -> Cell:
    """An adaptive policy in a loop of one's own: whatever it computes is what the model gives, and all is finite."""
    session, latents, results = case.cached(piped.DEFAULT, form=False)
    if refused := noted(session, case):
        return refused
    assert session.report().visits, "no step was visited"
    assert all(tensor.isfinite().all() for tensor in leaves(results))
    more = {"return_dict": False} if "return_dict" in support.parameters(case) else {}
    computed = [r.point.step for r in session.records if r.point.path == "step" and not r.outcome.reused]
    assert computed[:2] == [0, 1]
    for i in computed:
        with torch.no_grad():
            same([results[i]], [case.model(**{**case.arguments, case.latent: latents[i], **more})])
    return Cell("works")


def has_branches(tiny: Tiny) -> bool:
    """Whether one image takes fewer calls or rows of a model where guidance is off; else, several of them at a step.

    Counted beside mixcache, from the calls and from the steps of the noise scheduler.
    """

    def outputs(**changes: Any) -> list[list[Tensor]]:
        with piped.seeing(tiny.pipe) as seen:
            tiny.run(**changes)
        return [given for model, _, _, given in seen.calls if type(model).__name__ in BUILT]

    def size(calls: list[list[Tensor]]) -> tuple[int, int]:
        return len(calls), sum(one.numel() for call in calls for one in call)

    def samples(call: list[Tensor]) -> int:
        listed = len(call) > 1 and len({one.shape for one in call}) == 1
        return len(call) if listed else call[0].shape[0]

    with piped.stepping(tiny.pipe) as steps:
        calls = outputs()
    if tiny.unguided and any(more > less for more, less in zip(size(calls), size(outputs(**tiny.unguided)))):
        return True
    return len(calls) > max(len(steps), 1) or max(map(samples, calls)) > 1


# running


def attempt(check: Callable[[], Cell]) -> Cell:
    """The cell, or what went wrong: a page that stops at the first failure tells nothing of the rest."""
    try:
        return check()
    except Exception as error:
        return Cell("WRONG", f"{type(error).__name__}: {error}".splitlines()[0][:300])  # type: ignore[arg-type]


def of_class(name: str) -> Found:
    """A class in a loop of one's own."""

    def adaptive() -> Cell:
        case = Case.of(name)
        try:
            return default(case)
        except MixcacheError as error:
            return Cell("refused", truth(error, case))

    began = time.monotonic()
    cells = {column: attempt(lambda at=at: support.check(name, at)) for column, at in OWN_LOOP.items()}  # type: ignore[misc]
    return Found({**cells, "default": attempt(adaptive)}, (name,), time.monotonic() - began)


def of_pipeline(name: str) -> Found:
    """A pipeline, as it is called."""
    began = time.monotonic()
    cells = {column: attempt(lambda column=column: piped.check(name, column)) for column in piped.CELLS}  # type: ignore[misc]
    tiny = PIPELINES[name]()
    branches = has_branches(tiny)
    if cells["cfg"].verdict == "refused" and not branches:
        cells["cfg"] = Cell("not applicable")
    elif cells["cfg"].verdict == "works" and not branches:
        cells["cfg"] = Cell("WRONG", "branches are said to be rebuilt, and there are none")  # type: ignore[arg-type]
    kinds = dict.fromkeys(type(model).__name__ for model in piped.denoisers(tiny.pipe).values())
    return Found(cells, tuple(kind for kind in kinds if kind in BUILT), time.monotonic() - began)


RUN: dict[str, tuple[Sequence[str], Callable[[str], Found]]] = {
    "class": (tuple(BUILT), of_class),
    "pipeline": (tuple(PIPELINES), of_pipeline),
}


def digest() -> str:
    """Of the contents of all that a cell depends on."""
    total = hashlib.blake2b(digest_size=8)
    files = [file for at in DEPENDS_ON for file in ([ROOT / at] if at.endswith(".py") else (ROOT / at).rglob("*.py"))]
    for file in sorted(files):
        total.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    for own in (default, has_branches, of_class, of_pipeline):
        total.update(inspect.getsource(own).encode())
    total.update(repr(versions()).encode())
    return total.hexdigest()


@frozen
class Kept:
    """What is done, in a file: so that an interrupted run goes on where it stopped."""

    file: Path
    done: dict[str, dict[str, Any]] = field(factory=dict)

    @classmethod
    def at(cls, file: Path) -> Kept:
        return cls(file, json.loads(file.read_text(encoding="utf-8")) if file.exists() else {})

    def add(self, key: str, found: Found) -> None:
        self.done[key] = found.to_json()
        beside = self.file.with_suffix(".part")
        beside.write_text(json.dumps(self.done), encoding="utf-8")
        beside.replace(self.file)


def everything(kept: Kept, tell: Callable[[str], None] = lambda line: None) -> Everything:
    """All cells; those that are kept are not checked again, unless they were wrong."""
    jobs = [(kind, name) for kind, (names, _) in RUN.items() for name in names]
    found: Everything = {kind: {} for kind in RUN}
    spent = {kind: [0.0, 0] for kind in RUN}
    guess = {"class": 0.8, "pipeline": 2.5}
    for i, (kind, name) in enumerate(jobs):
        key = f"{kind} {name}"
        old = kept.done.get(key)
        if old is None or any(verdict == "WRONG" for verdict, _ in old["cells"].values()):
            each = {k: total / count if count else guess[k] for k, (total, count) in spent.items()}
            left = sum(each[k] for k, n in jobs[i:] if f"{k} {n}" not in kept.done)
            tell(f"{i} of {len(jobs)}, about {left / 60:.1f} min left: {key}")
            kept.add(key, RUN[kind][1](name))
        found[kind][name] = one = Found.of(kept.done[key])
        spent[kind] = [spent[kind][0] + one.seconds, spent[kind][1] + 1]
    tell(f"{len(jobs)} of {len(jobs)}")
    return found


# the page


def short(why: str) -> str:
    """What a reason comes to. Raises `ValueError` for one of which any part is not known here."""
    rest, found = why, []
    for pattern, said in NOTES:
        rest, count = re.subn(pattern, "", rest)
        found += [said] if count and said else []
    if unknown := rest.strip("; ,"):
        raise ValueError(f"a reason that nobody shortened: {unknown!r}, in {why!r}")
    if not found:
        raise ValueError(f"no reason at all: {why!r}")
    return str(found[0])


def shown(cell: Cell | None) -> str:
    """A cell of the tables."""
    if cell is None or cell.verdict == "not applicable":
        return "-"
    if cell.verdict == "refused":
        return f"refused: {short(cell.why)}"
    if cell.verdict == "works":
        return "works, unchecked" if cell.why == UNCHECKED else "works"
    return f"{cell.verdict}: {cell.why}".replace("|", "/")


def merged(own: str, others: Sequence[str]) -> str:
    """A class's cell, of that in a loop of one's own and those of its pipelines."""
    for verdict in ("WRONG", "works"):
        if found := [cell for cell in others if cell.startswith(verdict)]:
            return min(found, key=len)
        if own.startswith(verdict):
            return f"{own}, own loop" if others and verdict == "works" else own
    refused = [cell for cell in [*others, own] if cell != "-"]
    return Counter(refused).most_common(1)[0][0] if refused else "-"


def rows(found: Everything) -> tuple[dict[str, tuple[list[str], list[str]]], dict[str, tuple[list[str], list[str]]]]:
    """By class and by pipeline: what stands beside the name, and the cells."""
    by_pipeline = {
        name: (list(one.models), [shown(one.cells.get(column)) for column in COLUMNS])
        for name, one in found["pipeline"].items()
    }
    by_class = {}
    for name, one in found["class"].items():
        its = [pipe for pipe, (models, _) in by_pipeline.items() if name in models]
        cells = []
        for i, column in enumerate(COLUMNS):
            others = [by_pipeline[pipe][1][i] for pipe in its if column in piped.CELLS]
            cells.append(merged(shown(one.cells.get(column)), others))
        by_class[name] = its, cells
    return by_class, by_pipeline


def summary(*tables: dict[str, tuple[list[str], list[str]]]) -> list[str]:
    """The counts of every column, for each table: works, refused, does not apply, and wrong if anything is."""
    lines = []
    for i, column in enumerate(COLUMNS):
        counts = []
        for table in tables:
            verdicts = Counter(re.split("[:,]", cells[i])[0] for _, cells in table.values())
            own = sum(cells[i] == "works, own loop" for _, cells in table.values())
            counts += [f"{verdicts['works']}" + (f" ({own} in an own loop alone)" if own else "")]
            counts += [str(verdicts["refused"]), str(verdicts["-"])]
            if verdicts["WRONG"]:
                counts[-1] += f", and {verdicts['WRONG']} WRONG"
        lines.append(line(column, *counts))
    return lines


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def table(*head: str) -> list[str]:
    return [line(*head), f"|{'---|' * len(head)}"]


def versions() -> dict[str, str]:
    """Of what the cells depend on."""
    found = {name: metadata.version(name).split("+")[0] for name in ("mixcache", "diffusers", "torch")}
    return {**found, "Python": platform.python_version()}


def page(found: Everything) -> str:
    """The page in Markdown."""
    by_class, by_pipeline = rows(found)
    from tests.models.test_every_pipeline import NOT_BUILT as NO_PIPELINE

    with_versions = ", ".join(f"{name} {version}" for name, version in versions().items())
    steps = attrs.fields(Tiny).steps.default
    unchecked = sum(cell == "works, unchecked" for _, cells in by_pipeline.values() for cell in cells)
    lines = [
        "# What is supported",
        "",
        "This page is generated, never written by hand:",
        "",
        "```sh",
        COMMAND,
        "```",
        "",
        f"It was made with {with_versions}, on a CPU.",
        "A test makes it again and compares.",
        f"Every denoiser class of diffusers ({len(by_class)}) runs {STEPS} steps in a loop of one's own, with nothing",
        f"told about it. Every pipeline ({len(by_pipeline)}, ways of calling one included) is asked for {steps} steps,",
        "as its users call it, with its own noise scheduler. All models are tiny and have random weights, so the page",
        "says where mixcache works, not how well.",
        "",
        "- `works`: the check of the column passed. `works, own loop`: in a loop of one's own, not in its pipelines.",
        f"  `works, unchecked`: {UNCHECKED} ({unchecked} of them).",
        "- `refused`: nothing is reused there. mixcache gives the reason, in the report's notes; it is shortened",
        "  here. In a loop of one's own the model is asked whether it is true.",
        "- `-`: does not apply. `cfg` does not where one image takes one call with one row a step, counted without",
        "  mixcache: guidance is embedded or off there. bfloat16 does not where the model alone fails in it.",
        "",
        "A class works where it does in any of its pipelines, or in a loop of one's own.",
        "",
        *table("column", "what is checked"),
        *(line(column, meaning) for column, meaning in COLUMNS.items()),
        "",
        "## Summary",
        "",
        *table(
            "column",
            *(f"{by}: {what}" for by in ("classes", "pipelines") for what in ("works", "refused", "does not apply")),
        ),
        *summary(by_class, by_pipeline),
        "",
        "## By class",
        "",
        *table("class", "pipelines", *COLUMNS),
        *(line(name, ", ".join(its) or "-", *cells) for name, (its, cells) in by_class.items()),
        "",
        *(f"Left out: {name}, which {why}." for name, why in NO_CLASS.items()),
        "",
        "## By pipeline",
        "",
        *table("pipeline", "classes", *piped_columns()),
        *(
            line(name, ", ".join(models), *(cells[i] for i, column in enumerate(COLUMNS) if column in piped.CELLS))
            for name, (models, cells) in by_pipeline.items()
        ),
        "",
        "Left out:",
        "",
        *(f"- {name}: {why}." for name, why in NO_PIPELINE.items()),
    ]
    return "\n".join(lines)


def piped_columns() -> list[str]:
    return [column for column in COLUMNS if column in piped.CELLS]


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Print the page. The exit status says whether nothing is wrong."""
    torch.set_num_threads(1)
    file = Path(tempfile.gettempdir()) / f"mixcache-support-{digest()}.json"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            text = page(everything(Kept.at(file), tell))
    except KeyboardInterrupt:
        tell(f"interrupted; the same command goes on from here, with what is kept in {file}")
        return 130
    print(text)
    wrong = [one for one in text.splitlines() if "WRONG" in one]
    tell("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

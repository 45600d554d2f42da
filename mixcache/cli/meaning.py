"""What a plugin's docstring says about its parameters.

A parameter is explained by "threshold: ..." in a paragraph, several by "first_blocks, last_blocks: ..."; or else by a
sentence that names it in backquotes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from mixcache.core import catalogue

_LONGEST = 240  # characters of a sentence that explains a parameter by the way


def meanings(kind: type[Any]) -> dict[str, str]:
    """The meaning of each parameter of a class, as far as its docstring, or that of a base, tells it."""
    parameters = catalogue.parameters(kind)
    found = {name: parameter.metadata["help"] for name, parameter in parameters.items() if "help" in parameter.metadata}
    for base in kind.__mro__:
        text = inspect.cleandoc(vars(base).get("__doc__") or "")
        own: dict[str, str] = {}
        for names, meaning in _labelled(text, list(parameters)):
            own.update(dict.fromkeys(names, meaning))
        for sentence in sorted(_sentences(text), key=len):
            if len(sentence) <= _LONGEST:
                for name in re.findall(r"`(\w+)`", sentence):
                    own.setdefault(name, sentence)
        found = {**{name: meaning for name, meaning in own.items() if name in parameters}, **found}
    return found


def prose(kind: type[Any]) -> str:
    """A class's docstring without the paragraphs that explain its parameters."""
    names = list(catalogue.parameters(kind))
    paragraphs = (inspect.getdoc(kind) or "").split("\n\n")
    return "\n\n".join(p for p in paragraphs if not any(re.match(rf"{name}(, \w+)*: ", p) for name in names))


def _labelled(text: str, names: list[str]) -> Iterator[tuple[list[str], str]]:
    """(["threshold", "longest_run"], "what they mean.") from "threshold, longest_run: what they mean."."""
    one = "|".join(names)
    label = re.compile(rf"(?:^|(?<=[.;)] ))((?:{one})(?:, (?:{one}))*): ")
    for paragraph in text.split("\n\n") if names else ():
        line = " ".join(paragraph.split())
        marks = list(label.finditer(line))
        for mark, following in zip(marks, [*marks[1:], None]):
            end = len(line) if following is None else following.start()
            yield mark[1].split(", "), line[mark.end() : end].strip().rstrip(";")


def _sentences(text: str) -> list[str]:
    lines = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return [sentence for line in lines for sentence in re.split(r"(?<=[.;]) (?=[A-Z`])", line)]

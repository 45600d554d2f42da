"""The folders of the embedded models."""

from __future__ import annotations

from pathlib import Path


def prompts(model: Path, name: str) -> tuple[str, ...]:
    """The non-empty lines of ``prompts/<name>.txt`` in the folder of a model."""
    lines = (model / "prompts" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip())

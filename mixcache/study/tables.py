"""Calibration tables written to files."""

from __future__ import annotations

import json
import re
from pathlib import Path

from mixcache.core.files import write_whole
from mixcache.core.tables import SCHEMA, Calibration
from mixcache.errors import ConfigurationError


def save_calibration(path: str | Path, calibration: Calibration) -> None:
    """Write a calibration, replacing what was there; a reader finds the old file or the new one, never half of it."""
    fields = {
        "schema": SCHEMA,
        "policy": calibration.policy,
        "source": calibration.source,
        "match": dict(calibration.match),
        "values": dict(calibration.values),
    }
    try:
        text = json.dumps(fields, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"cannot write table {path}: {error}; values must be plain finite numbers.") from error
    write_whole(path, _in_rows(text) + "\n")


def _in_rows(text: str) -> str:
    """Lists without lists inside on one line: indented JSON gives every number a line of its own."""

    def join(found: re.Match[str]) -> str:
        return "[" + re.sub(r"\n\s+", " ", found[1]) + "]"

    return re.sub(r"\[\n\s+([^\[\]{}]*?)\n\s*\]", join, text)

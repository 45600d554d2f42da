"""Files that are written whole, or grow by whole lines: a reader never finds half of what was written."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mixcache.errors import ConfigurationError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path beside `path`, with its suffix, to write to; what was written there takes the place of `path` at the end.

    If the block raises, `path` stays as it was and nothing is left beside it. An `OSError` becomes a
    `ConfigurationError` that names the file.
    """
    target = Path(path)
    partial = target.with_name(f".{target.stem}.{secrets.token_hex(4)}.partial{target.suffix}")
    try:
        yield partial
        os.replace(partial, target)
    except OSError as error:
        raise ConfigurationError(f"cannot write {target}: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            partial.unlink()


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write text (as UTF-8) or bytes, replacing what was there. Raises `ConfigurationError` if it cannot be written."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file: it is on the disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file of `append_line`, none if there is no file; a last one that was cut short is taken off it."""
    content = path.read_bytes() if path.is_file() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return whole.splitlines()

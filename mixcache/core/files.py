"""Files that are written whole: a reader finds the old file or the new one, never half of either."""

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

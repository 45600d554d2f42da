"""Writing a file whole: the old one or the new one, and nothing beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixcache import ConfigurationError
from mixcache.core.files import replacing, write_whole


@pytest.mark.parametrize("content", ["käse\n", b"\x00\xff\r\n", ""])
def test_a_file_holds_what_was_written_and_is_alone(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    write_whole(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_fails_half_way_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def half() -> None:
        with replacing(path) as partial:
            partial.write_text("ne")
            raise error

    with pytest.raises(error):
        half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("where", ["nowhere/file.txt", "taken/file.txt"])
def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path, where: str) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(ConfigurationError, match=rf"cannot write {tmp_path / where}: "):
        write_whole(tmp_path / where, "text")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigurationError, match="cannot write"):
        write_whole(tmp_path / "folder", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]

"""The rooms `bench` and `study` as a program imports them: every public name is there, and loaded when it is used."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from types import ModuleType

import pytest

from mixcache import bench, study

ROOMS = pytest.mark.parametrize("room", [bench, study], ids=lambda room: room.__name__)


@ROOMS
def test_every_public_name_is_there_and_documented(room: ModuleType) -> None:
    for name in room.__all__:
        value = getattr(room, name)
        assert not inspect.ismodule(value), f"{name} is hidden by a file of its name"
        assert (inspect.getdoc(value) or "").strip(), name
    assert room.__all__ == sorted(room.__all__) == sorted(set(dir(room)))
    with pytest.raises(AttributeError, match=f"module '{room.__name__}' has no attribute 'nothing'"):
        room.nothing  # noqa: B018


@ROOMS
def test_type_checkers_see_the_same_names(room: ModuleType) -> None:
    (block,) = [node for node in ast.parse(inspect.getsource(room)).body if isinstance(node, ast.If)]
    told = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert sorted(told) == room.__all__
    for name, module in told.items():
        assert getattr(sys.modules[str(module)], name) is getattr(room, name)


@ROOMS
def test_importing_a_room_loads_nothing_heavy(room: ModuleType) -> None:
    code = f"import sys, {room.__name__}; print({{'torch', 'numpy', 'diffusers', 'skimage'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"

"""The layout of the code: who imports whom, what is documented, and that every hook is known to a test."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import typing
from pathlib import Path

import pluggy
import pytest

import mixcache
from mixcache import catalogue
from mixcache.core import hookspecs
from mixcache.core.loop import Loop

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "mixcache": ROOT / "mixcache",
    "mixcache_policies": ROOT / "policies" / "mixcache_policies",
    "mixcache_models": ROOT / "models" / "mixcache_models",
}
ROOMS = {"mixcache", "mixcache.catalogue", "mixcache.testing", "mixcache.bench", "mixcache.study"}
"""The modules of mixcache that others import from."""


def imports(path: Path, *, typing_too: bool = False) -> list[tuple[str, str]]:
    """(module, name) of every import of a file; the name is empty for `import module`."""

    def walk(node: ast.AST) -> list[tuple[str, str]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not typing_too:
            return []
        if isinstance(node, ast.Import):
            return [(alias.name, "") for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            return [(node.module or "", alias.name) for alias in node.names]
        return [found for child in ast.iter_child_nodes(node) for found in walk(child)]

    return walk(ast.parse(path.read_text()))


def files(package: str) -> list[Path]:
    return sorted(PACKAGES[package].rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_in_one_direction(package: str) -> None:
    """The two plugin packages import mixcache, which imports neither; nor do they import each other."""
    others = set(PACKAGES) - {package} - ({"mixcache"} if package != "mixcache" else set())
    for path in files(package):
        found = {module.split(".")[0] for module, _ in imports(path, typing_too=True)}
        assert not found & others, path


@pytest.mark.parametrize("package", ["mixcache_policies", "mixcache_models"])
def test_plugins_use_public_names_alone(package: str) -> None:
    for path in files(package):
        for module, name in imports(path, typing_too=True):
            if module.split(".")[0] == "mixcache":
                assert module in ROOMS, f"{path}: {module} is no public module"
                public = importlib.import_module(module).__all__
                assert name in public or f"{module}.{name}" in ROOMS, f"{path}: {module}.{name} is not public"


def test_one_file_alone_knows_the_hooks_of_diffusers() -> None:
    knows = {
        path.name
        for package in PACKAGES
        for path in files(package)
        if any("hooks" in module or name.endswith(("Hook", "HookRegistry")) for module, name in imports(path))
        if any(module.startswith("diffusers") for module, _ in imports(path))
    }
    assert knows == {"patch.py"}


def test_testing_alone_needs_hypothesis() -> None:
    needs = {p.name for package in PACKAGES for p in files(package) if any("hypothesis" in m for m, _ in imports(p))}
    assert needs == {"testing.py"}


def test_the_loop_is_short() -> None:
    for function in (Loop.open, Loop.close):
        assert len(inspect.getsource(function).splitlines()) < 40


@pytest.mark.parametrize("package", ["mixcache", "mixcache_policies"])
def test_files_and_functions_are_short(package: str) -> None:
    for path in files(package):
        assert len(path.read_text().splitlines()) <= 300, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno < 70, f"{path}: {node.name}"  # type: ignore[operator]


# documentation


def hooks() -> list[str]:
    return [name for name, value in vars(hookspecs).items() if name.startswith("mixcache_") and callable(value)]


@pytest.mark.parametrize("name", hooks())
def test_every_hook_is_documented(name: str) -> None:
    assert len(inspect.getdoc(getattr(hookspecs, name)) or "") > 20


@pytest.mark.parametrize("name", hooks())
def test_every_hook_has_a_test(name: str) -> None:
    """tests/core/test_hooks.py has a test named after it."""
    tests = importlib.import_module("tests.core.test_hooks")
    assert any(name in test for test in vars(tests) if test.startswith("test_")), f"no test_{name} in test_hooks.py"


def test_all_hooks_are_specified() -> None:
    manager = catalogue.new_manager()
    specified = {name for name in dir(manager.hook) if name.startswith("mixcache_")}
    assert specified == set(hooks())
    assert isinstance(manager, pluggy.PluginManager)


@pytest.mark.parametrize("name", mixcache.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    value = getattr(mixcache, name)
    if typing.get_origin(value) is not None:  # an alias, documented where it stands
        return
    if name != "hookimpl":
        assert (value.__doc__ or "").strip(), name
        assert not value.__doc__.startswith("Method generated by attrs"), name
    for method, member in vars(value).items() if inspect.isclass(value) else ():
        if not method.startswith("_") and inspect.isfunction(member) and value.__module__.startswith("mixcache"):
            documented = inspect.getdoc(member) or any(
                inspect.getdoc(getattr(base, method, None)) for base in value.__mro__
            )
            assert documented, f"{name}.{method}"


def test_all_lists_what_there_is() -> None:
    assert sorted(mixcache.__all__) == sorted(set(mixcache.__all__))
    for name in mixcache.__all__:
        assert hasattr(mixcache, name)


def test_every_module_is_documented() -> None:
    for package, folder in PACKAGES.items():
        for info in pkgutil.walk_packages([str(folder)], f"{package}."):
            path = folder / (info.name.removeprefix(f"{package}.").replace(".", "/") + ".py")
            if path.exists():
                assert ast.get_docstring(ast.parse(path.read_text())), path


@pytest.mark.parametrize("kind", catalogue.KINDS)
def test_everything_offered_has_a_summary(kind: str) -> None:
    """Classes and rules have a docstring of their own, records a line."""
    for name, offered in catalogue.table(kind).items():
        if kind == "model":
            continue  # its class says what it is
        told = (
            vars(offered).get("__doc__") if inspect.isclass(offered) else getattr(offered, "summary", offered.__doc__)
        )
        assert (told or "").strip(), f"{kind} {name}"
        assert not told.startswith("Method generated by attrs"), f"{kind} {name}"


def test_nothing_that_is_read_can_run() -> None:
    """No pickle, no eval: traces, settings, tables and weights are data."""
    for package in PACKAGES:
        for path in files(package):
            modules = {module.split(".")[0] for module, _ in imports(path)}
            assert not modules & {"pickle", "dill", "shelve", "marshal", "yaml"}, path
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    assert node.func.id not in ("eval", "exec", "compile", "__import__"), path
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                    assert "weights_only=True" in ast.unparse(node), path

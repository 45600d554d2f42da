"""The libraries of the extra `bench`: imported where they are used, with one clear error where they are missing."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from mixcache.errors import ConfigurationError

LIBRARIES = {
    "accelerate": "accelerate",
    "ftfy": "ftfy",
    "imageio": "imageio",
    "imageio_ffmpeg": "imageio-ffmpeg",
    "jinja2": "jinja2",
    "matplotlib": "matplotlib",
    "skimage": "scikit-image",
    "transformers": "transformers",
}
"""Modules of the extra, and the names under which they are installed."""


def extra(module: str, needed_by: str) -> Any:
    """Import `module`, such as "matplotlib.figure". Raises `ConfigurationError` if its library is not installed.

    needed_by: what cannot be done without it, as the beginning of a sentence: "the speed/quality plot".
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        if error.name != library:  # it is there, and something that it needs is not
            raise
        raise ConfigurationError(_missing(needed_by, [library])) from error


def check_extras(needed_by: str, *modules: str) -> None:
    """Raise `ConfigurationError` if any of these libraries (of all, if none is named) is not installed.

    To be called before a long measurement, so that it does not fail when its pictures are drawn.
    """
    missing = [module for module in modules or LIBRARIES if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigurationError(_missing(needed_by, missing))


def _missing(needed_by: str, modules: list[str]) -> str:
    names = ", ".join(LIBRARIES.get(module, module) for module in modules)
    return f"{needed_by} needs {names}: pip install 'mixcache[bench]'"

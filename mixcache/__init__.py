"""Caching for diffusion-transformer inference: policies vote, forecasters rebuild, every error is measured.

Everything public can be imported from here. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_FROM = {
    "mixcache.errors": (
        "AttachError ConfigurationError MixcacheError NothingReusedWarning PluginError RunError TraceError "
        "TunedElsewhereWarning UnknownNameError"
    ),
    "mixcache.core.points": (
        "Address Granularity NoiseLevel Outcome Point Reading RunInfo Verdict Vote parse_granularity"
    ),
    "mixcache.core.policy": "Policy",
    "mixcache.core.validators": "ge gt none_or one_of tunable",
    "mixcache.core.tables": "Calibration Calibrations Fit load_calibration nearest resample",
    "mixcache.core.hooks": "hookimpl",
    "mixcache.core.streams": "Beside Input Streams Value",
    "mixcache.core.basis": "Basis",
    "mixcache.core.anchors": "Anchor",
    "mixcache.core.forecast.base": "Entry Forecaster combine",
    "mixcache.core.signals": "SideInput Signal Tensors relative_change",
    "mixcache.core.rules": "Rule",
    "mixcache.core.trace": "Header Record Trace",
    "mixcache.core.report": "Report",
    "mixcache.core.catalogue": "register unregister",
    "mixcache.host.adapter": "ModelAdapter PipelineFolder",
    "mixcache.host.rows": "BlockList",
    "mixcache.host.sites": "Scene",
    "mixcache.host.bounds": "Bound",
    "mixcache.host.own_loop": "Run",
    "mixcache.recipe": "Recipe",
    "mixcache.session": "Session enable",
    "mixcache.study.tables": "save_calibration",
}
"""Public names by the module that defines them."""

_ROOMS = {
    "bench": "mixcache.bench",
    "catalogue": "mixcache.core.catalogue",
    "study": "mixcache.study",
    "trace": "mixcache.core.trace",
}
_HOME = {name: module for module, names in _FROM.items() for name in names.split()}

__all__ = sorted([*_HOME, "parse"])

if TYPE_CHECKING:
    from mixcache.core.anchors import Anchor as Anchor
    from mixcache.core.basis import Basis as Basis
    from mixcache.core.catalogue import register as register
    from mixcache.core.catalogue import unregister as unregister
    from mixcache.core.forecast.base import Entry as Entry
    from mixcache.core.forecast.base import Forecaster as Forecaster
    from mixcache.core.forecast.base import combine as combine
    from mixcache.core.hooks import hookimpl as hookimpl
    from mixcache.core.points import Address as Address
    from mixcache.core.points import Granularity as Granularity
    from mixcache.core.points import NoiseLevel as NoiseLevel
    from mixcache.core.points import Outcome as Outcome
    from mixcache.core.points import Point as Point
    from mixcache.core.points import Reading as Reading
    from mixcache.core.points import RunInfo as RunInfo
    from mixcache.core.points import Verdict as Verdict
    from mixcache.core.points import Vote as Vote
    from mixcache.core.points import parse_granularity as parse_granularity
    from mixcache.core.policy import Policy as Policy
    from mixcache.core.report import Report as Report
    from mixcache.core.rules import Rule as Rule
    from mixcache.core.signals import SideInput as SideInput
    from mixcache.core.signals import Signal as Signal
    from mixcache.core.signals import Tensors as Tensors
    from mixcache.core.signals import relative_change as relative_change
    from mixcache.core.streams import Beside as Beside
    from mixcache.core.streams import Input as Input
    from mixcache.core.streams import Streams as Streams
    from mixcache.core.streams import Value as Value
    from mixcache.core.tables import Calibration as Calibration
    from mixcache.core.tables import Calibrations as Calibrations
    from mixcache.core.tables import Fit as Fit
    from mixcache.core.tables import load_calibration as load_calibration
    from mixcache.core.tables import nearest as nearest
    from mixcache.core.tables import resample as resample
    from mixcache.core.trace import Header as Header
    from mixcache.core.trace import Record as Record
    from mixcache.core.trace import Trace as Trace
    from mixcache.core.validators import ge as ge
    from mixcache.core.validators import gt as gt
    from mixcache.core.validators import none_or as none_or
    from mixcache.core.validators import one_of as one_of
    from mixcache.core.validators import tunable as tunable
    from mixcache.errors import AttachError as AttachError
    from mixcache.errors import ConfigurationError as ConfigurationError
    from mixcache.errors import MixcacheError as MixcacheError
    from mixcache.errors import NothingReusedWarning as NothingReusedWarning
    from mixcache.errors import PluginError as PluginError
    from mixcache.errors import RunError as RunError
    from mixcache.errors import TraceError as TraceError
    from mixcache.errors import TunedElsewhereWarning as TunedElsewhereWarning
    from mixcache.errors import UnknownNameError as UnknownNameError
    from mixcache.host.adapter import ModelAdapter as ModelAdapter
    from mixcache.host.adapter import PipelineFolder as PipelineFolder
    from mixcache.host.bounds import Bound as Bound
    from mixcache.host.own_loop import Run as Run
    from mixcache.host.rows import BlockList as BlockList
    from mixcache.host.sites import Scene as Scene
    from mixcache.recipe import Recipe as Recipe
    from mixcache.session import Session as Session
    from mixcache.session import enable as enable
    from mixcache.study.tables import save_calibration as save_calibration


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(_ROOMS[name])
    if name == "parse":
        found = importlib.import_module("mixcache.recipe").Recipe.parse
    elif name in _HOME:
        found = getattr(importlib.import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'mixcache' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, *_ROOMS])

"""mixcache: caching for diffusion-transformer inference, with interchangeable policies, bases and forecasters."""

from mixcache.adapter import BlockList, Calibration, ModelAdapter, PipelineFolder
from mixcache.basis import Basis
from mixcache.bounds import Bound
from mixcache.calibration import Calibrations, load_calibration, nearest, resample, save_calibration
from mixcache.errors import (
    AttachError,
    ConfigurationError,
    MixcacheError,
    PluginError,
    RunError,
    TraceError,
    UnknownNameError,
)
from mixcache.forecast import Entry, Forecaster
from mixcache.hookspecs import hookimpl
from mixcache.plugins import register, unregister
from mixcache.points import Granularity, NoiseLevel, Outcome, Point, Reading, RunInfo, Verdict, Vote, parse_granularity
from mixcache.policy import Policy, ge, gt, none_or_ge, one_of
from mixcache.report import Report
from mixcache.runs import Run
from mixcache.session import Session, enable
from mixcache.settings import read_settings
from mixcache.signals import Signal, Tensors

__version__ = "0.1.0"

__all__ = [
    "AttachError",
    "Basis",
    "BlockList",
    "Bound",
    "Calibration",
    "Calibrations",
    "ConfigurationError",
    "Entry",
    "Forecaster",
    "Granularity",
    "MixcacheError",
    "ModelAdapter",
    "NoiseLevel",
    "Outcome",
    "PipelineFolder",
    "PluginError",
    "Point",
    "Policy",
    "Reading",
    "Report",
    "Run",
    "RunError",
    "RunInfo",
    "Session",
    "Signal",
    "Tensors",
    "TraceError",
    "UnknownNameError",
    "Verdict",
    "Vote",
    "enable",
    "ge",
    "gt",
    "hookimpl",
    "load_calibration",
    "nearest",
    "none_or_ge",
    "one_of",
    "parse_granularity",
    "read_settings",
    "register",
    "resample",
    "save_calibration",
    "unregister",
]

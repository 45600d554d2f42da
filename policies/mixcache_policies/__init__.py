"""The policies that come with mixcache, one per file. They use its public API alone."""

from mixcache_policies.adacache import AdaCache
from mixcache_policies.budget import ErrorBudget
from mixcache_policies.bwcache import BWCache
from mixcache_policies.cfg_interval import CFGInterval
from mixcache_policies.dbcache import DBCache
from mixcache_policies.deltadit import DeltaDiT
from mixcache_policies.dicache import DiCache
from mixcache_policies.easycache import EasyCache
from mixcache_policies.fastercache import FasterCache
from mixcache_policies.first_block import FirstBlock
from mixcache_policies.forecasters import Aligned, Scaled, Split
from mixcache_policies.magcache import MagCache
from mixcache_policies.mixcache import MixCache
from mixcache_policies.schedule import Schedule
from mixcache_policies.speca import SpeCa
from mixcache_policies.static import Static
from mixcache_policies.taylorseer import TaylorSeer
from mixcache_policies.teacache import TeaCache
from mixcache_policies.window import Window

__all__ = [
    "AdaCache",
    "Aligned",
    "BWCache",
    "CFGInterval",
    "DBCache",
    "DeltaDiT",
    "DiCache",
    "EasyCache",
    "ErrorBudget",
    "FasterCache",
    "FirstBlock",
    "MagCache",
    "MixCache",
    "Scaled",
    "Schedule",
    "SpeCa",
    "Split",
    "Static",
    "TaylorSeer",
    "TeaCache",
    "Window",
]

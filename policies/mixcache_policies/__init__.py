"""The policies that come with mixcache, one per file. They use its public API alone."""

from mixcache_policies.adacache import AdaCache
from mixcache_policies.budget import ErrorBudget
from mixcache_policies.bwcache import BWCache
from mixcache_policies.cfg_interval import CFGInterval
from mixcache_policies.dbcache import DBCache
from mixcache_policies.deltadit import DeltaDiT
from mixcache_policies.dicache import DiCache
from mixcache_policies.dmd import DMD
from mixcache_policies.easycache import EasyCache
from mixcache_policies.fastercache import FasterCache
from mixcache_policies.first_block import FirstBlock
from mixcache_policies.foca import FoCa
from mixcache_policies.forecasters import Aligned, Scaled, Split
from mixcache_policies.l2p import L2P
from mixcache_policies.magcache import MagCache
from mixcache_policies.mixcache import MixCache
from mixcache_policies.schedule import Schedule
from mixcache_policies.seacache import SeaCache
from mixcache_policies.sencache import SenCache
from mixcache_policies.speca import SpeCa
from mixcache_policies.spectrum import Spectrum
from mixcache_policies.spread import Spread
from mixcache_policies.static import Static
from mixcache_policies.taylorseer import TaylorSeer
from mixcache_policies.teacache import TeaCache
from mixcache_policies.window import Window

__all__ = [
    "DMD",
    "L2P",
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
    "FoCa",
    "MagCache",
    "MixCache",
    "Scaled",
    "Schedule",
    "SeaCache",
    "SenCache",
    "SpeCa",
    "Spectrum",
    "Split",
    "Spread",
    "Static",
    "TaylorSeer",
    "TeaCache",
    "Window",
]

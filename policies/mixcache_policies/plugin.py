"""The plugin that offers these policies to mixcache (entry point `policies` of the group `mixcache`)."""

from __future__ import annotations

from typing import Any

from mixcache import Forecaster, Policy, Signal, hookimpl
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
from mixcache_policies.forecasters import PUBLISHED
from mixcache_policies.l2p import L2P
from mixcache_policies.magcache import MagCache
from mixcache_policies.mixcache import MixCache
from mixcache_policies.schedule import Schedule
from mixcache_policies.seacache import SEA_CHANGE, SeaCache
from mixcache_policies.sencache import DISTANCE, SenCache
from mixcache_policies.speca import SpeCa
from mixcache_policies.spectrum import Spectrum
from mixcache_policies.spread import Spread
from mixcache_policies.static import Static
from mixcache_policies.taylorseer import TaylorSeer
from mixcache_policies.teacache import TeaCache
from mixcache_policies.window import Window


@hookimpl
def mixcache_policies() -> list[type[Policy]]:
    return [
        AdaCache,
        BWCache,
        ErrorBudget,
        CFGInterval,
        Spread,
        DBCache,
        DeltaDiT,
        DiCache,
        EasyCache,
        FasterCache,
        FirstBlock,
        MagCache,
        MixCache,
        Schedule,
        SeaCache,
        SenCache,
        SpeCa,
        Static,
        TaylorSeer,
        TeaCache,
        Window,
    ]


@hookimpl
def mixcache_recipe() -> str:
    return "spread"


@hookimpl
def mixcache_calibrators() -> list[Any]:
    from mixcache_policies.calibrate_l2p import L2P_TABLE  # these load what measures, for `mixcache calibrate` alone
    from mixcache_policies.calibrate_sencache import SENCACHE_TABLE
    from mixcache_policies.calibrators import CALIBRATORS

    return [*CALIBRATORS, L2P_TABLE, SENCACHE_TABLE]


@hookimpl
def mixcache_forecasters() -> list[type[Forecaster]]:
    return [*PUBLISHED, DMD, FoCa, L2P, Spectrum]


@hookimpl
def mixcache_signals() -> list[Signal]:
    return [SEA_CHANGE, DISTANCE]

"""The plugin that offers these policies to mixcache (entry point `policies` of the group `mixcache`)."""

from __future__ import annotations

from mixcache import Policy, hookimpl
from mixcache_policies.budget import Budget
from mixcache_policies.cfg_interval import CFGInterval
from mixcache_policies.dbcache import DBCache
from mixcache_policies.easycache import EasyCache
from mixcache_policies.first_block import FirstBlock
from mixcache_policies.schedule import Schedule
from mixcache_policies.static import Static
from mixcache_policies.window import Window


@hookimpl
def mixcache_policies() -> list[type[Policy]]:
    return [Budget, CFGInterval, DBCache, EasyCache, FirstBlock, Schedule, Static, Window]

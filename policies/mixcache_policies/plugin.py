"""The plugin that offers these policies to mixcache (entry point `policies` of the group `mixcache`)."""

from __future__ import annotations

from mixcache import Policy, hookimpl
from mixcache_policies.cfg_interval import CFGInterval
from mixcache_policies.easycache import EasyCache
from mixcache_policies.first_block import FirstBlock
from mixcache_policies.schedule import Schedule
from mixcache_policies.static import Static


@hookimpl
def mixcache_policies() -> list[type[Policy]]:
    return [CFGInterval, EasyCache, FirstBlock, Schedule, Static]

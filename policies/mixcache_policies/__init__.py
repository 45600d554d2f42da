"""The policies that come with mixcache, one a file, written against its public API alone."""

from mixcache_policies.budget import Budget
from mixcache_policies.cfg_interval import CFGInterval
from mixcache_policies.dbcache import DBCache
from mixcache_policies.easycache import EasyCache
from mixcache_policies.first_block import FirstBlock
from mixcache_policies.schedule import Schedule
from mixcache_policies.static import Static
from mixcache_policies.window import Window

__all__ = ["Budget", "CFGInterval", "DBCache", "EasyCache", "FirstBlock", "Schedule", "Static", "Window"]

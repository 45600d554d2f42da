"""The policies that come with mixcache, one a file, written against its public API alone."""

from mixcache_policies.easycache import EasyCache
from mixcache_policies.schedule import Schedule
from mixcache_policies.static import Static

__all__ = ["EasyCache", "Schedule", "Static"]

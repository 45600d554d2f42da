"""Settings and fixtures for every test: one thread, hypothesis profiles, and pipelines built once a session."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.zoo.folder import small, wan_folder  # noqa: F401 (fixtures)
from tests.zoo.pipelines import BUILDERS, Tiny, wan

torch.set_num_threads(1)

settings.register_profile("quick", max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("long", max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

_built: dict[str, Tiny] = {}


def built(name: str) -> Tiny:
    """The pipeline of that name, built once a session; every test leaves it as it was found."""
    if name == "embedded":
        from mixcache_models import tiny_wan

        if not tiny_wan.PIPELINE.is_dir():
            pytest.skip(f"the embedded pipeline is not at {tiny_wan.PIPELINE}")
    if name not in _built:
        _built[name] = BUILDERS[name]()
    return _built[name]


@pytest.fixture(params=BUILDERS)
def tiny(request: pytest.FixtureRequest) -> Tiny:
    """Every pipeline in turn."""
    return built(request.param)


@pytest.fixture(params=[name for name in BUILDERS if name != "embedded"])
def random_tiny(request: pytest.FixtureRequest) -> Tiny:
    """Every pipeline with random weights in turn."""
    return built(request.param)


@pytest.fixture
def tiny_wan_random() -> Tiny:
    """The random Wan pipeline."""
    return built("wan")


@pytest.fixture
def embedded_wan() -> Tiny:
    """The embedded pipeline."""
    return built("embedded")


@pytest.fixture
def fresh_wan() -> Tiny:
    """A random Wan pipeline of the test's own, for tests that change it."""
    return wan()

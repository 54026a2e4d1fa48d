"""Fixtures of the pure tests: a world that is checked when the test is over."""

from collections.abc import Iterator

import pytest

from tests.support.world import World


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.check()


@pytest.fixture(params=[0, 1], ids=lambda level: f"level {level}")
def leveled(request: pytest.FixtureRequest) -> Iterator[World]:
    """Return a world at each feature level: below 1 the old rules hold."""
    world = World(level=request.param)
    yield world
    world.check()

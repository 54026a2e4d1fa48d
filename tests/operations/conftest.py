"""Fixtures of the pure tests: a world that is checked when the test is over."""

from collections.abc import Iterator

import pytest

from tests.support.world import World


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.check()

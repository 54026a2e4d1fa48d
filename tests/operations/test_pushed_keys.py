"""Unique keys of pushed jobs that are kept for a time, or for the newest job."""

from __future__ import annotations

import pytest

from quorumq.node.machine.operations.keys import GetKeyHolder
from quorumq.node.machine.state import Dedup
from tests.support.world import World


def test_a_key_is_kept_for_its_time_and_no_longer(world: World) -> None:
    first = world.push(unique_key="k", dedup=Dedup(1000))
    world.pull()
    world.wait(999)
    assert world.push(unique_key="k", dedup=Dedup(1000)) == first
    world.wait(1)
    second = world.push(unique_key="k", dedup=Dedup(1000))
    assert second != first and world.ask(GetKeyHolder("q", "k")) == second


def test_a_push_that_is_kept_away_may_start_the_time_anew(world: World) -> None:
    first = world.push(unique_key="k", dedup=Dedup(1000, extend=True))
    world.wait(600)
    assert world.push(unique_key="k", dedup=Dedup(1000, extend=True)) == first
    world.wait(600)
    assert world.push(unique_key="k", dedup=Dedup(1000, extend=True)) == first
    world.wait(1000)
    assert world.push(unique_key="k", dedup=Dedup(1000, extend=True)) != first


@pytest.mark.parametrize("state", ["waiting", "delayed", "waiting-children"])
def test_the_newest_takes_the_place_of_one_that_is_not_active_yet(state: str, world: World) -> None:
    first = world.a_job(state, unique_key="k")
    second = world.push(unique_key="k", dedup=Dedup(replace=True))
    assert second != first.id and world.state_of(first.id) == "unknown"
    assert world.ask(GetKeyHolder("q", "k")) == second


def test_but_not_of_one_that_is_active_or_that_others_wait_for(world: World) -> None:
    active = world.a_job("active", unique_key="k")
    assert world.push(unique_key="k", dedup=Dedup(replace=True)) == active.id
    awaited = world.push(unique_key="l")
    world.push(depends_on=(awaited,))
    assert world.push(unique_key="l", dedup=Dedup(replace=True)) == awaited
    own = world.push(unique_key="m")
    assert world.push(unique_key="m", dedup=Dedup(replace=True), depends_on=(own,)) == own
    assert world.state_of(awaited) == world.state_of(own) == "waiting"


def test_below_level_1_a_key_keeps_others_away_and_no_more() -> None:
    world = World(level=0)
    first = world.push(unique_key="k")
    assert world.push(unique_key="k", dedup=Dedup(replace=True)) == first

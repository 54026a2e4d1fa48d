"""Each bug that nobody noticed for long, and the blow that shows it: under load it breaks an invariant, and nothing without the bug."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Awaitable, Callable

import pytest

from tests.simulation import strikes
from tests.simulation.breaks import broken
from tests.simulation.checks import Violation
from tests.simulation.test_scenarios import Scenario
from tests.simulation.world import World

Strike = Callable[[World], Awaitable[None]]

SHOWN_BY: dict[str, tuple[Strike, str]] = {
    "any-leader-round": (strikes.read_at_the_deposed, "a read index covers what was answered before"),
    "read-quorum": (strikes.read_at_the_deposed, "a read index covers what was answered before"),
    "change-before-own-term": (strikes.changes_at_once, "a new leader commits before it changes"),
    "two-changes": (strikes.changes_at_once, "one change at a time"),
    "wiped-old-term": (strikes.wipe_after_vote, "one vote a term, whatever was lost"),
    "stranger-votes": (strikes.strangers_vote, "a majority of the voters elects"),
    "install-keeps-log": (strikes.write_in_two_terms, "a log goes with its state"),
    "snapshot-term": (strikes.snapshot_in_an_election, "a snapshot is named by its last entry"),
    "conflict-only-truncation": (strikes.lose_what_is_under_way, "what was applied stays in the log"),
    "leader-durability": (strikes.crash_before_sync, "what is committed is on the disks of a majority"),
    "durable-ack": (strikes.crash_before_sync, "no promise leaves before it is durable"),
    "majority-clock": (strikes.lead_with_a_wrong_clock, "the log's clock follows a majority"),
}
"""And the invariant that it breaks."""


def under(strike: Strike, seed: int, times: int = 5) -> Scenario:
    """A cluster that is written to, and struck so many times."""

    async def script(world: Scenario) -> None:
        world.rng.seed(seed)
        await world.all_start()
        await world.leader()

        async def load() -> None:
            while True:
                await asyncio.sleep(0.02)
                host = world.hosts[world.rng.choice(world.founders)]
                if host.node is not None:
                    world.spawn(host, world.push(host.node, world.rng))

        loading = world.loop.create_task(load())
        for _ in range(times):
            await strike(world)
            await asyncio.sleep(2.0)
            await world.until("all are back", lambda: len(world.up()) >= 3 and world.leading() is not None, 60)
            await world.until("all are whole", lambda: all(world._whole(world.hosts[each]) for each in world.founders))
        loading.cancel()

    # Half of the time whoever was away gets what it lacks as a snapshot.
    entries, tail = ((40, 0), (2000, 500))[seed % 2]
    return Scenario(script, snapshot_log_entries=entries, tail_entries=tail, append_bytes=300, quorum_loss_ms=2000)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(SHOWN_BY))
def test_a_bug_is_shown_by_the_blow_that_is_aimed_at_it(name: str) -> None:
    strike, invariant = SHOWN_BY[name]
    found: list[str] = []
    with broken(name):
        # The engine iterates over sets of nodes, so a seed is another run in each process, and some show nothing.
        for seed in range(40):
            try:
                under(strike, seed).run()
            except Violation as violation:
                found.append(violation.invariant)
                if violation.invariant == invariant:
                    break
    assert invariant in found, found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("strike", sorted({strike.__name__ for strike, _ in SHOWN_BY.values()}))
def test_a_blow_breaks_nothing_by_itself(strike: str) -> None:
    for seed in range(2):
        under(strikes.STRIKES[strike], seed, times=2).run()


def test_what_a_dying_process_was_given_leaves_nothing_behind() -> None:
    """Else some later test of the same run is the one that fails."""

    async def script(world: Scenario) -> None:
        await world.all_start()
        name = world.founders[0]
        host = world.hosts[name]
        assert host.node is not None
        world.spawn(host, world.push(host.node, world.rng))
        world.crash(name)
        await world.start(name)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        Scenario(script).run()
        gc.collect()
    assert [str(each.message) for each in told if "never awaited" in str(each.message)] == []

"""The turns of a node on the event loop: whoever asks whether it lives is told for how long it has done nothing."""

from __future__ import annotations

import asyncio

import pytest

from quorumq.cluster.driver import Driver
from quorumq.cluster.environment import NodeEnvironment
from quorumq.cluster.metrics import ReplicationMetrics
from quorumq.cluster.seams import Clock


def driver(stalled: object = None) -> tuple[Driver, list[float]]:
    """Make a driver; give it and the times of its steps."""
    steps: list[float] = []

    def stall() -> None:
        if isinstance(stalled, Exception):
            raise stalled

    made = Driver(NodeEnvironment(), ReplicationMetrics(), lambda: steps.append(Clock.now()), stall)
    made.attach(asyncio.get_running_loop())
    return made, steps


async def test_a_node_that_ticks_is_never_silent_for_long_and_one_that_does_not_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, steps = driver()
    assert made.silent_s == 0.0
    made.tick()
    while len(steps) < 3:
        await asyncio.sleep(0)
    assert made.silent_s < 5.0
    assert made._timer is not None
    made._timer.cancel()
    now = Clock.now()
    monkeypatch.setattr(Clock, "now", staticmethod(lambda: now + 60))
    assert made.silent_s >= 59.0
    # One that has ended is no dead one: its process ends.
    made.stop()
    assert made.silent_s == 0.0


async def test_what_fails_after_a_stall_ends_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = driver(ZeroDivisionError("after a stall"))
    made.tick()
    now = Clock.now()
    monkeypatch.setattr(Clock, "now", staticmethod(lambda: now + 60))
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(made.failed, 20)
    assert made.stopped

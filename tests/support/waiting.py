"""Waiting for what entries bring about. The time is a bound for a test that would hang, generous because machines pause."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from quorumq.node.machine.machine import Machine

TIMEOUT_S = 20.0


async def after_entries(machine: Machine, check: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> Any:
    """Return what `check` returns once that is true, asking now and after each entry. Raises TimeoutError."""
    reached = asyncio.get_running_loop().create_future()

    def look(entry: object) -> None:
        if not reached.done() and (found := check()):
            reached.set_result(found)

    machine.listen(look)
    look(None)
    return await asyncio.wait_for(reached, timeout_s)

"""Operations that a node itself proposes: once if possible, or again and again until the log has answered.

A repeat may be applied twice, because a write whose outcome is unknown may have happened. So only operations are proposed this
way of which a repeat is refused, or changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from quorumq.cluster.errors import ClusterError, EntryTooLarge

from .batching import Batcher, same
from .machine.operation import Operation

log = logging.getLogger("quorumq.proposals")
T = TypeVar("T")

# What did not get through is said again after this long.
AGAIN_S = 0.2


def propose_once(batcher: Batcher, operation: Operation, timeout_s: float) -> asyncio.Future[Any] | None:
    """Propose an operation if that is possible; when it fails or gets lost, that only costs time.

    Returns what to wait for, None when there is nothing to wait for.
    """
    try:
        future = batcher.add(operation, same, timeout_s)
    except ClusterError as error:
        log.debug("%s did not get through: %s", type(operation).__name__, error)
        return None
    future.add_done_callback(_retrieve_exception)
    return future


def propose_until_answered(
    batcher: Batcher,
    operation: Operation,
    view: Callable[[Any], T],
    timeout_s: float,
    wanted: Callable[[], bool],
    again_s: float = AGAIN_S,
) -> asyncio.Future[T]:
    """Propose an operation until the log has accepted or refused it, through elections and without a quorum, as long as it is `wanted`.

    timeout_s: how long each attempt may take.  The future gets `view(reply)`, a Refusal, EntryTooLarge, or, when it is not wanted any
    more, the error of the last attempt.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def attempt() -> None:
        if outcome.done():
            return
        try:
            batcher.add(operation, view, timeout_s).add_done_callback(ended)
        except ClusterError as error:
            failed(error)

    def ended(future: asyncio.Future[T]) -> None:
        if outcome.done():
            _retrieve_exception(future)
        elif future.cancelled():
            outcome.cancel()
        elif (error := future.exception()) is None:
            outcome.set_result(future.result())
        elif isinstance(error, ClusterError) and not isinstance(error, EntryTooLarge):
            failed(error)
        else:
            outcome.set_exception(error)

    def failed(error: ClusterError) -> None:
        log.debug("%s did not get through: %s", type(operation).__name__, error)
        loop.call_later(again_s, again, error)

    def again(error: ClusterError) -> None:
        if wanted():
            attempt()
        elif not outcome.done():
            outcome.set_exception(error)

    attempt()
    return outcome


def _retrieve_exception(future: asyncio.Future[Any]) -> None:
    # Asking for the exception keeps the loop from reporting one that nobody waits for.
    if not future.cancelled():
        future.exception()

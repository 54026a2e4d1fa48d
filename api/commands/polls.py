"""Polls: pulls that wait for nothing, sent again and again by workers that have nothing to do.

bunqueue's workers ask every 50 ms. A poll that was found right and empty before is answered from here as long as it is empty: all
polls that come while one consistent read is under way share the next. An empty answer is as true as any read, and what is not
empty goes the way of every command.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from quorumq.node.node import Node

# Different polls that are known of one connection.
KNOWN_MAX = 32


class Asker(Protocol):
    """A connection that polls."""

    def empty(self, poll: Poll) -> None:
        """There is nothing."""

    def promising(self, poll: Poll) -> None:
        """There may be something."""

    def failed(self, poll: Poll, error: Exception) -> None:
        """It cannot be told whether there is."""


class Poll(NamedTuple):
    """A pull that waits for nothing. body: all of it but its number, as JSON; reply: what it gets where there is nothing."""

    asker: Asker
    queue: str
    body: bytes
    reply: bytes
    number: Any


class Polls:
    """Those of one node that are under way."""

    def __init__(self, node: Node) -> None:
        self._node = node
        # How many there were.
        self.asked = 0
        self._asked: list[Poll] = []
        self._task: asyncio.Task[None] | None = None

    def ask(self, poll: Poll) -> None:
        """Answer a poll after the next consistent read."""
        self.asked += 1
        self._asked.append(poll)
        if self._task is None:
            self._task = asyncio.create_task(self._rounds())

    async def _rounds(self) -> None:
        try:
            while self._asked:
                asked, self._asked = self._asked, []
                try:
                    await self._node.refresh()
                except Exception as error:
                    for poll in asked:
                        poll.asker.failed(poll, error)
                    continue
                seen: dict[str, bool] = {}
                for poll in asked:
                    promising = seen.get(poll.queue)
                    if promising is None:
                        promising = seen[poll.queue] = self._node.has_for(poll.queue)
                    if promising:
                        poll.asker.promising(poll)
                    else:
                        poll.asker.empty(poll)
        finally:
            self._task = None

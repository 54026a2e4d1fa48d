"""Readers of streams of events on this node, which are woken when there are more. Nothing of this is replicated."""

from __future__ import annotations

import asyncio

from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operation import Entry


class StreamReaders:
    """Readers by queue. Whoever joins gets an event that is set whenever the queue's stream may have more than before."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._state = machine.state
        self._by_queue: dict[str, dict[asyncio.Event, None]] = {}
        machine.listen(self._on_entry)

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(map(len, self._by_queue.values()))

    def join(self, queue: str) -> asyncio.Event:
        """Wake an event whenever a queue has more, until `leave`. A reader clears the event first, and then reads."""
        event = asyncio.Event()
        self._by_queue.setdefault(queue, {})[event] = None
        return event

    def leave(self, queue: str, event: asyncio.Event) -> None:
        """Be told no more."""
        readers = self._by_queue[queue]
        del readers[event]
        if not readers:
            del self._by_queue[queue]

    def _on_entry(self, entry: Entry) -> None:
        if not self._by_queue:
            return
        state = self._machine.state
        if state is not self._state:
            # Another one took its place, in which anything may be new.
            self._state = state
            changed = list(self._by_queue)
        else:
            changed = [queue for queue in state.bullmq.streams.changed if queue in self._by_queue]
        for queue in changed:
            for event in self._by_queue[queue]:
                event.set()

"""Sessions and streams of events under faults, as a client of BullMQ's backend protocol has them, and what must come of it.

A client numbers its calls and sends what was not answered again, at another node, before new ones: each call is made once and answered
alike. A reader goes on from the last id that it has read, at whichever node: it misses nothing, and reads nothing twice.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from quorumq.cluster.errors import ClusterError
from quorumq.node.machine.operations.bullmq.streams import EventBatch, PublishEvent, ReadEvents
from quorumq.node.machine.refusals import LevelTooLow
from quorumq.node.machine.state import State
from quorumq.node.machine.state.bullmq.streams import fields_of, written
from quorumq.node.node import Keyed
from tests.simulation.checks import Checks

if TYPE_CHECKING:
    from tests.simulation.world import World

STREAM = "told"
WINDOW = 12
"""Calls that a client leaves unanswered."""


class Sessions:
    """What clients sent, were answered, and read. `checks` takes the violations."""

    def __init__(self, checks: Checks) -> None:
        self._checks = checks
        self._sent: set[tuple[str, int]] = set()
        self._answered: dict[tuple[str, int], int] = {}
        self._readers: list[list[tuple[str, list[str]]]] = []

    async def client(self, world: World, client: int) -> None:
        """Publish events as the calls of one session, over one connection after the other."""
        rng = random.Random(world.seed * 7_919 + client)
        session, number = f"session {client}", 0
        unanswered: list[int] = []
        while not world._quiet:
            await asyncio.sleep(rng.expovariate(8))
            names = world._asked()
            if not names or world._quiet:
                continue
            host = world.hosts[rng.choice(names)]
            # A new connection: what was not answered first, in order.
            waiting = list(unanswered)
            for _ in range(rng.choice((1, 2, 6))):
                while len(unanswered) < WINDOW and rng.random() < 0.6:
                    number += 1
                    unanswered.append(number)
                    waiting.append(number)
                acknowledged = min(unanswered, default=number + 1) - 1
                tasks = {
                    one: world.loop.create_task(
                        self._call(host.node, session, one, acknowledged), context=host.process.context()
                    )
                    for one in waiting
                }
                waiting = []
                if tasks:
                    await asyncio.wait(tasks.values(), timeout=rng.choice((0.02, 0.3, 2.0)))
                failed = False
                for one, task in tasks.items():
                    if not task.done():
                        # It may be made all the same, before or after it is sent again.
                        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
                        failed = True
                    elif task.exception() is None:
                        unanswered.remove(one)
                    elif isinstance(task.exception(), ClusterError | LevelTooLow):
                        failed = True
                    else:
                        task.result()
                if failed or host.process.dead or world._quiet:
                    break

    async def _call(self, node: object, session: str, number: int, acknowledged: int) -> None:
        call = (session, number)
        self._sent.add(call)
        event = PublishEvent(STREAM, (("event", "call"), ("of", session), ("number", str(number))))
        answer = await node.begin(  # type: ignore[attr-defined]
            event, lambda reply: reply.event_id, Keyed(session, number, acknowledged)
        )
        self._checks.acknowledged += 1
        known = self._answered.setdefault(call, answer)
        if known != answer:
            self._checks.fail("a call of a session is answered alike", f"{call}: {written(known)}, {written(answer)}")

    async def reader(self, world: World, reader: int) -> None:
        """Read the stream from its begin, each page at another node."""
        rng = random.Random(world.seed * 7_919 - 1 - reader)
        found: list[tuple[str, list[str]]] = []
        self._readers.append(found)
        last = 0
        while not world._quiet:
            await asyncio.sleep(rng.expovariate(10))
            names = world._asked()
            if names and (node := world.hosts[rng.choice(names)].node) is not None:
                reading: EventBatch = ReadEvents(STREAM, last, rng.choice((1, 5, 100))).answer(node.machine.state)
                found += [(event.id, event.fields) for event in reading.events]
                last = reading.last

    def at_the_end(self, state: State) -> None:
        """Look at the stream of a node, after everything has healed."""
        stream = state.bullmq.streams.by_queue.get(STREAM)
        told = [] if stream is None else [(written(entry[0]), fields_of(entry)) for entry in stream.entries]
        made: dict[tuple[str, int], str] = {}
        for event_id, fields in told:
            call = (fields[3], int(fields[5]))
            if call in made or call not in self._sent:
                self._checks.fail("a call of a session is made once", f"{call}: {made.get(call)}, {event_id}")
            made[call] = event_id
        for call, answer in self._answered.items():
            if made.get(call) != written(answer):
                self._checks.fail("nothing acknowledged is lost", f"{call} was answered {written(answer)}")
        for found in self._readers:
            if found != told[: len(found)]:
                self._checks.fail("a reader misses no event", f"{len(found)} read, {len(told)} told")

"""The stream of a queue's events: published to, trimmed, read once, and subscribed to.

A subscription pushes events as they come, as many as the client has granted credit for. It begins at an id: what the stream still holds
after it comes first; where some of that is gone it goes on with the oldest. `$` is the newest event of the moment at which it is opened.
Its first push has no fields and tells where it began.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from msgspec import Meta

from quorumq.api.errors import Invalid
from quorumq.node.machine.operations.bullmq.streams import (
    READ_EVENTS,
    EventBatch,
    LastEvent,
    OpenStream,
    PublishEvent,
    ReadEvent,
    ReadEvents,
    TrimEvents,
)
from quorumq.node.machine.state.bullmq.streams import read_id, written

from . import codes
from .protocol import packed
from .rows import Args, Asked, Row, Word, own, write

NEWEST = "$"
FIELDS_MAX = 256
FIELDS_CHARS_MAX = 64 << 10
"""Of one event that a client publishes: names and texts."""
Short = Annotated[str, Meta(max_length=FIELDS_CHARS_MAX)]
CREDIT_MAX = 1 << 40


class Publish(Args):
    fields: Annotated[dict[Short, Short], Meta(max_length=FIELDS_MAX)]
    most: int | None = None


class Trim(Args):
    most: int


class Subscribe(Args):
    since: Word
    credit: int


class CreditArgs(Args):
    number: int
    credit: int


class ReadEventsArgs(Args):
    since: Word
    duration: int = 0


class EventCredit:
    """How many events more a client wants to be told. more: set when it says so."""

    __slots__ = ("credit", "more")

    def __init__(self, credit: int) -> None:
        self.credit = 0
        self.more = asyncio.Event()
        self.grant(credit)

    def grant(self, credit: int) -> None:
        """Let so many more come."""
        self.credit = min(self.credit + max(credit, 0), CREDIT_MAX)
        self.more.set()


def publish(asked: Asked, args: Publish) -> PublishEvent:
    fields = args.fields
    if "event" not in fields:
        raise Invalid("An event has a field `event`, its name")
    if sum(len(name) + len(text) for name, text in fields.items()) > FIELDS_CHARS_MAX:
        raise Invalid(f"The fields of an event may have {FIELDS_CHARS_MAX} characters together")
    if args.most is not None and args.most < 0:
        raise Invalid("maxEvents must not be negative")
    ordered = (("event", fields["event"]), *((name, text) for name, text in fields.items() if name != "event"))
    return PublishEvent(asked.queue, ordered, args.most)


def trim(asked: Asked, args: Trim) -> TrimEvents:
    if args.most < 0:
        raise Invalid("the number of events to keep must not be negative")
    return TrimEvents(asked.queue, args.most)


async def first(asked: Asked, since: str) -> int:
    """Return the id that a reader begins after, and see to it that the queue keeps events. Raises Invalid."""
    try:
        after = None if since == NEWEST else read_id(since)
    except ValueError as error:
        raise Invalid(str(error)) from None
    node = asked.server.node
    newest: int | None = await node.ask(LastEvent(asked.queue), stale=after is not None)
    if newest is None:
        await node.submit(OpenStream(asked.queue))
        newest = await node.ask(LastEvent(asked.queue), stale=True)
    return (newest or 0) if after is None else after


async def subscribe(asked: Asked, args: Subscribe) -> None:
    """Tell of events as they come, until it is cancelled."""
    connection, readers = asked.connection, asked.server.node.readers
    subscription = connection.subscriptions[asked.number] = EventCredit(args.credit)
    told = readers.join(asked.queue)
    try:
        after = await first(asked, args.since)
        # What it begins after is told at once, so that a client that is cut off in a quiet moment can go on from there.
        connection.answer(asked.number, codes.MORE, packed([[written(after), []]]))
        while True:
            await _until_wanted(asked, subscription)
            told.clear()
            found = _look(asked, after, min(subscription.credit, READ_EVENTS))
            if not found.events:
                await told.wait()
                if not asked.server.node.machine.state.bullmq.streams.is_open(asked.queue):
                    # Its queue was obliterated, and may come again.
                    await asked.server.node.submit(OpenStream(asked.queue))
                continue
            after = found.last
            subscription.credit -= len(found.events)
            connection.answer(asked.number, codes.MORE, packed(found.events))
            # Others have a turn between two pages.
            await asyncio.sleep(0)
    finally:
        readers.leave(asked.queue, told)
        del connection.subscriptions[asked.number]


async def _until_wanted(asked: Asked, subscription: EventCredit) -> None:
    """Wait until the client has granted credit, and reads what it was sent."""
    connection = asked.connection
    while True:
        if not subscription.credit:
            subscription.more.clear()
            await subscription.more.wait()
        elif connection.send_queue.full:
            connection.room.clear()
            await connection.room.wait()
        else:
            return


def _look(asked: Asked, after: int, limit: int) -> EventBatch:
    # What this node has applied is committed, so nobody need be asked whether there is more.
    return ReadEvents(asked.queue, after, limit).answer(asked.server.node.machine.state)


async def credit(asked: Asked, args: CreditArgs) -> bool:
    """Let a subscription go on; False when there is none under this number."""
    subscription: EventCredit | None = asked.connection.subscriptions.get(args.number)
    if subscription is None:
        return False
    subscription.grant(args.credit)
    return True


async def read_events(asked: Asked, args: ReadEventsArgs) -> tuple[str, list[ReadEvent]]:
    """Return what comes after an id as soon as there is something, or none after `duration` ms, and where to read on.

    duration: 0 for as long as it takes, less for no wait at all.
    """
    readers = asked.server.node.readers
    told = readers.join(asked.queue)
    try:
        # It takes as long as it takes: a short duration would be over before each answer, and the call be sent again for ever.
        after = await first(asked, args.since)
        async with asyncio.timeout(args.duration / 1000 if args.duration > 0 else None):
            while True:
                told.clear()
                found = _look(asked, after, READ_EVENTS)
                if found.events:
                    return written(found.last), found.events
                if args.duration < 0:
                    return written(after), []
                await told.wait()
    except TimeoutError:
        return written(after), []
    finally:
        readers.leave(asked.queue, told)


def published(reply: Any) -> str:
    return written(reply.event_id)


ROWS: tuple[Row, ...] = (
    write("publishEvent", PublishEvent, publish, published, right="produce", takes=Publish),
    write("trimEvents", TrimEvents, trim, lambda reply: reply.count, right="manage:all", takes=Trim),
    own("subscribe", subscribe, right="read", takes=Subscribe, what=ReadEvents),
    own("credit", credit, right="read", takes=CreditArgs),
    own("readEvents", read_events, right="read", takes=ReadEventsArgs, what=ReadEvents),
)

"""Readers of the stream of events: each goes on after the last event that it saw, at another node when its own is gone.

A stream says when it begins whether anything was missed; where it says so, another segment begins. Within a segment nothing may lack.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import aiohttp

from scripts.tools.chaos.wires import short_id
from tests.support.local_cluster import LocalNode

Place = tuple[int, int]
"""The entry of the log, and the number among its events; the same on all nodes."""

WANTED = "job:pushed,job:active,job:completed,job:failed,job:stalled"
SILENCE_S = 20.0
PAUSE_S = 0.2


class Event(NamedTuple):
    """job: its id with its queue's name, for BullMQ's ids are its queue's own."""

    place: Place
    name: str
    job: str


@dataclass
class Segment:
    """A part of a stream that claims to be whole. begins: events after this place.  began: when the reader was told so."""

    reader: str
    begins: Place
    began: float
    events: list[Event] = field(default_factory=list)


class Reader:
    """One client of /events."""

    def __init__(self, name: str, nodes: Callable[[], list[LocalNode]], rng: random.Random, now: Callable[[], float]):
        self.name = name
        self.segments: list[Segment] = []
        self.connections = 0
        self._nodes = nodes
        self._rng = rng
        self._now = now
        self._last = ""

    async def run(self, session: aiohttp.ClientSession) -> None:
        """Read until cancelled."""
        while True:
            node = self._rng.choice(self._nodes())
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, ConnectionError):
                await self._read(session, node)
            await asyncio.sleep(PAUSE_S)

    async def _read(self, session: aiohttp.ClientSession, node: LocalNode) -> None:
        headers = {"Last-Event-ID": self._last} if self._last else {}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=2, sock_read=SILENCE_S)
        url = f"{node.url}/events?events={WANTED}"
        async with session.get(url, headers=headers | node.allowed, timeout=timeout) as reply:
            if reply.status != 200:
                return
            self.connections += 1
            fields: dict[str, str] = {}
            async for line in reply.content:
                text = line.decode().rstrip("\n")
                if text:
                    name, _, value = text.partition(":")
                    fields[name] = value.removeprefix(" ")
                    continue
                self._took(fields)
                fields = {}

    def _took(self, fields: dict[str, str]) -> None:
        """One message, whole."""
        if "id" in fields:
            self._last = fields["id"]
        if "data" not in fields:
            return
        data: dict[str, Any] = json.loads(fields["data"])
        if "connected" in data:
            if not data.get("resumed"):
                self.segments.append(Segment(self.name, place_of(self._last), self._now()))
        elif "id" in fields and self.segments:
            queue = data.get("queue", "")
            job = job_in(queue, short_id(str(data.get("jobId", "")), queue))
            self.segments[-1].events.append(Event(place_of(fields["id"]), fields.get("event", ""), job))


def job_in(queue: str, job_id: str) -> str:
    """What tells a job from all others. job_id: without the scope of a dialect."""
    return f"{queue}/{job_id}"


def place_of(text: str) -> Place:
    entry, _, number = text.partition(".")
    return int(entry or 0), int(number or 0)

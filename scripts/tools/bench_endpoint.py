"""The endpoint of `scripts/bench workers`, a process of its own: it answers each call at once and counts who came how often.

It prints its port. Each line on standard input is answered by one line of JSON: the counts since the last one; it ends
with its standard input.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from typing import cast

import uvloop

BODY = b'{"done":true}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
# Keys of the job object as it is sent; the id of a job comes before anything that a client wrote after it.
ID, QUEUE = b'"id":"', b'"queueQualifiedName":"'


class Counts:
    """calls: by queue and job."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.calls: Counter[bytes] = Counter()
        self.first = self.last = 0.0
        self.at_once = self.most_at_once = 0

    def take(self, body: bytes) -> None:
        now = time.perf_counter()
        self.first = self.first or now
        self.last = now
        self.calls[between(body, QUEUE) + b"/" + between(body, ID)] += 1

    def told(self) -> str:
        queues = Counter(key.partition(b"/")[0].decode() for key in self.calls)
        return json.dumps(
            {
                "calls": sum(self.calls.values()),
                "jobs": len(self.calls),
                "twice": sum(count > 1 for count in self.calls.values()),
                "queues": len(queues),
                "seconds": self.last - self.first,
            }
        )


def between(body: bytes, before: bytes) -> bytes:
    start = body.rfind(before) + len(before)
    return body[start : body.index(b'"', start)]


class Connection(asyncio.Protocol):
    """One connection; requests come one after the other, perhaps in pieces."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts
        self.pending = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.pending = pending = self.pending + data if self.pending else data
        end = pending.find(b"\r\n\r\n")
        if end < 0:
            return
        at = pending.index(b"Content-Length: ") + 16
        begin = end + 4
        whole = begin + int(pending[at : pending.index(b"\r\n", at)])
        if len(pending) >= whole:
            self.counts.take(pending[begin:whole])
            self.pending = pending[whole:]
            self.transport.write(ANSWER)


async def main() -> None:
    loop, counts, over = asyncio.get_running_loop(), Counts(), asyncio.Event()
    listener = await loop.create_server(lambda: Connection(counts), "127.0.0.1", 0, backlog=1024)
    print(listener.sockets[0].getsockname()[1], flush=True)

    def asked() -> None:
        said = os.read(sys.stdin.fileno(), 4096)
        for line in said.splitlines():
            print(counts.told(), flush=True)
            if line == b"clear":
                counts.clear()
        if not said:
            loop.remove_reader(sys.stdin.fileno())
            over.set()

    loop.add_reader(sys.stdin.fileno(), asked)
    await over.wait()


if __name__ == "__main__":
    uvloop.run(main())

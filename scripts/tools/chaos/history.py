"""Every request of a run, with its start, its end and its outcome: kept in memory for the judge, and in a file, a line each.

A request that was repeated under one idempotency key is one request: it happens once, however often it was sent.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

DONE, REFUSED, FAILED, UNKNOWN = "done", "refused", "failed", "unknown"
"""Answered with success; refused by the state of things, which is an answer too; certainly not done; nobody knows."""

WRITES = frozenset({"push", "pull", "ack", "fail", "extend"})


@dataclass(slots=True)
class Request:
    """One request. Times in seconds since the run began.

    number: in the order of their starts, nearly.  client: who sent it, one request after the other.  op: push, pull, ack, fail,
    extend, read, list; `leave`, a WebSocket that ended with jobs in its hands; `epoch`, the beginning of another cluster.
    key: our own name of the job, which its data carry, empty for requests that are about no single one.  args, result: by op.
    sent: how often.  keyed: under an idempotency key.  said: what the server or the network said when it was not done.
    """

    number: int
    client: str
    dialect: str
    node: str
    op: str
    queue: str
    key: str
    start: float
    end: float
    outcome: str
    args: dict[str, Any] = field(default_factory=dict)
    result: Any = None
    sent: int = 1
    keyed: bool = False
    said: str = ""


class History:
    """What is written down. began: the monotonic clock when times begin."""

    def __init__(self, file: Path | None = None) -> None:
        self.requests: list[Request] = []
        self.began = time.monotonic()
        self.outcomes: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        # Writes that were answered with success, as the schedule of faults wants to know.
        self.written = 0
        self.last_written = 0.0
        self.longest_pause = 0.0
        self._count = 0
        self._file: TextIO | None = file.open("w", encoding="utf-8") if file is not None else None

    def now(self) -> float:
        return time.monotonic() - self.began

    def number(self) -> int:
        """The number of the next request, taken at its start."""
        self._count += 1
        return self._count

    def add(self, request: Request) -> None:
        """Note a request that is over."""
        self.requests.append(request)
        self.outcomes[f"{request.op} {request.outcome}"] += 1
        if request.outcome in (FAILED, UNKNOWN):
            self.errors[request.said] += 1
        if request.op in WRITES and request.outcome == DONE:
            self.written += 1
            # Requests end in no order of their numbers, but in that of time.
            if self.last_written:
                self.longest_pause = max(self.longest_pause, request.end - self.last_written)
            self.last_written = max(self.last_written, request.end)
        if self._file is not None:
            self._file.write(as_line(request))

    def paused(self) -> None:
        """Clients rest for a while: what is between now and the next write is no pause of the cluster's."""
        self.last_written = 0.0

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def as_line(request: Request) -> str:
    """One line of the file; an end that never came is null."""
    found = asdict(request)
    if found["end"] == math.inf:
        found["end"] = None
    return json.dumps(found, separators=(",", ":")) + "\n"


def load(file: Path) -> Iterator[Request]:
    """Read a file back."""
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            found = json.loads(line)
            found["end"] = math.inf if found["end"] is None else found["end"]
            yield Request(**found)


def by_epoch(requests: Iterable[Request]) -> list[list[Request]]:
    """Cut a history where another cluster began: they have nothing in common."""
    parts: list[list[Request]] = [[]]
    for request in requests:
        if request.op == "epoch" and parts[-1]:
            parts.append([])
        parts[-1].append(request)
    return parts

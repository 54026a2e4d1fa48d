"""Commands as they come over TCP, and what is known of them: their names for jobs, polls among them, large ones on their way."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from quorumq.api.values import value_of

from .framing import Frame
from .messagepack import decoded, encoded_json

NAME_CHARS_MAX = 256


class UndeliveredJob(msgspec.Struct):
    """A job whose id is all that matters."""

    id: str


class UndeliveredJobs(msgspec.Struct):
    """Jobs that were taken for a client that cannot be told of them."""

    jobs: list[UndeliveredJob]


class Known(NamedTuple):
    """A poll. reply: what it gets where there is nothing."""

    queue: str
    reply: bytes


# What pulls are answered that find nothing.
NOTHING = frozenset(
    {
        b'{"ok":true,"job":null}',
        b'{"ok":true,"job":null,"token":null}',
        b'{"ok":true,"jobs":[]}',
        b'{"ok":true,"jobs":[],"tokens":[]}',
    }
)


def waits(fields: Mapping[str, Raw]) -> bool:
    """Whether a pull waits for a job."""
    return bool(value_of(fields["timeout"])) if "timeout" in fields else False


class Large:
    """A large frame on its way. counted: its bytes that are counted among the bodies; in_turn: whether it is its turn."""

    def __init__(self, frame: Frame) -> None:
        self.body = frame.body
        self.counted = frame.counted
        self.in_turn: asyncio.TimerHandle | None = None


def read(frame: bytes | bytearray) -> tuple[bytes, Any]:
    """Make JSON of a command, and return its `reqId` beside it. Raises BadFrame."""
    found = decoded(frame)
    number = found.pop("reqId", None)
    name_jobs(found)
    return encoded_json(found), number


def name_jobs(found: dict[str, Any]) -> None:
    """Name pushed jobs as clients of the protocol's second version do, in their data, where it stays."""
    jobs = [found] if found.get("cmd") == "PUSH" else found.get("jobs") if found.get("cmd") == "PUSHB" else None
    for job in jobs if isinstance(jobs, list) else ():
        if isinstance(job, dict) and job.get("name") is None and isinstance(data := job.get("data"), dict):
            name = data.get("name")
            if isinstance(name, str) and 0 < len(name) <= NAME_CHARS_MAX:
                job["name"] = name

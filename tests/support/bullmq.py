"""Short forms of the backend protocol's operations, for tests."""

from __future__ import annotations

from typing import Any

from quorumq.node.machine.lifecycle.bullmq.running import Taken, Wish
from quorumq.node.machine.operations.bullmq.adding import AddNamedJobs
from quorumq.node.machine.operations.bullmq.running import CompleteRun, FailRun, TakeNext
from quorumq.node.machine.refusals import BullmqError
from quorumq.node.machine.state import Job, job_spec
from quorumq.node.machine.state.bullmq.facts import NamedJob
from quorumq.node.machine.state.bullmq.names import find
from quorumq.node.machine.state.bullmq.streams import fields_of
from tests.support.world import START_MS, World

DEFAULTS: dict[str, Any] = {"max_attempts": 1, "backoff": 0, "rejoin_last": True, "stalls_allowed": 1}


def named(own: str = "", data: bytes = b"{}", key: str | None = None, **options: Any) -> NamedJob:
    """Return a job to add; options are those of NamedJob and of Options."""
    own_fields = {name: options.pop(name) for name in NamedJob.__struct_fields__ if name in options and name != "job"}
    spec = job_spec(own, data, custom=bool(own), unique_key=key, **{**DEFAULTS, **options})
    return NamedJob(spec, **{"timestamp": START_MS, **own_fields})


def add(world: World, own: str = "", queue: str = "q", **options: Any) -> str:
    """Add a job and return its id in the queue."""
    reply = world.do(AddNamedJobs(queue, [named(own, **options)]))
    assert reply.errors == [0]
    found: str = reply.ids[0]
    return found


def job(world: World, own: str, queue: str = "q") -> Job:
    """Return a job by its id in the queue."""
    found = find(world.machine.state, queue, own)
    assert found is not None
    return found


def take(world: World, token: str = "t", queue: str = "q", **wish: Any) -> Taken:
    """Take the next job."""
    taken: Taken = world.do(TakeNext(queue, Wish(token, **wish)))
    return taken


def complete(world: World, own: str, token: str = "t", queue: str = "q", **more: Any) -> Any:
    return world.do(CompleteRun(queue, own, token, **more))


def fail(world: World, own: str, token: str = "t", queue: str = "q", **more: Any) -> Any:
    return world.do(FailRun(queue, own, token, **more))


def number_of(world: World, operation: Any) -> int:
    """Return the number of BullMQ's error that an operation is refused with; 0 for none."""
    [reply] = world.apply(operation)
    if isinstance(reply, BullmqError):
        return reply.number
    assert not isinstance(reply, Exception), reply
    return 0


def told(world: World, queue: str = "q") -> list[str]:
    """Return what the stream of a queue was told, each event as its fields in one text, and forget it."""
    streams = world.machine.state.bullmq.streams
    stream = streams.by_queue.get(queue)
    found = [] if stream is None else [" ".join(fields_of(entry)[1:]) for entry in stream.entries]
    if stream is not None:
        streams.trim(queue, 0)
    return found

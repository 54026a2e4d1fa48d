"""How long a node takes for what clients do most: pushing, pulling and acknowledging, since it was started.

Only what the request path measures; how it is shown is the dialect's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from quorumq.node.machine.operation import Operation
from quorumq.node.machine.operations.adding import AddJobs
from quorumq.node.machine.operations.jobs import PushJobs
from quorumq.node.machine.operations.runs import AckJob, AckJobs, FinishAndPull, PullJobs

from .metrics import DurationHistogram

KINDS: dict[type[Operation], str] = {
    PushJobs: "push",
    AddJobs: "push",
    PullJobs: "pull",
    AckJob: "ack",
    AckJobs: "ack",
    FinishAndPull: "ack",
}


class Latency:
    """A histogram for each kind of operation."""

    def __init__(self) -> None:
        self.kinds = {kind: DurationHistogram() for kind in dict.fromkeys(KINDS.values())}

    def observe(self, operation: Operation, seconds: float) -> None:
        """Count how long an operation took, if it is of one of the kinds."""
        kind = KINDS.get(type(operation))
        if kind is not None:
            self.kinds[kind].observe(seconds)

    @contextmanager
    def timing(self, operation: Operation, wait_ms: float) -> Iterator[None]:
        """Count how long what is done inside takes; one that may wait for a job says nothing about the node."""
        began = time.perf_counter()
        yield
        if not wait_ms:
            self.observe(operation, time.perf_counter() - began)

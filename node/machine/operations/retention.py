"""How many finished jobs all queues keep that have no settings of their own for it, and what one of them keeps."""

from __future__ import annotations

import msgspec

from quorumq.node.machine import events as happened
from quorumq.node.machine.bounds import QueueName
from quorumq.node.machine.lifecycle import queues, retention
from quorumq.node.machine.operation import Entry, Operation, Query, operation, query
from quorumq.node.machine.operations.jobs import GOES_ON, Counted
from quorumq.node.machine.state import State
from quorumq.node.machine.state.queue import QueueSettings, Retention, own_retention, retention_of, with_retention


class RetentionFound(msgspec.Struct, frozen=True, gc=False):
    """What is kept. own: names of what was set for the queue itself; the rest follows the default of all queues."""

    retention: Retention
    own: tuple[str, ...] = ()


@operation(emits=(happened.DlqExpired, *GOES_ON), since=1)
class SetDefaultRetention(Operation, frozen=True, tag="retention.set"):
    """Set how many finished jobs queues keep that have no setting of their own for it; what is not given stays.

    completed, failed: the last so many.  completed_bytes: of data and results.  failed_age_ms: milliseconds, 0 for as long as
    there is room.  failed_bytes: of data and of what their runs left. It holds for new queues, too. What queues hold beyond it
    goes at once.
    """

    completed: int | None = None
    completed_bytes: int | None = None
    failed: int | None = None
    failed_age_ms: int | None = None
    failed_bytes: int | None = None

    def apply(self, state: State, entry: Entry) -> RetentionFound:
        retention = self.changed(state.retention)
        queues.set_retention(state, retention)
        return RetentionFound(retention)

    def changed(self, before: Retention) -> Retention:
        """Return the default as it will be."""
        given = {name: value for name in GIVEN if (value := getattr(self, name)) is not None}
        if given.get("failed_age_ms") == 0:
            given["failed_age_ms"] = None
        return msgspec.structs.replace(before, **given)


GIVEN = ("completed", "completed_bytes", "failed", "failed_age_ms", "failed_bytes")


@operation(emits=(happened.DlqExpired, *GOES_ON), since=1)
class ThinFinished(Operation, frozen=True, tag="retention.thin"):
    """Drop some of the finished jobs that a default of all queues is about to drop, so that no entry takes long; counts them."""

    completed: int
    failed: int
    limit: int

    def apply(self, state: State, entry: Entry) -> Counted:
        wanted = msgspec.structs.replace(state.retention, completed=self.completed, failed=self.failed)
        return Counted(retention.trim_finished(state, wanted, max(self.limit, 0)))


@operation(emits=(happened.DlqExpired, *GOES_ON), since=1)
class FollowRetention(Operation, frozen=True, tag="queue.follow_retention"):
    """Have a queue keep what all do: what was set for it itself holds no more."""

    queue: QueueName

    def apply(self, state: State, entry: Entry) -> None:
        queue = state.queues.get(self.queue)
        if queue is not None:
            settings = msgspec.structs.replace(queue.settings, own=())
            queues.configure(state, queue, with_retention(settings, state.retention))


@query
class GetRetention(Query, frozen=True):
    """What a queue keeps, or what all do that have no setting of their own (queue: None)."""

    queue: QueueName | None = None

    def answer(self, state: State) -> RetentionFound:
        queue = None if self.queue is None else state.queues.get(self.queue)
        if queue is None:
            return RetentionFound(state.retention)
        settings: QueueSettings = queue.settings
        return RetentionFound(retention_of(settings), own_retention(settings, state.retention))

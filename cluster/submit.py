"""The path of a write: from a node's batch to the one entry that applies it, over changes of leader.

`Submitter` is the origin's side: it keeps each batch until the local apply has shown its outcome, and sends it again when the
leader changed or nothing was heard. `Inbox` is the leader's side: batches that wait are put into one entry. Applying a batch
once however often it arrives is replica.py's part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quorumq.cluster.errors import ClusterError, EntryTooLarge, NotApplied, OutcomeUnknown
from quorumq.cluster.replica import Batch, Replica

Done = Callable[[Any, ClusterError | None], None]

RESEND_S = 1.0
"""Silence after which a batch is sent again to the same leader; it may have been lost with a connection."""
_BATCH_OVERHEAD = 256


class _Waiting:
    __slots__ = ("deadline", "done", "payload", "sent_at", "sent_to")

    def __init__(self, payload: bytes, deadline: float, done: Done) -> None:
        self.payload = payload
        self.deadline = deadline
        self.done = done
        self.sent_to: tuple[str, int] | None = None
        self.sent_at = float("-inf")


class Submitter:
    """Batches of this node that have no outcome yet, in the order of their sequence numbers."""

    def __init__(self, origin: str, epoch: int, payload_bytes_max: int, send: Callable[[str, Batch], bool]) -> None:
        self._origin = origin
        self._epoch = epoch
        self._payload_bytes_max = payload_bytes_max
        self._send = send
        self._next = 1
        self._waiting: dict[int, _Waiting] = {}
        self.resent = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def hand_in(self, payload: bytes, deadline: float, done: Done, leader: str | None, term: int, now: float) -> None:
        """Take over one batch. `done` is called exactly once: at the local apply, or with an error."""
        if len(payload) > self._payload_bytes_max:
            done(
                None,
                EntryTooLarge(f"{len(payload)} bytes are more than one entry may hold ({self._payload_bytes_max})"),
            )
            return
        seq, self._next = self._next, self._next + 1
        waiting = self._waiting[seq] = _Waiting(payload, deadline, done)
        if leader is not None:
            self._hand_over(seq, waiting, leader, term, now)

    def _hand_over(self, seq: int, waiting: _Waiting, leader: str, term: int, now: float) -> None:
        batch = Batch(self._origin, self._epoch, seq, next(iter(self._waiting)), waiting.payload)
        if self._send(leader, batch):
            if waiting.sent_to is not None:
                self.resent += 1
            waiting.sent_to, waiting.sent_at = (leader, term), now

    def drive(self, leader: str | None, term: int, now: float) -> None:
        """Send what the present leader has not been sent, or not lately; give up what is past its deadline."""
        for seq, waiting in list(self._waiting.items()):
            if now >= waiting.deadline:
                del self._waiting[seq]
                waiting.done(None, self._too_late(waiting))
            elif leader is not None and (waiting.sent_to != (leader, term) or now - waiting.sent_at > RESEND_S):
                self._hand_over(seq, waiting, leader, term, now)

    @staticmethod
    def _too_late(waiting: _Waiting) -> ClusterError:
        if waiting.sent_to is None:
            return NotApplied("no leader: the write was not applied", retry_after_s=1.0)
        return OutcomeUnknown(
            "no answer from the cluster in time: the write may or may not have been applied", retry_after_s=1.0
        )

    def rejected(self, epoch: int, seq: int) -> None:
        """The node it was sent to does not lead: send it again as soon as a leader is known."""
        waiting = self._waiting.get(seq)
        if epoch == self._epoch and waiting is not None:
            waiting.sent_at = float("-inf")

    def settled(self, batch: Batch, outcome: Any) -> None:
        """A batch was applied here; tell the caller when it is one of this process's."""
        if batch.origin == self._origin and batch.epoch == self._epoch:
            waiting = self._waiting.pop(batch.seq, None)
            if waiting is not None:
                waiting.done(outcome, None)

    def state_replaced(self, replica: Replica) -> None:
        """A snapshot was installed: batches it covers are applied, and their outcomes are not to be had any more."""
        for seq, waiting in list(self._waiting.items()):
            if replica.was_applied(Batch(self._origin, self._epoch, seq, 0, b"")):
                del self._waiting[seq]
                waiting.done(
                    None, OutcomeUnknown("the write was applied, but this node learnt of it by a snapshot only")
                )

    def fail_all(self, error: ClusterError) -> None:
        """The node stops: nobody will be told later."""
        waiting, self._waiting = self._waiting, {}
        for item in waiting.values():
            item.done(None, error)


class Inbox:
    """Batches that wait at the leader for an entry, and those that are in an entry not yet applied."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._batches: list[Batch] = []
        self._known: set[tuple[str, int, int]] = set()

    def __len__(self) -> int:
        return len(self._batches)

    def put(self, batch: Batch) -> None:
        """Take a batch, unless it is here already or was applied."""
        if batch.key not in self._known and not self._replica.was_applied(batch):
            self._known.add(batch.key)
            self._batches.append(batch)

    def take(self, bytes_target: int) -> list[Batch]:
        """The batches of the next entry: in order of arrival, until `bytes_target` is reached, at least one."""
        size = 0
        for position, batch in enumerate(self._batches):
            size += len(batch.payload) + _BATCH_OVERHEAD
            if size >= bytes_target:
                taken, self._batches = self._batches[: position + 1], self._batches[position + 1 :]
                # A batch that alone is near the bound would push the entry over it together with the ones before.
                if len(taken) > 1 and size > 2 * bytes_target:
                    self._batches.insert(0, taken.pop())
                return taken
        taken, self._batches = self._batches, []
        return taken

    def settled(self, batch: Batch) -> None:
        """The batch was applied: replica.py knows it from here on."""
        self._known.discard(batch.key)

    def clear(self) -> None:
        """This node leads no more, or leads anew: origins send again what they still wait for."""
        self._batches.clear()
        self._known.clear()

"""The replicated part that cluster/ owns: which batches were applied, the clock of the log, and the cluster's identity.

An entry is a leader's time stamp and the batches that waited; this module takes it apart, drops batches that were applied
before, and hands the rest to the state machine. It is pure: no clock, no randomness, no I/O.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Protocol

import msgpack
import msgspec

log = logging.getLogger("quorumq.replica")

BATCHES, CLUSTER_ID, MEMBERS, RESUMED = 0, 1, 2, 3
_SESSIONS_PER_ORIGIN = 8
"""Process lives remembered per node. A batch of an older life than these cannot be under way any more."""


class Machine(Protocol):
    """The application's state machine (node/machine.py)."""

    def apply(self, index: int, now_ms: int, batches: Sequence[bytes], *, resumed: bool = False) -> list[Any]:
        """Apply the batches of one entry in order; total. One outcome a batch.

        resumed: a leader begins, or goes on after it stood still: nothing that was said just before could be heard.
        """
        ...

    def image(self) -> Iterator[bytes]:
        """The whole state in pieces of about 1 MB. Runs in a forked child."""
        ...

    def restore(self, pieces: Iterable[bytes]) -> None:
        """Replace the whole state by that of an image."""
        ...

    def restoring(self, pieces: Iterable[bytes]) -> Generator[None, None, Callable[[], Iterator[None]]]:
        """Build the state of an image beside the present one, in steps of a few milliseconds.

        Returns a function that puts the new state in place; it gives what has to be iterated over to let go of the old one.
        """
        ...

    def digest(self) -> str:
        """A digest of the history, equal on all nodes at equal index."""
        ...


class Batch(msgspec.Struct, array_like=True, frozen=True):
    """Operations of one node that travel together.

    origin: the node's id.  epoch: random, new at each start of its process.  seq: counts its batches from 1.
    floor: every batch of that epoch below it is settled and will not be sent again.
    """

    origin: str
    epoch: int
    seq: int
    floor: int
    payload: bytes

    @property
    def key(self) -> tuple[str, int, int]:
        """What makes it the same batch when it is sent again."""
        return (self.origin, self.epoch, self.seq)


class _Session(msgspec.Struct):
    """Which batches of one process life were applied: all below `floor` are settled, of those above the listed ones."""

    origin: str
    epoch: int
    floor: int
    applied: list[int]


class _Image(msgspec.Struct):
    version: int
    now_ms: int
    cluster_id: str
    sessions: list[_Session]
    membership: bytes = b""


def encode_batches(now_ms: int, batches: list[Batch], *, resumed: bool = False) -> bytes:
    """The log command for `batches`, stamped with the leader's time in milliseconds since the epoch.

    resumed: the first after a time in which nothing could be replicated, see `Machine.apply`.
    """
    kind = RESUMED if resumed else BATCHES
    encoded: bytes = msgpack.packb((kind, now_ms, [(b.origin, b.epoch, b.seq, b.floor, b.payload) for b in batches]))
    return encoded


def encode_cluster_id(now_ms: int, cluster_id: str) -> bytes:
    """The log command that names a new cluster, once."""
    encoded: bytes = msgpack.packb((CLUSTER_ID, now_ms, cluster_id))
    return encoded


def encode_members(now_ms: int, membership: bytes) -> bytes:
    """The log command for a new membership (cluster/membership.py)."""
    encoded: bytes = msgpack.packb((MEMBERS, now_ms, membership))
    return encoded


def members_of(command: bytes) -> bytes:
    """The membership inside such a command."""
    membership = msgpack.unpackb(command, use_list=False, raw=False)[2]
    assert isinstance(membership, bytes)
    return membership


class _Entry(msgspec.Struct, array_like=True):
    kind: int
    now_ms: int
    body: msgspec.Raw


_ENTRY = msgspec.msgpack.Decoder(_Entry)
_BATCHES = msgspec.msgpack.Decoder(list[Batch])
_TEXT = msgspec.msgpack.Decoder(str)
_BYTES = msgspec.msgpack.Decoder(bytes)


def cluster_of(head: bytes) -> str:
    """The id of the cluster that an image's head belongs to. Raises msgspec.MsgspecError."""
    return msgspec.msgpack.decode(head, type=_Image).cluster_id


def of_a_new_cluster(head: bytes, cluster_id: str) -> bytes:
    """An image's head with the same state but of nobody: without members and sessions, under another id."""
    held = msgspec.msgpack.decode(head, type=_Image)
    return msgspec.msgpack.encode(_Image(held.version, held.now_ms, cluster_id, []))


Settled = Callable[[Batch, Any], None]


class Replica:
    """Applies log commands. `settled(batch, outcome)` is told of every batch applied, right after its entry."""

    def __init__(self, machine: Machine, settled: Settled) -> None:
        self.machine = machine
        self.now_ms = 0
        self.cluster_id = ""
        self.membership = b""
        self.exactly_once = True
        self._settled = settled
        self._sessions: dict[str, list[_Session]] = {}

    def apply(self, index: int, command: bytes) -> None:
        """Apply one log command. Never raises: what cannot be read is skipped by every node alike, and logged."""
        try:
            entry = _ENTRY.decode(command)
            batches = _BATCHES.decode(entry.body) if entry.kind in (BATCHES, RESUMED) else []
            name = _TEXT.decode(entry.body) if entry.kind == CLUSTER_ID else ""
            membership = _BYTES.decode(entry.body) if entry.kind == MEMBERS else b""
        except msgspec.MsgspecError as error:
            log.error("entry %d cannot be read (%s) and is skipped", index, error)
            return
        self.now_ms = max(self.now_ms, entry.now_ms)
        self.cluster_id = self.cluster_id or name
        self.membership = membership or self.membership
        if entry.kind not in (BATCHES, RESUMED):
            return
        fresh = [batch for batch in batches if self._first_time(batch)]
        payloads = [batch.payload for batch in fresh]
        outcomes = self.machine.apply(index, self.now_ms, payloads, resumed=entry.kind == RESUMED)
        for batch, outcome in zip(fresh, outcomes, strict=True):
            self._settled(batch, outcome)

    def was_applied(self, batch: Batch) -> bool:
        """Whether `batch` was applied, or its origin has given it up since."""
        return any(
            session.epoch == batch.epoch and (batch.seq < session.floor or batch.seq in session.applied)
            for session in self._sessions.get(batch.origin, ())
        )

    def _first_time(self, batch: Batch) -> bool:
        if not self.exactly_once:
            return True
        lives = self._sessions.setdefault(batch.origin, [])
        for session in lives:
            if session.epoch == batch.epoch:
                break
        else:
            session = _Session(batch.origin, batch.epoch, 1, [])
            lives.append(session)
            del lives[:-_SESSIONS_PER_ORIGIN]
        if batch.seq < session.floor or batch.seq in session.applied:
            return False
        if batch.floor > session.floor:
            session.floor = batch.floor
            session.applied = [seq for seq in session.applied if seq >= batch.floor]
        session.applied.append(batch.seq)
        return True

    def head(self) -> bytes:
        """This module's own state for an image."""
        sessions = [session for origin in sorted(self._sessions) for session in self._sessions[origin]]
        return msgspec.msgpack.encode(_Image(1, self.now_ms, self.cluster_id, sessions, self.membership))

    def restore(self, head: bytes, pieces: Iterable[bytes]) -> None:
        """Replace everything by the state of an image."""
        image = msgspec.msgpack.decode(head, type=_Image)
        self.machine.restore(pieces)
        self._become(image)

    def restoring(self, head: bytes, pieces: Iterable[bytes]) -> Generator[None, None, Callable[[], Iterator[None]]]:
        """The same beside the present state, which stays whole until the returned function is called; see `Machine.restoring`."""
        image = msgspec.msgpack.decode(head, type=_Image)
        put_machine = yield from self.machine.restoring(pieces)

        def put() -> Iterator[None]:
            self._become(image)
            return put_machine()

        return put

    def _become(self, image: _Image) -> None:
        self.now_ms, self.cluster_id, self.membership = image.now_ms, image.cluster_id, image.membership
        self._sessions = {}
        for session in image.sessions:
            self._sessions.setdefault(session.origin, []).append(session)

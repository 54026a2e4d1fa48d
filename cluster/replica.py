"""The replicated part that cluster/ owns: which batches were applied, the clock of the log, and the cluster's identity.

An entry is a leader's time stamp and the batches that waited; this module takes it apart, drops batches that were applied
before, and hands the rest to the state machine. It is pure: no clock, no randomness, no I/O.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import msgpack
import msgspec

from quorumq.cluster.errors import NotUnderstood
from quorumq.cluster.version import VERSION

log = logging.getLogger("quorumq.replica")

BATCHES, CLUSTER_ID, MEMBERS, RESUMED, LEVEL = range(5)
_SESSIONS_PER_ORIGIN = 8
"""Process lives remembered per node. A batch of an older life than these cannot be under way any more."""


class StateMachine(Protocol):
    """The application's state machine (node/machine/machine.py).

    level: the feature level in force, which decides what entries mean; `Replica` sets it.  level_known: the highest it knows.
    """

    level: int
    level_known: int

    def apply(self, index: int, now_ms: int, batches: Sequence[bytes], *, resumed: bool = False) -> list[Any]:
        """Apply the batches of one entry in order; total. One outcome a batch.

        resumed: a leader begins, or goes on after it stood still: nothing that was said just before could be heard.
        Raises NotUnderstood for what a newer version wrote.
        """
        ...

    def understands(self, payload: bytes) -> bool:
        """Whether `apply` can read this batch whole."""
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

    @property
    def shape(self) -> str:
        """What `points` are made of, see agreement.Digesting."""
        ...

    @property
    def points(self) -> dict[int, tuple[bytes, bytes]]:
        """Digests after some entries of late, see agreement.Digesting."""
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
    level: int = 0
    wall_ms: int = 0


def encode_batches(now_ms: int, batches: list[Batch], *, resumed: bool = False) -> bytes:
    """The log command for `batches`, stamped with the leader's time in milliseconds since the epoch.

    resumed: the first after a time in which nothing could be replicated, see `StateMachine.apply`.
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


def encode_level(now_ms: int, level: int) -> bytes:
    """The log command that raises the feature level."""
    encoded: bytes = msgpack.packb((LEVEL, now_ms, level))
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
_NUMBER = msgspec.msgpack.Decoder(int)


def cluster_of(head: bytes) -> str:
    """The id of the cluster that an image's head belongs to. Raises msgspec.MsgspecError."""
    return msgspec.msgpack.decode(head, type=_Image).cluster_id


def level_of(head: bytes) -> int:
    """The feature level that an image's head says. Raises msgspec.MsgspecError."""
    return msgspec.msgpack.decode(head, type=_Image).level


def cluster_named_by(command: bytes) -> str:
    """The id that an entry gives the cluster; empty for every other entry, and for one that cannot be understood."""
    try:
        entry = _ENTRY.decode(command)
        return _TEXT.decode(entry.body) if entry.kind == CLUSTER_ID else ""
    except msgspec.MsgspecError:
        return ""


def of_a_new_cluster(head: bytes, cluster_id: str, membership: bytes = b"", latest_ms: int | None = None) -> bytes:
    """An image's head with the same state but of nobody: without sessions, under another id, with these members or none.

    latest_ms: its clock is not later than that.
    """
    held = msgspec.msgpack.decode(head, type=_Image)
    now_ms = held.now_ms if latest_ms is None else min(held.now_ms, latest_ms)
    return msgspec.msgpack.encode(_Image(held.version, now_ms, cluster_id, [], membership, held.level, held.wall_ms))


class Times(NamedTuple):
    """What an image's head says of time, in milliseconds since the epoch.

    now_ms: by the log's clock.  wall_ms: by the wall clocks of a majority when it was written, 0 where they were not known.
    """

    now_ms: int
    wall_ms: int


def times_of(head: bytes) -> Times:
    """The times that an image's head says. Raises msgspec.MsgspecError."""
    held = msgspec.msgpack.decode(head, type=_Image)
    return Times(held.now_ms, held.wall_ms)


Settled = Callable[[Batch, Any], None]


class Replica:
    """Applies log commands. `settled(batch, outcome)` is told of every batch applied, right after its entry."""

    def __init__(self, machine: StateMachine, settled: Settled) -> None:
        self.machine = machine
        self.now_ms = 0
        self.cluster_id = ""
        self.membership = b""
        self.level = machine.level = 0
        self.exactly_once = True
        self._settled = settled
        self._sessions: dict[str, list[_Session]] = {}

    def apply(self, index: int, command: bytes) -> None:
        """Apply one log command. Raises NotUnderstood for one that a newer version wrote: skipping it would part the replicas."""
        try:
            entry = _ENTRY.decode(command)
            batches = _BATCHES.decode(entry.body) if entry.kind in (BATCHES, RESUMED) else []
            name = _TEXT.decode(entry.body) if entry.kind == CLUSTER_ID else ""
            membership = _BYTES.decode(entry.body) if entry.kind == MEMBERS else b""
            level = _NUMBER.decode(entry.body) if entry.kind == LEVEL else 0
        except msgspec.MsgspecError as error:
            raise NotUnderstood(f"entry {index} cannot be understood by version {VERSION}: {error}") from None
        if not 0 <= entry.kind <= LEVEL:
            raise NotUnderstood(f"entry {index} is of kind {entry.kind}, which version {VERSION} does not know")
        self._reach(level, f"entry {index} raises the cluster to")
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

    def _reach(self, level: int, who: str) -> None:
        """Put a higher feature level in force."""
        if level > self.machine.level_known:
            raise NotUnderstood(
                f"{who} feature level {level}, and version {VERSION} knows levels up to {self.machine.level_known}: "
                "start a newer version with this data directory"
            )
        if level > self.level:
            self.level = self.machine.level = level
            log.info("feature level %d is in force", level)

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

    def head(self, wall_ms: int = 0) -> bytes:
        """This module's own state for an image. wall_ms: see `Times`."""
        sessions = [session for origin in sorted(self._sessions) for session in self._sessions[origin]]
        image = _Image(1, self.now_ms, self.cluster_id, sessions, self.membership, self.level, wall_ms)
        return msgspec.msgpack.encode(image)

    def restore(self, head: bytes, pieces: Iterable[bytes]) -> None:
        """Replace everything by the state of an image."""
        image = self._image_of(head)
        self.machine.restore(pieces)
        self._become(image)

    def restoring(self, head: bytes, pieces: Iterable[bytes]) -> Generator[None, None, Callable[[], Iterator[None]]]:
        """The same beside the present state, which stays whole until the returned function is called; see `StateMachine.restoring`."""
        image = self._image_of(head)
        put_machine = yield from self.machine.restoring(pieces)

        def put() -> Iterator[None]:
            let_go = put_machine()
            self._become(image)
            return let_go

        return put

    def _image_of(self, head: bytes) -> _Image:
        image = msgspec.msgpack.decode(head, type=_Image)
        if image.level > self.machine.level_known:
            raise NotUnderstood(
                f"the snapshot is of feature level {image.level}, and version {VERSION} knows levels up to "
                f"{self.machine.level_known}: start a newer version with this data directory"
            )
        return image

    def _become(self, image: _Image) -> None:
        self.now_ms, self.cluster_id, self.membership = image.now_ms, image.cluster_id, image.membership
        self.level = self.machine.level = image.level
        self._sessions = {}
        for session in image.sessions:
            self._sessions.setdefault(session.origin, []).append(session)

"""What a data directory has held durably, known beside the log: a log that was lost or became shorter is never trusted as it is.

Nothing inside a log can tell that its end is missing. So how far it reached is noted in `held`, beside `identity.json`, after
every group that was synced: written, and synced where the log begins a new segment, with every snapshot, every second and at a stop.
After the end of a process the note is exact; after a power cut it may be a second old, and never ahead of the log.

File format: two slots of a sector each, written in turn, a record of log.py in each; the valid one with the higher number holds.
"""

from __future__ import annotations

import logging
from typing import Protocol

import msgspec

from quorumq.cluster.disk import PatchFile
from quorumq.cluster.identity import Identity
from quorumq.cluster.log import Log, read_record, record

log = logging.getLogger("quorumq.cluster")

FILE = "held"
_SECTOR = 512
_KIND = 24
_EVERY_S = 1.0


class HeldDisk(Protocol):
    """What the note needs of a disk (cluster/disk.py, and the simulation's)."""

    def read(self, name: str) -> bytes: ...
    def write_atomic(self, name: str, data: bytes) -> None: ...
    def patch(self, name: str) -> PatchFile: ...


class HighWaterMark(msgspec.Struct, frozen=True, array_like=True):
    """How far log and snapshots reached.

    segment, size: the log's last segment and the bytes of it that were synced, 0 before there was one. Both only ever grow.
    last_index, term: of the log then, for people.  snapshot: index of the newest snapshot, 0 without any.
    """

    segment: int = 0
    size: int = 0
    last_index: int = 1
    term: int = 0
    snapshot: int = 0
    number: int = 0


def read(disk: HeldDisk) -> HighWaterMark | None:
    """What was noted; None when there is no such file. Raises ValueError when it cannot be read."""
    try:
        data = disk.read(FILE)
    except FileNotFoundError:
        return None
    notes = []
    for offset in (0, _SECTOR):
        found = read_record(data, offset)
        if found is not None and found[0] == _KIND:
            notes.append(msgspec.msgpack.decode(found[1], type=HighWaterMark))
    if not notes:
        raise ValueError(f"{FILE} cannot be read")
    return max(notes, key=lambda note: note.number)


def encode(note: HighWaterMark) -> bytes:
    """The whole file, as it lies on the disk."""
    return _slot(note) * 2


def _slot(note: HighWaterMark) -> bytes:
    return record(_KIND, msgspec.msgpack.encode(note)).ljust(_SECTOR, b"\0")


class HeldFile:
    """The note in force. Used from the thread that writes the log, after `begin`; a note that cannot be written stops nothing."""

    def __init__(self, disk: HeldDisk) -> None:
        self._disk = disk
        self._file: PatchFile | None = None
        self._begun = self._unsynced = False
        self._synced_at = float("-inf")
        self.note = HighWaterMark()
        self.failure: Exception | None = None

    def begin(self, note: HighWaterMark) -> bool:
        """Put this note in force in place of whatever there was; returns whether it is on the disk.

        A disk that is full refuses new files and takes what is written in place, so that a node can start on one.
        """
        self._begun = True
        try:
            try:
                before = read(self._disk)
            except ValueError:
                before = None
            if before is None:
                self._disk.write_atomic(FILE, encode(note))
                before = read(self._disk)
                assert before is not None
            self._file = self._disk.patch(FILE)
        except OSError as error:
            self.note, self._unsynced = note, True
            self._failed(error)
            return False
        self._put(msgspec.structs.replace(note, number=before.number + 1), sync=True)
        return self.failure is None

    def reached(self, segment: int, size: int, last_index: int, term: int, *, sync: bool = False) -> None:
        """The log is durable up to there."""
        note = self.note
        self._put(HighWaterMark(segment, size, last_index, term, note.snapshot, note.number + 1), sync=sync)

    def covered(self, index: int) -> None:
        """A snapshot at `index` is durable."""
        note = self.note
        if index > note.snapshot:
            self._put(msgspec.structs.replace(note, snapshot=index, number=note.number + 1), sync=True)

    def _put(self, note: HighWaterMark, *, sync: bool) -> None:
        self.note, self._unsynced = note, True
        try:
            if self._file is None:
                if not self._begun:
                    return
                self._disk.write_atomic(FILE, encode(note))
                self._file = self._disk.patch(FILE)
            self._file.put(_SECTOR * (note.number % 2), _slot(note))
            if sync:
                self._unsynced = False
                self._file.sync()
            self.failure = None
        except OSError as error:
            self._unsynced = True
            self._failed(error)

    def due(self, now: float) -> bool:
        """Whether `sync` should be called, at most once a second."""
        if not self._unsynced or now - self._synced_at < _EVERY_S:
            return False
        self._synced_at = now
        return True

    def sync(self) -> None:
        """Make durable what was noted; written once more, if that failed: what a disk refused it need not have kept."""
        if self.failure is not None:
            self._put(msgspec.structs.replace(self.note, number=self.note.number + 1), sync=True)
            return
        self._unsynced = False
        try:
            if self._file is not None:
                self._file.sync()
        except OSError as error:
            self._unsynced = True
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        if self.failure is None:
            log.error("%s cannot be written: %s; a log that became shorter would not be noticed", FILE, error)
        self.failure = error

    def close(self) -> None:
        """Make it durable, and close the file."""
        if self._unsynced:
            self.sync()
        file, self._file = self._file, None
        if file is not None:
            file.close()


def lacking(disk: HeldDisk, identity: Identity, journal: Log, snapshot: int, *, alone: bool = False) -> str:
    """What log and snapshot lack of what the directory has held, in words; empty when nothing speaks for that.

    snapshot: index of the newest sound one, 0 without any.  alone: there is nobody to get anything back from.
    """
    if not identity.whole and not alone:
        return ""  # nothing is believed of it anyway
    try:
        note = read(disk)
    except ValueError as error:
        return str(error)
    if note is None:
        if identity.noted:
            return f"{FILE} is missing, which says how far the log reached"
        return _lacking_unnoted(identity, journal, snapshot)
    if journal.end < (note.segment, note.size):
        reached = f"byte {note.size} of {note.segment:012d}.log (entry {note.last_index}, term {note.term})"
        number, size = journal.end
        ends = f"ends at byte {size} of {number:012d}.log (entry {journal.last_index})" if number else "is gone"
        return f"the log reached {reached}, and {ends}"
    if max(journal.last_index, snapshot) < note.snapshot:
        return f"there was a snapshot of entry {note.snapshot}, and what is left ends at entry {max(journal.last_index, snapshot)}"
    return ""


def _lacking_unnoted(identity: Identity, journal: Log, snapshot: int) -> str:
    """The same for a directory of version 0.1.0, which noted nothing: what the parts say of each other."""
    if not identity.cluster_id:
        return ""  # restored from a backup, or of a cluster that was not founded yet
    if not journal.segments:
        return "this node took part in its cluster, and its log is gone"
    if journal.last_index < snapshot:
        return f"the log ends at entry {journal.last_index}, before the snapshot of entry {snapshot}"
    return ""

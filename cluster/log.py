"""The write-ahead log: what this node has promised, on disk before anybody hears of the promise.

It is the engine's journal (the names in camel case are its seam) kept in memory, and a series of segment files behind it. All
that waits is written and synced as one group off the event loop; `appended` and `durable` are positions that tell the
sender of a promise whether it may leave yet. What deliberately does not live here: when to compact (snapshots.py decides) and
which entries conflict (raft.py decides).

File format, little endian. A segment is a row of records `length u32 · crc32 u32 · type u8 · payload`; the checksum covers length,
type and payload. Every group begins with a MARK, written only after the group before it was synced: damage with a valid MARK behind
it cannot be a torn write, so it is refused. The MARK announces how long its group is (version 0.1.0 wrote a counter there, and reads
nothing from it): a last group that is shorter than announced is a write that was torn, of which nobody was told, and is cut; one that
is whole and wrong was damaged later, and may have been promised: the log is in doubt about itself.
"""

from __future__ import annotations

import logging
import struct
import time
import zlib
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, overload

import msgspec

from quorumq.cluster.disk import AppendFile
from quorumq.cluster.errors import LogDamaged

T = TypeVar("T")
log = logging.getLogger("quorumq.log")

Entry = tuple[bytes, int, int]
"""(command, index, term): the shape that the engine gives its journal."""

_HEADER = struct.Struct("<IIB")
_SUMMED = struct.Struct("<IB")
_ENTRY = struct.Struct("<QQ")
_U64 = struct.Struct("<Q")

_SEGMENT, _RECORD_ENTRY, _STATE, _RESET, _COMMIT, _MARK, _TRUNCATE = range(7)
_MARK_BYTES = _HEADER.size + _U64.size
_ANNOUNCED = 1 << 63
_SECTOR = 512
_FORMATS = (1, 2)
"""What a segment's header may say. A segment begun at feature level 1 or above has format 2, so that a version which knows no levels
refuses it; the records are the same."""
_NO_OP = b"\x01"
MEMBERSHIP = b"\x02"
"""First byte of the commands that change the membership: the log remembers where they are."""


class LogDisk(Protocol):
    """What the log needs of a disk (cluster/disk.py, and the simulation's)."""

    def list(self) -> list[str]: ...
    def read(self, name: str) -> bytes: ...
    def append(self, name: str) -> AppendFile: ...
    def truncate(self, name: str, size: int) -> None: ...
    def remove(self, name: str) -> None: ...
    def sync_directory(self) -> None: ...
    def run(self, work: Callable[[], T], done: Callable[[T | None, Exception | None], None]) -> None: ...


class Witness(Protocol):
    """Is told, beside the log, how far it is durable (cluster/held.py)."""

    def reached(self, segment: int, size: int, last_index: int, term: int, *, sync: bool = False) -> None: ...


class _SegmentHeader(msgspec.Struct, array_like=True, frozen=True):
    """First record of a segment: all that is needed to start reading here when earlier segments are gone."""

    format: int
    number: int
    prev_index: int
    prev_term: int
    term: int
    voted_for: str | None
    commit: int


class _Segment:
    __slots__ = ("name", "number", "prev_index", "size")

    def __init__(self, number: int, prev_index: int, size: int) -> None:
        self.number = number
        self.name = f"{number:012d}.log"
        self.prev_index = prev_index
        self.size = size


def record(kind: int, payload: bytes) -> bytes:
    """One framed record."""
    summed = _SUMMED.pack(len(payload), kind)
    return _HEADER.pack(len(payload), zlib.crc32(payload, zlib.crc32(summed)), kind) + payload


def read_record(data: bytes, offset: int) -> tuple[int, bytes, int] | None:
    """The record at `offset` as (type, payload, offset after it), or None when it is not whole and valid."""
    if offset + _HEADER.size > len(data):
        return None
    length, crc, kind = _HEADER.unpack_from(data, offset)
    end = offset + _HEADER.size + length
    if end > len(data):
        return None
    payload = data[offset + _HEADER.size : end]
    if zlib.crc32(payload, zlib.crc32(_SUMMED.pack(length, kind))) != crc:
        return None
    return kind, payload, end


def _mark_follows(data: bytes, offset: int) -> bool:
    """Whether a valid MARK begins anywhere after `offset`."""
    needle = struct.pack("<I", _U64.size)
    position = data.find(needle, offset + 1)
    while position >= 0:
        found = read_record(data, position)
        if found is not None and found[0] == _MARK:
            return True
        position = data.find(needle, position + 1)
    return False


def _reach(data: bytes, offset: int, announced: int | None) -> int | None:
    """Where the write that holds `offset`, at which no valid record is, was to end; None when that is not known.

    announced: where the group before `offset` ends, when its MARK said so.
    """
    if announced is not None and offset < announced:
        return announced
    if offset == announced:
        return offset + _MARK_BYTES
    # Of version 0.1.0, or the header of a segment: at least the record is known.
    return offset + _HEADER.size + _HEADER.unpack_from(data, offset)[0] if offset + _HEADER.size <= len(data) else None


_ZEROS_MAX = 7
"""Zeros that a whole group may end with. Where no more than these are missing, nobody can tell: the log is in doubt."""


def _is_torn(data: bytes, offset: int, reach: int | None) -> bool:
    """Whether a write that is not valid at `offset`, and was to end at `reach`, can have been cut short."""
    if reach is None or len(data) < reach:
        return True
    # The file system had grown the file, and what belongs into its last sectors had not arrived.
    arrived = max(offset, len(data.rstrip(b"\0")))
    # A few zeros may be what was written: the number that ends a group has up to seven.
    return arrived == offset or -(-arrived // _SECTOR) * _SECTOR + _ZEROS_MAX < reach


class Log:
    """The journal of one node. Not thread-safe: used from the event loop only, except the group writer it hands to the disk."""

    def __init__(
        self, disk: LogDisk, segment_bytes: int, witness: Witness | None = None, *, settle: bool = True
    ) -> None:
        """Read what the disk holds. Raises LogDamaged when a file is damaged where no crash can have damaged it.

        settle: cut at once what was torn; otherwise `settle` has to be called before anything is added.
        """
        self._disk = disk
        self._witness = witness
        self._segment_bytes = segment_bytes
        self._entries: list[Entry] = [(_NO_OP, 1, 0)]
        self.term = 0
        self.voted_for: str | None = None
        self.commit = 1
        self.bytes = 0
        """Bytes of the commands held in memory."""
        self.bytes_appended = 0
        """Bytes of commands appended since the process started, those read at the start included."""
        self.appended = 0
        self.durable = 0
        self.failure: Exception | None = None
        self.on_durable: Callable[[], None] = lambda: None
        self.on_synced: Callable[[float], None] = lambda seconds: None
        self.on_failure: Callable[[Exception], None] = lambda error: None
        self.memberships: list[Entry] = []
        """The membership entries held, oldest first; the last one is in force."""
        self.tail_cut_bytes = 0
        """Bytes after the last whole record, which the start cuts off."""
        self.doubt = ""
        """Why what the start cuts off may have been promised; empty when it cannot."""

        self.format = _FORMATS[0]
        """Format of the segments to come; a higher one than before begins a new segment."""
        self._format = _FORMATS[0]

        self._pending: list[bytes] = []
        self._writing = False
        self._dirty = False  # the file may hold bytes of a group that failed
        self._group: tuple[bytes, bytes | None, int, int] | None = None
        self._commit_written = 0
        self._segments: list[_Segment] = []
        self._removable: deque[str] = deque()
        self._file: AppendFile | None = None
        self._pending_bytes = 0
        self._unsettled: list[tuple[str, int, bytes]] = []
        self._read()
        if settle:
            self.settle()
        self.durable_index = self.last_index
        self._group_last = self.last_index
        self._group_end = self._header_state()

    @property
    def last_format(self) -> int:
        """Format of the newest segment."""
        return self._format

    # -- reading at the start ----------------------------------------------------------------------------------------

    def _read(self) -> None:
        names = [name for name in self._disk.list() if name.endswith(".log")]
        for position, name in enumerate(names):
            data = self._disk.read(name)
            last = position == len(names) - 1
            size = self._read_segment(name, data, first=position == 0, last=last)
            if size == 0 or size < len(data):
                self._unsettled.append((name, size, data[size:]))
                self.tail_cut_bytes = len(data) - size
        self.commit = min(self.commit, self.last_index)
        self._commit_written = self.commit
        self.bytes = self.bytes_appended = sum(len(entry[0]) for entry in self._entries)
        self.memberships = [entry for entry in self._entries if entry[0][:1] == MEMBERSHIP]

    def settle(self) -> None:
        """Cut what was torn, and sync what was read: a process that ended between write and sync left that to the system."""
        unsettled, self._unsettled = self._unsettled, []
        for name, size, rest in unsettled:
            if self.doubt and rest:
                self._put_aside(name, size, rest)
            if size == 0:  # created, and never written: the crash came in between
                self._disk.remove(name)
            else:
                log.warning("cut %d bytes of an unfinished write from %s at offset %d", len(rest), name, size)
                self._disk.truncate(name, size)
        if self._segments:
            self._file = self._disk.append(self._segments[-1].name)
            self._file.sync()
            self._disk.sync_directory()

    def _put_aside(self, name: str, size: int, rest: bytes) -> None:
        """Keep what is cut though it may have been promised: if all else is lost, somebody may want to look at it."""
        aside = f"{name}.{size}.damaged"
        self._disk.remove(aside)
        file = self._disk.append(aside)
        try:
            file.write(rest)
            file.sync()
        finally:
            file.close()
        log.warning("what is cut from %s at offset %d is kept in %s", name, size, aside)

    def _read_segment(self, name: str, data: bytes, *, first: bool, last: bool) -> int:
        """Take in one segment; returns the bytes of it that are whole."""
        offset = 0
        announced: int | None = None
        while offset < len(data):
            found = read_record(data, offset)
            if found is None:
                if last and not _mark_follows(data, offset):
                    if not _is_torn(data, offset, _reach(data, offset, announced)):
                        self.doubt = f"{name} is damaged at offset {offset} of {len(data)}, in what was written last"
                    break
                raise LogDamaged(
                    f"{name} is damaged at offset {offset} of {len(data)}: a record there fails its checksum and later ones are whole"
                )
            kind, payload, after = found
            if offset == 0 and kind != _SEGMENT:
                raise LogDamaged(f"{name} does not begin with a segment header")
            self._take(name, offset, kind, payload, first=first)
            if kind == _MARK:
                length = _U64.unpack(payload)[0] - _ANNOUNCED
                announced = after + length if length >= 0 else None
            offset = after
        if offset == 0 and not last:
            raise LogDamaged(f"{name} is empty, and later segments exist")
        if self._segments and self._segments[-1].name == name:
            self._segments[-1].size = offset
        return offset

    def _take(self, name: str, offset: int, kind: int, payload: bytes, *, first: bool) -> None:
        if kind == _RECORD_ENTRY:
            index, term = _ENTRY.unpack_from(payload)
            self._place((payload[_ENTRY.size :], index, term), f"{name} at offset {offset}")
        elif kind == _STATE:
            self.term = _U64.unpack_from(payload)[0]
            self.voted_for = payload[_U64.size :].decode() or None
        elif kind == _COMMIT:
            self.commit = max(self.commit, _U64.unpack(payload)[0])
        elif kind == _TRUNCATE:
            del self._entries[max(1, _U64.unpack(payload)[0] - self._entries[0][1] + 1) :]
        elif kind == _RESET:
            index, term = _ENTRY.unpack(payload)
            self._entries = [(_NO_OP, index, term)]
            self.commit = max(self.commit, index)
        elif kind == _SEGMENT:
            self._take_header(name, payload, first=first)
        elif kind != _MARK:
            raise LogDamaged(
                f"{name} at offset {offset}: unknown record type {kind}; was it written by a newer version?"
            )

    def _take_header(self, name: str, payload: bytes, *, first: bool) -> None:
        header = msgspec.msgpack.decode(payload, type=_SegmentHeader)
        if header.format not in _FORMATS:
            raise LogDamaged(f"{name} has format {header.format}; this version reads {_FORMATS[0]} to {_FORMATS[-1]}")
        self._format = header.format
        if name != f"{header.number:012d}.log":
            raise LogDamaged(f"{name} is segment {header.number}: it was renamed or copied here")
        if first:
            self._entries = [(_NO_OP, header.prev_index, header.prev_term)]
            self.term, self.voted_for, self.commit = header.term, header.voted_for, header.commit
        elif header.number != self._segments[-1].number + 1:
            raise LogDamaged(f"segment {self._segments[-1].number + 1} is missing before {name}")
        elif (header.prev_index, header.prev_term) != (self.last_index, self.last_term):
            raise LogDamaged(
                f"{name} continues entry {header.prev_index}, but the segment before it ends at {self.last_index}"
            )
        self._segments.append(_Segment(header.number, header.prev_index, 0))

    def _place(self, entry: Entry, where: str) -> None:
        index = entry[1]
        base = self._entries[0][1]
        if index > self.last_index + 1:
            raise LogDamaged(f"{where}: entry {index} follows entry {self.last_index}")
        if index <= base:
            # An older segment that held the entry before this one was removed after a snapshot covered both.
            self._entries = [(_NO_OP, index - 1, -1)]
        else:
            del self._entries[index - base :]
        self._entries.append(entry)

    # -- the engine's journal seam -----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, key: int) -> Entry: ...
    @overload
    def __getitem__(self, key: slice) -> list[Entry]: ...
    def __getitem__(self, key: int | slice) -> Entry | list[Entry]:
        return self._entries[key]

    def add(self, command: bytes, idx: int, term: int) -> None:
        """Append an entry: in memory at once, on disk with the next group."""
        assert idx == self.last_index + 1, (idx, self.last_index)
        self._entries.append((command, idx, term))
        if command[:1] == MEMBERSHIP:
            self.memberships.append(self._entries[-1])
        self.bytes += len(command)
        self.bytes_appended += len(command)
        self._append(record(_RECORD_ENTRY, _ENTRY.pack(idx, term) + command))

    def deleteEntriesFrom(self, position: int) -> None:  # noqa: N802
        """Forget the entries from `position` on."""
        self.bytes -= sum(len(entry[0]) for entry in self._entries[position:])
        del self._entries[position:]
        self.memberships = [entry for entry in self.memberships if entry[1] <= self.last_index]
        self.durable_index = min(self.durable_index, self.last_index)
        self._group_last = min(self._group_last, self.last_index)
        self._append(record(_TRUNCATE, _U64.pack(self.last_index)))

    def getCurrentTerm(self) -> int:  # noqa: N802
        """Term as last stored."""
        return self.term

    def getVotedForNodeId(self) -> str | None:  # noqa: N802
        """Whom this node voted for in the current term."""
        return self.voted_for

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:  # noqa: N802, N803
        """Store term and vote as one record, so that they cannot come apart."""
        self.term, self.voted_for = term, votedForNodeId
        self._append(record(_STATE, _U64.pack(term) + (votedForNodeId or "").encode()))

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        """Commit index as last stored; the true one may be higher."""
        return self.commit

    def setRaftCommitIndex(self, index: int) -> None:  # noqa: N802
        """Note the commit index. It goes to disk with the next group: losing it costs time at a restart, not safety."""
        self.commit = max(self.commit, index)

    def onOneSecondTimer(self) -> None:  # noqa: N802
        """Called by the engine every second; nothing here needs it."""

    # -- positions ---------------------------------------------------------------------------------------------------

    @property
    def base_index(self) -> int:
        """Index of the entry before the first one held; its command is gone."""
        return self._entries[0][1]

    @property
    def last_index(self) -> int:
        """Index of the last entry."""
        return self._entries[-1][1]

    @property
    def last_term(self) -> int:
        """Term of the last entry."""
        return self._entries[-1][2]

    @property
    def bytes_on_disk(self) -> int:
        """Bytes in all segments."""
        return sum(segment.size for segment in self._segments)

    @property
    def end(self) -> tuple[int, int]:
        """The last segment's number and the bytes of it that are whole; (0, 0) before there is one. It only ever grows."""
        return (self._segments[-1].number, self._segments[-1].size) if self._segments else (0, 0)

    @property
    def unwritten_bytes(self) -> int:
        """Bytes that were added and are not durable yet."""
        return self._pending_bytes + (self._group[3] if self._group is not None else 0)

    @property
    def under_way(self) -> int:
        """What tells the group that is being written from all others, 0 when none is."""
        return self._group[2] if self._writing and self._group is not None else 0

    @property
    def segments(self) -> int:
        """How many segment files there are."""
        return len(self._segments)

    def term_at(self, index: int) -> int | None:
        """Term of entry `index`, or None when the log does not hold it."""
        position = index - self._entries[0][1]
        return self._entries[position][2] if 0 <= position < len(self._entries) else None

    def entries_from(self, index: int, count: int | None, bytes_max: int | None) -> list[Entry]:
        """Entries from `index` on: at most `count`, and as many as reach `bytes_max`, at least one."""
        position = index - self._entries[0][1]
        if position < 0:
            return []
        if bytes_max is None:
            return self._entries[position : None if count is None else position + count]
        result: list[Entry] = []
        size = 0
        for position in range(position, len(self._entries)):  # noqa: B020 the start is read before the loop rebinds it
            entry = self._entries[position]
            result.append(entry)
            size += len(entry[0]) + 32
            if size >= bytes_max or len(result) == count:
                break
        return result

    def before_tail(self, index: int, entries: int, bytes_max: int) -> int:
        """Where the last `entries` entries up to `index` begin, or fewer of them that pass `bytes_max`: the index before these."""
        base = self._entries[0][1]
        keep = max(index - entries, base)
        size = 0
        for position in range(index - base, keep - base, -1):
            size += len(self._entries[position][0])
            if size > bytes_max:
                return base + position
        return keep

    def first_index_of_term(self, index: int) -> int:
        """The lowest index held whose entries up to `index` all have the term of entry `index`."""
        base = self._entries[0][1]
        term = self._entries[index - base][2]
        while index - 1 > base and self._entries[index - 1 - base][2] == term:
            index -= 1
        return index

    # -- changing the whole ------------------------------------------------------------------------------------------

    def reset(self, index: int, term: int) -> None:
        """Begin anew behind a snapshot at `index`: everything held before is void."""
        self._entries = [(_NO_OP, index, term)]
        self.memberships = []
        self.bytes = 0
        self.commit = max(self.commit, index)
        self.durable_index = min(self.durable_index, index)
        self._group_last = min(self._group_last, index)
        self._append(record(_RESET, _ENTRY.pack(index, term)))

    def compact(self, index: int) -> None:
        """Forget entries up to and including `index` (a durable snapshot covers them), on disk by whole segments."""
        position = index - self._entries[0][1]
        if position <= 0:
            return
        kept = self._entries[position]
        self.bytes -= sum(len(entry[0]) for entry in self._entries[:position]) + len(kept[0])
        self._entries[: position + 1] = [(_NO_OP, kept[1], kept[2])]
        self.memberships = [entry for entry in self.memberships if entry[1] > index]
        # A segment that is not on disk yet cannot take an older one's place: its first write may still fail.
        while len(self._segments) > 1 and self._segments[1].size and self._segments[1].prev_index <= index:
            self._removable.append(self._segments.pop(0).name)
        if self._removable:
            self._disk.run(self._remove, self._removed)

    def _remove(self) -> None:
        # The oldest first, and none before it is gone: a gap in the row of segments would look like a lost one. What
        # cannot be removed now is tried again the next time.
        while self._removable:
            self._disk.remove(self._removable[0])
            self._removable.popleft()

    def _removed(self, result: None, error: Exception | None) -> None:
        if error is not None:
            log.error("old log segments could not be removed: %s", error)

    # -- writing -----------------------------------------------------------------------------------------------------

    def _append(self, data: bytes) -> None:
        self._pending.append(data)
        self._pending_bytes += len(data)
        self.appended += 1

    def _header_state(self) -> tuple[int, int, int, str | None, int]:
        return (self.last_index, self.last_term, self.term, self.voted_for, self.commit)

    def flush(self) -> None:
        """Start writing what is pending, unless a group is being written: then it goes with the next one."""
        if self._writing or not self._pending or self.failure is not None:
            return
        if self.commit != self._commit_written:
            self._pending.append(record(_COMMIT, _U64.pack(self.commit)))
            self._commit_written = self.commit
        body = b"".join(self._pending)
        group = record(_MARK, _U64.pack(_ANNOUNCED + len(body))) + body
        self._pending, self._pending_bytes = [], 0
        header: bytes | None = None
        if not self._segments or self._segments[-1].size >= self._segment_bytes or self._format < self.format:
            number = self._segments[-1].number + 1 if self._segments else 1
            prev_index, prev_term, term, voted_for, commit = self._group_end
            header = record(
                _SEGMENT,
                msgspec.msgpack.encode(
                    _SegmentHeader(self.format, number, prev_index, prev_term, term, voted_for, commit)
                ),
            )
            self._segments.append(_Segment(number, prev_index, 0))
            self._format = self.format
        self._group_end = self._header_state()
        self._group_last = self.last_index
        self._group = (group, header, self.appended, len(group) + (len(header) if header else 0))
        self._start()

    def _start(self) -> None:
        assert self._group is not None
        group, header, _, size = self._group
        segment = self._segments[-1]
        number, reaches, last_index, term = segment.number, segment.size + size, self._group_last, self._group_end[2]
        dirty, self._dirty = self._dirty, True
        self._writing = True

        def work() -> float:
            began = time.perf_counter()
            if dirty:
                # What a failed sync left in the file cannot be trusted: cut it, and write the whole group again.
                if self._file is not None:
                    self._file.close()
                    self._file = None
                if segment.name in self._disk.list():
                    self._disk.truncate(segment.name, segment.size)
            if header is not None and segment.size == 0 and self._file is not None:
                self._file.close()
                self._file = None
            if self._file is None:
                self._file = self._disk.append(segment.name)
            self._file.write(group if header is None else header + group)
            self._file.sync()
            if header is not None:
                self._disk.sync_directory()
            if self._witness is not None:
                self._witness.reached(number, reaches, last_index, term, sync=header is not None)
            return time.perf_counter() - began

        self._disk.run(work, self._written)

    def _written(self, seconds: float | None, error: Exception | None) -> None:
        self._writing = False
        assert self._group is not None
        if seconds is not None:
            self.on_synced(seconds)
        if error is not None:
            first = self.failure is None
            self.failure = error
            if first:
                self.on_failure(error)
            return
        _, _, position, size = self._group
        self._group = None
        self._dirty = False
        self.failure = None
        self._segments[-1].size += size
        self.durable = position
        self.durable_index = self._group_last
        self.on_durable()
        self.flush()

    def retry(self) -> None:
        """After a failure: try the failed group again."""
        if self.failure is not None and not self._writing:
            self._start()

    def close(self) -> None:
        """Close the file. What was not synced is not promised to anybody."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_only(disk: LogDisk | None) -> Log:
    """Read the whole log as a start would, and change nothing; an empty one without a disk. Raises LogDamaged."""
    return Log(_ReadOnly(disk), 1 << 30, settle=False)


def describe(held: Log) -> dict[str, Any]:
    """Tell what a log that was read holds."""
    return {
        "segments": held.segments,
        "first_index": held.base_index + 1,
        "last_index": held.last_index,
        "last_term": held.last_term,
        "term": held.term,
        "voted_for": held.voted_for,
        "commit_index": held.commit,
        "unfinished_bytes": held.tail_cut_bytes,
        "format": held.last_format,
    }


class _ReadOnly:
    """A disk that reads and ignores the repairs of a start."""

    def __init__(self, disk: LogDisk | None) -> None:
        self._disk = disk

    def list(self) -> list[str]:
        return self._disk.list() if self._disk is not None else []

    def read(self, name: str) -> bytes:
        if self._disk is None:
            raise FileNotFoundError(name)
        return self._disk.read(name)

    def append(self, name: str) -> AppendFile:
        raise PermissionError(name)

    def truncate(self, name: str, size: int) -> None:
        pass

    def remove(self, name: str) -> None:
        pass

    def sync_directory(self) -> None:
        pass

    def run(self, work: Callable[[], T], done: Callable[[T | None, Exception | None], None]) -> None:
        raise PermissionError("read only")

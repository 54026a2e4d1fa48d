"""Images of the whole state on disk: written by a forked child, read at the start, and sent to peers that the log cannot help.

A snapshot file is the log's record format: HEAD (what cluster/ must know), PIECE … (the state machine's image), END (how many pieces
and bytes there were). It gets its name only when it is whole and synced, and the one before it is kept until the next is safe.
When to take one is decided here by the log's growth; what is in the pieces is the state machine's business.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import logging
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, NoReturn, Protocol

import msgspec

from quorumq.cluster.disk import AppendFile
from quorumq.cluster.errors import LogDamaged
from quorumq.cluster.log import LogDisk, read_record, record

log = logging.getLogger("quorumq.snapshots")

_HEAD, _PIECE, _END = 16, 17, 18
_SUFFIX = ".snapshot"
_RECEIVING = "receiving.part"
_KEPT = 2
_SYNC_BYTES = 1 << 20
_PAUSE_S = 0.01
_PAUSE_MAX_S = 0.25
_PAUSE_SHARE = 4
"""A writer that is in no hurry pauses for so many times as long as the piece before took: a fifth of the disk and of a core is its."""
_READ_BYTES = 1 << 20
SEND_BYTES = 256 << 10
"""Bytes of one piece of a snapshot under way to a peer."""
_SEND_AHEAD = 8
"""Pieces sent before the first of them must be acknowledged."""
_SEND_STALL_S = 3.0
_STILL_S = 0.25
"""A poll that comes later than this after the one before shows that the process stood still, and its child perhaps as well."""
_STOP_S = 0.5
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class Head(msgspec.Struct, frozen=True):
    """What comes before the image: where in the log it stands, and cluster/'s own replicated state."""

    version: int
    index: int
    term: int
    replica: bytes


class _End(msgspec.Struct, frozen=True):
    pieces: int
    bytes: int


class SnapshotDisk(LogDisk, Protocol):
    """What snapshots need of a disk."""

    def size(self, name: str) -> int: ...
    def read_at(self, name: str, offset: int, count: int) -> bytes: ...
    def rename(self, old: str, new: str) -> None: ...


def file_name(index: int, term: int) -> str:
    """Name of the snapshot at `index`; names sort by age."""
    return f"{index:016x}-{term:08x}{_SUFFIX}"


def write(disk: SnapshotDisk, temporary: str, head: Head, pieces: Iterator[bytes], alive: Callable[[], None]) -> str:
    """Write a whole snapshot and give it its name. `alive` is called between pieces and may raise to end the work."""
    disk.remove(temporary)
    file: AppendFile = disk.append(temporary)
    count = size = synced = 0
    try:
        file.write(record(_HEAD, msgspec.msgpack.encode(head)))
        for piece in pieces:
            alive()
            file.write(record(_PIECE, piece))
            count += 1
            size += len(piece)
            # A sync of the log may have to wait for everything of this file that is still to be written: keep that small.
            if size - synced >= _SYNC_BYTES:
                file.sync()
                synced = size
        file.write(record(_END, msgspec.msgpack.encode(_End(count, size))))
        file.sync()
    finally:
        file.close()
    name = file_name(head.index, head.term)
    disk.rename(temporary, name)
    return name


class SnapshotReader:
    """Reads a snapshot piece by piece, checking as it goes. Raises LogDamaged, with file and offset, at the first fault."""

    def __init__(self, disk: SnapshotDisk, name: str) -> None:
        self._disk = disk
        self._name = name
        self._size = disk.size(name)
        self._buffer = b""
        self._offset = 0
        kind, payload = self._next()
        if kind != _HEAD:
            raise LogDamaged(f"{name} does not begin with a head")
        self.head = msgspec.msgpack.decode(payload, type=Head)

    def _next(self) -> tuple[int, bytes]:
        start = self._offset
        want = _READ_BYTES
        while True:
            found = read_record(self._buffer, 0)
            if found is not None:
                kind, payload, after = found
                self._buffer = self._buffer[after:]
                self._offset += after
                return kind, payload
            held = start + len(self._buffer)
            more = self._disk.read_at(self._name, held, want) if held < self._size else b""
            if not more or len(self._buffer) > (1 << 30):
                raise LogDamaged(f"{self._name} is damaged at offset {start} of {self._size}")
            self._buffer += more
            want *= 2

    def pieces(self) -> Iterator[bytes]:
        """The image. The last step checks that nothing was missing."""
        count = size = 0
        while True:
            kind, payload = self._next()
            if kind == _PIECE:
                count += 1
                size += len(payload)
                yield payload
                continue
            end = msgspec.msgpack.decode(payload, type=_End) if kind == _END else None
            if end is None or (end.pieces, end.bytes) != (count, size) or self._offset != self._size:
                raise LogDamaged(f"{self._name} is damaged near offset {self._offset}: pieces are missing or left over")
            return


def newest(disk: SnapshotDisk) -> list[str]:
    """Names of the snapshots, newest first."""
    return sorted((name for name in disk.list() if name.endswith(_SUFFIX)), reverse=True)


def verify(disk: SnapshotDisk, name: str) -> Head:
    """Read a whole snapshot; raises LogDamaged when it is not sound."""
    reader = SnapshotReader(disk, name)
    for _ in reader.pieces():
        pass
    return reader.head


def prune(disk: SnapshotDisk, needed: Collection[str]) -> None:
    """Remove all but the newest two and those `needed`."""
    for name in newest(disk)[_KEPT:]:
        if name not in needed:
            disk.remove(name)


class WriteThrottle:
    """How long a writer pauses between two pieces. hurried: as short as those who serve can bear for a while."""

    def __init__(self, *, hurried: bool) -> None:
        self._share = 0 if hurried else _PAUSE_SHARE
        self._resumed_at: float | None = None

    def pause_s(self, now: float) -> float:
        """A piece was written by `now`: return for how many seconds to pause."""
        took = 0.0 if self._resumed_at is None else now - self._resumed_at
        pause = min(max(took * self._share, _PAUSE_S), _PAUSE_MAX_S)
        self._resumed_at = now + pause
        return pause


class Forked:
    """Runs the writing in a forked child: the child's memory is the state as it was, and the parent goes on.

    `poll` is asked now and then whether the child has ended. One that has made no progress for `stall_s` seconds is ended; the next
    one begins when it is really gone.
    """

    def __init__(self) -> None:
        self._child = 0
        self._progress = -1
        self._moved_at = self._polled_at = 0.0
        self._killed = False
        self._done: Callable[[Exception | None], None] | None = None
        self.fork_s = 0.0
        self.hurried = False
        self.stall_s = 60.0
        self.stalls = 0

    def start(self, work: Callable[[Callable[[], None]], Any], done: Callable[[Exception | None], None]) -> None:
        """Fork, do `work` in the child, and report its end through `poll`."""
        parent = os.getpid()
        began = time.monotonic()
        self._progress, progress_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            child = os.fork()
        except OSError:
            os.close(progress_out)
            self._forget()
            raise
        if child == 0:
            self._in_child(parent, progress_out, work, self.hurried)
        os.close(progress_out)
        self._moved_at = self._polled_at = time.monotonic()
        self.fork_s = self._moved_at - began
        self._child, self._done, self._killed = child, done, False

    @staticmethod
    def _in_child(parent: int, progress_out: int, work: Callable[[Callable[[], None]], Any], hurried: bool) -> NoReturn:
        status = 1
        try:
            gc.disable()
            # The parent's signal pipe and sockets are not the child's: a listening socket held here would keep a
            # restarted parent from its port.
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.closerange(3, progress_out)
            os.closerange(progress_out + 1, 65536)
            # Also one that is stopped, or waits for a disk that hangs, ends with its parent.
            if hasattr(_libc, "prctl"):
                _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            # Serving comes first: the child needs a second of processor time for a million jobs, and no hurry.
            os.nice(19)

            throttle = WriteThrottle(hurried=hurried)

            def alive() -> None:
                if os.getppid() != parent:
                    os._exit(2)
                with contextlib.suppress(OSError):
                    os.write(progress_out, b".")
                # Gaps between the pieces leave processor and disk to those who serve.
                time.sleep(throttle.pause_s(time.monotonic()))

            work(alive)
            status = 0
        except BaseException as error:
            # The child has no logging of its own: its parent says what happened.
            os.write(2, f"snapshot writer: {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(status)

    def poll(self) -> None:
        """Report the child's end, if it has ended."""
        if not self._child:
            return
        child, status = os.waitpid(self._child, os.WNOHANG)
        if child == 0:
            self._watch(time.monotonic())
            return
        self._forget()
        done, self._done = self._done, None
        assert done is not None
        code = os.waitstatus_to_exitcode(status)
        if self._killed and code == -signal.SIGKILL:
            done(OSError(f"its writer made no progress for {self.stall_s:.0f} s"))
        else:
            done(None if code == 0 else OSError(f"the snapshot writer ended with status {code}"))

    def _watch(self, now: float) -> None:
        late, self._polled_at = now - self._polled_at, now
        if late > _STILL_S:
            self._moved_at += late
        with contextlib.suppress(BlockingIOError):
            if os.read(self._progress, 1 << 16):
                self._moved_at = now
        if now - self._moved_at > self.stall_s and not self._killed:
            self._killed = True
            self.stalls += 1
            log.error("the process that writes a snapshot has made no progress for %.0f s, and is ended", self.stall_s)
            os.kill(self._child, signal.SIGKILL)

    def _forget(self) -> None:
        self._child = 0
        if self._progress >= 0:
            os.close(self._progress)
            self._progress = -1

    def stop(self) -> None:
        """End a child that still writes. One that hangs in the kernel is not waited for: it ends as soon as it can."""
        if self._child:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._child, signal.SIGKILL)
                deadline = time.monotonic() + _STOP_S
                while os.waitpid(self._child, os.WNOHANG)[0] == 0 and time.monotonic() < deadline:
                    time.sleep(0.001)
            self._forget()


class SnapshotWriter(Protocol):
    """Does the writing beside the event loop (Forked, or the simulation's)."""

    fork_s: float
    hurried: bool
    stall_s: float
    stalls: int

    def start(self, work: Callable[[Callable[[], None]], Any], done: Callable[[Exception | None], None]) -> None: ...
    def poll(self) -> None: ...
    def stop(self) -> None: ...


class SnapshotSender:
    """Sends the newest snapshot to one peer, piece by piece, as fast as the peer acknowledges."""

    def __init__(self, disk: SnapshotDisk, name: str, send: Callable[[dict[str, Any]], bool], now: float) -> None:
        self.name = name
        self.index = int(name.partition("-")[0], 16)
        self._disk = disk
        self._send = send
        self._size = disk.size(name)
        self._sent = 0
        self._acked = 0
        self._reading = False
        self.moved_at = now
        self._begin()

    def _begin(self) -> None:
        self._send({"type": "snapshot_begin", "name": self.name, "size": self._size})

    def acknowledged(self, name: str, offset: int, now: float) -> None:
        """The peer holds everything below `offset`."""
        if name != self.name:
            return
        self.moved_at = now
        self._acked = offset
        self._sent = max(self._sent, offset)
        self._more()

    def _more(self) -> None:
        if self._reading or self._sent >= self._size or self._sent - self._acked >= _SEND_AHEAD * SEND_BYTES:
            return
        self._reading = True
        offset = self._sent
        self._disk.run(lambda: self._disk.read_at(self.name, offset, SEND_BYTES), self._read)

    def _read(self, data: bytes | None, error: Exception | None) -> None:
        self._reading = False
        if error is not None or not data:
            log.error("cannot read %s to send it: %s", self.name, error)
            return
        if self._send({"type": "snapshot_piece", "name": self.name, "offset": self._sent, "data": data}):
            self._sent += len(data)
            self._more()

    def stalled(self, now: float) -> bool:
        """Whether nothing was acknowledged for so long that it must begin again."""
        return now - self.moved_at > _SEND_STALL_S


class _Incoming:
    """The file that a snapshot is received into; used in the disk's thread only, since opening it may take as long as any write."""

    def __init__(self, disk: SnapshotDisk) -> None:
        self._disk = disk
        self._file: AppendFile | None = None

    def write(self, data: bytes) -> None:
        if self._file is None:
            self._disk.remove(_RECEIVING)
            self._file = self._disk.append(_RECEIVING)
        self._file.write(data)

    def sync(self) -> None:
        if self._file is not None:
            self._file.sync()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class SnapshotReceiver:
    """Takes a snapshot in from the leader. A transfer that was cut goes on where it stopped.

    install: called with a whole and durable snapshot, and with what to call when that is done: True when it is in place or
    not needed any more, False when it is not taken.
    """

    def __init__(
        self,
        disk: SnapshotDisk,
        send: Callable[[str, dict[str, Any]], bool],
        install: Callable[[str, Head, Callable[[bool], None]], None],
    ) -> None:
        self._disk = disk
        self._send = send
        self._install = install
        # What is under way, and from whom: images of two nodes may differ though they are of the same state.
        self._peer = ""
        self._name = ""
        self._size = 0
        self._held = 0
        self._file: _Incoming | None = None
        self._busy = False
        self._finishing: tuple[str, dict[str, Any]] | None = None
        self._said_at = float("-inf")

    def begin(self, peer: str, message: dict[str, Any]) -> None:
        """The leader offers a snapshot: say how much of it is here already."""
        name, size = message["name"], message["size"]
        if not isinstance(name, str) or not name.endswith(_SUFFIX) or "/" in name:
            raise ValueError("not a snapshot's name")
        if self._busy:
            return
        if (peer, name, size) != (self._peer, self._name, self._size):
            self._give_up()
            self._peer, self._name, self._size, self._held = peer, name, size, 0
        if self._held >= self._size > 0:
            self._finish(peer)
            return
        self._send(peer, {"type": "snapshot_held", "name": name, "offset": self._held})

    def piece(self, peer: str, message: dict[str, Any]) -> None:
        """A piece: kept when it is the next one."""
        if (peer, message["name"], message["offset"]) != (self._peer, self._name, self._held) or self._busy:
            return
        data = message["data"]
        file = self._file = self._file or _Incoming(self._disk)
        self._held += len(data)
        held, name, whole = self._held, self._name, self._held >= self._size

        def work() -> None:
            file.write(data)

        def done(result: None, error: Exception | None) -> None:
            if self._file is not file:
                return  # it was given up, or is being finished
            if error is not None:
                log.error("cannot keep a piece of a snapshot: %s", error)
                self._give_up()
            elif whole:
                self._finish(peer)
            else:
                self._send(peer, {"type": "snapshot_held", "name": name, "offset": held})

        self._disk.run(work, done)

    def _finish(self, peer: str) -> None:
        if self._busy:
            return
        self._busy = True
        name, file = self._name, self._file
        self._finishing = (peer, {"type": "snapshot_held", "name": name, "offset": self._size})
        self._file = None

        def work() -> Head:
            if file is not None:
                file.sync()
                file.close()
            head = verify(self._disk, _RECEIVING)
            self._disk.rename(_RECEIVING, name)
            return head

        def done(head: Head | None, error: Exception | None) -> None:
            self._name, self._held = "", 0
            if error is not None or head is None:
                self._busy = False
                log.error("the snapshot received from %s is not sound (%s): it will be asked for again", peer, error)
                self._disk.run(lambda: self._disk.remove(_RECEIVING), lambda result, error: None)
                return
            self._install(name, head, functools.partial(self._installed, peer, head.index))

        self._disk.run(work, done)

    def _installed(self, peer: str, index: int, taken: bool) -> None:
        self._busy = False
        if taken:
            # It counts as an acknowledgement of everything up to there.
            self._send(peer, {"type": "snapshot_installed", "index": index})

    def tick(self, now: float) -> None:
        """Let the leader know, while a whole snapshot is checked and put in place, that this goes on."""
        if self._busy and self._finishing is not None and now - self._said_at > _SEND_STALL_S / 3:
            self._said_at = now
            self._send(*self._finishing)

    def _give_up(self) -> None:
        self._name = ""
        file, self._file = self._file, None
        if file is not None:
            # After the pieces that are still to be written to it: its handle may be another file's once it is closed.
            self._disk.run(file.close, lambda result, error: None)


class Policy:
    """When to take a snapshot: after so many bytes or entries of log since the last one, and not more often than every so often.

    eagerness: scales the bounds, different for each node, so that nodes of one machine or one disk do not all write at once.
    """

    def __init__(self, log_bytes: int, log_entries: int, interval_s: float, eagerness: float) -> None:
        self._log_bytes = log_bytes * eagerness
        self._log_entries = log_entries * eagerness
        self._interval_s = interval_s
        self._not_before = float("-inf")
        self._bytes_at_last = 0
        self.index = 1

    def due(self, bytes_appended: int, applied_index: int, now: float) -> bool:
        """Whether the log has grown enough."""
        grown = (
            bytes_appended - self._bytes_at_last >= self._log_bytes or applied_index - self.index >= self._log_entries
        )
        return grown and applied_index > self.index and self.may(now)

    def overdue(self, bytes_appended: int, applied_index: int) -> bool:
        """Whether the log has grown twice as much as it should."""
        return (
            bytes_appended - self._bytes_at_last >= 2 * self._log_bytes
            or applied_index - self.index >= 2 * self._log_entries
        )

    def may(self, now: float) -> bool:
        """Whether the last attempt is long enough ago for another one."""
        return now >= self._not_before

    def taken(self, index: int, bytes_appended: int) -> None:
        """A snapshot at `index` is in place."""
        self.index, self._bytes_at_last = index, bytes_appended

    def ended(self, now: float) -> None:
        """An attempt ended, well or not: the next one can wait."""
        self._not_before = now + self._interval_s

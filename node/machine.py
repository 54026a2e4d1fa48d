"""The replicated state machine: log entries in, outcomes and events out.

`apply` is total: a refusal is a value in the outcome, and so is a bug, which every replica meets alike. Nothing here
reads a clock, draws a random number or waits.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any

import msgspec

import node.operations  # noqa: F401 - fills the catalogue
from node import image
from node.events import Event
from node.notices import noticed
from node.operation import Operation, any_operation
from node.refusals import InternalError, OperationNotKnown, Refusal
from node.state import State
from node.state.job import Job

log = logging.getLogger("quorumq.machine")

_SEAL = struct.Struct(">16sQQQQQQQ")
_MARK_MASK = (1 << 64) - 1


class Entry(msgspec.Struct, gc=False):
    """One log entry while and after it is applied.

    woken: queues that may have something to give now.  ended: watched jobs that completed.  events: None unless wanted.
    """

    index: int
    now_ms: int
    events: list[Event] | None
    woken: dict[str, None]
    ended: list[Job]


Listener = Callable[[Entry], None]


class Machine:
    """The state, and the only way to change it."""

    def __init__(self) -> None:
        self.state = State()
        self.index = 0
        # Bugs met so far: operations that raised something other than a refusal.
        self.errors = 0
        # Whether events are collected for the listeners; nobody pays for events that nobody reads.
        self.events_wanted = False
        self._digest = bytes(16)
        self._listeners: list[Listener] = []
        operations: Any = any_operation()
        self._decode = msgspec.msgpack.Decoder(list[operations]).decode
        self._decode_parts = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
        self._decode_one = msgspec.msgpack.Decoder(operations).decode

    def listen(self, listener: Listener) -> None:
        """Call `listener(entry)` after every entry, while the state is the one that the entry left."""
        self._listeners.append(listener)

    def watch(self, job_id: str) -> None:
        """Have the completion of a job reported in `Entry.ended`; as often as `unwatch` will be called."""
        watched = self.state.watched
        watched[job_id] = watched.get(job_id, 0) + 1

    def unwatch(self, job_id: str) -> None:
        """Take one `watch` back."""
        watched = self.state.watched
        watched[job_id] -= 1
        if not watched[job_id]:
            del watched[job_id]

    def apply(self, index: int, now_ms: int, batches: Sequence[bytes], *, resumed: bool = False) -> list[Any]:
        """Apply one entry: first what time brings, then the operations of each batch in order.

        resumed: nothing could be replicated just before, so workers are owed time for what they could not say.

        Returns one outcome per batch: a list with a reply or a Refusal for each of its operations, or one Refusal for
        a batch that cannot be read.
        """
        state = self.state
        self.index = index
        collect = self.events_wanted or now_ms < state.events_until
        entry = Entry(index, 0, [] if collect else None, {}, [])
        state.events, state.woken, state.ended = entry.events, entry.woken, entry.ended
        state.stalled = []
        if resumed:
            state.resume(now_ms)
        try:
            state.advance(now_ms)
        except MemoryError:
            raise
        except Exception:
            self._note_bug(index, "the passing of time")
        entry.now_ms = state.now_ms
        outcomes: list[Any] = []
        for payload in batches:
            try:
                operations = self._decode(payload)
            except msgspec.DecodeError as error:
                outcomes.append(self._apply_one_by_one(payload, entry, error))
                continue
            outcomes.append([self._apply(operation, entry) for operation in operations])
        self._seal()
        if entry.events:
            self._notice(entry, entry.events)
        self._tell(entry)
        return outcomes

    def _apply(self, operation: Operation, entry: Entry) -> Any:
        try:
            return operation.apply(self.state, entry)
        except Refusal as refusal:
            # Without its traceback, which would keep the frames of this call alive.
            return refusal.with_traceback(None)
        except MemoryError:
            # Not the same on every replica, so nothing that may be answered: the process has to stop.
            raise
        except Exception:
            self._note_bug(entry.index, str(operation.__struct_config__.tag))
            return InternalError(entry.index)

    def _apply_one_by_one(self, payload: bytes, entry: Entry, error: msgspec.DecodeError) -> Any:
        """Apply a batch in which something cannot be read: that is refused, the operations beside it are applied."""
        try:
            parts = self._decode_parts(payload)
        except msgspec.DecodeError:
            return OperationNotKnown(str(error))
        replies: list[Any] = []
        for part in parts:
            try:
                operation = self._decode_one(part)
            except msgspec.DecodeError as problem:
                replies.append(OperationNotKnown(str(problem)))
                continue
            replies.append(self._apply(operation, entry))
        return replies

    def _note_bug(self, index: int, what: str) -> None:
        self.errors += 1
        log.exception("entry %d: %s failed in a way that is a bug", index, what)

    def _seal(self) -> None:
        state = self.state
        state.mark &= _MARK_MASK
        sums = (state.now_ms, state.mark, state.seq, state.fence, state.endings, len(state.jobs))
        self._digest = blake2b(_SEAL.pack(self._digest, self.index, *sums), digest_size=16).digest()

    def _notice(self, entry: Entry, events: list[Event]) -> None:
        try:
            events += noticed(self.state, events)
        except Exception:
            # Some nodes look and others do not, so this may change nothing else.
            log.exception("entry %d: what it brought about could not be worked out", entry.index)

    def _tell(self, entry: Entry) -> None:
        for listener in self._listeners:
            try:
                listener(entry)
            except Exception:
                log.exception("entry %d: a listener failed", entry.index)

    def digest(self) -> str:
        """Return a fingerprint of the history: equal on all nodes at the same index."""
        return self._digest.hex()

    def full_digest(self) -> str:
        """Return a fingerprint of every byte of the state; takes as long as an image."""
        whole = blake2b(digest_size=16)
        for piece in self.image():
            whole.update(piece)
        return whole.hexdigest()

    def image(self) -> Iterator[bytes]:
        """Return the whole state in pieces of about a megabyte."""
        return image.write(self.state, self.index, self._digest)

    def restore(self, pieces: Iterable[bytes]) -> None:
        """Replace the whole state by an image, however it is cut into pieces. Raises image.ImageDamaged."""
        watched = self.state.watched
        # The old state goes first: two of them may not fit into memory.
        self.state = State()
        self._put(*image.read(pieces), watched)

    def restoring(self, pieces: Iterable[bytes]) -> Generator[None, None, Callable[[], Iterator[None]]]:
        """Build the state of an image beside the present one, yielding every few milliseconds. Raises image.ImageDamaged.

        Returns a function that puts the new state in place; it gives what has to be iterated over to let go of the old one.
        """
        state, index, digest = yield from image.reading(pieces)

        def put() -> Iterator[None]:
            old = self.state
            self._put(state, index, digest, old.watched)
            return _let_go(old)

        return put

    def _put(self, state: State, index: int, digest: bytes, watched: dict[str, int]) -> None:
        self.index, self._digest = index, digest
        state.watched = watched
        self.state = state
        done = [job for job in map(state.jobs.get, watched) if job is not None and job.finished]
        self._tell(Entry(self.index, state.now_ms, None, dict.fromkeys(state.queues), done))


def _let_go(state: State) -> Iterator[None]:
    """Free a state in steps: a million jobs at once would take a tenth of a second."""
    # These hold every job until the last, so that what goes before them is only tables.
    jobs = list(state.jobs.values())
    yield
    queues = list(state.queues.values())
    state.queues = {}
    state.jobs = {}
    while queues:
        yield
        del queues[-1]
    while jobs:
        yield
        del jobs[-10_000:]

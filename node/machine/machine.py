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

import quorumq.node.machine.operations  # noqa: F401 - fills the catalogue
from quorumq.cluster.errors import NotUnderstood
from quorumq.cluster.version import VERSION
from quorumq.node.machine import contents, image, levels
from quorumq.node.machine.derived_events import derive
from quorumq.node.machine.events import Event
from quorumq.node.machine.lifecycle import clock
from quorumq.node.machine.operation import Entry, EntryListener, Operation, any_operation
from quorumq.node.machine.operations.bullmq.sessions import CallOnce
from quorumq.node.machine.operations.requests import Idempotent
from quorumq.node.machine.refusals import InternalError, Refusal
from quorumq.node.machine.state import State
from quorumq.node.machine.state.digests import EMPTY, START

log = logging.getLogger("quorumq.machine")

_SEAL = struct.Struct(">16sQQQQQQQ")
_MARK_MASK = (1 << 64) - 1
READ_ENTRIES = 32
READ_MS = 200
"""A step through the contents comes with the entry that is so many entries and so much log time after the last one, or"""
READ_LATEST_MS = 60_000
"""with the first one after so much of it."""
ROUND_MS = 60_000
"""A round goes on, reading everything again, until it is at least so long."""
POINTS_MAX = 512
"""Points of the log for which the digests are remembered, to be compared with those of nodes that are ahead or behind."""


class Machine:
    """The state, and the only way to change it.

    timed_by_clients: calls of clients say what time it is, and entries do not (CLOCK=clients). For one node alone, and always the same
    for one folder.
    """

    def __init__(self, *, timed_by_clients: bool = False) -> None:
        self._timed_by_clients = timed_by_clients
        self.state = self._following(State())
        self.level_known = levels.KNOWN
        self.index = 0
        # Bugs met so far: operations that raised something other than a refusal.
        self.errors = 0
        # Whether events are collected for the listeners; nobody pays for events that nobody reads.
        self.events_wanted = False
        self._digest = EMPTY
        # Digests of history and contents after the steps of late, by index, as far as they are made as this program makes them.
        self.points: dict[int, tuple[bytes, bytes]] = {}
        self._listeners: list[EntryListener] = []
        operations: Any = any_operation()
        self._decode = msgspec.msgpack.Decoder(list[operations]).decode

    @property
    def level(self) -> int:
        """The feature level in force (node/machine/levels.py)."""
        return self.state.level

    @level.setter
    def level(self, level: int) -> None:
        before, self.state.level = self.state.level, level
        if before < 1 <= level:
            # Whatever the digests were below, which other versions may have made differently.
            self._begin_round()

    def listen(self, listener: EntryListener) -> None:
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

        Returns one outcome per batch: a list with a reply or a Refusal for each of its operations.
        Raises NotUnderstood, before anything is changed, when an operation or a field of it is not known here.
        """
        try:
            decoded = list(map(self._decode, batches))
        except msgspec.DecodeError as error:
            raise NotUnderstood(
                f"entry {index} holds an operation that version {VERSION} does not understand ({error}): "
                "start the version that wrote it"
            ) from None
        state = self.state
        if state.timed_by_clients:
            now_ms = state.now_ms
        self.index = index
        collect = self.events_wanted or now_ms < state.events_until
        entry = Entry(index, 0, [] if collect else None, {}, [])
        state.events, state.woken, state.ended = entry.events, entry.woken, entry.ended
        state.stalled = []
        if state.bullmq.streams.changed:
            state.bullmq.streams.changed = {}
        state.webhooks.begin(state.level)
        if resumed:
            state.resume(now_ms)
        try:
            clock.advance(state, now_ms)
        except MemoryError:
            raise
        except Exception:
            self._note_bug(index, "the passing of time")
        entry.now_ms = state.now_ms
        outcomes = [[self._apply(operation, entry) for operation in operations] for operations in decoded]
        state.webhooks.end()
        if state.level < 1:
            self._seal_by_marks()
        else:
            digests = state.digests
            if digests.place == START and not digests.entries and state.now_ms - digests.began_ms >= ROUND_MS:
                self._begin_round()
            sealed = contents.brief(outcomes) if entry.added_flow else outcomes
            self._seal((index, state.now_ms, resumed, batches, sealed))
        if entry.events:
            self._derive_events(entry, entry.events)
        self._tell(entry)
        return outcomes

    def _apply(self, operation: Operation, entry: Entry) -> Any:
        try:
            return operation.apply(self.state, entry)
        except Refusal as refusal:
            # Without its traceback, which would keep the frames of this call alive.
            return refusal.with_traceback(None)
        except (MemoryError, NotUnderstood):
            # Not the same on every replica, so nothing that may be answered: the process has to stop.
            raise
        except Exception:
            self._note_bug(entry.index, str(operation.__struct_config__.tag))
            return InternalError(entry.index)

    def understands(self, payload: bytes) -> bool:
        """Whether `apply` can read this batch whole."""
        try:
            for operation in self._decode(payload):
                if isinstance(operation, Idempotent | CallOnce):
                    operation.inner()
        except (msgspec.DecodeError, NotUnderstood):
            return False
        return True

    def _note_bug(self, index: int, what: str) -> None:
        self.errors += 1
        log.exception("entry %d: %s failed in a way that is a bug", index, what)

    def _seal_by_marks(self) -> None:
        """The digest below level 1: of the clock, some counters, and what every transition added to a sum."""
        state = self.state
        state.mark &= _MARK_MASK
        sums = (state.now_ms, state.mark, state.seq, state.fence, state.endings, len(state.jobs))
        self._digest = blake2b(_SEAL.pack(self._digest, self.index, *sums), digest_size=16).digest()

    def _begin_round(self) -> None:
        """Let both digests begin anew: so nodes can be compared again once all run the same program."""
        digests = self.state.digests
        self._digest = digests.contents = EMPTY
        digests.shape, digests.began_ms = contents.shape(), self.state.now_ms

    def _seal(self, entry: tuple[Any, ...]) -> None:
        """Chain an entry and its outcomes to what came before, and read on in the contents when that is due."""
        state = self.state
        state.mark = 0
        digests, now_ms = state.digests, state.now_ms
        self._digest = _chained(self._digest, contents.encode(entry))
        digests.entries += 1
        since = now_ms - digests.read_ms
        if since < READ_MS or (digests.entries < READ_ENTRIES and since < READ_LATEST_MS):
            return
        try:
            piece, digests.place = contents.read(state, digests.place)
        except MemoryError:
            raise
        except Exception as error:
            # Only a state that is damaged cannot be read, and then it is not as that of the others.
            log.exception("entry %d: the contents of this node are damaged", self.index)
            piece, digests.place = type(error).__name__.encode(), START
        digests.contents = _chained(digests.contents, piece)
        digests.read_ms, digests.entries = now_ms, 0
        if digests.shape == contents.shape():
            self.points[self.index] = (self._digest, digests.contents)
            if len(self.points) > POINTS_MAX:
                del self.points[next(iter(self.points))]

    def _derive_events(self, entry: Entry, events: list[Event]) -> None:
        try:
            events += derive(self.state, events)
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
        """Return a fingerprint of the history: equal on all nodes at the same index.

        From level 1 on it is a chain over entries and outcomes since the round began; below, over some counters.
        """
        return self._digest.hex()

    @property
    def shape(self) -> str:
        """What the digests are made of, empty below level 1: only nodes that say the same here can be compared."""
        return contents.shape().hex() if self.state.level >= 1 else ""

    def contents_digest(self) -> Generator[None, None, str]:
        """Work out a fingerprint of all that the state holds, in steps of about a millisecond; the state must not change meanwhile."""
        whole = blake2b(digest_size=16)
        for piece in contents.whole(self.state):
            whole.update(piece)
            yield
        return whole.hexdigest()

    def full_digest(self) -> str:
        """Return a fingerprint of every byte of the image; takes as long as one. For nodes of one program only."""
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
        self.state = self._following(State())
        self._put(*image.read(pieces), watched)

    def restoring(self, pieces: Iterable[bytes]) -> Generator[None, None, Callable[[], Iterator[None]]]:
        """Build the state of an image beside the present one, yielding every few milliseconds. Raises image.ImageDamaged.

        Returns a function that puts the new state in place; it gives what has to be iterated over to let go of the old one.
        """
        state, index, digest = yield from image.reading(pieces)

        def put() -> Iterator[None]:
            old = self.state
            self._put(state, index, digest, old.watched)
            return _free_in_steps(old)

        return put

    def _put(self, state: State, index: int, digest: bytes, watched: dict[str, int]) -> None:
        self.index, self._digest = index, digest
        self.points = {}
        state.watched = watched
        self.state = self._following(state)
        done = [job for job in map(state.jobs.get, watched) if job is not None and job.finished]
        self._tell(Entry(self.index, state.now_ms, None, dict.fromkeys(state.queues), done))

    def _following(self, state: State) -> State:
        if self._timed_by_clients:
            state.follow_clients()
        return state


def _chained(before: bytes, piece: bytes) -> bytes:
    whole = blake2b(before, digest_size=16)
    whole.update(piece)
    return whole.digest()


def _free_in_steps(state: State) -> Iterator[None]:
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

"""What requests with an idempotency key were answered: key to first outcome, for a day and within bounds.

Outcomes are kept as bytes; what they mean is the affair of `node.operations.requests`. From level 1 on each belongs to the scope of
its sender. Where there are too many, the scope that has most lets its oldest go, and of each of those a digest stays for its day.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import Any

import msgspec

from quorumq.node.machine.state.forgotten import DIGESTS_MAX, HOUR_MS, KEEP_MS, Forgotten, Slice, digest_of

KEYS_MAX = 100_000
BYTES_MAX = 64 << 20
# A record without its reply, key and fingerprint, roughly.
RECORD_BYTES = 200
STEP_PART = 256
"""Of the scope that has most this part goes at once: to find the oldest keys of a dictionary takes as long for many as for one."""
UNSCOPED = "/"
"""The scope of keys that came below level 1, each of which holds the token's text in its hash. No token is called so."""


class Outcome(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What one request was answered. fingerprint: of the request, made at the edge.  operation: its name.

    reply: the reply in bytes, None when the operation was refused or its reply too large.
    refusal: code and facts of the refusal, None when there was a reply.
    """

    fingerprint: bytes
    at: int
    operation: str
    reply: bytes | None = None
    refusal: tuple[str, list[Any]] | None = None


class ScopedOutcome(Outcome, frozen=True, gc=False, array_like=True):
    """The same from level 1 on. scope: what has a share of its own of the bounds: the token's name, as the edge gives it."""

    scope: str = UNSCOPED


def scope_of(outcome: Outcome) -> str:
    """The scope that an outcome belongs to."""
    return outcome.scope if isinstance(outcome, ScopedOutcome) else UNSCOPED


class _Scope:
    """What one scope has. keys: oldest first.  size: bytes of their outcomes, by their weight."""

    __slots__ = ("forgotten", "keys", "size")

    def __init__(self) -> None:
        self.keys: dict[str, None] = {}
        self.size = 0
        self.forgotten = Forgotten()


class _Largest:
    """Which scope has most by one measure; of equals the one whose name comes last.

    A heap in which every change leaves a new entry, and old ones are passed over. It is made when it is first asked, so
    that nothing is paid for it as long as there is room; it holds nothing that the scopes do not say.
    """

    __slots__ = ("_heap", "_measure", "_scopes")

    def __init__(self, scopes: dict[str, _Scope], measure: Callable[[_Scope], int]) -> None:
        self._scopes = scopes
        self._measure = measure
        self._heap: list[tuple[int, _Backwards]] | None = None

    def changed(self, name: str, scope: _Scope) -> None:
        if self._heap is not None:
            heappush(self._heap, (-self._measure(scope), _Backwards(name)))

    def find(self, but: str) -> str:
        """The name; `but` is a key that stays, and whose scope is passed over when it has no other. Raises LookupError."""
        heap, scopes = self._heap, self._scopes
        if heap is None or len(heap) > 4 * len(scopes) + 64:
            heap = self._heap = [(-self._measure(scope), _Backwards(name)) for name, scope in scopes.items()]
            heapify(heap)
        passed = None
        try:
            while heap:
                entry = heap[0]
                name = entry[1].name
                scope = scopes.get(name)
                if scope is None or not scope.keys or self._measure(scope) != -entry[0]:
                    heappop(heap)
                elif len(scope.keys) == 1 and but in scope.keys:
                    passed = heappop(heap)
                else:
                    return name
        finally:
            if passed is not None:
                heappush(heap, passed)
        raise LookupError(but)


class _Backwards:
    """A name that comes before those that it would come behind."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __lt__(self, other: _Backwards) -> bool:
        return self.name > other.name


class Outcomes:
    """Outcomes by key, oldest first, and the digests of those that had to go.

    size: bytes that the outcomes take, by their weight.  digests: how many there are.  evicted: outcomes of which only a digest
    stayed, so far.  lost: digests that had to go before their day was over, so far.
    """

    __slots__ = (
        "_by_key",
        "_by_number",
        "_by_size",
        "_over_at",
        "_scopes",
        "_swept",
        "digests",
        "evicted",
        "lost",
        "size",
    )

    def __init__(self) -> None:
        self._by_key: dict[str, Outcome] = {}
        self._scopes: dict[str, _Scope] = {}
        self._by_number = _Largest(self._scopes, lambda scope: len(scope.keys))
        self._by_size = _Largest(self._scopes, lambda scope: scope.size)
        self.size = 0
        self.digests = 0
        self.evicted = 0
        self.lost = 0
        # Not part of the image: no outcome is over before this moment of the log's clock.
        self._over_at = 0
        # Not part of the image: the hour of the log's clock in which digests were last looked through. Those of a day end with an hour.
        self._swept = 0

    def __len__(self) -> int:
        return len(self._by_key)

    def find(self, key: str, now_ms: int) -> Outcome | None:
        """Return what a key was answered, unless that is too long ago."""
        outcome = self._by_key.get(key)
        return None if outcome is None or outcome.at + KEEP_MS <= now_ms else outcome

    def was_forgotten(self, scope: str, key: str, now_ms: int) -> bool:
        """Whether the outcome of a key had to go, and its day is not over."""
        found = self._scopes.get(scope) if self.digests else None
        return found is not None and bool(found.forgotten.count) and found.forgotten.holds(digest_of(key), now_ms)

    def put(self, key: str, outcome: Outcome, *, level: int) -> None:
        """Remember an outcome for a key that has none, and forget what is too old or too much."""
        self.forget(key)
        self._add(key, outcome)
        if level < 1:
            while len(self._by_key) > 1:
                oldest = next(iter(self._by_key))
                if not (self._is_over(oldest, outcome.at) or len(self._by_key) > KEYS_MAX or self.size > BYTES_MAX):
                    break
                self.forget(oldest)
            return
        self._expire(outcome.at)
        while len(self._by_key) > 1 and (len(self._by_key) > KEYS_MAX or self.size > BYTES_MAX):
            most = self._by_number if len(self._by_key) > KEYS_MAX else self._by_size
            self._evict(most.find(key))
        if self.digests:
            self._look_through(outcome.at)

    def _expire(self, now_ms: int) -> None:
        while self._by_key and now_ms >= self._over_at:
            oldest = next(iter(self._by_key))
            if self._is_over(oldest, now_ms):
                self.forget(oldest)
            else:
                self._over_at = self._by_key[oldest].at + KEEP_MS

    def _is_over(self, key: str, now_ms: int) -> bool:
        return self._by_key[key].at + KEEP_MS <= now_ms

    def _add(self, key: str, outcome: Outcome) -> None:
        name = scope_of(outcome)
        scope = self._scopes.get(name)
        if scope is None:
            scope = self._scopes[name] = _Scope()
        weight = weight_of(key, outcome)
        self._by_key[key] = outcome
        scope.keys[key] = None
        scope.size += weight
        self.size += weight
        self._changed(name, scope)

    def _changed(self, name: str, scope: _Scope) -> None:
        self._by_number.changed(name, scope)
        self._by_size.changed(name, scope)
        if not scope.keys and not scope.forgotten.count:
            del self._scopes[name]

    def forget(self, key: str) -> bool:
        """Let a key be as if it had never come; say whether it was there."""
        outcome = self._by_key.pop(key, None)
        if outcome is None:
            return False
        name, weight = scope_of(outcome), weight_of(key, outcome)
        scope = self._scopes[name]
        del scope.keys[key]
        scope.size -= weight
        self.size -= weight
        self._changed(name, scope)
        return True

    def _evict(self, name: str) -> None:
        """Let the oldest outcomes of a scope of several go, and keep their digests."""
        scope = self._scopes[name]
        count = max(1, len(scope.keys) // STEP_PART)
        for oldest in list(islice(scope.keys, count)):
            # The digest first, so that the scope is not taken for an empty one.
            self.digests += scope.forgotten.add(digest_of(oldest), self._by_key[oldest].at)
            self.forget(oldest)
            self.evicted += 1

    def _look_through(self, now_ms: int) -> None:
        if self._swept != now_ms // HOUR_MS:
            self._swept = now_ms // HOUR_MS
            for name, scope in list(self._scopes.items()):
                self.digests -= scope.forgotten.sweep(now_ms)
                self._changed(name, scope)
        while self.digests > DIGESTS_MAX:
            name, scope = max(self._scopes.items(), key=lambda item: (item[1].forgotten.count, item[0]))
            gone = scope.forgotten.drop_oldest()
            self.digests -= gone
            self.lost += gone
            self._changed(name, scope)

    def largest(self) -> str:
        """The scope with most keys and digests, empty when there is none."""
        sizes = [(len(scope.keys) + scope.forgotten.count, name) for name, scope in self._scopes.items()]
        return max(sizes, default=(0, ""))[1]

    def items(self) -> Iterable[tuple[str, Outcome]]:
        """Iterate over keys and outcomes, oldest first."""
        return self._by_key.items()

    def slices(self) -> Iterator[tuple[str, Slice]]:
        """Iterate over the digests with their scopes, in an order that the state alone decides."""
        for name in sorted(self._scopes):
            for piece in self._scopes[name].forgotten:
                yield name, piece

    def restore(self, items: Iterable[tuple[str, Outcome]]) -> None:
        """Add outcomes from an image, in its order."""
        names = {name: name for name in self._scopes}
        for key, outcome in items:
            if isinstance(outcome, ScopedOutcome):
                # One text for all of a scope.
                name = names.setdefault(outcome.scope, outcome.scope)
                outcome = msgspec.structs.replace(outcome, scope=name)
            self._add(key, outcome)

    def restore_digests(self, name: str, hour: int, digests: bytes) -> None:
        """Add a slice of digests from an image, in its order."""
        scope = self._scopes.setdefault(name, _Scope())
        self.digests += scope.forgotten.restore(hour, digests)


def weight_of(key: str, outcome: Outcome) -> int:
    """Return the bytes that an outcome counts for."""
    return RECORD_BYTES + len(key) + len(outcome.fingerprint) + len(outcome.reply or b"")

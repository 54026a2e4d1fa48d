"""When a job must be looked at again: at most one timer per job, in order of time.

Most timers are locks and stall deadlines that never fire, because the job is finished long before. So a timer that is
more than a second away costs two dictionary steps, and only the timers of the current second are kept sorted.
"""

from __future__ import annotations

from sortedcontainers import SortedDict, SortedList

from quorumq.node.machine.state.job import ORDER_BITS, Job

# A timer's second, nearly: its due time without the low bits.
SPAN_BITS = 10


class Timers:
    """Timers of jobs. `job.due` says when (milliseconds, 0 for none) and is only written here."""

    __slots__ = ("_far", "_horizon", "_near", "_spans")

    def __init__(self) -> None:
        # Timers up to the span `_horizon` are in `_near`, sorted by (due, seq); later ones in `_far`, by span.
        self._near: SortedDict = SortedDict()
        self._far: dict[int, dict[int, Job]] = {}
        self._spans: SortedList = SortedList()
        self._horizon = 0

    def __len__(self) -> int:
        return len(self._near) + sum(map(len, self._far.values()))

    def set(self, job: Job, due: int) -> None:
        """Make `due` the job's timer; 0 takes the timer away."""
        if job.due == due:
            return
        if job.due:
            self.clear(job)
        if due:
            job.due = due
            self.enter(job)

    def enter(self, job: Job) -> None:
        """File a job under the timer it already carries."""
        due = job.due
        span = due >> SPAN_BITS
        if span > self._horizon:
            bucket = self._far.get(span)
            if bucket is None:
                bucket = self._far[span] = {}
                self._spans.add(span)
            bucket[job.seq] = job
        else:
            self._near[(due << ORDER_BITS) + job.seq] = job

    def holds(self, job: Job) -> bool:
        """Whether the job stands where its timer says; one without a timer does."""
        due = job.due
        if not due:
            return True
        span = due >> SPAN_BITS
        if span > self._horizon:
            return self._far.get(span, {}).get(job.seq) is job
        return self._near.get((due << ORDER_BITS) + job.seq) is job

    def clear(self, job: Job) -> None:
        """Take the job's timer away."""
        due = job.due
        if not due:
            return
        job.due = 0
        span = due >> SPAN_BITS
        if span > self._horizon:
            bucket = self._far[span]
            del bucket[job.seq]
            if not bucket:
                del self._far[span]
                self._spans.remove(span)
        else:
            del self._near[(due << ORDER_BITS) + job.seq]

    def next_due(self, now_ms: int) -> int | None:
        """Return when to look again: the first timer, or earlier by up to a span when it is far; None without timers."""
        self._approach(now_ms)
        if self._near:
            first: int = self._near.peekitem(0)[0]
            return first >> ORDER_BITS
        if self._spans:
            span: int = self._spans[0]
            return span << SPAN_BITS
        return None

    def pop_due(self, now_ms: int) -> Job | None:
        """Take out the first job whose timer is due, in order of (due, seq)."""
        self._approach(now_ms)
        if not self._near:
            return None
        key, job = self._near.peekitem(0)
        if key >> ORDER_BITS > now_ms:
            return None
        self._near.popitem(0)
        job.due = 0
        found: Job = job
        return found

    def _approach(self, now_ms: int) -> None:
        # Which timers are near decides their cost, never their order, so replicas may differ in it.
        horizon = now_ms >> SPAN_BITS
        if horizon <= self._horizon:
            return
        self._horizon = horizon
        while self._spans and self._spans[0] <= horizon:
            for job in self._far.pop(self._spans.pop(0)).values():
                self._near[(job.due << ORDER_BITS) + job.seq] = job

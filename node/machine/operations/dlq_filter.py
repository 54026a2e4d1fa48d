"""Which jobs of a dead letter queue are meant, by why and when they came there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import msgspec

from quorumq.node.machine.bounds import Key
from quorumq.node.machine.state.job import UNKNOWN, Job
from quorumq.node.machine.state.queue import DlqConfig, Queue


class DlqFilter(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """Conditions, of which all must hold. Times in milliseconds since the epoch.

    reason: why a job is there.  until_ms, since_ms: when it came there, both included.  retriable: only those whose automatic
    retry is due.  expired: only those that are older than is kept. Both are dealt with on time, so there are hardly any.
    offset: so many of those that meet the conditions are passed over, the oldest first.
    """

    reason: Key | None = None
    until_ms: int | None = None
    since_ms: int | None = None
    retriable: bool = False
    expired: bool = False
    offset: int = 0

    def chosen(self, queue: Queue, now_ms: int) -> Iterator[Job]:
        """Iterate over the jobs that are meant, oldest first."""
        return islice(self.meeting(queue.failed, queue.settings.dlq, now_ms), max(self.offset, 0), None)

    def meeting(self, jobs: Iterable[Job], config: DlqConfig, now_ms: int) -> Iterator[Job]:
        """Iterate over the jobs that meet the conditions."""
        for job in jobs:
            entered = job.finished_at or 0
            if self.until_ms is not None and entered > self.until_ms:
                # They stand in the order in which they came.
                return
            if (
                (self.since_ms is None or entered >= self.since_ms)
                and (self.reason is None or self.reason == reason_of(job))
                and (not self.retriable or _retry_is_due(job, config, now_ms))
                and (not self.expired or (config.max_age_ms is not None and entered + config.max_age_ms <= now_ms))
            ):
                yield job


def reason_of(job: Job) -> str:
    """Return why a job is in the dead letter queue."""
    return (job.failures.reason if job.failures else None) or UNKNOWN


def _retry_is_due(job: Job, config: DlqConfig, now_ms: int) -> bool:
    failures = job.failures
    return (
        config.auto_retry
        and failures is not None
        and failures.retries < config.max_auto_retries
        and failures.next_retry_at is not None
        and failures.next_retry_at <= now_ms
    )

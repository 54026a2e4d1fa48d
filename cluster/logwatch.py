"""Whether this node can write its log: errors of the disk, and a disk that hangs without one. It leads and votes only if so."""

from __future__ import annotations

import logging
from collections.abc import Callable

from quorumq.cluster.driver import Driver
from quorumq.cluster.health import DiskHealth, SlowWrites
from quorumq.cluster.log import Log
from quorumq.cluster.metrics import ReplicationMetrics
from quorumq.cluster.raft import Raft
from quorumq.cluster.seams import Clock

log = logging.getLogger("quorumq.cluster")

_LOG_RETRY_S = 0.5


class LogWatch:
    """Looks after one node's log.

    wall_ms: milliseconds since the epoch.  could_go_on: whether others could lead in place of a leader whose disk hangs.
    changed: called when this node may not vote any more, or may again.
    """

    def __init__(
        self,
        journal: Log,
        disk: DiskHealth,
        raft: Raft,
        driver: Driver,
        metrics: ReplicationMetrics,
        *,
        wall_ms: Callable[[], int],
        could_go_on: Callable[[], bool],
        changed: Callable[[], None],
    ) -> None:
        self._journal = journal
        self._disk = disk
        self._raft = raft
        self._driver = driver
        self._metrics = metrics
        self._wall_ms = wall_ms
        self._could_go_on = could_go_on
        self._changed = changed
        self._slow_writes = SlowWrites()
        self._failed_since_ms: int | None = None
        self._hung_since_ms: int | None = None
        journal.on_durable = self._durable
        journal.on_failure = self._failed
        journal.on_synced = self._synced

    @property
    def writes(self) -> bool:
        """Whether the log can be written."""
        return self._failed_since_ms is None and not self._disk.hung

    @property
    def failed_since_ms(self) -> int | None:
        """Since when it cannot, in milliseconds since the epoch."""
        return self._failed_since_ms or self._hung_since_ms

    def drive(self, now: float) -> None:
        """A disk that hangs without an error: this node leads only where nobody else could, and does not stand."""
        disk = self._disk
        if disk.look(self._journal.under_way, now):
            if disk.hung:
                log.error(
                    "the disk does not answer: a write of the log has been under way for %.1f s; "
                    "this node neither stands nor votes until it returns", disk.waiting_s,
                )  # fmt: skip
                self._hung_since_ms = self._wall_ms() - int(disk.waiting_s * 1000)
                self._metrics.disk_hangs += 1
            else:
                log.info("the disk answers again, after %.1f s", disk.lasted_s)
                self._hung_since_ms = None
            self._changed()
        self._metrics.disk_waiting_seconds = disk.waiting_s
        if disk.hung and self._raft.is_leader and self._could_go_on():
            log.warning("another member is to lead: the disks of a majority are well")
            self._raft.step_down()

    def _durable(self) -> None:
        if self._failed_since_ms is not None:
            log.info("the log can be written again")
            self._failed_since_ms = None
            self._changed()
        self._raft.durable_advanced()
        self._driver.poke()

    def _synced(self, seconds: float) -> None:
        self._metrics.sync_seconds.observe(seconds)
        self._slow_writes.took(seconds, Clock.now())

    def _failed(self, error: Exception) -> None:
        log.error("the log cannot be written: %s; this node neither leads nor votes until it can", error)
        self._failed_since_ms = self._wall_ms()
        self._metrics.log_failures += 1
        self._changed()
        self._raft.step_down()
        self._driver.loop.call_later(_LOG_RETRY_S, self._retry)

    def _retry(self) -> None:
        if not self._driver.stopped and self._journal.failure is not None:
            self._journal.retry()
            self._driver.loop.call_later(_LOG_RETRY_S, self._retry)

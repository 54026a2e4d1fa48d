"""What the replication counts about itself: plain numbers and histograms, rendered by whoever serves them."""

from __future__ import annotations

from bisect import bisect_left

import msgspec

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
BYTES = (256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Histogram:
    """Counts observations up to each bound, as Prometheus does."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Add one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """Observations so far."""
        return sum(self.counts)


class Metrics(msgspec.Struct):
    """One node's figures since its process started."""

    sync_seconds: Histogram = msgspec.field(default_factory=lambda: Histogram(SECONDS))
    """Writing and syncing one group of the log."""
    commit_seconds: Histogram = msgspec.field(default_factory=lambda: Histogram(SECONDS))
    """From proposing an entry to applying it; on the leader."""
    apply_seconds: Histogram = msgspec.field(default_factory=lambda: Histogram(SECONDS))
    """Applying one entry."""
    entry_bytes: Histogram = msgspec.field(default_factory=lambda: Histogram(BYTES))
    """Size of an entry applied."""
    entry_batches: Histogram = msgspec.field(default_factory=lambda: Histogram(COUNTS))
    """Batches that shared an entry; on the leader."""
    elections: int = 0
    """Elections this node stood in."""
    leader_changes: int = 0
    """Times this node saw another leader than before."""
    batches_resent: int = 0
    """Batches of this node that were sent again."""
    loop_seconds: Histogram = msgspec.field(default_factory=lambda: Histogram(SECONDS))
    """How late the event loop came to what was due, looked at fifty times a second."""
    loop_longest_seconds: float = 0.0
    """The latest it came so far."""
    loop_stalls: int = 0
    """Times the event loop stood still for more than a quarter of a second."""
    log_failures: int = 0
    """Times the log could not be written."""
    snapshots: int = 0
    snapshot_failures: int = 0
    snapshot_fork_seconds: float = 0.0
    """How long the loop stood still for the last snapshot's fork."""
    snapshot_bytes: int = 0
    """Size of the newest snapshot."""
    snapshot_at: float = 0.0
    """When the newest snapshot was finished, in seconds since the epoch; 0 when there is none of this process."""

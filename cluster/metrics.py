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


class ReplicationMetrics(msgspec.Struct):
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
    peers_refused: int = 0
    """Connections at the peer port that were refused: by the handshake, because they did not end it in time or were too many."""
    peer_messages_refused: int = 0
    """Messages of proven peers that ended their connection: broken, or with a term that nobody can believe."""
    peers_by_relay: int = 0
    """Members that this node reaches through another one, because there is no link."""
    relayed: int = 0
    """Messages that this node has passed on between members that have no link."""
    relay_drops: int = 0
    """Messages that it could not pass on."""
    log_failures: int = 0
    """Times the log could not be written."""
    log_unwritten_bytes: int = 0
    """Bytes that wait to be written to the log."""
    entries_refused: int = 0
    """Messages with entries that this follower passed over because too much waited already."""
    whole: bool = True
    """Whether this node holds all that it ever promised; while it may not, its vote and its word do not count."""
    disk_hangs: int = 0
    """Times a write of the log did not return for so long that the disk was taken to hang."""
    clock_jumps: int = 0
    """Times the log's clock was set by the majority's clocks at once."""
    disk_waiting_seconds: float = 0.0
    """For how long the write of the log that is under way has been."""
    snapshots: int = 0
    snapshot_failures: int = 0
    snapshot_waits: bool = False
    """Whether one is due that waits for its turn."""
    snapshot_stalls: int = 0
    """Times the process that writes a snapshot was ended because it made no progress."""
    snapshot_fork_seconds: float = 0.0
    """How long the loop stood still for the last snapshot's fork."""
    snapshot_bytes: int = 0
    """Size of the newest snapshot."""
    snapshot_at: float = 0.0
    """When the newest snapshot was finished, in seconds since the epoch; 0 when there is none of this process."""

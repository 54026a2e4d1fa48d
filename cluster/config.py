"""What a cluster node must know to start: who it is, who its peers are, where its files live, and its timing.

Only values; `api/settings` decides where they come from.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from quorumq.cluster.addresses import is_loopback, parted


class ClusterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one node's consensus.

    peers: every member's id and `host:port` of its peer listener, this node's own included.
    Times in milliseconds, sizes in bytes.
    """

    node_id: str
    peers: dict[str, str]
    listen: str
    data_dir: Path
    cluster_name: str = "quorumq"
    secret: str = ""
    # Good beside `secret` while it is changed from one to the other; empty: nodes without a secret; None: no other is good.
    secret_previous: str | None = None
    # This node's certificate and key, and the authority of all members': all three, or none for plain TCP.
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    # Whether nodes that speak plain TCP are talked to as well: while TLS is turned on or off.
    tls_optional: bool = False
    # Whether a peer's certificate that names somebody must name that peer, or its host.
    tls_names: bool = True
    # Names (`host:port`) that stand for all nodes, in place of `peers`, which then holds this node alone; and how many
    # of them found a cluster together, 0 when this node may only join one.
    discover: tuple[str, ...] = ()
    cluster_size: int = 0
    # Whether this node never has another one beside it, as its state is not to be had by two: where clients say what time it is.
    lone: bool = False

    heartbeat_ms: int = 100
    election_min_ms: int = 600
    election_max_ms: int = 1200
    # A leader that a quorum has not answered for this long steps down.
    quorum_loss_ms: int = 900

    # A member whose wall clock is further than this from the log's clock is warned of.
    clock_alarm_ms: int = 2_000
    # A snapshot's writer that has made no progress for so long is ended.
    snapshot_stall_ms: int = 60_000

    entry_bytes_max: int = 24 << 20
    entry_bytes_target: int = 1 << 20
    # Entries of one append_entries message stop at this size.
    append_bytes: int = 1 << 20
    frame_bytes_max: int = 64 << 20
    # Entries that a leader may have under way before they are committed.
    entries_in_flight_max: int = 4
    # A peer with more than this unsent is not given further entries until it drains.
    send_buffer_bytes_max: int = 32 << 20

    # Ports of this node that the other members are told of, by whatever name: where clients of one of them find the others.
    doors: dict[str, int] = {}

    # How long all members must have known a higher feature level before it is raised without a command.
    level_after_ms: int = 600_000

    # A follower with more than this that is not on its disk yet takes no further entries until half of it is.
    unwritten_bytes_max: int = 64 << 20

    segment_bytes: int = 32 << 20
    # A snapshot is taken when the log since the last one passes either bound.
    snapshot_log_bytes: int = 128 << 20
    snapshot_log_entries: int = 200_000
    snapshot_interval_ms: int = 10_000
    # Entries kept behind a snapshot, so that a slightly slow follower needs none.
    tail_entries: int = 2_000
    tail_bytes: int = 16 << 20

    @property
    def secrets(self) -> tuple[str, ...]:
        """The secrets that are good, the one to stay first."""
        return (self.secret,) if self.secret_previous in (None, self.secret) else (self.secret, self.secret_previous)

    def reached_by_others(self) -> bool:
        """Whether the peer listener can be reached from other machines."""
        return not is_loopback(parted(self.listen)[0])

    def validate(self) -> None:
        """Raise ValueError with the setting's name when the values cannot work together."""
        if self.node_id not in self.peers:
            raise ValueError(f"NODE_ID {self.node_id!r} is not among PEERS ({', '.join(sorted(self.peers))})")
        if self.lone and (len(self.peers) > 1 or self.discover):
            raise ValueError("CLOCK=clients is for tests, and for one node alone: not with PEERS or PEERS_DNS")
        if len({each is None for each in (self.tls_cert, self.tls_key, self.tls_ca)}) > 1:
            raise ValueError("PEER_TLS_CERT, PEER_TLS_KEY and PEER_TLS_CA belong together: set all of them or none")
        if self.tls_optional and self.tls_cert is None:
            raise ValueError("PEER_TLS=optional needs PEER_TLS_CERT, PEER_TLS_KEY and PEER_TLS_CA")
        if self.election_min_ms <= 3 * self.heartbeat_ms:
            raise ValueError("ELECTION_MIN_MS must be more than three times HEARTBEAT_MS")
        if self.election_max_ms <= self.election_min_ms:
            raise ValueError("ELECTION_MAX_MS must be more than ELECTION_MIN_MS")
        if self.entry_bytes_max + (1 << 20) > self.frame_bytes_max:
            raise ValueError("frame_bytes_max must be at least 1 MiB above entry_bytes_max")

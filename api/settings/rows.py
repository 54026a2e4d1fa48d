"""The settings of a node, row by row, and what follows from several of them.

docs/configuration.md is made from this table.  Nothing here starts anything.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from quorumq.cluster.addresses import is_loopback, join_address, split_address
from quorumq.cluster.config import ClusterConfig

from ..outgoing.egress import CallPolicy
from .table import About, Setting, SettingError, Settings, rows_of
from .values import (
    PEER_PORT,
    check_advertise,
    check_data_path,
    check_host,
    check_name,
    check_node_id,
    check_peers_dns,
    check_proxies,
    check_version,
    full_host_name,
    parse_peers,
    with_port,
)

# Three failed polls of a second, and some more.
SHUTDOWN_DELAY_MS = 5_000
# Said in place of the secret before when there was none.
NO_SECRET = "none"  # noqa: S105 - a word, not a secret


@dataclass(frozen=True, kw_only=True, repr=False)
class NodeConfig(Settings):
    """Every setting of one node. Times in milliseconds, sizes in bytes."""

    # -- Listening
    host: Annotated[
        str,
        About(group="Listening", help="Address that the listeners of clients and peers bind.", check=check_host),
    ] = "0.0.0.0"  # noqa: S104 - as the documented server does; docs/operations.md says what to close
    http_port: Annotated[
        int,
        About(
            group="Listening",
            help="Port of the bunqueue dialect and of `/admin`; 0 lets the system choose one.",
            low=0,
            high=65535,
        ),
    ] = 6790
    bullmq_port: Annotated[
        int | None,
        About(
            group="Listening",
            help="Port of the BullMQ dialect; 0 lets the system choose one, `off` serves it on HTTP_PORT only, under `/bullmq`.",
            low=0,
            high=65535,
            none_word="off",
        ),
    ] = 8080
    tcp_port: Annotated[
        int | None,
        About(
            group="Listening",
            help="Port of bunqueue's own protocol, which its clients speak; 0 lets the system choose one, `off` does not serve it.",
            low=0,
            high=65535,
            none_word="off",
        ),
    ] = 6789
    bunqueue_version: Annotated[
        str | None,
        About(
            group="Listening",
            help="What `/health` and `Hello` tell as their version, for clients that compare it with their own, as bunqueue's "
            "`doctor` does.",
            default_text="quorumq's own",
            check=check_version,
        ),
    ] = None
    peer_port: Annotated[
        int | None,
        About(
            group="Listening",
            help="Port on which the other nodes reach this one.",
            low=1,
            high=65535,
            default_text=f"the port of this node's own address in PEERS, else {PEER_PORT}",
        ),
    ] = None
    tls_cert: Annotated[
        Path | None,
        About(
            group="Listening",
            help="Certificate for clients, PEM, with those that lead to the authority's behind it; with TLS_KEY, every listener for "
            "clients speaks TLS. Both are read again when they change; connections stay.",
            default_text="none: plain HTTP",
        ),
    ] = None
    tls_key: Annotated[
        Path | None,
        About(group="Listening", help="Private key of TLS_CERT, PEM, without a password.", default_text="none"),
    ] = None
    tls: Annotated[
        Literal["required", "optional"],
        About(
            group="Listening",
            help="With TLS_CERT. `required`: clients speak TLS only. `optional`: those without TLS are served as well, at the same "
            "ports; while it is turned on or off.",
        ),
    ] = "required"

    # -- Cluster
    node_id: Annotated[
        str,
        About(
            group="Cluster",
            help="Name of this node; it must stay the same as long as the node keeps its data.",
            default_text="n1; with PEERS_DNS the host name",
            check=check_node_id,
        ),
    ] = "n1"
    peers: Annotated[
        Mapping[str, str],
        About(
            group="Cluster",
            help="Every node of the cluster with its peer address, this one included, as `n1=host:7790,n2=host:7790`.",
            default_text="this node alone",
            parse=parse_peers,
            form="id=host:port, …",
        ),
    ] = field(default_factory=dict)
    peers_dns: Annotated[
        tuple[str, ...],
        About(
            group="Cluster",
            help="Instead of PEERS: DNS names (`host` or `host:7790`, separated by commas) that resolve to all nodes, such as "
            "a headless service. Whoever answers there and knows the secret is a node.",
            default_text="none",
            check=check_peers_dns,
        ),
    ] = ()
    cluster_size: Annotated[
        int,
        About(
            group="Cluster",
            help="With PEERS_DNS: how many nodes found the cluster together at the first start; 0: this node only joins a cluster.",
            low=0,
            high=7,
        ),
    ] = 0
    advertise: Annotated[
        str,
        About(
            group="Cluster",
            help="With PEERS_DNS: the `host:port` at which the other nodes reach this one.",
            default_text="this machine's full name, with PEER_PORT",
            check=check_advertise,
        ),
    ] = ""
    cluster_name: Annotated[
        str,
        About(group="Cluster", help="Name of the cluster; nodes of another name are refused.", check=check_name),
    ] = "quorumq"
    cluster_secret: Annotated[
        str,
        About(group="Cluster", help="Secret by which nodes recognise each other; the same on all nodes.", secret=True),
    ] = ""
    cluster_secret_file: Annotated[
        Path | None,
        About(group="Cluster", help="File that holds the secret, instead of CLUSTER_SECRET.", default_text="none"),
    ] = None
    cluster_secret_previous: Annotated[
        str,
        About(
            group="Cluster",
            help="While the secret is changed: the one before, which is good as well; `none`: nodes without a secret are let in.",
            secret=True,
            default_text="none",
        ),
    ] = ""
    cluster_secret_previous_file: Annotated[
        Path | None,
        About(group="Cluster", help="File that holds it, instead of CLUSTER_SECRET_PREVIOUS.", default_text="none"),
    ] = None
    cluster_insecure: Annotated[
        bool,
        About(
            group="Cluster",
            help="`true`: start although the peer port can be reached from other machines and neither a secret nor mutual "
            "TLS protects it. Whoever reaches it can then read, change and end the cluster.",
        ),
    ] = False
    peer_tls_cert: Annotated[
        Path | None,
        About(
            group="Cluster",
            help="This node's certificate for the peer port, PEM; with PEER_TLS_KEY and PEER_TLS_CA, peers speak mutual TLS. "
            "All three are read again when they change.",
            default_text="none: plain TCP",
        ),
    ] = None
    peer_tls_key: Annotated[
        Path | None,
        About(group="Cluster", help="Private key of PEER_TLS_CERT, PEM, without a password.", default_text="none"),
    ] = None
    peer_tls_ca: Annotated[
        Path | None,
        About(
            group="Cluster",
            help="Certificate of the authority that signed the certificates of all nodes, PEM.",
            default_text="none",
        ),
    ] = None
    peer_tls: Annotated[
        Literal["required", "optional"],
        About(
            group="Cluster",
            help="With PEER_TLS_CERT. `required`: nodes speak TLS only. `optional`: nodes without TLS are talked to as well; while "
            "it is turned on or off by rolling restarts.",
        ),
    ] = "required"
    peer_tls_names: Annotated[
        Literal["check", "ignore"],
        About(
            group="Cluster",
            help="`check`: if a node's certificate has names (SAN), the node's id or the host of its peer address must be "
            "among them; one without names is accepted from every node. `ignore`: names are not checked.",
        ),
    ] = "check"
    heartbeat_ms: Annotated[
        int,
        About(group="Cluster", help="How often the leader sends heartbeats.", unit="ms", low=10, high=10_000),
    ] = 100
    feature_level_after_ms: Annotated[
        int,
        About(
            group="Cluster",
            help="How long all members must have known a higher feature level before it is raised without `quorumq level raise`. "
            "Until then a roll-back to the older version works.",
            low=0,
            high=31_536_000_000,
            unit="ms",
        ),
    ] = 600_000
    election_min_ms: Annotated[
        int,
        About(
            group="Cluster",
            help="Shortest election timeout: a node that has not heard from the leader for this long stands for election. More "
            "than three heartbeats. A leader that no majority answers for one and a half times as long steps down.",
            unit="ms",
            low=50,
            high=60_000,
        ),
    ] = 600
    election_max_ms: Annotated[
        int,
        About(
            group="Cluster",
            help="Longest election timeout; nodes choose one at random between the two.",
            unit="ms",
            low=60,
            high=120_000,
        ),
    ] = 1200
    clock_alarm_ms: Annotated[
        int,
        About(
            group="Cluster",
            help="When a node's wall clock is further than this from the log's clock, the log warns of it.",
            unit="ms",
            low=100,
        ),
    ] = 2_000
    clock: Annotated[
        Literal["log", "clients"],
        About(
            group="Cluster",
            help="Whose time counts: the `log`'s, steered by a majority's clocks, or that of `clients`: FOR TESTS ONLY, calls over "
            "BullMQ's backend socket say what time it is, forwards and backwards; on one node alone, in a folder begun so.",
        ),
    ] = "log"

    # -- Data
    data_path: Annotated[
        Path,
        About(
            group="Data",
            help="Folder of the log and the snapshots; created when missing. Each node needs its own.",
            check=check_data_path,
        ),
    ] = Path("data")
    snapshot_log_bytes: Annotated[
        int,
        About(
            group="Data",
            help="When the log has grown by this much, a snapshot is taken and the log before it is dropped.",
            unit="bytes",
            low=1 << 20,
        ),
    ] = 128 << 20
    snapshot_log_entries: Annotated[
        int,
        About(group="Data", help="The same, counted in log entries.", unit="entries", low=1_000),
    ] = 200_000
    snapshot_stall_ms: Annotated[
        int,
        About(
            group="Data",
            help="A process that writes a snapshot and has made no progress for this long is ended; another one is tried later.",
            unit="ms",
            low=1_000,
        ),
    ] = 60_000

    # -- HTTP
    auth_tokens: Annotated[
        tuple[str, ...],
        About(
            group="HTTP",
            help="Tokens with every right, separated by commas. If neither these nor AUTH_TOKENS_FILE are set, everybody "
            "has every right, but the BullMQ and Open Archiver dialects refuse every request.",
            secret=True,
            default_text="none",
        ),
    ] = ()
    auth_tokens_file: Annotated[
        Path | None,
        About(
            group="HTTP",
            help="File of tokens with rights and queues, made by `quorumq tokens`; read again when it changes.",
            default_text="none",
        ),
    ] = None
    cors_allow_origin: Annotated[
        str,
        About(group="HTTP", help="Value of `Access-Control-Allow-Origin`."),
    ] = "*"
    body_bytes_max: Annotated[
        int,
        About(
            group="HTTP",
            help="Largest request body; a larger one is answered 413.",
            unit="bytes",
            low=1 << 10,
            high=22 << 20,
        ),
    ] = 16 << 20
    connections_max: Annotated[
        int,
        About(
            group="HTTP",
            help="Open connections of clients. Beyond it idle ones are closed, the longest idle first; when none is idle, new ones "
            "are answered 503 and closed, except for probes.",
            low=16,
            high=1_000_000,
        ),
    ] = 10_000
    connections_per_client_max: Annotated[
        int | None,
        About(
            group="HTTP",
            help="Open connections from one address. Addresses of TRUSTED_PROXIES have no such bound, so by default nobody has: "
            "name your proxies, or `none`, to put it in force.",
            low=1,
            none_word="off",
        ),
    ] = 1_000
    descriptors_kept: Annotated[
        int,
        About(
            group="HTTP",
            help="File descriptors of the process that connections of clients never take: for the log, snapshots and peers. At most "
            "half of all are kept back.",
            low=32,
            high=100_000,
        ),
    ] = 256
    head_timeout_ms: Annotated[
        int,
        About(
            group="HTTP",
            help="How long a request's line and headers may take, counted from the connection's beginning or from their own first "
            "byte; then 408 and the end of the connection.",
            unit="ms",
            low=100,
            high=600_000,
        ),
    ] = 10_000
    client_bytes_per_s_min: Annotated[
        int,
        About(
            group="HTTP",
            help="Least rate, over each ten seconds, at which a client sends a body (else 408) and reads a reply (else its "
            "connection ends); 0: any.",
            unit="bytes/s",
            low=0,
            high=1 << 30,
        ),
    ] = 4_096
    websockets_max: Annotated[
        int,
        About(group="HTTP", help="WebSockets that are open at once; more are answered 503.", low=0, high=1_000_000),
    ] = 1_000
    event_streams_max: Annotated[
        int,
        About(group="HTTP", help="The same for streams of server-sent events.", low=0, high=1_000_000),
    ] = 1_000
    rate_limit_max_requests: Annotated[
        int | None,
        About(
            group="HTTP",
            help="Requests that a client may send in each window; more are answered 429. 0 or Infinity: no limit.",
            low=0,
            default_text="Infinity",
            none_word="Infinity",
        ),
    ] = None
    rate_limit_window_ms: Annotated[
        int,
        About(group="HTTP", help="Length of the sliding window of that limit.", unit="ms", low=10, high=86_400_000),
    ] = 60_000
    rate_limit_cleanup_ms: Annotated[
        int,
        About(
            group="HTTP",
            help="How often the counts of clients that have sent nothing for a window are removed.",
            unit="ms",
            low=100,
            high=86_400_000,
        ),
    ] = 60_000
    trusted_proxies: Annotated[
        tuple[str, ...],
        About(
            group="HTTP",
            help="Addresses or networks of proxies, separated by commas, whose `X-Forwarded-For` and `X-Real-IP` headers are "
            "believed; `*`: everybody's, `none`: nobody's.",
            default_text="`*`",
            check=check_proxies,
        ),
    ] = ("*",)
    metrics_auth: Annotated[
        bool,
        About(group="HTTP", help="Whether `GET /prometheus` needs a token, too."),
    ] = False
    queue_prefix: Annotated[
        str,
        About(
            group="HTTP",
            help="What BullMQ's clients call queues with: the default prefix, shown in `queueQualifiedName`, keys and reasons of jobs.",
        ),
    ] = "bull"
    webhook_allow_private: Annotated[
        bool,
        About(
            group="HTTP",
            help="Whether webhooks may call private, loopback and link-local addresses, and be plain `http://`; for tests and "
            "closed networks.",
        ),
    ] = False
    write_timeout_ms: Annotated[
        int,
        About(
            group="HTTP",
            help="How long a request waits for the cluster before it is answered 503 with `Retry-After`.",
            unit="ms",
            low=100,
            high=600_000,
        ),
    ] = 15_000
    shutdown_delay_ms: Annotated[
        int | None,
        About(
            group="HTTP",
            help="How long a node that was told to stop goes on serving after it has ceased to be ready: "
            "longer than a balancer takes to notice.",
            unit="ms",
            low=0,
            high=600_000,
            default_text="5000; 0 with a loopback HOST",
        ),
    ] = None
    shutdown_timeout_ms: Annotated[
        int,
        About(
            group="HTTP",
            help="How long a node that was told to stop may take to finish the requests under way.",
            unit="ms",
            low=0,
            high=600_000,
        ),
    ] = 10_000

    # -- Events
    events_form: Annotated[
        Literal["document", "named"],
        About(
            group="Events",
            help="What `GET /events` sends to a client that does not say which events it wants: `document`, the events of jobs "
            "without names, or `named`, all events under their names, as bunqueue's own console reads them.",
        ),
    ] = "document"
    queue_idle_threshold_ms: Annotated[
        int,
        About(
            group="Events",
            help="`queue:idle` is sent for a queue that has had no jobs to do for this long; 0: never.",
            unit="ms",
            low=0,
            high=86_400_000,
        ),
    ] = 30_000
    queue_size_threshold: Annotated[
        int,
        About(
            group="Events",
            help="`queue:threshold` is sent for a queue with more waiting and delayed jobs than this; 0: never.",
            unit="jobs",
            low=0,
        ),
    ] = 0
    worker_overload_threshold_ms: Annotated[
        int,
        About(
            group="Events",
            help="`worker:overloaded` is sent for a worker whose heartbeats say for this long that it works on as many jobs as "
            "it can; 0: never.",
            unit="ms",
            low=0,
            high=86_400_000,
        ),
    ] = 30_000
    memory_warning_mb: Annotated[
        int,
        About(
            group="Events",
            help="`server:memory-warning` is sent when the process holds more memory of its own than this; 0: never.",
            unit="MB",
            low=0,
        ),
    ] = 0
    storage_warning_mb: Annotated[
        int,
        About(
            group="Events",
            help="`storage:size-warning` is sent when the log and the snapshots take more disk space than this; 0: never.",
            unit="MB",
            low=0,
        ),
    ] = 0

    # -- Push workers
    worker_endpoints: Annotated[
        tuple[str, ...],
        About(
            group="Push workers",
            help="Which addresses push workers may call, separated by commas: `any`, `public` (the open internet), networks, "
            "addresses, host names (`.example.com` for all below one), and `cluster`: the cluster's own ports, which nothing else "
            "allows. Cloud metadata addresses are always refused.",
            default_text="`any`",
            check=CallPolicy,
        ),
    ] = ("any",)
    worker_lock_ms: Annotated[
        int,
        About(
            group="Push workers",
            help="Lock of a job that is being delivered: if its node is not heard of for this long, another node delivers it.",
            unit="ms",
            low=500,
            high=3_600_000,
        ),
    ] = 30_000
    worker_calls_max: Annotated[
        int,
        About(
            group="Push workers",
            help="Most calls of endpoints that a node has under way at once, whatever the concurrency of its push workers.",
            low=1,
            high=20_000,
        ),
    ] = 5_000

    # -- Logging
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        About(group="Logging", help="Lines of this level and above are logged."),
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"],
        About(group="Logging", help="Form of the lines on standard error: text, or one JSON object each."),
    ] = "text"

    def own_ports(self) -> set[int]:
        """The ports that this node and the others listen on, as far as the settings say."""
        addresses = [
            *self.peers.values(),
            *map(with_port, self.peers_dns),
            *([self.advertise] if self.advertise else []),
        ]
        ports = {split_address(address)[1] for address in addresses}
        return ports | {self.http_port, self.bullmq_port or 0, self.tcp_port or 0, self.peer_port or PEER_PORT}

    def members(self) -> dict[str, str]:
        """Every node's peer address as far as the settings say: a node without PEERS knows only its own."""
        if self.peers_dns:
            return {self.node_id: self.advertise or join_address(full_host_name(), self.peer_port or PEER_PORT)}
        return dict(self.peers) or {self.node_id: f"127.0.0.1:{self.peer_port or PEER_PORT}"}

    @property
    def guarded(self) -> bool:
        """Whether somebody at the peer port has to prove anything: that it knows the secret, or holds a certificate."""
        return bool(self.cluster_secret or self.encrypted)

    @property
    def encrypted(self) -> bool:
        """Whether all links between nodes speak TLS."""
        return self.peer_tls_cert is not None and self.peer_tls == "required"

    def secret_before(self) -> str | None:
        """The secret that is good beside the present one: empty for nodes that have none, None when no other is good."""
        word = self.cluster_secret_previous
        return None if not word else "" if word.strip().lower() == NO_SECRET else word

    def leaving_ms(self) -> int:
        """How long this node serves on when it is told to stop: no balancer stands before one that only this machine reaches."""
        if self.shutdown_delay_ms is not None:
            return self.shutdown_delay_ms
        return 0 if is_loopback(self.host) else SHUTDOWN_DELAY_MS

    def peer_host(self) -> str:
        """Address that the peer listener binds: HOST, but loopback where nobody has to prove anything or comes from outside.

        Raises SettingError when other machines could reach it and nobody has to prove anything.
        """
        if self.guarded or self.cluster_insecure or is_loopback(self.host):
            return self.host
        hosts = {node: split_address(address)[0] for node, address in self.members().items()}
        if not self.peers_dns and all(map(is_loopback, hosts.values())):
            return hosts.get(self.node_id, "127.0.0.1")
        raise SettingError(
            f"the peer port would listen on {self.host}, and neither CLUSTER_SECRET nor mutual TLS (PEER_TLS_CERT, "
            "PEER_TLS_KEY, PEER_TLS_CA) is set: whoever reaches it could join the cluster, and end it. Set CLUSTER_SECRET to "
            "the same long random text on all nodes, or CLUSTER_INSECURE=true to start all the same"
        )

    def cluster(self) -> ClusterConfig:
        """Give the part that consensus needs. Raises SettingError when values cannot work together."""
        members = self.members()
        port = self.peer_port
        if port is None and self.node_id in members and not self.peers_dns:
            port = split_address(members[self.node_id])[1]
        config = ClusterConfig(
            node_id=self.node_id,
            peers=members,
            listen=join_address(self.peer_host(), port or PEER_PORT),
            data_dir=self.data_path,
            cluster_name=self.cluster_name,
            secret=self.cluster_secret,
            secret_previous=self.secret_before(),
            tls_cert=self.peer_tls_cert,
            tls_key=self.peer_tls_key,
            tls_ca=self.peer_tls_ca,
            tls_optional=self.peer_tls == "optional",
            tls_names=self.peer_tls_names == "check",
            discover=tuple(with_port(name) for name in self.peers_dns),
            cluster_size=self.cluster_size,
            heartbeat_ms=self.heartbeat_ms,
            election_min_ms=self.election_min_ms,
            election_max_ms=self.election_max_ms,
            level_after_ms=self.feature_level_after_ms,
            quorum_loss_ms=self.election_min_ms * 3 // 2,
            snapshot_log_bytes=self.snapshot_log_bytes,
            snapshot_log_entries=self.snapshot_log_entries,
            snapshot_stall_ms=self.snapshot_stall_ms,
            clock_alarm_ms=self.clock_alarm_ms,
            doors={"http": self.http_port, "bullmq": self.bullmq_port or 0},
            lone=self.clock == "clients",
        )
        try:
            config.validate()
        except ValueError as error:
            raise SettingError(self.blamed(str(error))) from None
        return config


@functools.cache
def settings() -> tuple[Setting, ...]:
    """The table's rows, in their order."""
    return rows_of(NodeConfig)

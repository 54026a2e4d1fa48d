"""The settings of a node: one table, and where a value comes from.

Each field of NodeConfig is one setting; its type, default, unit and help give the flags, the environment variables, the
keys of a TOML file and docs/configuration.md.  A flag wins over the environment, the environment over the file, the
file over the default.  Nothing here starts anything.
"""

from __future__ import annotations

import difflib
import functools
import ipaddress
import itertools
import math
import re
import socket
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cluster.config import ClusterConfig
from node.addresses import CallPolicy

NODE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
PEER_PORT = 7790


class SettingError(Exception):
    """A setting that cannot be used; the message names the setting and where its value came from."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What the type of a setting cannot say.

    low, high: bounds, both included.  secret: never a flag (the process list shows flags) and never printed.
    default_text: said in place of the default where the default is worked out.
    """

    group: str
    help: str
    unit: str = ""
    low: int | None = None
    high: int | None = None
    secret: bool = False
    default_text: str = ""
    # The word that is taken for None: no bound, or not at all.
    none_word: str = ""


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """Every setting of one node. Times in milliseconds, sizes in bytes."""

    # -- Listening
    host: Annotated[
        str,
        About(group="Listening", help="Address that the HTTP and peer listeners bind."),
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

    # -- Cluster
    node_id: Annotated[
        str,
        About(
            group="Cluster",
            help="Name of this node; it must stay the same as long as the node keeps its data.",
            default_text="n1; with PEERS_DNS the host name",
        ),
    ] = "n1"
    peers: Annotated[
        Mapping[str, str],
        About(
            group="Cluster",
            help="Every node of the cluster with its peer address, this one included, as `n1=host:7790,n2=host:7790`.",
            default_text="this node alone",
        ),
    ] = field(default_factory=dict)
    peers_dns: Annotated[
        tuple[str, ...],
        About(
            group="Cluster",
            help="Instead of PEERS: DNS names (`host` or `host:7790`, separated by commas) that resolve to all nodes, such as "
            "a headless service. Whoever answers there and knows the secret is a node.",
            default_text="none",
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
        ),
    ] = ""
    cluster_name: Annotated[
        str,
        About(group="Cluster", help="Name of the cluster; nodes of another name are refused."),
    ] = "quorumq"
    cluster_secret: Annotated[
        str,
        About(group="Cluster", help="Secret by which nodes recognise each other; the same on all nodes.", secret=True),
    ] = ""
    cluster_secret_file: Annotated[
        Path | None,
        About(group="Cluster", help="File that holds the secret, instead of CLUSTER_SECRET.", default_text="none"),
    ] = None
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

    # -- Data
    data_path: Annotated[
        Path,
        About(group="Data", help="Folder of the log and the snapshots; created when missing. Each node needs its own."),
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
        ),
    ] = ("*",)
    metrics_auth: Annotated[
        Literal["false", "true"],
        About(group="HTTP", help="Whether `GET /prometheus` needs a token, too."),
    ] = "false"
    queue_prefix: Annotated[
        str,
        About(
            group="HTTP",
            help="Prefix of a queue's name in `queueQualifiedName` of the BullMQ dialect; it has no other effect.",
        ),
    ] = "bull"
    webhook_allow_private: Annotated[
        Literal["false", "true"],
        About(
            group="HTTP",
            help="Whether webhooks may call private, loopback and link-local addresses; for tests and closed networks.",
        ),
    ] = "false"
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
            "addresses, host names (`.example.com` for all below one). Cloud metadata addresses are always refused.",
            default_text="`any`",
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

    def __repr__(self) -> str:
        shown = (f"{s.key}={s.shown(getattr(self, s.key))}" for s in settings())
        return f"NodeConfig({', '.join(shown)})"

    def members(self) -> dict[str, str]:
        """Every node's peer address as far as the settings say: a node without PEERS knows only its own."""
        if self.peers_dns:
            return {self.node_id: self.advertise or join_address(full_host_name(), self.peer_port or PEER_PORT)}
        return dict(self.peers) or {self.node_id: f"127.0.0.1:{self.peer_port or PEER_PORT}"}

    def cluster(self) -> ClusterConfig:
        """Give the part that consensus needs. Raises SettingError when values cannot work together."""
        members = self.members()
        port = self.peer_port
        if port is None and self.node_id in members and not self.peers_dns:
            port = split_address(members[self.node_id])[1]
        config = ClusterConfig(
            node_id=self.node_id,
            peers=members,
            listen=join_address(self.host, port or PEER_PORT),
            data_dir=self.data_path,
            cluster_name=self.cluster_name,
            secret=self.cluster_secret,
            tls_cert=self.peer_tls_cert,
            tls_key=self.peer_tls_key,
            tls_ca=self.peer_tls_ca,
            tls_names=self.peer_tls_names == "check",
            discover=tuple(with_port(name) for name in self.peers_dns),
            cluster_size=self.cluster_size,
            heartbeat_ms=self.heartbeat_ms,
            election_min_ms=self.election_min_ms,
            election_max_ms=self.election_max_ms,
            quorum_loss_ms=self.election_min_ms * 3 // 2,
            snapshot_log_bytes=self.snapshot_log_bytes,
            snapshot_log_entries=self.snapshot_log_entries,
        )
        try:
            config.validate()
        except ValueError as error:
            raise SettingError(str(error)) from None
        return config


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    key: the field and the file's key.  env: the environment's variable.  flag: the command line's, None for secrets.
    """

    key: str
    type: Any
    default: Any
    about: About

    @property
    def env(self) -> str:
        return self.key.upper()

    @property
    def flag(self) -> str | None:
        return None if self.about.secret else "--" + self.key.replace("_", "-")

    @property
    def type_name(self) -> str:
        """What a user has to write, in a word or two."""
        kind = required(self.type)
        if typing.get_origin(kind) is Literal:
            return ", ".join(typing.get_args(kind))
        names: dict[Any, str] = {int: "whole number", str: "text", Path: "path"}
        if self.about.none_word:
            return f"whole number or {self.about.none_word}"
        return names.get(kind) or ("id=host:port, …" if typing.get_origin(kind) is Mapping else "list")

    @property
    def default_text(self) -> str:
        """The default as a user would write it."""
        return self.about.default_text or str(self.default)

    def shown(self, value: Any) -> str:
        """The value as it may be printed: a secret only says whether it is set."""
        if self.about.secret:
            return "(set)" if value else "(not set)"
        return ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)

    def parse(self, raw: Any) -> Any:
        """Turn what a flag, a variable or a file says into the value. Raises ValueError saying what was expected."""
        kind = required(self.type)
        word = self.about.none_word.lower()
        # TOML has a number that is infinite.
        if word and (raw == math.inf or (isinstance(raw, str) and raw.strip().lower() == word)):
            return None
        if kind is int:
            return self.parse_int(raw)
        if kind is str:
            return parse_text(raw) if self.about.secret else parse_line(raw)
        if kind is Path:
            return parse_path(raw)
        origin = typing.get_origin(kind)
        if origin is Literal:
            return parse_word(raw, typing.get_args(kind))
        if origin is Mapping:
            return parse_peers(raw)
        return parse_list(raw)

    def parse_int(self, raw: Any) -> int:
        # A boolean is an int to Python, and `http_port = true` in a file is a mistake.
        if isinstance(raw, str) and re.fullmatch(r"\s*-?\d[\d_]*\s*", raw):
            raw = int(raw)
        if not isinstance(raw, int) or isinstance(raw, bool):
            raise ValueError("must be a whole number")
        low, high = self.about.low, self.about.high
        if low is not None and raw < low:
            raise ValueError(f"must be at least {low}")
        if high is not None and raw > high:
            raise ValueError(f"must be at most {high}")
        return raw


def required(kind: Any) -> Any:
    """Take `| None` off a type."""
    if isinstance(kind, types.UnionType):
        return next(part for part in typing.get_args(kind) if part is not type(None))
    return kind


def parse_text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise ValueError("must be text")
    return raw


def parse_line(raw: Any) -> str:
    """Text that goes into a header or a log line."""
    if any(letter < " " or letter == "\x7f" for letter in parse_text(raw)):
        raise ValueError("must be one line without control characters")
    return str(raw)


def parse_path(raw: Any) -> Path:
    # An empty path would be the present folder, and comes of a variable that a script forgot to set.
    if not (text := parse_line(raw)).strip():
        raise ValueError("must not be empty")
    return Path(text).expanduser()


def parse_word(raw: Any, words: tuple[str, ...]) -> str:
    """One of some words, in capital letters or small ones; TOML has `true` and `false` of its own."""
    word = str(raw).strip().lower() if isinstance(raw, (str, bool)) else ""
    if word not in words:
        raise ValueError(f"must be one of {', '.join(words)}")
    return word


def parse_list(raw: Any) -> tuple[str, ...]:
    if isinstance(raw, str):
        raw = raw.split(",")
    if not isinstance(raw, list) or not all(isinstance(item, str) for item in raw):
        raise ValueError("must be a list of texts")
    return tuple(item.strip() for item in raw if item.strip())


def parse_peers(raw: Any) -> dict[str, str]:
    """Parse `n1=host:7790,n2=…` or a table of the same; ids and addresses must each be given once."""
    if isinstance(raw, str):
        rows = [row.partition("=") for row in raw.split(",") if row.strip()]
        if bad := [row[0].strip() for row in rows if not row[1]]:
            raise ValueError(f"must be written id=host:port, and {bad[0]!r} is not")
        pairs = [(name.strip(), address.strip()) for name, _, address in rows]
    elif isinstance(raw, Mapping):
        pairs = [(name, address if isinstance(address, str) else "") for name, address in raw.items()]
    else:
        raise ValueError("must be written id=host:port, separated by commas")
    for name, address in pairs:
        if not NODE_ID.fullmatch(name):
            raise ValueError(
                f"has a node id that cannot be used: {name!r} (letters, digits, '.', '_' and '-', at most 63)"
            )
        split_address(address)
    for what, values in (("node id", [name for name, _ in pairs]), ("address", [address for _, address in pairs])):
        if repeated := [value for value in values if values.count(value) > 1]:
            raise ValueError(f"names the {what} {repeated[0]!r} more than once")
    return dict(pairs)


def split_address(address: str) -> tuple[str, int]:
    """Split `host:port`, or `[v6]:port`. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"must be written id=host:port, and {address!r} is not an address")
    return host.removeprefix("[").removesuffix("]"), int(port)


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@functools.cache
def full_host_name() -> str:
    """The name by which others can resolve this machine; in a pod of a StatefulSet that of the pod."""
    return socket.getfqdn()


def with_port(name: str) -> str:
    """A name of PEERS_DNS with its port."""
    given = ":" in name and not name.endswith("]")
    return name if given else f"{name}:{PEER_PORT}"


@functools.cache
def settings() -> tuple[Setting, ...]:
    """The table, in the order of the fields."""
    hints = typing.get_type_hints(NodeConfig, include_extras=True)
    rows = []
    for item in fields(NodeConfig):
        kind, about = typing.get_args(hints[item.name])
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        rows.append(Setting(item.name, kind, default, about))
    return tuple(rows)


def load(flags: Mapping[str, str | None], environment: Mapping[str, str], file: Path | None = None) -> NodeConfig:
    """Collect the settings from where they are given and check them.

    flags: by key; None is a flag that was not given.  An empty variable counts as one that is not set.
    Raises SettingError.
    """
    in_file = read_file(file) if file else {}
    values: dict[str, Any] = {}
    for setting in settings():
        raw: Any = flags.get(setting.key)
        origin = f"from the flag {setting.flag}"
        if raw is None:
            raw, origin = environment.get(setting.env) or None, "from the environment"
        if raw is None:
            raw, origin = in_file.get(setting.key), f"from {file}"
        if raw is None:
            continue
        try:
            values[setting.key] = setting.parse(raw)
        except ValueError as error:
            given = "" if setting.about.secret else f" {raw!r}"
            raise SettingError(f"{setting.env}{given} ({origin}) {error}") from None
    if "node_id" not in values and values.get("peers_dns"):
        values["node_id"] = socket.gethostname().partition(".")[0]
    return finish(NodeConfig(**values))


def read_file(path: Path) -> dict[str, Any]:
    """Read a TOML file of settings by their lower-case names; a name that is no setting is an error."""
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(
            f"the settings file {path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"the settings file {path} is not valid TOML: {error}") from None
    known = {setting.key for setting in settings()}
    if unknown := sorted(set(content) - known):
        near = difflib.get_close_matches(unknown[0].lower().replace("-", "_"), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see docs/configuration.md"
        raise SettingError(f"the settings file {path} has {unknown[0]!r}, which is no setting ({hint})")
    return content


def finish(config: NodeConfig) -> NodeConfig:
    """Check what no single setting can tell, and read the secret from its file."""
    if not NODE_ID.fullmatch(config.node_id):
        raise SettingError(f"NODE_ID {config.node_id!r} cannot be used: letters, digits, '.', '_' and '-', at most 63")
    check_discovery(config)
    check_ports(config)
    for text in config.trusted_proxies:
        try:
            text in ("*", "none") or ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise SettingError(f"TRUSTED_PROXIES {text!r} is no address and no network") from None
    try:
        CallPolicy(config.worker_endpoints)
    except ValueError as error:
        raise SettingError(f"WORKER_ENDPOINTS: {error}") from None
    if config.cluster_secret_file is not None:
        if config.cluster_secret:
            raise SettingError("CLUSTER_SECRET and CLUSTER_SECRET_FILE are both given; keep one")
        config = with_secret(config, config.cluster_secret_file)
    config.cluster()
    return config


def check_ports(config: NodeConfig) -> None:
    """Raise SettingError when two listeners are to have one port."""
    listen = config.peer_port or PEER_PORT
    if config.peer_port is None and config.node_id in config.peers:
        listen = split_address(config.peers[config.node_id])[1]
    ports = (("HTTP_PORT", config.http_port), ("BULLMQ_PORT", config.bullmq_port), ("the peer port", listen))
    for (name, port), (other, same) in itertools.combinations(ports, 2):
        if port and port == same:
            raise SettingError(f"{name} and {other} are both {port}: each listener needs a port of its own")


def check_discovery(config: NodeConfig) -> None:
    """Raise SettingError unless PEERS_DNS and what belongs to it fit together."""
    if not config.peers_dns:
        for name, value in (("CLUSTER_SIZE", config.cluster_size), ("ADVERTISE", config.advertise)):
            if value:
                raise SettingError(f"{name} belongs to PEERS_DNS, which is not set")
        return
    if config.peers:
        raise SettingError("PEERS and PEERS_DNS are both given; keep one")
    for setting, addresses in (("PEERS_DNS", config.peers_dns), ("ADVERTISE", (config.advertise or "host:1",))):
        for address in addresses:
            try:
                split_address(with_port(address))
            except ValueError:
                raise SettingError(f"{setting} {address!r} is not host:port") from None


def with_secret(config: NodeConfig, path: Path) -> NodeConfig:
    try:
        secret = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise SettingError(f"CLUSTER_SECRET_FILE {str(path)!r} cannot be read: {reason}") from None
    if not secret:
        raise SettingError(f"CLUSTER_SECRET_FILE {str(path)!r} is empty")
    values = {item.name: getattr(config, item.name) for item in fields(config)}
    return NodeConfig(**(values | {"cluster_secret": secret}))

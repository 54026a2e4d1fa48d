"""The settings of one start of a node: collected, and checked for what no single one can tell."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from quorumq.cluster.addresses import split_address
from quorumq.cluster.pem import BadPair, server_context
from quorumq.cluster.tls import BadCertificates, Certificates

from .rows import NodeConfig
from .table import SettingError, collect, with_origins
from .values import PEER_PORT, check_node_id


def load(flags: Mapping[str, str | None], environment: Mapping[str, str], file: Path | None = None) -> NodeConfig:
    """Collect the settings from where they are given and check them. As `collect`; raises SettingError."""
    values, origins = collect(NodeConfig, flags, environment, file)
    if "node_id" not in values and values.get("peers_dns"):
        values["node_id"] = socket.gethostname().partition(".")[0]
        origins["node_id"] = "the host name"
    return finish(with_origins(NodeConfig(**values), origins))


def finish(config: NodeConfig) -> NodeConfig:
    """Check what no single setting can tell, and read the secret from its file."""
    try:
        # The host name, which nobody has looked at yet, where it is the id.
        check_node_id(config.node_id)
    except ValueError as error:
        raise SettingError(f"{config.name_with_origin('node_id')} {error}") from None
    check_discovery(config)
    check_ports(config)
    for name in ("cluster_secret", "cluster_secret_previous"):
        file = getattr(config, f"{name}_file")
        if file is not None:
            if getattr(config, name):
                raise SettingError(config.blamed(f"{name.upper()} and {name.upper()}_FILE are both given; keep one"))
            config = with_secret(config, name, file)
    config.cluster()
    check_certificates(config)
    check_client_certificate(config)
    return config


def check_certificates(config: NodeConfig) -> None:
    """Raise SettingError when the files of PEER_TLS_CERT, PEER_TLS_KEY and PEER_TLS_CA cannot be used."""
    cert, key, authority = config.peer_tls_cert, config.peer_tls_key, config.peer_tls_ca
    if cert is None or key is None or authority is None:
        return
    for name, path in (("peer_tls_cert", cert), ("peer_tls_key", key), ("peer_tls_ca", authority)):
        try:
            path.read_bytes()
        except OSError as error:
            raise SettingError(f"{config.name_with_origin(name)} cannot be read: {error.strerror}") from None
    try:
        Certificates(cert, key, authority)
    except BadCertificates as error:
        raise SettingError(config.blamed(str(error))) from None


def check_client_certificate(config: NodeConfig) -> None:
    """Raise SettingError when no server can answer with the files of TLS_CERT and TLS_KEY."""
    if config.tls_cert is None or config.tls_key is None:
        if config.tls_cert is not config.tls_key:
            raise SettingError(config.blamed("TLS_CERT and TLS_KEY belong together: give both or neither"))
        return
    for name, path in (("tls_cert", config.tls_cert), ("tls_key", config.tls_key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise SettingError(f"{config.name_with_origin(name)} cannot be read: {error.strerror}") from None
    try:
        server_context(config.tls_cert, config.tls_key)
    except BadPair as error:
        files = f"TLS_CERT {config.tls_cert} and TLS_KEY {config.tls_key}"
        raise SettingError(config.blamed(f"{files} cannot be used: {error}")) from None


def check_ports(config: NodeConfig) -> None:
    """Raise SettingError when two listeners are to have one port."""
    listen = config.peer_port or PEER_PORT
    if config.peer_port is None and config.node_id in config.peers:
        listen = split_address(config.peers[config.node_id])[1]
    ports = (
        ("HTTP_PORT", config.http_port),
        ("BULLMQ_PORT", config.bullmq_port),
        ("TCP_PORT", config.tcp_port),
        ("the peer port", listen),
    )
    for (name, port), (other, same) in itertools.combinations(ports, 2):
        if port and port == same:
            text = f"{name} and {other} are both {port}: each listener needs a port of its own"
            raise SettingError(config.blamed(text))


def check_discovery(config: NodeConfig) -> None:
    """Raise SettingError unless PEERS_DNS and what belongs to it fit together."""
    if not config.peers_dns:
        for name, value in (("CLUSTER_SIZE", config.cluster_size), ("ADVERTISE", config.advertise)):
            if value:
                raise SettingError(config.blamed(f"{name} belongs to PEERS_DNS, which is not set"))
        return
    if config.peers:
        raise SettingError(config.blamed("PEERS and PEERS_DNS are both given; keep one"))


def with_secret(config: NodeConfig, name: str, path: Path) -> NodeConfig:
    """Take the secret `name` from its file. Raises SettingError."""
    try:
        secret = path.read_text("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise SettingError(f"{config.name_with_origin(f'{name}_file')} cannot be read: {reason}") from None
    if not secret:
        raise SettingError(f"{config.name_with_origin(f'{name}_file')} is empty")
    taken: dict[str, Any] = {name: secret}
    return with_origins(replace(config, **taken), config.origins)

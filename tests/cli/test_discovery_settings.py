"""The settings of nodes that find each other by a name."""

from __future__ import annotations

import socket

import pytest

from quorumq.api.settings.loading import load
from quorumq.api.settings.table import SettingError


def test_a_name_takes_the_place_of_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "quorumq-0.somewhere")
    names = {"PEERS_DNS": "quorumq-peers, other:99,[::1]", "CLUSTER_SIZE": "3", "ADVERTISE": "q-0.peers:7790"}
    config = load({}, names | {"CLUSTER_SECRET": "s"})
    cluster = config.cluster()
    assert cluster.node_id == "quorumq-0"
    assert cluster.peers == {"quorumq-0": "q-0.peers:7790"}
    assert cluster.discover == ("quorumq-peers:7790", "other:99", "[::1]:7790")
    assert (cluster.cluster_size, cluster.listen) == (3, "0.0.0.0:7790")


def test_a_node_that_is_not_told_gives_its_full_host_name() -> None:
    config = load({}, {"NODE_ID": "n1", "PEERS_DNS": "peers", "PEER_PORT": "99", "CLUSTER_SECRET": "s"})
    host, _, port = config.cluster().peers["n1"].rpartition(":")
    assert (host.strip("[]"), port) == (socket.getfqdn(), "99")
    assert config.cluster().listen == "0.0.0.0:99"


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"PEERS_DNS": "peers", "PEERS": "n1=h:1"}, "PEERS and PEERS_DNS are both given"),
        ({"CLUSTER_SIZE": "3"}, "CLUSTER_SIZE belongs to PEERS_DNS"),
        ({"ADVERTISE": "h:1"}, "ADVERTISE belongs to PEERS_DNS"),
        (
            {"PEERS_DNS": "peers:port"},
            "PEERS_DNS 'peers:port' .from the environment. must be host:port, and 'peers:port' is not",
        ),
        (
            {"PEERS_DNS": "a,???/99"},
            "PEERS_DNS 'a,.../99' .from the environment. must be host:port, and '.../99' is not",
        ),
        (
            {"PEERS_DNS": "peers", "ADVERTISE": ":1"},
            "ADVERTISE ':1' .from the environment. must be host:port, and ':1' is not",
        ),
        ({"PEERS_DNS": "peers", "CLUSTER_SIZE": "8"}, "must be at most 7"),
        ({"PEER_TLS_NAMES": "perhaps"}, "must be one of check, ignore"),
    ],
)
def test_what_does_not_fit_together_is_said(environment: dict[str, str], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        load({}, environment)

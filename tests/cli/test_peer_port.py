"""Who reaches the peer port: a node that anybody could end does not start, and what is open is said."""

from __future__ import annotations

import pytest

from quorumq.api.settings.loading import load
from quorumq.api.settings.table import SettingError
from quorumq.cli.serve import peer_openings
from quorumq.cluster.addresses import is_loopback
from tests.cli.conftest import run

APART = "n1=10.0.0.1:7790,n2=10.0.0.2:7790,n3=10.0.0.3:7790"
HERE = "n1=127.0.0.1:7790,n2=127.0.0.1:7791,n3=127.0.0.1:7792"


@pytest.fixture(autouse=True)
def _no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the certificates hold is another matter."""
    monkeypatch.setattr("quorumq.api.settings.loading.check_certificates", lambda config: None)


@pytest.mark.parametrize(
    "given",
    [
        {"PEERS": APART},
        {"PEERS": APART, "HOST": "10.0.0.1"},
        {"PEERS": APART, "HOST": "::"},
        {"PEERS": "n1=10.0.0.1:7790"},
        {"PEERS": HERE.replace("127.0.0.1:7792", "127.0.0.1.example.com:7792")},
        {"PEERS_DNS": "peers", "CLUSTER_SIZE": "3", "ADVERTISE": "127.0.0.1:7790"},
    ],
)
def test_nodes_that_anybody_could_end_do_not_start(given: dict[str, str]) -> None:
    given = {"NODE_ID": "n1", **given}
    with pytest.raises(SettingError, match=r"neither CLUSTER_SECRET nor mutual TLS .* CLUSTER_INSECURE=true"):
        load({}, given)
    for guard in ({"CLUSTER_SECRET": "s"}, {"PEER_TLS_CERT": "c", "PEER_TLS_KEY": "k", "PEER_TLS_CA": "a"}):
        assert load({}, given | guard).cluster().listen.rpartition(":")[0].strip("[]") == given.get("HOST", "0.0.0.0")
    config = load({}, given | {"CLUSTER_INSECURE": "TRUE"})
    assert config.cluster().listen.rpartition(":")[0].strip("[]") == given.get("HOST", "0.0.0.0")
    (open_to_all, plain) = peer_openings(config)
    assert open_to_all.startswith("THE PEER PORT IS OPEN") and plain.startswith("THE LINKS")


@pytest.mark.parametrize(
    ("given", "listen"),
    [
        ({}, "127.0.0.1:7790"),
        ({"PEERS": HERE}, "127.0.0.1:7790"),
        ({"PEERS": "n1=[::1]:99"}, "[::1]:99"),
        ({"PEERS": "n1=localhost:99"}, "localhost:99"),
        ({"PEERS": APART, "HOST": "127.0.0.1"}, "127.0.0.1:7790"),
        ({"CLUSTER_SECRET": "s"}, "0.0.0.0:7790"),
        ({"CLUSTER_INSECURE": "true"}, "0.0.0.0:7790"),
    ],
)
def test_without_a_secret_nodes_of_one_machine_are_reached_from_there_alone(given: dict[str, str], listen: str) -> None:
    config = load({}, {"NODE_ID": "n1", **given})
    assert config.cluster().listen == listen
    assert (peer_openings(config) == []) is is_loopback(listen.rpartition(":")[0].strip("[]"))


def test_what_is_open_has_a_line_each() -> None:
    tls = {"PEER_TLS_CERT": "c", "PEER_TLS_KEY": "k", "PEER_TLS_CA": "a"}
    (line,) = peer_openings(load({}, {"PEERS": APART, "CLUSTER_SECRET": "s"}))
    assert "NOT ENCRYPTED" in line
    assert peer_openings(load({}, {"PEERS": APART, **tls})) == []
    (line,) = peer_openings(load({}, {"PEERS": APART, "CLUSTER_SECRET": "s", **tls, "PEER_TLS": "optional"}))
    assert "PEER_TLS=optional" in line
    with pytest.raises(SettingError, match="neither CLUSTER_SECRET nor mutual TLS"):
        load({}, {"PEERS": APART, **tls, "PEER_TLS": "optional"})
    for before, said in (("none", "THE PEER PORT IS STILL OPEN"), ("old", "TWO SECRETS ARE GOOD")):
        changing = load({}, {"PEERS": APART, "CLUSTER_SECRET": "s", "CLUSTER_SECRET_PREVIOUS": before})
        assert peer_openings(changing)[0].startswith(said)


def test_the_command_says_so_in_one_line_and_ends_with_status_2() -> None:
    status, _, said = run("serve", PEERS=APART, NODE_ID="n1")
    assert status == 2
    (line,) = said.splitlines()
    assert "CLUSTER_SECRET" in line and "CLUSTER_INSECURE=true" in line

"""Mutual TLS on the peer port: who is let in, what is said when somebody is not, and certificates that change meanwhile."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from quorumq.cluster.engine import Engine
from quorumq.cluster.tls import BadCertificates, Certificates, misnamed
from tests.consensus.counting import Recorder
from tests.consensus.test_engine import Cluster, fresh, running, until

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by the openssl command")


class Authority:
    """Makes certificates."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory / name
        self.directory.mkdir()
        self.cert = self.directory / "ca.pem"
        self._key = self.directory / "ca.key"
        self._openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
            *("-subj", f"/CN={name}", "-keyout", str(self._key), "-out", str(self.cert)),
        )

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)

    def issue(self, node: str, names: str = "") -> tuple[Path, Path]:
        """A certificate and its key, anew at each call, in the same files. names: its SAN, as `DNS:n1,IP:127.0.0.1`."""
        cert, key, request = (self.directory / f"{node}.{kind}" for kind in ("pem", "key", "csr"))
        fresh_cert, fresh_key = cert.with_suffix(".pem.new"), key.with_suffix(".key.new")
        self._openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", f"/CN={node}", "-keyout", str(fresh_key), "-out", str(request)),
        )
        self._openssl(
            *("x509", "-req", "-in", str(request), "-CA", str(self.cert), "-CAkey", str(self._key), "-CAcreateserial"),
            *("-days", "2", "-out", str(fresh_cert), *self._extensions(names)),
        )
        fresh_key.replace(key)
        fresh_cert.replace(cert)
        return cert, key

    def _extensions(self, names: str) -> list[str]:
        if not names:
            return []
        file = self.directory / "extensions"
        file.write_text(f"subjectAltName={names}")
        return ["-extfile", str(file)]

    def settings(self, node: str) -> dict[str, Any]:
        cert, key = self.issue(node)
        return {"tls_cert": cert, "tls_key": key, "tls_ca": self.cert}


class Secured(Cluster):
    """A cluster whose nodes have certificates; those of one node can be others."""

    def __init__(self, directory: Path, authority: Authority, **settings: Any) -> None:
        super().__init__(directory, **settings)
        self.certificates = {node: authority.settings(node) for node in self.peers}

    def config(self, node: str, **changes: Any) -> Any:
        return super().config(node, **{**self.certificates[node], **changes})


async def test_members_with_certificates_of_one_authority_are_a_cluster(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    async with running(Secured(tmp_path, authority, secret="inside as well")) as cluster:
        for node in cluster.peers:
            await cluster.write(node, node.encode())
            await fresh(cluster.engines[node])
        await cluster.write("n1", b"x" * (2 << 20))
        link = await until(lambda: cluster.engines["n1"]._links._links["n2"].connection)
        assert link.transport is not None
        used = link.transport.get_extra_info("ssl_object")
        assert used.version() in ("TLSv1.2", "TLSv1.3")
        assert dict(field[0] for field in used.getpeercert()["subject"]) == {"commonName": "n2"}


async def stranger_is_refused(
    cluster: Secured, caplog: pytest.LogCaptureFixture, config: Any, theirs: str, ours: str
) -> None:
    """Start a stranger as n3: both sides say why it is not let in, and the others go on."""
    async with running(cluster):
        await cluster.write("n1", b"a")
        await cluster.stop("n3", transfer=True)
        stranger = Engine(config, Recorder())
        with caplog.at_level(logging.ERROR, logger="quorumq.peers"):
            await stranger.start()
            try:
                await until(lambda: theirs in caplog.text and ours in caplog.text)
                assert not stranger.status().ready and stranger.applied_index == 1
            finally:
                await stranger.stop(transfer=False)
        await cluster.write("n2", b"b")
        await cluster.start("n3")
        await cluster.write("n3", b"c")


async def test_a_certificate_of_another_authority_is_refused_on_both_sides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = Authority(tmp_path, "other").settings("n3")
    cluster = Secured(tmp_path, Authority(tmp_path, "authority"))
    config = cluster.config("n3", data_dir=tmp_path / "stranger", **other)
    # The stranger does not believe the others either.
    await stranger_is_refused(
        cluster, caplog, config, "do not talk to n1 at 127.0.0.1", "do not talk to n3 at 127.0.0.1"
    )
    assert "certificate" in caplog.text


async def test_a_node_that_believes_us_but_is_not_believed_hears_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path, "authority")
    cert, key = Authority(tmp_path, "other").issue("n3")
    cluster = Secured(tmp_path, authority)
    config = cluster.config("n3", data_dir=tmp_path / "stranger", tls_cert=cert, tls_key=key, tls_ca=authority.cert)
    await stranger_is_refused(cluster, caplog, config, "refused this node: TLS: ", "do not talk to n3 at 127.0.0.1")


async def test_a_node_without_certificates_is_refused_on_both_sides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = Secured(tmp_path, Authority(tmp_path, "authority"))
    none = {"tls_cert": None, "tls_key": None, "tls_ca": None}
    config = cluster.config("n3", data_dir=tmp_path / "stranger", **none)
    await stranger_is_refused(cluster, caplog, config, "it speaks TLS", "refused somebody at 127.0.0.1")


async def test_a_node_with_certificates_is_refused_where_there_are_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = Cluster(tmp_path)
    config = cluster.config("n3", data_dir=tmp_path / "stranger", **Authority(tmp_path, "authority").settings("n3"))
    await stranger_is_refused(
        cluster,  # type: ignore[arg-type]
        caplog,
        config,
        "do not talk to n1 at 127.0.0.1",
        "it speaks TLS, and this node has no certificates",
    )


async def test_a_member_without_the_secret_is_refused_inside_of_tls(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = Secured(tmp_path, Authority(tmp_path, "authority"), secret="right")
    config = cluster.config("n3", data_dir=tmp_path / "stranger", secret="wrong")
    await stranger_is_refused(
        cluster, caplog, config, "refused this node: wrong cluster secret", "does not know our secret"
    )


@pytest.mark.parametrize("names", ["DNS:n3", "DNS:other,IP:127.0.0.1", "DNS:N3,DNS:*.peers.test"])
async def test_a_certificate_with_the_nodes_id_or_host_is_good(tmp_path: Path, names: str) -> None:
    authority = Authority(tmp_path, "authority")
    cluster = Secured(tmp_path, authority)
    authority.issue("n3", names)
    async with running(cluster):
        await cluster.write("n3", b"a")
        for node in cluster.peers:
            await until(lambda node=node: cluster.engines[node].status().ready)  # type: ignore[misc]
        await until(
            lambda: all(member.connected for engine in cluster.engines.values() for member in engine.status().members)
        )


async def test_a_certificate_of_another_node_is_refused_on_both_sides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path, "authority")
    cert, key = authority.issue("n1-stolen", "DNS:n1,DNS:quorumq-1.peers.test")
    cluster = Secured(tmp_path, authority, secret="known")
    config = cluster.config("n3", data_dir=tmp_path / "stranger", tls_cert=cert, tls_key=key)
    await stranger_is_refused(
        cluster,
        caplog,
        config,
        "refused this node: its certificate is for n1, quorumq-1.peers.test",
        " n3 at 127.0.0.1",
    )


async def test_names_in_certificates_can_be_ignored(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    cluster = Secured(tmp_path, authority, tls_names=False)
    authority.issue("n3", "DNS:all-of-them")
    async with running(cluster):
        await cluster.write("n3", b"a")


async def test_nodes_with_one_certificate_for_all_hosts_find_each_other(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    shared = authority.issue("all", "DNS:localhost")

    class FoundByName(Secured):
        def config(self, node: str, **changes: Any) -> Any:
            own = {
                "peers": {node: self.peers[node].replace("127.0.0.1", "localhost")},
                "listen": self.peers[node],
                "discover": tuple(self.peers.values()),
                "cluster_size": 3,
                "tls_cert": shared[0],
                "tls_key": shared[1],
            }
            return super().config(node, **{**own, **changes})

    async with running(FoundByName(tmp_path, authority)) as cluster:
        # They find each other first, and a busy machine takes its time for that.
        await cluster.write("n2", b"a", 60.0)
        for node in cluster.peers:
            await fresh(cluster.engines[node])


class Held:
    """A session whose other side holds a certificate with these names."""

    def __init__(self, *names: tuple[str, str]) -> None:
        self._names = names

    def getpeercert(self) -> dict[str, Any]:
        return {"subjectAltName": self._names}


@pytest.mark.parametrize(
    ("name", "held", "good"),
    [
        ("q-1.peers.ns.svc:7790", ("DNS", "*.peers.ns.svc"), True),
        ("q-1.peers.ns.svc:7790", ("DNS", "*.ns.svc"), False),
        ("q-1.peers.ns.svc:7790", ("DNS", "Q-1.peers.ns.svc"), True),
        ("q-1.peers.ns.svc:7790", ("DNS", "q-11.peers.ns.svc"), False),
        ("[::1]:7790", ("IP Address", "0:0:0:0:0:0:0:1"), True),
        ("127.0.0.1:7790", ("IP Address", "127.0.0.2"), False),
        ("q-1", ("URI", "spiffe://somebody/else"), True),
        ("peers.ns.svc", ("DNS", "*.peers.ns.svc"), False),
    ],
)
def test_names_are_compared_label_by_label(name: str, held: tuple[str, str], good: bool) -> None:
    assert (misnamed(Held(held), [name]) is None) is good


async def test_old_protocols_are_not_spoken(tmp_path: Path) -> None:
    async with running(Secured(tmp_path, Authority(tmp_path, "authority"))) as cluster:
        settings = cluster.certificates["n1"]
        with pytest.warns(DeprecationWarning):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        context.check_hostname = False
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.load_verify_locations(settings["tls_ca"])
        context.load_cert_chain(settings["tls_cert"], settings["tls_key"])
        host, port = cluster.peers["n2"].split(":")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection(host, int(port), ssl=context)


async def test_certificates_are_renewed_without_a_connection_being_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path, "authority")
    async with running(Secured(tmp_path, authority)) as cluster:
        await cluster.write("n1", b"a")
        links = {node: engine._links for node, engine in cluster.engines.items()}

        def connections() -> dict[tuple[str, str], Any]:
            return {(node, peer): link.connection for node, each in links.items() for peer, link in each._links.items()}

        await until(lambda: None not in connections().values())
        standing = connections()

        def serial(node: str, peer: str) -> str:
            connection = links[node]._links[peer].connection
            assert connection is not None and connection.transport is not None
            return str(connection.transport.get_extra_info("ssl_object").getpeercert()["serialNumber"])

        before = serial("n1", "n2")
        for node in cluster.peers:
            authority.issue(node)
            certificates = links[node].certificates
            assert certificates is not None and certificates.refresh()
        await cluster.write("n2", b"b")
        for (node, peer), connection in standing.items():
            assert links[node]._links[peer].connection is connection and not connection.closing
        assert serial("n1", "n2") == before
        # What is dialled from now on has the new ones.
        connection = standing["n1", "n2"]
        assert connection is not None and connection.transport is not None
        connection.transport.abort()
        await until(lambda: links["n1"].connected("n2") and links["n1"]._links["n2"].connection is not connection)
        assert serial("n1", "n2") != before
        # Half of a renewal: the old ones stay, and it is said.
        cluster.certificates["n1"]["tls_cert"].write_text("half")
        certificates = links["n1"].certificates
        assert certificates is not None
        used = certificates.server
        with caplog.at_level(logging.ERROR, logger="quorumq.peers"):
            assert not certificates.refresh()
        assert certificates.server is used
        assert "the old ones stay in use" in caplog.text
        authority.issue("n1")
        assert certificates.refresh()
        await cluster.write("n3", b"c")


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    cert, key = authority.issue("n1")
    _, another = authority.issue("n2")
    with pytest.raises(BadCertificates, match="cannot be read: No such file"):
        Certificates(tmp_path / "missing.pem", key, authority.cert)
    with pytest.raises(
        BadCertificates, match=r"PEER_TLS_CERT .* and PEER_TLS_KEY .* cannot be used: key values mismatch"
    ):
        Certificates(cert, another, authority.cert)
    with pytest.raises(BadCertificates, match=r"PEER_TLS_CA .* cannot be used"):
        Certificates(cert, key, key)
    subprocess.run(
        ["openssl", "ec", "-aes128", "-in", key, "-out", another, "-passout", "pass:hidden"],
        check=True,
        capture_output=True,
    )
    with pytest.raises(BadCertificates, match="is encrypted") as caught:
        Certificates(cert, another, authority.cert)
    assert os.fspath(cert) in str(caught.value)


def test_the_three_files_belong_together(tmp_path: Path) -> None:
    config = Cluster(tmp_path).config("n1", tls_cert=tmp_path / "cert.pem")
    with pytest.raises(ValueError, match="PEER_TLS_CERT, PEER_TLS_KEY and PEER_TLS_CA belong together"):
        config.validate()


async def test_a_bad_certificate_is_no_reason_to_do_without_tls(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While TLS is optional plain nodes are talked to; one whose certificate is not accepted has to hear of it."""
    cluster = Secured(tmp_path, Authority(tmp_path, "authority"), count=2, secret="known", tls_optional=True)
    cluster.certificates["n2"] = Authority(tmp_path, "other").settings("n2")
    try:
        with caplog.at_level(logging.ERROR, logger="quorumq.peers"):
            await cluster.start()
            await until(lambda: "do not talk to n2" in caplog.text and "do not talk to n1" in caplog.text)
        for engine in cluster.engines.values():
            assert not any(member.connected for member in engine.status().members if not member.self)
    finally:
        for node in list(cluster.engines):
            await cluster.stop(node)


def test_optional_needs_certificates(tmp_path: Path) -> None:
    config = Cluster(tmp_path).config("n1", tls_optional=True)
    with pytest.raises(ValueError, match="PEER_TLS=optional needs PEER_TLS_CERT"):
        config.validate()

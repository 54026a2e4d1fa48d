"""Two secrets that are good at once: who is let in by whom, and by how many proofs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from quorumq.cluster.handshake import Introductions
from tests.consensus.test_engine import Cluster, running, until

NONE: dict[str, Any] = {}
OLD = {"secret": "old"}
BOTH = {"secret": "new", "secret_previous": "old"}
NEW = {"secret": "new"}
OPENING = {"secret": "old", "secret_previous": ""}


class Mixed(Cluster):
    """Nodes whose settings differ."""

    def __init__(self, directory: Path, **by_node: dict[str, Any]) -> None:
        super().__init__(directory, len(by_node))
        self.by_node = by_node

    def config(self, node: str, **changes: Any) -> Any:
        return super().config(node, **{**self.by_node[node], **changes})


@pytest.mark.parametrize(
    ("one", "other"),
    [(OLD, BOTH), (BOTH, BOTH), (BOTH, NEW), (NONE, OPENING), (OPENING, OPENING), (OPENING, OLD), (BOTH, OPENING)],
)
async def test_nodes_that_know_one_secret_together_let_each_other_in(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any]
) -> None:
    async with running(Mixed(tmp_path, n1=one, n2=other, n3=one)) as cluster:
        for node in cluster.peers:
            await cluster.write(node, node.encode())
        await until(
            lambda: all(member.connected for engine in cluster.engines.values() for member in engine.status().members)
        )
        # At the first try: both sides found what they have in common.
        assert [engine._links._complained for engine in cluster.engines.values()] == [{}, {}, {}]


@pytest.mark.parametrize(("one", "other"), [(OLD, NEW), (NONE, OLD), (NONE, BOTH), (NEW, OPENING)])
async def test_nodes_that_know_none_together_do_not(tmp_path: Path, one: dict[str, Any], other: dict[str, Any]) -> None:
    cluster = Mixed(tmp_path, n1=one, n2=other)
    try:
        await cluster.start()
        await until(lambda: all(engine.metrics.peers_refused for engine in cluster.engines.values()))
        for engine in cluster.engines.values():
            assert not any(member.connected for member in engine.status().members if not member.self)
            assert engine._links._complained
    finally:
        for node in list(cluster.engines):
            await cluster.stop(node)


async def test_a_node_that_looks_at_one_proof_is_shown_the_other_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As 0.1.0 does, which is told the new secret only."""
    cluster = Mixed(tmp_path, n1=BOTH, n2=NEW)
    sent: list[str] = []
    refused = Introductions.other_secret

    def noted(self: Introductions, address: str) -> None:
        sent.append(self._config.node_id)
        refused(self, address)

    monkeypatch.setattr("quorumq.cluster.handshake._PROOFS_MAX", 1)
    monkeypatch.setattr(Introductions, "other_secret", noted)
    async with running(cluster):
        await asyncio.gather(*(cluster.write(node, b"x") for node in cluster.peers))
        await until(lambda: cluster.engines["n1"]._links.connected("n2"))
        assert sent == ["n1"]

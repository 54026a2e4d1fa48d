"""Changes of the members when connections come and go: whoever is removed hears of it, and a change that was not sent is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from quorumq.cluster.engine import Engine
from quorumq.cluster.errors import NodeRemoved, Unavailable
from tests.consensus.test_engine import Cluster, running, until


def adopt_again_once(engine: Engine, peer: str, address: str) -> None:
    """Let `peer` dial in the moment in which `engine` has dropped it and does not know yet that its removal is committed."""
    links = engine._links
    drop = links.drop_peer

    def dropped(dropped_peer: str) -> None:
        drop(dropped_peer)
        if dropped_peer == peer:
            links.drop_peer = drop
            assert engine.may_adopt(peer)
            links.add_peer(peer, address)

    links.drop_peer = dropped


async def test_one_that_dialled_before_its_removal_was_committed_is_told_afterwards(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    async with running(cluster):
        await cluster.write("n1", b"a")
        await until(lambda: all(engine.status().ready for engine in cluster.engines.values()))
        await until(lambda: bool(cluster.leader.status().cluster_id) and cluster.leader._raft.membership_settled)
        leader, gone = cluster.leader, cluster.follower()
        for engine in cluster.engines.values():
            if engine is not gone:
                adopt_again_once(engine, gone.node_id, cluster.peers[gone.node_id])
        await leader.change_members("remove", gone.node_id)
        await until(gone.failed.done)
        assert isinstance(gone.failed.exception(), NodeRemoved)
        for engine in cluster.engines.values():
            assert engine is gone or not engine._links.known(gone.node_id)


async def test_a_change_that_cannot_be_sent_to_the_leader_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(tmp_path)
    async with running(cluster):
        await cluster.write("n1", b"a")
        follower = cluster.follower()
        await until(lambda: follower.status().leader is not None)
        monkeypatch.setattr(follower._links, "send", lambda peer, message: False)
        with pytest.raises(Unavailable, match="the membership was not changed"):
            await follower.change_members("transfer", follower.node_id, timeout_s=600)

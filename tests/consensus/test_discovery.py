"""Nodes that find each other by a name: what follows from which answers, and that it never makes two clusters."""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from quorumq.cluster import backup, discovery
from quorumq.cluster.discovery import Who, decide
from quorumq.cluster.engine import Engine
from quorumq.cluster.errors import NotApplied
from tests.consensus.counting import Recorder
from tests.consensus.test_engine import Cluster, fresh, running, until


def who(node: str, **said: Any) -> Who:
    return Who(node, f"{node}'s process", f"{node}:1", **said)


ABC = ["a", "b", "c"]


@pytest.mark.parametrize(
    ("me", "others", "size", "words"),
    [
        (who("a"), [], 3, "found 1 of 3 nodes: a"),
        (who("a"), [who("b")], 3, "found 2 of 3 nodes: a, b"),
        (who("a"), [who("b"), who("c"), who("d")], 3, "found 4 nodes, and CLUSTER_SIZE says 3: a, b, c, d"),
        (who("a"), [who("b"), who("c")], 0, "CLUSTER_SIZE is not set"),
        (who("a"), [who("b"), Who("a", "another process", "z:1")], 3, "two nodes call themselves a"),
        (who("a"), [who("b"), Who("b", "another process", "z:1")], 3, "two nodes call themselves b"),
        (who("a", joins=True, cluster_id="x"), [who("b"), who("c")], 3, "looking for a member of its cluster"),
        (who("a"), [who("b"), who("c", joins=True, cluster_id="x")], 3, "c: not of the same past"),
        (who("a"), [who("b"), who("c", history=True, cluster_id="x")], 3, "c: not of the same past"),
        (who("a", founders=ABC), [who("b", founders=ABC)], 3, "waiting for c"),
        (who("a", founders=ABC), [who("b", founders=ABC), who("c")], 3, "waiting for c to agree"),
        (who("a", founders=ABC), [who("b"), who("c", founders=["c", "d", "e"])], 3, "bound to other founders"),
        (
            who("a"),
            [who("b", seated=True, cluster_id="x"), who("c", seated=True, cluster_id="y")],
            3,
            "different clusters answer: x, y",
        ),
        (who("a", cluster_id="x", joins=True), [who("c", seated=True, cluster_id="y")], 3, "different clusters"),
    ],
)
def test_a_node_waits_and_says_for_what(me: Who, others: list[Who], size: int, words: str) -> None:
    decision = decide(me, [me, *others], size)
    assert words in decision.waits_for
    assert not (decision.bind or decision.found or decision.join)


def test_a_cluster_is_founded_in_two_steps_by_exactly_as_many_as_it_needs() -> None:
    proposed = decide(who("a"), [who("a"), who("b"), who("c")], 3)
    assert (proposed.sees, proposed.bind) == (ABC, False)
    agreed = decide(who("a"), [who("b", sees=ABC), who("c", founders=ABC)], 3)
    assert agreed.bind and not agreed.found
    founded = decide(who("a", founders=ABC), [who("b", founders=ABC), who("c", founders=ABC), who("d")], 3)
    assert founded.found and founded.sees == ABC


@pytest.mark.parametrize("silent", ["b", "c"])
def test_nobody_is_bound_before_each_of_the_others_sees_the_same(silent: str) -> None:
    """Two that were bound while the third sees others would wait for it for good, or found without it."""
    others = [who(node, sees=[] if node == silent else ABC) for node in ("b", "c")]
    decision = decide(who("a"), others, 3)
    assert not decision.bind and decision.waits_for == "waiting for the others to agree"


def test_one_more_does_not_hold_up_those_who_have_agreed() -> None:
    others = [who("b", founders=ABC), who("c", founders=ABC), who("d")]
    assert decide(who("a"), others, 3).bind


def test_where_a_cluster_exists_nobody_founds_another() -> None:
    member = who("b", seated=True, cluster_id="x", history=True, members={"b": "b:1", "c": "c:9"})
    decision = decide(who("a"), [member, who("c")], 3)
    assert decision.join == {"a": "a:1", "b": "b:1", "c": "c:9"} and decision.cluster_id == "x"
    assert decide(who("a", founders=ABC), [member, who("c", founders=ABC)], 3).cluster_id == "x"


@pytest.mark.parametrize("seed", range(300))
def test_nobody_is_ever_counted_for_two_clusters(seed: int) -> None:
    """Nodes that see only some of the others at each look, crash, and are more than they should be."""
    rng = random.Random(seed)
    names = [f"n{number}" for number in range(rng.choice((3, 4, 5, 6)))]
    said = {name: who(name) for name in names}
    founded: dict[str, list[str]] = {}
    for _ in range(rng.choice((20, 100))):
        me = rng.choice(names)
        # Answers of this look may be older than what those nodes do meanwhile; that is another node's turn.
        heard = [said[other] for other in names if rng.random() < rng.choice((0.5, 0.9))]
        decision = decide(said[me], heard, 3)
        bound = decision.sees if decision.bind else said[me].founders
        said[me] = who(me, sees=decision.sees, founders=bound)
        if decision.found:
            founded[me] = decision.sees
        if rng.random() < 0.1:
            said[me] = who(me, founders=said[me].founders)
    for one, its in founded.items():
        assert one in its and len(its) == 3
        for other in its:
            assert said[other].founders == its
    if len(names) == 3:
        for _ in range(4):
            for me in names:
                decision = decide(said[me], said.values(), 3)
                bound = decision.sees if decision.bind else said[me].founders
                said[me] = who(me, sees=decision.sees, founders=bound)
                if decision.found:
                    founded[me] = decision.sees
        assert sorted(founded) == names


async def test_names_are_resolved_and_those_that_are_not_known_left_out() -> None:
    found = await discovery.resolve(["127.0.0.1:1", "no.such.name.invalid:2", "[::1]:3", "127.0.0.1:1"])
    assert found == ["127.0.0.1:1", "[::1]:3"]


class Found(Cluster):
    """A cluster whose nodes know one list of addresses, in place of a name, and nothing of each other."""

    def config(self, node: str, **changes: Any) -> Any:
        own = {"peers": {node: self.peers[node]}, "discover": tuple(self.peers.values()), "cluster_size": 3}
        return super().config(node, **{**own, **changes})


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "LOOK_S", 0.05)


def ids(cluster: Cluster) -> set[str]:
    return {engine.status().cluster_id for engine in cluster.engines.values()}


async def test_nodes_that_find_each_other_are_one_cluster_and_stay_it(tmp_path: Path) -> None:
    cluster = Found(tmp_path, secret="known to all")
    async with running(cluster, "n1", "n2"):
        await until(lambda: "found 2 of 3 nodes: n1, n2" in cluster.engines["n1"].status().ready_reason)
        with pytest.raises(NotApplied):
            await cluster.write("n1", b"too early", timeout_s=0.3)
        assert cluster.engines["n1"].status().members == []
        await cluster.start("n3")
        for node in cluster.peers:
            await cluster.write(node, node.encode())
            await fresh(cluster.engines[node])
        await until(lambda: all(each.status().ready and each.status().cluster_id for each in cluster.engines.values()))
        (before,) = ids(cluster)
        assert [member.id for member in cluster.engines["n1"].status().members] == ["n1", "n2", "n3"]
    # With data two of three need not find the third.
    async with running(cluster, "n2", "n3"):
        await cluster.write("n3", b"more")
        assert ids(cluster) == {before}


async def test_a_node_that_lost_its_disk_joins_again_and_founds_nothing(tmp_path: Path) -> None:
    cluster = Found(tmp_path, secret="known to all")
    async with running(cluster):
        await cluster.write("n1", b"kept")
        await until(lambda: all(each.status().ready and each.status().cluster_id for each in cluster.engines.values()))
        (before,) = ids(cluster)
        for node in ("n2", "n3"):
            await cluster.stop(node, transfer=True)
        shutil.rmtree(tmp_path / "n3")
        await cluster.stop("n1")
        # All that is left of the cluster is away: an empty node waits.
        await cluster.start("n3")
        with pytest.raises(NotApplied):
            await cluster.write("n3", b"a new history", timeout_s=0.5)
        await cluster.start("n1", "n2")
        await cluster.write("n3", b"more")
        assert cluster.applied("n3") == [b"kept", b"more"]
        await until(lambda: all(engine.status().ready for engine in cluster.engines.values()))
        assert ids(cluster) == {before}


async def test_a_node_that_joins_remembers_of_which_cluster_it_is_to_be(tmp_path: Path) -> None:
    cluster = Found(tmp_path, 4)
    async with running(cluster, "n1", "n2", "n3"):
        await cluster.write("n1", b"a")
        await until(lambda: all(each.status().ready and each.status().cluster_id for each in cluster.engines.values()))
        (before,) = ids(cluster)
        await cluster.start("n4")
        joins = cluster.engines["n4"]
        await until(lambda: joins.cluster_id() == before)
        for node in ("n1", "n2", "n3", "n4"):
            await cluster.stop(node)
        for node in ("n2", "n3"):
            shutil.rmtree(tmp_path / node)
        # n1 is away: the three that answer are enough to found a cluster, but one of them knows that there is one.
        await cluster.start("n2", "n3", "n4")
        await until(lambda: "n4: not of the same past" in cluster.engines["n2"].status().ready_reason)
        await until(lambda: "looking for a member of its cluster" in cluster.engines["n4"].status().ready_reason)
        with pytest.raises(NotApplied):
            await cluster.write("n2", b"x", timeout_s=0.5)


async def test_a_node_that_joins_becomes_a_member_as_one_with_a_list_does(tmp_path: Path) -> None:
    cluster = Found(tmp_path, 4)
    async with running(cluster, "n1", "n2", "n3"):
        await cluster.write("n1", b"a")
        engine = Engine(cluster.config("n4", cluster_size=0), Recorder())
        await engine.start()
        cluster.engines["n4"] = engine
        await until(lambda: "`quorumq members add n4 127.0.0.1:" in engine.status().ready_reason)
        await until(lambda: bool(cluster.leader.status().cluster_id) and cluster.leader._raft.membership_settled)
        await (await cluster.led()).change_members("add", "n4", cluster.peers["n4"])
        await fresh(engine)
        await until(lambda: not engine._probations.probation)
        await until(lambda: "n4" in cluster.leader._probations.whole)
        leader = await cluster.led()
        await leader.change_members("promote", "n4")
        assert leader.status().members[3].voter
        await cluster.write("n4", b"b")


async def test_members_that_moved_are_found_again(tmp_path: Path) -> None:
    cluster = Found(tmp_path)
    async with running(cluster):
        await cluster.write("n1", b"a")
        await until(lambda: all(engine.status().ready for engine in cluster.engines.values()))
    old = dict(cluster.peers)
    spare = Cluster(tmp_path, 2 * len(old)).peers.values()
    cluster.peers = dict(zip(old, (address for address in spare if address not in old.values()), strict=False))
    async with running(cluster):
        await cluster.write("n2", b"b")
        for node in cluster.peers:
            await fresh(cluster.engines[node])
            assert cluster.applied(node) == [b"a", b"b"]
        # Each node asks around by itself: one may be met by the others before it has found them.
        await until(
            lambda: all(
                {member.id: member.address for member in engine.status().members} == cluster.peers
                for engine in cluster.engines.values()
            )
        )


async def test_a_stranger_without_the_secret_is_not_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cluster = Found(tmp_path, secret="known")
    async with running(cluster, "n1", "n2"):
        stranger = Engine(cluster.config("n3", secret="guessed"), Recorder())
        await stranger.start()
        try:
            await until(lambda: "it does not know our secret" in caplog.text)
            await until(lambda: "found 2 of 3" in cluster.engines["n1"].status().ready_reason)
            await until(lambda: "found 1 of 3" in stranger.status().ready_reason)
        finally:
            await stranger.stop(transfer=False)


async def test_a_start_that_was_cut_short_goes_on(tmp_path: Path) -> None:
    cluster = Found(tmp_path)
    async with running(cluster):
        await until(lambda: any(engine._identity.held.founders for engine in cluster.engines.values()))
        for node in list(cluster.engines):
            await cluster.stop(node)
        await asyncio.gather(*(cluster.start(node) for node in cluster.peers))
        await cluster.write("n1", b"a")
        await until(lambda: len(ids(cluster)) == 1)


async def test_nodes_restored_from_one_backup_found_its_cluster_together(tmp_path: Path) -> None:
    before = Cluster(tmp_path / "before", 1)
    async with running(before):
        await before.write("n1", b"kept")
        image = await backup.take(before.engines["n1"])
        with (tmp_path / "image").open("wb") as file:
            async for piece in image.pieces():
                file.write(piece)
        image.close()
    after = Found(tmp_path)
    for node in ("n1", "n2"):
        backup.restore(tmp_path / "image", tmp_path / node, node, "quorumq")
    async with running(after):
        # n3 has nothing of the image: whether it lost it nobody can tell.
        await until(lambda: "n3: not of the same past" in after.engines["n1"].status().ready_reason)
        await after.stop("n3")
        shutil.rmtree(tmp_path / "n3")
        backup.restore(tmp_path / "image", tmp_path / "n3", "n3", "quorumq")
        await after.start("n3")
        await after.write("n2", b"more")
        for node in after.peers:
            await fresh(after.engines[node])
            assert after.applied(node) == [b"kept", b"more"]
        assert len(ids(after)) == 1

"""Three real engines in one process, on loopback with real files: writes, reads, hand-over, restarts, refusals."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quorumq.cluster import codec
from quorumq.cluster.availability import Availability
from quorumq.cluster.config import ClusterConfig
from quorumq.cluster.engine import Engine
from quorumq.cluster.errors import ClusterError, LogDamaged, NotApplied, Unavailable
from quorumq.cluster.frames import frame
from quorumq.cluster.handshake import PROTOCOL
from quorumq.cluster.status import Status
from tests.consensus.counting import Recorder
from tests.support.local_cluster import free_ports

# On a busy machine a process may not run for a second: where that shall not look like a leader that is gone.
PATIENCE = {"election_min_ms": 3000, "election_max_ms": 3500, "quorum_loss_ms": 3500}


class NoLeader(LookupError):
    """No engine leads at the moment."""


class Cluster:
    """Engines by id, started and stopped one by one."""

    def __init__(self, directory: Path, count: int = 3, **settings: Any) -> None:
        self.directory = directory
        self.settings = settings
        self.peers = {f"n{i + 1}": f"127.0.0.1:{port}" for i, port in enumerate(free_ports(count))}
        self.engines: dict[str, Engine] = {}

    def config(self, node: str, **changes: Any) -> ClusterConfig:
        values: dict[str, Any] = {
            "node_id": node,
            "peers": self.peers,
            "listen": self.peers[node],
            "data_dir": self.directory / node,
            "heartbeat_ms": 40,
            "election_min_ms": 200,
            "election_max_ms": 400,
            "quorum_loss_ms": 400,
        }
        return ClusterConfig(**{**values, **self.settings, **changes})

    async def start(self, *nodes: str) -> None:
        for node in nodes or self.peers:
            engine = Engine(self.config(node), Recorder())
            await engine.start()
            self.engines[node] = engine

    async def stop(self, node: str, *, transfer: bool = False) -> None:
        await self.engines.pop(node).stop(transfer=transfer)
        # A connection that was accepted in the last moment is made, and ends, in turns of its own.
        for _ in range(20):
            await asyncio.sleep(0)

    @property
    def leader(self) -> Engine:
        """The engine that leads. Raises NoLeader, for which `until` waits on."""
        for engine in self.engines.values():
            if engine.is_leader:
                return engine
        raise NoLeader

    async def led(self) -> Engine:
        """Return the engine that leads, once there is one."""
        return await until(lambda: self.leader)

    def follower(self) -> Engine:
        return next(engine for engine in self.engines.values() if not engine.is_leader)

    async def write(self, node: str, payload: bytes, timeout_s: float = 10.0) -> Any:
        return await write(self.engines[node], payload, timeout_s)

    def applied(self, node: str) -> list[bytes]:
        machine = self.engines[node].machine
        assert isinstance(machine, Recorder)
        return machine.applied


def begin(engine: Engine, payload: bytes, timeout_s: float = 10.0) -> asyncio.Future[Any]:
    """Hand a write over at once; the future gets what becomes of it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def done(outcome: Any, error: ClusterError | None) -> None:
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(outcome)

    engine.propose(payload, loop.time() + timeout_s, done)
    return future


async def write(engine: Engine, payload: bytes, timeout_s: float = 10.0) -> Any:
    return await begin(engine, payload, timeout_s)


async def fresh(engine: Engine, timeout_s: float = 10.0) -> None:
    await engine.read_index(asyncio.get_running_loop().time() + timeout_s)


async def until(condition: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    """Return what `condition` returns once that is true. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while True:
            with contextlib.suppress(NoLeader):
                if found := condition():
                    return found
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(cluster: Cluster, *nodes: str) -> AsyncIterator[Cluster]:
    try:
        await cluster.start(*nodes)
        yield cluster
    finally:
        for node in list(cluster.engines):
            await cluster.stop(node)


async def test_a_write_on_any_node_is_read_on_every_other(tmp_path: Path) -> None:
    async with running(Cluster(tmp_path)) as cluster:
        for node in cluster.peers:
            await cluster.write(node, node.encode())
            for other in cluster.peers:
                await fresh(cluster.engines[other])
                assert cluster.applied(other)[-1] == node.encode()
        # What a leader itself writes comes to the others a moment later.
        await until(lambda: len({engine.applied_index for engine in cluster.engines.values()}) == 1)
        digests = {engine.status().digest for engine in cluster.engines.values()}
        assert len(digests) == 1
        await until(lambda: all(engine.cluster_id() for engine in cluster.engines.values()))
        assert len({engine.status().cluster_id for engine in cluster.engines.values()}) == 1


async def test_status_tells_roles_indexes_and_lag(tmp_path: Path) -> None:
    async with running(Cluster(tmp_path)) as cluster:
        await cluster.write("n1", b"x")

        def settled() -> Status | None:
            status = cluster.leader.status()
            return status if status.ready and all(member.lag == 0 for member in status.members) else None

        status = await until(settled)
        assert status.role == "leader" and status.has_quorum
        assert [member.id for member in status.members] == ["n1", "n2", "n3"]
        assert sum(member.role == "leader" for member in status.members) == 1
        await until(lambda: cluster.follower().status().ready)
        assert all(member.lag is None for member in cluster.follower().status().members)


async def test_nothing_is_lost_when_all_stop_at_once(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    async with running(cluster):
        for number in range(50):
            await cluster.write(f"n{number % 3 + 1}", b"%d" % number)
    async with running(cluster):
        for node in cluster.peers:
            await fresh(cluster.engines[node])
            assert cluster.applied(node) == [b"%d" % number for number in range(50)]


async def test_writes_go_on_when_the_leader_goes_and_each_is_applied_once(tmp_path: Path) -> None:
    async with running(Cluster(tmp_path)) as cluster:
        await cluster.write("n1", b"start")
        gone = (await cluster.led()).node_id
        stays = cluster.follower()
        writes = [asyncio.create_task(write(stays, b"%d" % number)) for number in range(200)]
        await asyncio.sleep(0)
        await cluster.stop(gone)
        await asyncio.gather(*writes)
        await fresh(stays)
        assert sorted(cluster.applied(stays.node_id)) == sorted([b"start", *(b"%d" % number for number in range(200))])


async def test_a_write_in_the_moment_of_an_election_is_not_thrown_away(tmp_path: Path) -> None:
    async with running(Cluster(tmp_path)) as cluster:
        await cluster.write("n1", b"start")
        gone = (await cluster.led()).node_id
        handed: list[tuple[Engine, asyncio.Future[Any]]] = []

        def watch(engine: Engine) -> None:
            vote = engine._raft._on_response_vote

            def voted(node: Any, message: Any) -> None:
                led = engine.is_leader
                vote(node, message)
                if engine.is_leader and not led:
                    # As a request that came in the same turn of the loop, before the engine's next step; and in that one nothing may be
                    # proposed, because very much of the last term waits to be committed.
                    config = engine.config
                    engine.config = msgspec.structs.replace(config, entries_in_flight_max=0)
                    handed.append((engine, begin(engine, b"at once")))
                    asyncio.get_running_loop().call_later(0.1, setattr, engine, "config", config)

            engine._raft.__dict__["_on_response_vote"] = voted

        for node, engine in cluster.engines.items():
            if node != gone:
                watch(engine)
        await cluster.stop(gone)
        engine, writing = (await until(lambda: handed))[-1]
        await writing
        assert engine._exchange.submitter.resent == 0


async def test_the_first_entry_of_a_leader_says_that_nothing_could_be_heard_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first entry after a pause of this machine says the same.
    monkeypatch.setattr("quorumq.cluster.driver._STALL_S", 60.0)
    monkeypatch.setattr("quorumq.cluster.availability.RESUMED_S", 60.0)
    async with running(Cluster(tmp_path, **PATIENCE)) as cluster:
        for payload in (b"a", b"b", b"c"):
            await cluster.write("n1", payload)
        old = await cluster.led()
        machine = old.machine
        assert isinstance(machine, Recorder)
        assert (len(machine.resumed), machine.applied) == (1, [b"a", b"b", b"c"])
        assert await old.transfer_leadership()
        for payload in (b"d", b"e"):
            await write(old, payload)
        assert (len(machine.resumed), machine.applied[3:]) == (2, [b"d", b"e"])


async def test_a_first_entry_that_comes_late_has_nothing_to_make_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quorumq.cluster.driver._STALL_S", 60.0)
    monkeypatch.setattr("quorumq.cluster.availability.RESUMED_S", 0.1)
    async with running(Cluster(tmp_path, **PATIENCE)) as cluster:
        leader = await cluster.led()
        await until(lambda: leader._availability._again_at is not None)
        await asyncio.sleep(0.15)
        await write(leader, b"a")
        assert isinstance(leader.machine, Recorder)
        assert (leader.machine.resumed, leader.machine.applied) == ([], [b"a"])


def test_nobody_is_heard_before_a_leader_can_take_writes() -> None:
    availability = Availability()
    assert not availability.resumed(0)
    availability.lost()
    for now in range(10):
        availability.look(now, able=False)
    assert availability.resumed(10) and not availability.resumed(10)
    availability.lost()
    availability.look(20, able=True)
    availability.look(20.9, able=True)
    assert availability.resumed(20.9)
    availability.lost()
    availability.look(30, able=True)
    assert not availability.resumed(31.1)
    availability.lost()
    availability.look(40, able=True)
    # It stood still once more meanwhile.
    availability.lost()
    availability.look(41, able=True)
    assert availability.resumed(41.5)
    availability.lost()
    availability.not_leading()
    assert not availability.resumed(50)


async def test_handing_leadership_over_is_quick_and_loses_nothing(tmp_path: Path) -> None:
    async with running(Cluster(tmp_path, **PATIENCE)) as cluster:
        await cluster.write("n1", b"a")
        old = await cluster.led()
        assert await old.transfer_leadership()
        await write(old, b"b")
        assert await cluster.led() is not old
        assert old.status().term == cluster.leader.status().term


async def test_a_minority_serves_neither_writes_nor_consistent_reads(tmp_path: Path) -> None:
    async with running(Cluster(tmp_path)) as cluster:
        await cluster.write("n1", b"a")
        alone = await cluster.led()
        for node in list(cluster.peers):
            if node != alone.node_id:
                await cluster.stop(node)
        await until(lambda: not alone.is_leader)
        with pytest.raises(NotApplied):
            await write(alone, b"b", timeout_s=0.2)
        with pytest.raises(Unavailable):
            await fresh(alone, timeout_s=0.2)
        assert not alone.status().has_quorum
        assert cluster.applied(alone.node_id) == [b"a"]


async def test_a_lone_node_is_durable(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 1)
    async with running(cluster):
        for number in range(20):
            await cluster.write("n1", b"%d" % number)
        status = cluster.engines["n1"].status()
        assert status.durable_index >= status.commit_index
    async with running(cluster):
        await fresh(cluster.engines["n1"])
        assert len(cluster.applied("n1")) == 20


async def test_snapshots_bound_the_log_and_bring_a_wiped_node_up(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, snapshot_log_entries=40, snapshot_interval_ms=50, tail_entries=5, segment_bytes=2000)
    async with running(cluster):
        await cluster.write("n1", b"first")
        await cluster.stop("n3", transfer=True)
        shutil.rmtree(tmp_path / "n3")
        for number in range(150):
            await cluster.write("n1", b"%d" % number)
        everything = [b"first", *(b"%d" % number for number in range(150))]
        await until(lambda: all(engine.status().snapshot_index > 100 for engine in cluster.engines.values()))
        await until(lambda: all(engine.status().first_index > 90 for engine in cluster.engines.values()))
        await cluster.start("n3")
        # It is not ready before it has everything, whatever little of it the leader sends at a time.
        await until(lambda: cluster.engines["n3"].status().ready)
        assert cluster.applied("n3") == everything
        assert cluster.engines["n3"].status().snapshot_index > 100
        await cluster.write("n3", b"more")
    async with running(cluster):
        for node in cluster.peers:
            await fresh(cluster.engines[node])
            assert cluster.applied(node) == [*everything, b"more"]


async def test_a_first_start_waits_for_every_member_and_says_so(tmp_path: Path) -> None:
    async with running(Cluster(tmp_path), "n1", "n2") as cluster:
        with pytest.raises(NotApplied):
            await cluster.write("n1", b"a", timeout_s=1.0)
        await until(lambda: cluster.engines["n1"].status().ready_reason == "first start: waiting for n3")
        await cluster.start("n3")
        await cluster.write("n1", b"a")
        await cluster.stop("n3")
        await cluster.write("n1", b"b")


async def test_a_wiped_node_does_not_vote_before_it_has_heard_everyone(tmp_path: Path) -> None:
    async with running(Cluster(tmp_path)) as cluster:
        await cluster.write("n1", b"kept")
        holder = (await cluster.led()).node_id
        wiped, away = sorted(node for node in cluster.peers if node != holder)
        await cluster.stop(away)
        await cluster.stop(wiped)
        await cluster.stop(holder)
        shutil.rmtree(tmp_path / wiped)
        shutil.rmtree(tmp_path / away)
        await cluster.start(wiped, away)
        with pytest.raises(NotApplied):
            await cluster.write(wiped, b"a new history", timeout_s=1.0)
        await cluster.start(holder)
        with pytest.raises(NotApplied):
            # Two of three disks are gone: nobody can tell any more what was promised, and nobody pretends to.
            await cluster.write(holder, b"x", timeout_s=1.0)
        assert cluster.applied(wiped) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"cluster_name": "other"}, "cluster name 'other'"), ({"secret": "wrong"}, "does not know our secret")],
)
async def test_a_stranger_is_refused_on_both_sides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, str], reason: str
) -> None:
    cluster = Cluster(tmp_path, secret="right")
    async with running(cluster):
        await cluster.write("n1", b"a")
        await cluster.stop("n3")
        stranger = Engine(cluster.config("n3", data_dir=tmp_path / "stranger", **changes), Recorder())
        with caplog.at_level(logging.ERROR, logger="quorumq.peers"):
            await stranger.start()
            try:
                await until(lambda: "refused n3 at 127.0.0.1:" in caplog.text and "refused this node" in caplog.text)
                assert reason in caplog.text
                assert not stranger.status().ready and stranger.applied_index == 1
                assert "right" not in caplog.text
            finally:
                await stranger.stop(transfer=False)
        await cluster.write("n2", b"b")


async def test_data_of_another_node_or_cluster_is_refused_at_the_start(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 1)
    async with running(cluster):
        await cluster.write("n1", b"a")
    with pytest.raises(LogDamaged, match="belongs to cluster 'quorumq'"):
        await Engine(cluster.config("n1", cluster_name="elsewhere"), Recorder()).start()
    (tmp_path / "n1").rename(tmp_path / "n2")
    other = Cluster(tmp_path, 2)
    with pytest.raises(LogDamaged, match="belongs to node 'n1'"):
        await Engine(other.config("n2"), Recorder()).start()


async def test_a_directory_is_used_by_one_process_only(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 1)
    async with running(cluster):
        with pytest.raises(OSError, match="in use by another process"):
            await Engine(cluster.config("n1"), Recorder()).start()


GARBAGE = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\xff\xff\xff\xff" + b"x" * 100,
    frame(b"\xc1"),
    frame(codec.dumps([1, 2])),
    frame(codec.dumps({"type": "append_entries", "term": 99, "commit_index": 5})),
    frame(codec.dumps({"type": "hello"})),
    frame(
        codec.dumps(
            {
                "type": "hello",
                "from": "n2",
                "to": "n1",
                "nonce": 5,
                "protocol": PROTOCOL,
                "cluster": "quorumq",
                "cluster_id": "",
            }
        )
    ),
    frame(b"x" * 5000),
]


async def test_broken_frames_end_their_own_connection_only(tmp_path: Path) -> None:
    async with running(Cluster(tmp_path, **PATIENCE)) as cluster:
        await cluster.write("n1", b"a")
        term = (await cluster.led()).status().term
        host, port = cluster.peers["n1"].split(":")
        for garbage in GARBAGE:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(garbage)
            await asyncio.wait_for(reader.read(), 10)
            writer.close()
            await cluster.write("n1", b"b")
            assert cluster.leader.status().term == term, garbage


async def test_a_stranger_hears_nothing_that_it_could_try_secrets_against(tmp_path: Path) -> None:
    async with running(Cluster(tmp_path, secret="weak")) as cluster:
        host, port = cluster.peers["n1"].split(":")
        for target in ("n1", ""):
            reader, writer = await asyncio.open_connection(host, int(port))
            hello = {"type": "hello", "from": "n3", "to": target, "nonce": b"n" * 16, "protocol": PROTOCOL}
            writer.write(frame(codec.dumps(hello | {"cluster": "quorumq", "cluster_id": "", "address": "127.0.0.1:1"})))
            size = int.from_bytes(await reader.readexactly(4))
            challenge = codec.loads(await reader.readexactly(size))
            assert set(challenge) == {"type", "protocol", "cluster", "cluster_id", "from", "address", "nonce"}
            writer.write(frame(codec.dumps({"type": "proof", "proof": b"p" * 32})))
            size = int.from_bytes(await reader.readexactly(4))
            refused = codec.loads(await reader.readexactly(size))
            assert (refused["code"], refused["proof"]) == ("secret", b"")
            assert await reader.read() == b""
            writer.close()

"""A new cluster from what one stopped node still holds: all of it, nothing removed, and nothing done by half."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from quorumq.cli import recover
from quorumq.cluster import backup, codec, identity, snapshots
from quorumq.cluster.disk import Disk
from quorumq.cluster.engine import Engine
from quorumq.cluster.environment import NodeEnvironment
from quorumq.cluster.errors import LogDamaged
from quorumq.cluster.identity import Identity
from quorumq.cluster.log import Log
from quorumq.cluster.membership import ChangeRefused
from quorumq.cluster.replica import Batch, encode_batches
from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operations.jobs import PushJobs
from quorumq.node.machine.operations.runs import PullJobs
from quorumq.node.machine.state import job_spec
from quorumq.node.machine.state.job import JobSpec
from quorumq.node.node import Node
from tests.cli.test_storage import Nodes, content, run, running, some_jobs
from tests.consensus.disks import MemoryDisk
from tests.consensus.test_engine import until
from tests.support.world import encode

LAST = 2**62 - 1
YEAR_MS = 365 * 24 * 3600 * 1000


def files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "lock"
    }


async def recovered(data: Path, *options: str) -> str:
    status, said = await run("recover", str(data), "--yes", *options)
    assert status == 0, said
    return said


async def change(engine: Engine, action: str, node: str, address: str = "") -> None:
    """Change the members, as soon as that can be."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(ChangeRefused):
                await engine.change_members(action, node, address)
                return
            await asyncio.sleep(0.05)


async def lose_two_of_three(directory: Path, *, with_snapshot: bool = False) -> tuple[Nodes, dict[str, Any]]:
    """Three nodes with jobs, of which n3 alone still has its disk; what it holds."""
    old = Nodes(directory)
    async with running(old):
        await old.nodes["n2"].submit(PushJobs("early", [JobSpec(id="first", data=b"1")]))
        if with_snapshot:
            await until(lambda: old.engines["n3"].applied_index == old.engines["n2"].applied_index)
            (await backup.take(old.engines["n3"])).close()
        await some_jobs(old.nodes["n1"])
        index = max(engine.applied_index for engine in old.engines.values())
        await until(lambda: old.engines["n3"].applied_index >= index)
        before = content(old.engines["n3"].machine)  # type: ignore[arg-type]
    for node in ("n1", "n2"):
        shutil.rmtree(directory / node)
    return old, before


@pytest.mark.parametrize("with_snapshot", [False, True])
async def test_one_node_of_three_becomes_a_new_cluster_that_others_join(tmp_path: Path, with_snapshot: bool) -> None:
    cluster, before = await lose_two_of_three(tmp_path, with_snapshot=with_snapshot)
    data = tmp_path / "n3"
    assert len(snapshots.newest(Disk(data / "snapshots"))) == with_snapshot
    kept = files(data)
    status, said = await run("recover", str(data), "--dry-run")
    assert status == 0 and "nothing was changed" in said
    assert "302 jobs in 3 queues" in said and "the others of the old cluster were n1, n2" in said
    assert "is lost" in said and "never start a node with one of them again" in said
    status, said = await run("recover", str(data))
    assert status == 1 and "--yes" in said
    assert files(data) == kept
    said = await recovered(data)
    (aside,) = data.glob("before-recover-*")
    assert str(aside) in said and files(aside) == kept
    # It leads alone, whatever the settings still say, and the others come in as any new node does.
    async with running(cluster, "n3"):
        engine = cluster.engines["n3"]
        assert content(engine.machine) == before  # type: ignore[arg-type]
        assert engine.status().term < 5 and [each.id for each in engine.status().members] == ["n3"]
        for node in ("n1", "n2"):
            await change(engine, "add", node, cluster.peers[node])
            await cluster.start(node)
            await change(engine, "promote", node)
        await cluster.nodes["n1"].submit(PushJobs("mail", [JobSpec(id="new", data=b"2")]))
        await until(lambda: all("new" in node.machine.state.jobs for node in cluster.nodes.values()))
        for each in cluster.engines.values():
            assert {"new", *before} == set(content(each.machine))  # type: ignore[arg-type]
            assert sum(member.voter for member in each.status().members) == 3


async def test_members_can_be_named_and_learn_first(tmp_path: Path) -> None:
    cluster, before = await lose_two_of_three(tmp_path)
    said = await recovered(tmp_path / "n3", *(f"--member={node}={at}" for node, at in cluster.peers.items()))
    assert "n3 at 127.0.0.1" in said and "votes" in said and "learns" in said
    async with running(cluster):
        for node in ("n1", "n2"):
            await change(cluster.engines["n3"], "promote", node)
        await cluster.nodes["n2"].submit(PushJobs("mail", [JobSpec(id="new", data=b"2")]))
        assert {"new", *before} == set(content(cluster.engines["n2"].machine))  # type: ignore[arg-type]


async def test_a_node_of_the_old_cluster_is_not_let_in(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = Nodes(tmp_path)
    async with running(old):
        await some_jobs(old.nodes["n1"])
        index = max(engine.applied_index for engine in old.engines.values())
        await until(lambda: old.engines["n3"].applied_index >= index)
    await recovered(tmp_path / "n3")
    async with running(old, "n3"):
        await old.start("n1")
        await until(lambda: old.engines["n3"]._links._complained)
        assert "the data is of another cluster" in caplog.text
        assert not old.engines["n1"].status().ready


async def test_a_cluster_whose_term_ran_away_is_recovered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cluster = Nodes(tmp_path)
    async with running(cluster):
        await some_jobs(cluster.nodes["n1"])
        index = max(engine.applied_index for engine in cluster.engines.values())
        await until(lambda: all(engine.applied_index >= index for engine in cluster.engines.values()))
        before = content(cluster.engines["n3"].machine)  # type: ignore[arg-type]
    for node in cluster.peers:
        # As the version before did it at one message.
        disk = Disk(tmp_path / node / "log")
        log = Log(disk, 32 << 20)
        log.setCurrentTerm(LAST, None)
        log.flush()
        await until(lambda log=log: log.durable == log.appended)  # type: ignore[misc]
        log.close()
        disk.close()
    await cluster.start()
    assert "the term has run away" in caplog.text and "quorumq recover" in caplog.text
    assert all("the term has run away" in engine.status().ready_reason for engine in cluster.engines.values())
    for node in list(cluster.engines):
        await cluster.stop(node)
    status, said = await run("recover", str(tmp_path / "n2"), "--dry-run")
    assert status == 0 and f"was {LAST} (it had run away)" in said
    await recovered(tmp_path / "n2")
    async with running(cluster, "n2"):
        assert content(cluster.engines["n2"].machine) == before  # type: ignore[arg-type]
        assert cluster.engines["n2"].status().term < 5
        await cluster.nodes["n2"].submit(PushJobs("mail", [JobSpec(id="new", data=b"2")]))


class Ahead(NodeEnvironment):
    """A machine whose clock is a year ahead."""

    def wall_ms(self) -> int:
        return super().wall_ms() + YEAR_MS


async def test_a_cluster_whose_time_ran_away_is_recovered(tmp_path: Path) -> None:
    cluster = Nodes(tmp_path, 1)
    machine = Machine()
    engine = Engine(cluster.config("n1"), machine, Ahead())
    await engine.start()
    node = Node(engine, machine)
    await node.start()
    await until(lambda: engine.status().ready)
    (await backup.take(engine)).close()
    soon = job_spec("soon", b"1", delay_ms=300)
    await node.submit(PushJobs("q", [soon, job_spec("locked", b"2")]))
    await node.submit(PullJobs("q", 1, "w", 300, "t"))
    await node.stop()
    await engine.stop()
    status, said = await run("recover", str(tmp_path / "n1"), "--dry-run")
    assert status == 0 and "its clock, 31,53" in said and "is set back to" in said
    await recovered(tmp_path / "n1")
    async with running(cluster, "n1"):
        state = cluster.nodes["n1"].machine.state
        assert abs(state.now_ms - time.time() * 1000) < 60_000
        await until(lambda: state.jobs["soon"].state == "waiting" and state.jobs["locked"].state == "waiting")


async def test_entries_that_are_not_known_to_be_committed_are_taken(tmp_path: Path) -> None:
    """The others may have told a client that its request was done, before this node heard that it was."""
    cluster = Nodes(tmp_path)
    async with running(cluster):
        await some_jobs(cluster.nodes["n1"])
        engine = cluster.engines["n3"]
        await until(lambda: engine.applied_index == (cluster.leader.applied_index))
        await cluster.stop("n1")
        await cluster.stop("n2")
        last = engine._log.last_index
        payload = encode([PushJobs("mail", [JobSpec(id="unheard", data=b"1")])])
        entry = encode_batches(int(time.time() * 1000), [Batch("n1", 5, 1, 1, payload)])
        command = b"\x00" + codec.dumps((0, (entry,)))
        engine._log.add(command, last + 1, engine._log.last_term)
        engine._log.flush()
        await until(lambda: engine._log.durable == engine._log.appended)
        assert "unheard" not in content(engine.machine)  # type: ignore[arg-type]
    said = await recovered(tmp_path / "n3")
    assert f"after entry {last + 1:,}, of which at least" in said
    async with running(cluster, "n3"):
        assert "unheard" in content(cluster.engines["n3"].machine)  # type: ignore[arg-type]


@pytest.mark.parametrize("step", ["sync", "identity", "rename"])
async def test_an_attempt_that_fails_leaves_everything_as_it_was(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, before = await lose_two_of_three(tmp_path)
    data = tmp_path / "n3"
    kept = files(data)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        if step == "identity":
            patched.setattr(Identity, "store", full)
        elif step == "rename":
            patched.setattr(Disk, "rename", full)
        else:
            patched.setattr(os, "fdatasync", full)
        status, said = await run("recover", str(data), "--yes")
    assert status == 1 and "No space left" in said and "everything is as it was" in said
    assert files(data) == kept and not list(data.glob("before-recover-*"))
    await recovered(data)
    assert len(before) == 302


@pytest.mark.parametrize("undo_too", [False, True])
async def test_an_attempt_that_was_killed_is_undone_by_the_next(
    tmp_path: Path, undo_too: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, _ = await lose_two_of_three(tmp_path)
    data = tmp_path / "n3"
    kept = files(data)

    class Killed(BaseException):
        pass

    def killed(*args: object) -> None:
        raise Killed

    survivor = recover.read(data)
    with monkeypatch.context() as patched:
        patched.setattr("quorumq.cluster.refounding.undo", killed)
        patched.setattr(Identity, "store", killed)
        with pytest.raises(Killed):
            recover.make(data, survivor, survivor.seats({}), int(time.time() * 1000))
    if undo_too:
        # Nor did the next one come to its end.
        with monkeypatch.context() as patched:
            patched.setattr("quorumq.cluster.refounding.shutil.rmtree", killed)
            with pytest.raises(Killed):
                recover.undo(data)
    # Nobody takes for a node's folder what is half of one.
    with pytest.raises(LogDamaged, match="did not come to its end"):
        await cluster.start("n3")
    status, said = await run("recover", str(data), "--dry-run")
    assert status == 1 and "an earlier attempt did not come to its end" in said
    await recovered(data)
    (aside,) = data.glob("before-recover-*")
    assert files(aside) == kept
    async with running(cluster, "n3"):
        assert len(content(cluster.engines["n3"].machine)) == 302  # type: ignore[arg-type]


async def test_what_is_no_stopped_nodes_folder_is_refused(tmp_path: Path) -> None:
    status, said = await run("recover", str(tmp_path), "--yes")
    assert status == 1 and "holds no identity.json" in said
    async with running(Nodes(tmp_path, 1)) as cluster:
        status, said = await run("recover", str(tmp_path / "n1"), "--yes")
        assert status == 1 and "stop its node first" in said
        await some_jobs(cluster.nodes["n1"])
    status, said = await run("recover", str(tmp_path / "n1"), "--yes", "--member", "n1")
    assert status == 1 and "--member must be written id=host:port" in said
    empty = tmp_path / "empty"
    Identity(1, "n1", "quorumq", "", False).store(Disk(empty))
    status, said = await run("recover", str(empty), "--yes")
    assert status == 1 and "holds no entries" in said
    segment = next((tmp_path / "n1" / "log").iterdir())
    whole = bytearray(segment.read_bytes())
    whole[len(whole) // 3] ^= 4
    segment.write_bytes(whole)
    status, said = await run("recover", str(tmp_path / "n1"), "--yes")
    assert status == 1 and segment.name in said and "offset" in said
    assert segment.read_bytes() == whole


def test_a_folder_in_the_middle_of_it_is_not_started() -> None:
    disk: Any = MemoryDisk()
    disk.append(identity.REFOUNDING).sync()
    with pytest.raises(LogDamaged, match="give it again"):
        identity.load(disk, "n1", "test")


async def test_a_lone_node_that_lost_a_part_starts_again_when_it_is_decided_that_the_rest_is_all(
    tmp_path: Path,
) -> None:
    cluster = Nodes(tmp_path, 1)
    async with running(cluster):
        await some_jobs(cluster.nodes["n1"])
        (await backup.take(cluster.engines["n1"])).close()
        before = content(cluster.engines["n1"].machine)  # type: ignore[arg-type]
        await cluster.nodes["n1"].submit(PushJobs("mail", [JobSpec(id="lost", data=b"1")]))
    shutil.rmtree(tmp_path / "n1" / "log")
    with pytest.raises(LogDamaged, match="quorumq recover"):
        await cluster.start("n1")
    said = await recovered(tmp_path / "n1")
    assert "A PART OF WHAT IT HELD IS MISSING: the log reached byte" in said
    for _ in range(2):
        async with running(cluster):
            assert content(cluster.engines["n1"].machine) == before  # type: ignore[arg-type]
            assert cluster.engines["n1"].metrics.whole
    status, said = await run("log", "verify", str(tmp_path / "n1"))
    assert status == 0, said


async def test_one_gone_for_good_and_one_wiped_are_ended_by_a_recovery_of_the_third(tmp_path: Path) -> None:
    cluster = Nodes(tmp_path)
    async with running(cluster):
        await some_jobs(cluster.nodes["n1"])
        await until(lambda: all(engine.metrics.whole for engine in cluster.engines.values()))
        index = max(engine.applied_index for engine in cluster.engines.values())
        await until(lambda: cluster.engines["n3"].applied_index >= index)
        before = content(cluster.engines["n3"].machine)  # type: ignore[arg-type]
    shutil.rmtree(tmp_path / "n1")
    shutil.rmtree(tmp_path / "n2")
    try:
        await cluster.start("n2", "n3")
        await until(lambda: "n2" in cluster.engines["n3"]._probations.doubted)
        assert "n2 may have lost what it promised" in cluster.engines["n3"].status().ready_reason
        await cluster.stop("n2")
        await cluster.stop("n3")
        await recovered(tmp_path / "n3")
        await cluster.start("n3")
        await until(lambda: cluster.engines["n3"].status().ready)
        assert content(cluster.engines["n3"].machine) == before  # type: ignore[arg-type]
    finally:
        for name in list(cluster.engines):
            await cluster.stop(name)


async def test_a_folder_whose_time_was_its_clients_serves_nothing_else(tmp_path: Path) -> None:
    for word in ("first", "again"):
        async with running(Nodes(tmp_path, 1, lone=True)) as told:
            await told.nodes["n1"].submit(PushJobs(word, [JobSpec(id=word, data=b"1")]))
            with pytest.raises(ChangeRefused, match="one node alone"):
                await told.engines["n1"].change_members("add", "n2", "127.0.0.1:7790")
    status, said = await run("recover", str(tmp_path / "n1"), "--yes")
    assert status == 1 and "CLOCK=clients" in said
    with pytest.raises(LogDamaged, match="begun with CLOCK=clients"):
        await Nodes(tmp_path, 1).start()


async def test_the_clients_clock_is_not_for_a_folder_that_may_have_had_members(tmp_path: Path) -> None:
    async with running(Nodes(tmp_path, 1)) as cluster:
        await some_jobs(cluster.nodes["n1"])
    with pytest.raises(LogDamaged, match="CLOCK=clients needs a new data directory"):
        await Nodes(tmp_path, 1, lone=True).start()

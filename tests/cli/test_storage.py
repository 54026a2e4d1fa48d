"""Backups of a running cluster, new clusters made from them, and the check of a node's files."""

from __future__ import annotations

import asyncio
import json
import shutil
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from quorumq.api.dialects.admin import Admin
from quorumq.api.dialects.admin import backup as backup_route
from quorumq.api.rows import plain
from quorumq.api.server import Server
from quorumq.api.settings.rows import NodeConfig
from quorumq.cli import storage
from quorumq.cli.main import app
from quorumq.cluster import snapshots
from quorumq.cluster.backup import take
from quorumq.cluster.disk import Disk
from quorumq.cluster.engine import Engine
from quorumq.cluster.errors import LogDamaged
from quorumq.cluster.replica import Replica, times_of
from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operations.jobs import PushJobs
from quorumq.node.machine.operations.runs import AckJob, FailJob, PullJobs
from quorumq.node.machine.state.job import JobSpec, Options
from quorumq.node.node import Node
from tests.consensus.test_engine import PATIENCE, Cluster, until


class Nodes(Cluster):
    """Whole nodes, with jobs in them."""

    def __init__(self, directory: Path, count: int = 3, **settings: Any) -> None:
        super().__init__(directory, count, **settings)
        self.nodes: dict[str, Node] = {}

    async def start(self, *nodes: str) -> None:
        for name in nodes or self.peers:
            machine = Machine()
            engine = Engine(self.config(name), machine)
            await engine.start()
            self.engines[name] = engine
            self.nodes[name] = Node(engine, machine)
            await self.nodes[name].start()

    async def stop(self, node: str, *, transfer: bool = False) -> None:
        await self.nodes.pop(node).stop()
        await super().stop(node, transfer=transfer)


@asynccontextmanager
async def running(cluster: Nodes, *names: str) -> AsyncIterator[Nodes]:
    try:
        await cluster.start(*names)
        await until(lambda: all(engine.status().ready for engine in cluster.engines.values()))
        yield cluster
    finally:
        for name in list(cluster.engines):
            await cluster.stop(name)


async def some_jobs(node: Node) -> None:
    """Jobs in every state there is."""
    specs = [JobSpec(id=f"job-{number}", data=b'{"n":%d}' % number) for number in range(300)]
    await node.submit(PushJobs("mail", specs))
    await node.submit(PullJobs("mail", 4, "worker", 60_000, "seed"))
    await node.submit(AckJob("job-0", "seed-0", b'"done"'))
    await node.submit(FailJob("job-1", "seed-1", "no", unrecoverable=True))
    await node.submit(PushJobs("other", [JobSpec(id="elsewhere", data=b"1")]))


def content(machine: Machine) -> dict[str, tuple[str, bytes, bytes | None]]:
    return {job.id: (job.state, job.data, job.result) for job in machine.state.jobs.values()}


@asynccontextmanager
async def serving(node: Node, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """The node's HTTP, and in it the route of backups."""
    if all(route.path != "/backup" for route in Admin.routes):
        route = plain("GET", "/backup", backup_route.handle, reply=None, right="admin")
        monkeypatch.setattr(Admin, "routes", (*Admin.routes, route))
    server = Server(
        node, NodeConfig(host="127.0.0.1", http_port=0, bullmq_port=0, tcp_port=None, auth_tokens=("sesame",))
    )
    await server.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        await server.stop(5)


async def run(*arguments: str) -> tuple[int, str]:
    result = await asyncio.to_thread(CliRunner().invoke, app, list(arguments))
    return result.exit_code, result.output


async def test_a_backup_of_a_running_cluster_becomes_a_new_one_with_the_same_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "backup"
    # An election would add an entry between the backup and the look at it.
    async with running(Nodes(tmp_path / "old", **PATIENCE)) as old:
        await some_jobs(old.nodes["n1"])
        follower = old.follower().node_id
        async with serving(old.nodes[follower], monkeypatch) as url:
            status, said = await run("backup", "--url", url, "--output", str(file), "--token", "sesame")
            assert status == 0, said
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            refused = await run("backup", "--url", url, "--output", str(tmp_path / "none"), "--token", "wrong")
            assert refused[0] == 1 and "answered 401" in refused[1]
            assert not list(tmp_path.glob("*none*"))
        before = content(old.engines["n1"].machine)  # type: ignore[arg-type]
        whole = old.engines[follower].machine.full_digest()  # type: ignore[attr-defined]
        old_id = old.engines["n1"].cluster_id()
        head = snapshots.verify(Disk(tmp_path), "backup")
        assert file.stat().st_mode & 0o777 == 0o600
        assert f"entry {head.index:,}" in said and head.index == old.engines[follower].applied_index
        # It knows what most members' wall clocks said, so that a restore can tell a time that had run ahead.
        assert abs(times_of(head.replica).wall_ms - time.time_ns() // 1_000_000) < 60_000
    assert len(before) == 301

    new = Nodes(tmp_path / "new", 5, cluster_name="second")
    for name in new.peers:
        directory = str(tmp_path / "new" / name)
        status, said = await run(
            *("restore", str(file), "--data", directory, "--node-id", name, "--cluster-name", "second")
        )
        assert status == 0, said
        again = await run("restore", str(file), "--data", directory, "--node-id", name)
        assert again[0] == 1 and "is not empty" in again[1]
    restored = Machine()
    disk = Disk(tmp_path / "new" / "n1" / "snapshots")
    restored.restore(snapshots.SnapshotReader(disk, snapshots.newest(disk)[0]).pieces())
    assert restored.full_digest() == whole
    async with running(new):
        await until(lambda: all(engine.cluster_id() for engine in new.engines.values()))
        ids = {engine.cluster_id() for engine in new.engines.values()}
        assert len(ids) == 1 and old_id not in ids
        for engine in new.engines.values():
            assert content(engine.machine) == before  # type: ignore[arg-type]
        # It works, and the lock that a worker held holds.
        await new.nodes["n2"].submit(AckJob("job-2", "seed-2", None))
        await new.nodes["n4"].submit(PushJobs("mail", [JobSpec(id="new", data=b"2")]))
        index = new.engines["n4"].applied_index
        await until(lambda: all(engine.applied_index >= index for engine in new.engines.values()))
        assert [member.id for member in new.engines["n5"].status().members] == ["n1", "n2", "n3", "n4", "n5"]
    async with running(new):
        await new.engines["n3"].read_index(asyncio.get_running_loop().time() + 10)
        state = new.nodes["n3"].machine.state
        assert state.jobs["job-2"].state == "completed" and state.jobs["new"].state == "waiting"


async def test_nodes_restored_from_different_backups_do_not_become_one_cluster(tmp_path: Path) -> None:
    files = []
    async with running(Nodes(tmp_path / "old", 1)) as old:
        for number in range(2):
            await old.nodes["n1"].submit(PushJobs("mail", [JobSpec(id=f"job-{number}", data=b"1")]))
            image = await take(old.engines["n1"])
            files.append(tmp_path / f"backup-{number}")
            files[-1].write_bytes(b"".join([piece async for piece in image.pieces()]))
            image.close()
    new = Nodes(tmp_path / "new", 2)
    for name, file in zip(new.peers, files, strict=True):
        storage.restore(file, tmp_path / "new" / name, name, "quorumq")
    try:
        await new.start()
        await until(lambda: all(engine._links._complained for engine in new.engines.values()))
        said = [key for engine in new.engines.values() for key in engine._links._complained]
        assert any("the data is of another cluster" in line for line in said)
        assert not any(engine.status().ready for engine in new.engines.values())
    finally:
        for name in list(new.engines):
            await new.stop(name)


async def test_an_image_is_taken_anew_only_when_something_happened_since(tmp_path: Path) -> None:
    async with running(Nodes(tmp_path, 1)) as cluster:
        engine = cluster.engines["n1"]
        await some_jobs(cluster.nodes["n1"])
        first, second = await take(engine), await take(engine)
        assert first.name == second.name
        await cluster.nodes["n1"].submit(PushJobs("mail", [JobSpec(id="more", data=b"1")]))
        third, fourth = await asyncio.gather(take(engine), take(engine))
        assert third.name == fourth.name != first.name
        # Long gone from the directory, and still whole.
        for number in range(3):
            await cluster.nodes["n1"].submit(PushJobs("mail", [JobSpec(id=f"more-{number}", data=b"1")]))
            (await take(engine)).close()
        assert first.name not in snapshots.newest(Disk(tmp_path / "n1" / "snapshots"))
        kept = tmp_path / "kept"
        kept.write_bytes(b"".join([piece async for piece in first.pieces()]))
        assert snapshots.verify(Disk(tmp_path), "kept").index > 1
        for image in (first, second, third, fourth):
            image.close()


async def test_a_damaged_backup_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    async with running(Nodes(tmp_path / "old", 1)) as old:
        await some_jobs(old.nodes["n1"])
        image = await take(old.engines["n1"])
        data = b"".join([piece async for piece in image.pieces()])
        image.close()
    for number, damaged in enumerate(
        (data[:-1], data[: len(data) // 2], data[:100] + b"?" + data[101:], b"", b"x" * 50)
    ):
        file = tmp_path / f"damaged-{number}"
        file.write_bytes(damaged)
        target = tmp_path / f"target-{number}"
        status, said = await run("restore", str(file), "--data", str(target), "--node-id", "n1")
        assert status == 1 and file.name in said, said
        assert not target.exists() or not any(path.is_file() for path in target.rglob("*"))
        with pytest.raises(LogDamaged):
            snapshots.verify(Disk(tmp_path), file.name)


async def test_the_files_of_a_node_are_verified_and_damage_is_named(tmp_path: Path) -> None:
    async with running(Nodes(tmp_path, 1, segment_bytes=20_000)) as cluster:
        await some_jobs(cluster.nodes["n1"])
        (await take(cluster.engines["n1"])).close()
        for number in range(20):
            specs = [JobSpec(id=f"later-{number}-{position}", data=b"1" * 100) for position in range(20)]
            await cluster.nodes["n1"].submit(PushJobs("mail", specs))
        last = cluster.engines["n1"].status().last_index
    node = tmp_path / "n1"
    files = {path: path.read_bytes() for path in node.rglob("*") if path.is_file()}
    status, said = await run("log", "verify", str(node))
    assert status == 0, said
    assert f"to {last:,}" in said and "snapshot: sound" in said and "vote n1" in said
    assert "at feature level 1" in said and "versions before 0.2.0 cannot read it" in said
    assert {path: path.read_bytes() for path in node.rglob("*") if path.is_file()} == files
    for folder in ("log", "snapshots"):
        path = max((node / folder).iterdir(), key=lambda each: each.stat().st_size)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 3] + bytes([whole[len(whole) // 3] ^ 4]) + whole[len(whole) // 3 + 1 :])
        status, said = await run("log", "verify", str(node))
        assert status == 1 and path.name in said and "offset" in said, said
        path.write_bytes(whole)
    status, said = await run("log", "verify", str(tmp_path))
    assert status == 1 and "not a node's data directory" in said
    assert json.loads((node / "identity.json").read_bytes())["node_id"] == "n1"


@pytest.mark.parametrize(
    ("remove", "said_missing"),
    [
        (["log"], "and is gone"),
        (["log", "snapshots"], "and is gone"),
        (["log", "snapshots", "held"], "held is missing, which says how far the log reached"),
        (["held"], "held is missing"),
    ],
)
async def test_verify_says_what_a_folder_has_lost(tmp_path: Path, remove: list[str], said_missing: str) -> None:
    async with running(Nodes(tmp_path, 1)) as cluster:
        await some_jobs(cluster.nodes["n1"])
        (await take(cluster.engines["n1"])).close()
        cluster_id = cluster.engines["n1"].cluster_id()
    node = tmp_path / "n1"
    status, said = await run("log", "verify", str(node))
    assert status == 0 and f"identity: node n1 of cluster {cluster_id} (quorumq), whole" in said
    for name in remove:
        shutil.rmtree(node / name) if (node / name).is_dir() else (node / name).unlink()
    files = {path: path.read_bytes() for path in node.rglob("*") if path.is_file()}
    status, said = await run("log", "verify", str(node))
    assert status == 1 and said_missing in said and "probation" in said
    assert {path: path.read_bytes() for path in node.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("remove", ["snapshots", "nothing"])
async def test_verify_tells_an_identity_of_another_cluster(tmp_path: Path, remove: str) -> None:
    async with running(Nodes(tmp_path, 1)) as cluster:
        await some_jobs(cluster.nodes["n1"])
        (await take(cluster.engines["n1"])).close()
        cluster_id = cluster.engines["n1"].cluster_id()
    node = tmp_path / "n1"
    shutil.rmtree(node / remove, ignore_errors=True)
    assert (await run("log", "verify", str(node)))[0] == 0
    file = node / "identity.json"
    flipped = cluster_id[:-1] + chr(ord(cluster_id[-1]) ^ 1)
    file.write_bytes(file.read_bytes().replace(cluster_id.encode(), flipped.encode()))
    status, said = await run("log", "verify", str(node))
    assert status == 1 and f"of cluster {flipped}, and what lies beside it of cluster {cluster_id}" in said, said


async def test_verify_tells_a_torn_end_from_a_damaged_one_and_from_one_that_was_cut(tmp_path: Path) -> None:
    async with running(Nodes(tmp_path, 1)) as cluster:
        await some_jobs(cluster.nodes["n1"])
    node = tmp_path / "n1"
    segment = max((node / "log").iterdir())
    whole = segment.read_bytes()
    segment.write_bytes(whole + whole[-30:][:11])
    status, said = await run("log", "verify", str(node))
    assert status == 0 and "11 bytes of an unfinished write at the end" in said, said
    segment.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    status, said = await run("log", "verify", str(node))
    assert status == 1 and "log: IN DOUBT" in said, said
    segment.write_bytes(whole[: len(whole) // 4])
    status, said = await run("log", "verify", str(node))
    assert status == 1 and f"the log reached byte {len(whole)} of {segment.name}" in said, said


async def test_a_restored_folder_that_lost_its_snapshot_is_noticed(tmp_path: Path) -> None:
    async with running(Nodes(tmp_path / "old", 1)) as old:
        await some_jobs(old.nodes["n1"])
        image = await take(old.engines["n1"])
        (tmp_path / "image").write_bytes(b"".join([piece async for piece in image.pieces()]))
        image.close()
    for name in ("n1", "n2", "n3"):
        head, _ = storage.restore(tmp_path / "image", tmp_path / "new" / name, name, "quorumq")
    new = Nodes(tmp_path / "new", 3)
    for file in (tmp_path / "new" / "n1" / "snapshots").iterdir():
        file.unlink()
    status, said = await run("log", "verify", str(tmp_path / "new" / "n1"))
    assert status == 1 and f"there was a snapshot of entry {head.index}" in said
    try:
        await new.start("n1", "n2")
        assert not new.engines["n1"].metrics.whole
        await new.start("n3")
        await until(lambda: all(engine.status().ready for engine in new.engines.values()))
        await until(lambda: new.engines["n1"].metrics.whole)
        assert len(content(new.engines["n1"].machine)) == 301  # type: ignore[arg-type]
    finally:
        for name in list(new.engines):
            await new.stop(name)


async def test_files_of_a_level_that_is_not_known_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Nodes(tmp_path, 1)) as cluster:
        await some_jobs(cluster.nodes["n1"])
        image = await take(cluster.engines["n1"])
        file = tmp_path / "n1" / "snapshots" / image.name
        image.close()
    monkeypatch.setattr("quorumq.cli.storage.KNOWN", 0)
    for command in (
        ["log", "verify", str(tmp_path / "n1")],
        ["restore", str(file), "--data", str(tmp_path / "new"), "--node-id", "n1"],
    ):
        status, said = await run(*command)
        assert status == 1 and f"{file.name} is of feature level 1, and version" in said, said
    assert not (tmp_path / "new").exists()


def test_a_node_id_that_no_node_can_have_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(storage.StorageTrouble, match="'a b' is not a node id"):
        storage.restore(tmp_path / "image", tmp_path / "data", "a b", "quorumq")
    assert list(tmp_path.iterdir()) == []


YEAR_MS = 365 * 24 * 3_600_000


def image_of(directory: Path, now_ms: int, wall_ms: int = 0) -> Path:
    """Write an image of a machine with a delayed job, by whose clock it is now_ms; wall_ms: what a majority's clocks said."""
    machine = Machine()
    delayed = PushJobs("q", [JobSpec("j1", b"1", Options(delay_ms=1_800_000))])
    machine.apply(2, now_ms, [msgspec.msgpack.encode([delayed])])
    replica = Replica(machine, lambda batch, outcome: None)
    replica.now_ms = now_ms
    head = snapshots.Head(1, 2, 1, replica.head(wall_ms))
    return directory / snapshots.write(Disk(directory), "writing.part", head, machine.image(), lambda: None)


def restored(directory: Path) -> tuple[Machine, Replica]:
    machine = Machine()
    replica = Replica(machine, lambda batch, outcome: None)
    disk = Disk(directory / "snapshots")
    reader = snapshots.SnapshotReader(disk, snapshots.newest(disk)[0])
    replica.restore(reader.head.replica, reader.pieces())
    return machine, replica


async def test_a_time_from_the_future_is_not_taken_over_when_the_backup_knows_better(tmp_path: Path) -> None:
    wall_ms = time.time_ns() // 1_000_000 - 86_400_000
    file = image_of(tmp_path / "backup", wall_ms + YEAR_MS, wall_ms)
    ids = set()
    for name in ("n1", "n2"):
        status, said = await run("restore", str(file), "--data", str(tmp_path / name), "--node-id", name)
        assert status == 0
        assert "the time in the backup was ahead" in " ".join(said.split())
        machine, replica = restored(tmp_path / name)
        assert replica.now_ms == machine.state.now_ms == wall_ms
        assert machine.state.jobs["j1"].run_at == wall_ms + 1_800_000
        ids.add((replica.cluster_id, machine.full_digest()))
    assert len(ids) == 1, "both are of one cluster, and hold the same"


async def test_a_time_from_the_future_of_which_nobody_knows_better_is_asked_about(tmp_path: Path) -> None:
    now_ms = time.time_ns() // 1_000_000
    file = image_of(tmp_path / "backup", now_ms + YEAR_MS)
    status, said = await run("restore", str(file), "--data", str(tmp_path / "n1"), "--node-id", "n1")
    assert status == 1
    assert "ahead of this machine's clock" in said
    assert not (tmp_path / "n1").exists()
    ids = set()
    for name, at in (("n1", "2026-01-31T12:00:00Z"), ("n2", "1769860800000"), ("n3", "2026-01-31 12:00:01")):
        command = ("restore", str(file), "--data", str(tmp_path / name), "--node-id", name, "--at", at)
        assert (await run(*command))[0] == 0
        machine, replica = restored(tmp_path / name)
        assert 1_769_860_800_000 <= machine.state.now_ms == replica.now_ms <= 1_769_860_801_000
        ids.add((replica.cluster_id, machine.full_digest()))
    assert len(ids) == 2, "who begins at another time is of another cluster"
    status, said = await run("restore", str(file), "--data", str(tmp_path / "n4"), "--node-id", "n4", "--at", "soon")
    assert status == 1
    assert "'soon' is not a time" in said


@pytest.mark.parametrize("ahead_ms", [-YEAR_MS, 0, 59_000])
async def test_a_time_that_is_not_from_the_future_stays(tmp_path: Path, ahead_ms: int) -> None:
    now_ms = time.time_ns() // 1_000_000 + ahead_ms
    for wall_ms in (0, now_ms - 59_000):
        file = image_of(tmp_path / f"backup{wall_ms}", now_ms, wall_ms)
        target = tmp_path / f"n{wall_ms}"
        status, said = await run("restore", str(file), "--data", str(target), "--node-id", "n1")
        assert status == 0
        assert "ahead" not in said
        machine, _ = restored(target)
        assert machine.state.now_ms == now_ms

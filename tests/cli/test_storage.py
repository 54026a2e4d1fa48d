"""Backups of a running cluster, new clusters made from them, and the check of a node's files."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from api.dialects.admin import Admin
from api.dialects.admin import backup as backup_route
from api.http import plain
from api.server import Server
from cli import storage
from cli.main import app
from cluster import snapshots
from cluster.backup import take
from cluster.disk import Disk
from cluster.engine import Engine
from cluster.errors import LogDamaged
from node.config import NodeConfig
from node.machine import Machine
from node.node import Node
from node.operations.jobs import AckJob, FailJob, PullJobs, PushJobs
from node.state.job import JobSpec
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
    server = Server(node, NodeConfig(host="127.0.0.1", http_port=0, bullmq_port=0, auth_tokens=("sesame",)))
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
            refused = await run("backup", "--url", url, "--output", str(tmp_path / "none"), "--token", "wrong")
            assert refused[0] == 1 and "answered 401" in refused[1]
            assert not list(tmp_path.glob("*none*"))
        before = content(old.engines["n1"].machine)  # type: ignore[arg-type]
        whole = old.engines[follower].machine.full_digest()  # type: ignore[attr-defined]
        old_id = old.engines["n1"].cluster_id()
        head = snapshots.verify(Disk(tmp_path), "backup")
        assert f"entry {head.index:,}" in said and head.index == old.engines[follower].applied_index
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
    restored.restore(snapshots.Reader(disk, snapshots.newest(disk)[0]).pieces())
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


def test_a_node_id_that_no_node_can_have_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(storage.StorageTrouble, match="'a b' is not a node id"):
        storage.restore(tmp_path / "image", tmp_path / "data", "a b", "quorumq")
    assert list(tmp_path.iterdir()) == []

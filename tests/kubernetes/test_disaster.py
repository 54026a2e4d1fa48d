"""A whole release that is lost, and a majority that is: the chart's own commands, and those of docs/kubernetes.md, on real nodes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.cluster.traffic import Traffic, broken
from tests.kubernetes.rendering import EVERYTHING, pod_specs, rendered, the
from tests.support.local_cluster import HOST, PATIENCE, LocalCluster, LocalNode, free_ports

pytestmark = pytest.mark.timeout(400)
RELEASE = "queue"


def ports_in_a_row(count: int) -> int:
    """Return the first of so many free ports that differ in the last digit."""
    while True:
        first = free_ports(1)[0] // 10 * 10
        if all(map(is_free, range(first, first + count))):
            return first


def is_free(port: int) -> bool:
    try:
        socket.create_server((HOST, port)).close()
    except OSError:
        return False
    return True


def release(volumes: Path, first_port: int) -> LocalCluster:
    """Three nodes as the chart's pods are: named by their numbers, found by a name, each with a folder in its volume."""
    cluster = LocalCluster(3, **PATIENCE, AUTH_TOKENS="t", CLUSTER_NAME="production")
    for number, node in enumerate(cluster.nodes):
        node.id = f"{RELEASE}-{number}"
        node.peer_port = first_port + number
        node.data = volumes / node.id / "data"
        node.data.parent.mkdir(parents=True, exist_ok=True)
        del node.settings["PEERS"]
        node.settings |= {
            "NODE_ID": node.id,
            "PEERS_DNS": ",".join(f"{HOST}:{first_port + each}" for each in range(3)),
            "CLUSTER_SIZE": "3",
            "PEER_PORT": str(node.peer_port),
            "ADVERTISE": f"{HOST}:{node.peer_port}",
            "DATA_PATH": str(node.data),
        }
    return cluster


async def run(command: list[str], **environment: str) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {"PATH": path, "PYTHONPATH": os.getcwd(), **environment}
    done = await asyncio.to_thread(subprocess.run, command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def asking(node: LocalNode) -> dict[str, str]:
    return {"QUORUMQ_URL": node.url, "QUORUMQ_TOKEN": "t"}


class Allowed(Traffic):
    """With the token that the nodes want."""

    async def __aenter__(self) -> Traffic:
        await super().__aenter__()
        self.session.headers.update(self.cluster.nodes[0].allowed)
        return self


async def kept(traffic: Traffic, node: LocalNode, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What of the promises is broken at a node that wants a token."""
    plain = aiohttp.ClientSession
    with monkeypatch.context() as patched:
        patched.setattr("tests.cluster.traffic.aiohttp.ClientSession", lambda **how: plain(headers=node.allowed, **how))
        return await broken(traffic.promises, node)


async def test_a_release_that_is_lost_comes_back_from_the_cronjob_s_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = rendered(values=EVERYTHING)
    (job,) = the("CronJob", objects)["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    (restoring,) = the("StatefulSet", objects)["spec"]["template"]["spec"]["initContainers"]
    backups = tmp_path / "backups"
    backups.mkdir()
    old = release(tmp_path / "old", ports_in_a_row(3))
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(old.close)
        await old.start()
        before = (await old.nodes[0].cluster())["cluster_id"]
        async with Allowed(old) as traffic:
            await traffic.until(acked=40)
        shell, flag, script = job["command"]
        await run([shell, flag, script.replace("/backup/", f"{backups}/")], **asking(old.nodes[1]))
        # What came after it is not in it.
        async with Allowed(old) as later:
            await later.until(acked=5)
        (image,) = backups.glob("*.image")
    # The release and its volumes are gone.
    shutil.rmtree(tmp_path / "old")

    new = release(tmp_path / "new", ports_in_a_row(3))
    shell, flag, script = restoring["command"]
    for node in new.nodes:
        own = script.replace("/backup/", f"{backups}/").replace("/var/lib/quorumq", str(node.data.parent))
        said = await run([shell, flag, own], POD_NAME=node.id, CLUSTER_NAME="production", RESTORE_FILE=image.name)
        assert node.id in said
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(new.close)
        await new.start()
        seen = await new.nodes[0].cluster()
        assert sorted(one["id"] for one in seen["members"] if one["voter"]) == [f"{RELEASE}-{n}" for n in range(3)]
        assert seen["cluster_id"] != before
        for node in new.nodes:
            assert await kept(traffic, node, monkeypatch) == []
        lost = set(later.promises.pushed) - set(traffic.promises.pushed)
        assert lost
        status, answer = await new.nodes[0].ask(f"/jobs/{min(lost)}/state")
        assert "unknown" in str(answer) or status == 404
        # It is a cluster like any other: it serves, loses a node, and a pod that starts again restores nothing.
        async with Allowed(new) as more:
            await more.until(acked=20)
            victim = await new.leader()
            await victim.kill()
            own = script.replace("/backup/", f"{backups}/").replace("/var/lib/quorumq", str(victim.data.parent))
            again = await run([shell, flag, own], POD_NAME=victim.id, CLUSTER_NAME="production", RESTORE_FILE="none")
            assert "nothing is restored" in again
            await victim.start()
            await new.ready()
            await more.until(acked=20)
        assert await kept(more, victim, monkeypatch) == []


async def test_a_majority_that_is_lost_for_good_is_replaced_as_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_port = ports_in_a_row(3)
    cluster = release(tmp_path / "volumes", first_port)
    hooks: dict[str, Any] = pod_specs(rendered("--set", f"fullnameOverride={RELEASE}"))
    (job,) = hooks[f"Job/{RELEASE}-members-after"]["containers"]
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(cluster.close)
        await cluster.start()
        async with Allowed(cluster) as traffic:
            await traffic.until(acked=40)
        await cluster.converged()
        for node in cluster.nodes:
            await node.kill()
        # Two volumes are lost, with whatever was on them; one is new and empty, the other came back with something old.
        survivor, gone, stale = cluster.nodes
        shutil.rmtree(gone.data)
        said = await run(["quorumq", "recover", str(survivor.data), "--dry-run"])
        assert "nothing was changed" in said
        await run(["quorumq", "recover", str(survivor.data), "--yes"])
        stale.data.rename(stale.data.parent / "lost")
        for node in cluster.nodes:
            await node.start()
        await cluster.ready([survivor])
        # The upgrade's Job, with addresses of this machine in place of the pods' names.
        arguments = list(job["args"])
        arguments[arguments.index("--address") + 1] = f"{HOST}:{str(first_port)[:-1]}{{number}}"
        said = await run(["quorumq", *arguments], **asking(survivor))
        await cluster.ready()
        seen = await survivor.cluster()
        assert {one["id"]: one["voter"] for one in seen["members"]} == {node.id: True for node in cluster.nodes}
        for node in cluster.nodes:
            assert await kept(traffic, node, monkeypatch) == []
        async with Allowed(cluster) as more:
            await more.until(acked=10)
            await survivor.kill()
            await more.until(acked=10)

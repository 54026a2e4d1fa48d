"""What the chart's Jobs, hooks and init containers run, run here: with real nodes, without Kubernetes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from quorumq.cli import admin, resizing
from quorumq.cli.admin import NoAnswer, fetch
from quorumq.cli.main import app
from tests.consensus.test_tls import Authority
from tests.kubernetes.rendering import CHART, EVERYTHING, helm, pod_specs, rendered, the
from tests.support.local_cluster import LocalCluster, LocalNode, free_ports


def environment(node: LocalNode, **more: str) -> dict[str, str]:
    """What a pod of a Job has, with this checkout's `quorumq` on the path."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"PATH": path, "QUORUMQ_URL": node.url, "QUORUMQ_TOKEN": "t", "PYTHONPATH": os.getcwd()} | more


async def run(command: list[str], env: dict[str, str]) -> str:
    done = await asyncio.to_thread(subprocess.run, command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def test_the_helm_test_does_a_job_and_leaves_nothing() -> None:
    async with LocalCluster(1, AUTH_TOKENS="t") as cluster:
        (node,) = cluster.nodes
        script = (CHART / "files" / "try_jobs.py").read_text("utf-8")
        pod = the("Pod", rendered())["spec"]["containers"][0]
        assert pod["command"] == ["python", "-c"] and pod["args"][0].strip() == script.strip()
        said = await run([sys.executable, "-c", pod["args"][0]], environment(node))
        assert "a job was pushed, pulled and acknowledged" in said


async def test_the_helm_test_waits_for_somebody_who_is_ready() -> None:
    cluster = LocalCluster(1, AUTH_TOKENS="t")
    (node,) = cluster.nodes
    script = (CHART / "files" / "try_jobs.py").read_text("utf-8")
    never = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script],
        env=environment(node, WAIT_S="0.1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert never.returncode == 1 and never.stderr.startswith(f"nobody is ready at {node.url}: ")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, env=environment(node), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert b"nobody is ready" in await process.stdout.readline()
        async with cluster:
            assert b"a job was pushed, pulled and acknowledged" in await process.stdout.readline()
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_backups_are_kept_by_number_and_a_new_release_begins_with_one(tmp_path: Path) -> None:
    objects = rendered("--set", "backup.keep=2", values=EVERYTHING)
    (job,) = the("CronJob", objects)["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    backups, volume = tmp_path / "backups", tmp_path / "volume"
    backups.mkdir()
    volume.mkdir()
    (backups / "queue-20200101T000000Z.image").write_text("old")
    (backups / "queue-20200102T000000Z.image").write_text("less old")
    (backups / "queue-20200103T000000Z.image.part").write_text("interrupted")
    (backups / "mine").write_text("not the chart's")
    async with LocalCluster(1, AUTH_TOKENS="t") as cluster:
        (node,) = cluster.nodes
        shell, flag, script = job["command"]
        said = await run([shell, flag, script.replace("/backup/", f"{backups}/")], environment(node))
    held = sorted(one.name for one in backups.iterdir())
    assert len(held) == 3 and held[0] == "mine" and held[1] == "queue-20200102T000000Z.image"
    # What is to be run after it knows the file.
    assert said.splitlines()[-1] == str(backups / held[2])

    (container,) = the("StatefulSet", objects)["spec"]["template"]["spec"]["initContainers"]
    shell, flag, script = container["command"]
    script = script.replace("/backup/", f"{backups}/").replace("/var/lib/quorumq", str(volume))
    (volume / "lost+found").mkdir()
    (volume / "restoring").mkdir()
    (volume / "restoring" / "half").write_text("an interrupted restore")
    own = environment(node, POD_NAME="queue-0", CLUSTER_NAME="production", RESTORE_FILE=held[2])
    said = await run([shell, flag, script], own)
    assert "queue-0" in said and sorted(one.name for one in volume.iterdir()) == ["data", "lost+found"]
    before = sorted(one.name for one in (volume / "data").iterdir())
    # A node that has data keeps it.
    assert "nothing is restored" in await run([shell, flag, script], own)
    assert sorted(one.name for one in (volume / "data").iterdir()) == before


def test_members_are_changed_before_pods_go_and_vote_after_they_came(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[Any, ...]] = []

    class Noted:
        def __init__(self, *given: Any, tls: Any) -> None:
            self.given = given

        def run(self, size: int, *, promote: bool, remove: bool) -> list[str]:
            called.append((*self.given, size, promote, remove))
            return []

    monkeypatch.setattr(resizing, "Resizing", Noted)
    monkeypatch.setattr("quorumq.cli.members.list_members", lambda url, token, ca: None)
    jobs = {one["metadata"]["annotations"]["helm.sh/hook"]: one for one in rendered() if one["kind"] == "Job"}
    assert sorted(jobs) == ["post-upgrade", "pre-upgrade"]
    for hook in ("pre-upgrade", "post-upgrade"):
        (container,) = jobs[hook]["spec"]["template"]["spec"]["containers"]
        done = CliRunner().invoke(app, container["args"], env={"QUORUMQ_URL": "http://n", "QUORUMQ_TOKEN": "t"})
        assert done.exit_code == 0, done.output
    address = "{id}.q-quorumq-peers.ns.svc:7790"
    common = ("http://n", "t", "q-quorumq", address, 600.0, 3)
    assert called == [(*common, False, True), (*common, True, True)]


def test_without_tokens_the_chart_changes_no_members() -> None:
    # /admin is then for the node's own machine.
    assert not [name for name in pod_specs(rendered("--set", "auth.enabled=false")) if name.startswith("Job/")]


def test_the_notes_give_the_commands_for_the_secrets() -> None:
    done = helm("install", "q", str(CHART), "--dry-run=client", "--namespace", "ns")
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    pod = the("StatefulSet", rendered())["spec"]["template"]["spec"]
    secrets = {one["secret"]["secretName"] for one in pod["volumes"] if "secret" in one}
    secrets |= {
        one["valueFrom"]["secretKeyRef"]["name"]
        for one in pod["containers"][0]["env"]
        if "secretKeyRef" in one.get("valueFrom", {})
    }
    assert secrets == {"quorumq-cluster", "quorumq-auth"}
    for one in secrets:
        assert f"create secret generic {one} --from-literal=" in notes
    assert "http://q-quorumq.ns.svc:6790" in notes


@pytest.mark.parametrize("encrypted", [False, True])
async def test_diagnostic_pods_run_no_node_and_answer_their_probes_alone(encrypted: bool, tmp_path: Path) -> None:
    usual, objects = rendered(), rendered("--set", "diagnosticMode.enabled=true")
    (before,), (node,) = (the("StatefulSet", one)["spec"]["template"]["spec"]["containers"] for one in (usual, objects))
    # What an upgrade would take away, and leave half of, is all there.
    assert {**node, "command": 0, "args": 0} == {**before, "command": 0, "args": 0}
    assert not [one for one in objects if one["kind"] == "Job"]
    (port,) = free_ports(1)
    env, scheme, trust = {"HTTP_PORT": str(port)}, "http", None
    if encrypted:
        authority = Authority(tmp_path, "ca")
        cert, key = authority.issue("node", "IP:127.0.0.1")
        env |= {"TLS_CERT": str(cert), "TLS_KEY": str(key)}
        scheme, trust = "https", admin.trust(authority.cert)
    process = await asyncio.create_subprocess_exec(
        sys.executable, *node["command"][1:], *node["args"], env=env, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None and b"no node runs here" in await process.stdout.readline()
        asked = {}
        for path in ("/startupz", "/readyz", "/livez", "/queues/q/counts"):
            while True:
                try:
                    asked[path] = (await asyncio.to_thread(fetch, f"{scheme}://127.0.0.1:{port}{path}", tls=trust))[0]
                    break
                except NoAnswer:
                    await asyncio.sleep(0.05)
        assert asked == {"/startupz": 200, "/readyz": 200, "/livez": 200, "/queues/q/counts": 503}
        process.terminate()
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

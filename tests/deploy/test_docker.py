"""deploy/docker and deploy/systemd: what they say of the program is so, and the balancer loses no request when a node dies.

The image itself is built and run by test_image.py, where buildah is; its steps are those of tests/packaging.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from quorumq.api.settings.loading import load
from quorumq.api.settings.rows import settings
from quorumq.api.settings.values import PEER_PORT
from tests.support.local_cluster import HOST, LocalCluster, free_ports
from tests.support.tcp_client import TcpClient

DEPLOY = Path(__file__).parents[2] / "deploy"
ROOT = DEPLOY.parent
DOCKERFILE = (DEPLOY / "docker" / "Dockerfile").read_text("utf-8")
COMPOSE = (DEPLOY / "docker" / "compose.yaml").read_text("utf-8")
BALANCER = (DEPLOY / "docker" / "haproxy.cfg").read_text("utf-8")
UNIT = (DEPLOY / "systemd" / "quorumq.service").read_text("utf-8")
NAMES = {row.env for row in settings()}


def copied() -> set[str]:
    """Return what the first stage takes from the checkout."""
    lines = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    return {name for line in lines for name in line.split()}


def test_the_image_has_what_the_package_is_made_of() -> None:
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied()
    assert all((ROOT / name).exists() for name in copied())
    # Everything that the links lead to.
    assert {link.name for link in (ROOT / "quorumq").iterdir() if link.is_symlink()} <= copied()
    assert "--require-hashes" in DOCKERFILE and "--no-deps --requirement requirements.lock" in DOCKERFILE


def test_the_image_runs_as_nobody_special_on_the_ports_that_are_the_defaults(tmp_path: Path) -> None:
    stage = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001:10001$", stage, re.MULTILINE) and "root" not in re.sub(r"#.*", "", stage)
    config = load({"data_path": str(tmp_path)}, {}, None)
    ports = re.search(r"^EXPOSE (.*)$", stage, re.MULTILINE)
    assert ports and ports[1].split() == [
        str(one) for one in (config.http_port, config.bullmq_port, config.tcp_port, PEER_PORT)
    ]
    assert "/livez" in stage.partition("HEALTHCHECK")[2]


def test_settings_of_the_compose_file_are_settings() -> None:
    named = set(re.findall(r"^ +([A-Z][A-Z_]+): ", COMPOSE, re.MULTILINE))
    assert {"NODE_ID", "PEERS", "CLUSTER_SECRET", "AUTH_TOKENS"} <= named <= NAMES
    values = dict(re.findall(r"^ +([A-Z][A-Z_]+): ([^$\n]+)$", COMPOSE, re.MULTILINE))
    config = load({}, values | {"CLUSTER_SECRET": "s", "AUTH_TOKENS": "t"}, None)
    assert sorted(config.peers) == ["n1", "n2", "n3"] and config.node_id in config.peers
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert version and COMPOSE.count(f"image: quorumq:{version[1]}\n") == 1 and f"quorumq:{version[1]} ." in DOCKERFILE


@pytest.mark.parametrize("line", ["read_only: true", "cap_drop: [ALL]", 'security_opt: ["no-new-privileges:true"]'])
def test_nothing_of_the_compose_file_may_more_than_it_needs(line: str) -> None:
    # The nodes, which share their part, and the balancer.
    assert COMPOSE.count(line) == 2


def test_the_service_s_settings_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a secret\n", "utf-8")
    file = tmp_path / "quorumq.toml"
    text = (DEPLOY / "systemd" / "quorumq.toml").read_text("utf-8")
    file.write_text(text.replace("/etc/quorumq/secret", str(tmp_path / "secret")), "utf-8")
    config = load({}, {}, file)
    assert config.node_id == "n1" and len(config.peers) == 3
    named = re.search(r"--config (\S+)", UNIT)
    assert named and named[1] in text
    assert f"StateDirectory={config.data_path.name}" in UNIT and config.data_path.parent == Path("/var/lib")


def test_the_service_stays_down_when_starting_again_would_not_help() -> None:
    said = (ROOT / "cli" / "serve.py").read_text("utf-8").partition('"""')[2].partition('"""')[0]
    lasting = re.search(r"^RestartPreventExitStatus=(.*)$", UNIT, re.MULTILINE)
    assert lasting
    assert all(re.search(rf"\b{status} (?:for|when)", said) for status in lasting[1].split())


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not there")
def test_the_unit_is_one(tmp_path: Path) -> None:
    unit = tmp_path / "quorumq.service"
    unit.write_text(re.sub(r"/opt/quorumq/bin/quorumq", "/bin/true", UNIT), "utf-8")
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# -- The balancer ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not there")
async def test_the_balancer_goes_round_a_node_that_dies(tmp_path: Path) -> None:
    main, bullmq, tcp = free_ports(3)
    async with LocalCluster(3, CLUSTER_SECRET="s", AUTH_TOKENS="t") as cluster:
        text = BALANCER.replace("bind :6790", f"bind {HOST}:{main}").replace("bind :8080", f"bind {HOST}:{bullmq}")
        text = text.replace("bind :6789", f"bind {HOST}:{tcp}")
        for node in cluster.nodes:
            # The probe of the commands' port goes to HTTP's.
            text = text.replace(
                f"server {node.id} {node.id}:6789", f"server {node.id} {HOST}:{node.tcp_port} port {node.http_port}"
            )
            text = text.replace(f"{node.id}:6790", f"{HOST}:{node.http_port}")
            text = text.replace(f"{node.id}:8080", f"{HOST}:{node.bullmq_port}")
        file = tmp_path / "haproxy.cfg"
        file.write_text(text, "utf-8")
        running = await asyncio.create_subprocess_exec("haproxy", "-db", "-f", str(file))
        try:
            headers = {"Authorization": "Bearer t"}
            async with asyncio.timeout(60), aiohttp.ClientSession(headers=headers) as session:
                await up(session, main)
                assert await push(session, main, 30) == [200] * 30
                async with session.get(f"http://{HOST}:{bullmq}/queues/mail/jobs") as answer:
                    assert answer.status == 200 and (await answer.json())["counts"]["waiting"] == 30
                # bunqueue's own clients have a connection that lasts; each goes to the node with the fewest.
                clients = [await TcpClient.open(tcp, HOST, token="t") for _ in range(6)]
                job = (await clients[0].ok("PUSH", queue="tcp", data=1))["id"]
                taken = await clients[1].ok("PULL", queue="tcp", owner="w")
                await clients[2].ok("ACK", id=job, token=taken["token"])
                shares = [(await node.ask("/health"))[1]["connections"]["tcp"] for node in cluster.nodes]
                assert sum(shares) == 6 and min(shares) > 0
                await (await cluster.leader()).kill()
                # One that was under way at the dead node might fail; none that comes after.
                assert await push(session, main, 30) == [200] * 30
                await until(lambda: sum(one.ended for one in clients) > 0)
                again = await TcpClient.open(tcp, HOST, token="t")
                assert (await again.ok("GetState", id=job))["state"] == "completed"
                for one in (*clients, again):
                    await one.close()
        finally:
            running.kill()
            await running.wait()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.05)


async def up(session: aiohttp.ClientSession, port: int) -> None:
    """Wait until the balancer answers for a node."""
    while True:
        try:
            async with session.get(f"http://{HOST}:{port}/readyz") as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.05)


async def push(session: aiohttp.ClientSession, port: int, count: int) -> list[int]:
    statuses = []
    for _ in range(count):
        async with session.post(f"http://{HOST}:{port}/queues/mail/jobs", json={"data": 1}) as answer:
            statuses.append(answer.status)
    return statuses

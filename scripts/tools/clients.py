"""bunqueue's own clients, unmodified, against a cluster: its TypeScript package, command line and MCP server, and its Python client.

Each part is a list of checks (tests/clients); a check does something and tells what it saw, without ids and times. What bunqueue
itself answers is recorded in tests/clients/answers.json; a cluster has to answer the same, but for what differences.json names.
The packages are installed into .clients, once, as the lock files there say; what cannot be had is said and left out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import filecmp
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from tests.clients import cli_checks, mcp_checks
from tests.support.local_cluster import HOST, LocalCluster, free_ports
from tests.support.tcp_balancer import TcpBalancer

HERE = Path(__file__).resolve().parents[2]
CHECKS = HERE / "tests" / "clients"
INSTALLED = HERE / ".clients"
MODULES = INSTALLED / "node_modules"
BUN = MODULES / ".bin" / "bun"
PYTHON = INSTALLED / "python" / "bin" / "python"
PARTS = ("typescript", "cli", "mcp", "python")
# What bunqueue's own version is, which its command line compares.
VERSION = "2.9.5"
# A leader is killed so often, and is away so long.
KILL_EVERY_S = 10.0
DOWN_S = 3.0
SHORT = "|".join(
    (
        "add returns", "many at once", "data of every kind", "ten at a time", "what a processor sees", "progress, while", "repeated",
        "dead letter queue", "filter", "what happens is told", "waiting for a job$", "pause and resume", "rate limit of a group",
        "scheduler makes", "simple mode$", "great number",
    )
)  # fmt: skip


class Missing(Exception):
    """A part cannot run here; the message says why."""


# -- Installing


def install_node() -> None:
    """Install the packages of the npm registry. Raises Missing."""
    if not shutil.which("npm") or not shutil.which("node"):
        raise Missing("node and npm are not here")
    INSTALLED.mkdir(exist_ok=True)
    files = ("package.json", "package-lock.json", ".npmrc")
    if BUN.exists() and all(
        (INSTALLED / name).exists() and filecmp.cmp(CHECKS / name, INSTALLED / name, shallow=False) for name in files
    ):
        return
    for name in files:
        shutil.copy(CHECKS / name, INSTALLED / name)
    print("installing bunqueue's package and Bun into .clients, once", file=sys.stderr)
    done = subprocess.run(["npm", "ci", "--no-progress"], cwd=INSTALLED, capture_output=True, text=True, check=False)
    if done.returncode == 0 and not works(BUN):
        # npm asks before it runs what a package brings; this is what puts the runtime in its place.
        subprocess.run(["node", "install.js"], cwd=MODULES / "bun", capture_output=True, check=False)
    if done.returncode or not works(BUN):
        (INSTALLED / "package.json").unlink()
        raise Missing(f"npm could not install bunqueue and Bun: {(done.stderr or done.stdout)[-300:].strip()}")


def works(program: Path) -> bool:
    """Whether a program can be started."""
    try:
        return subprocess.run([program, "--version"], capture_output=True, check=False, timeout=60).returncode == 0
    except OSError:
        return False


def install_python() -> None:
    """Install the Python client into an environment of its own. Raises Missing."""
    wanted, had = CHECKS / "requirements.txt", INSTALLED / "requirements.txt"
    if PYTHON.exists() and had.exists() and filecmp.cmp(wanted, had, shallow=False):
        return
    INSTALLED.mkdir(exist_ok=True)
    print("installing bunqueue's Python client into .clients, once", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", PYTHON.parents[1]], check=True)
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "--no-deps"]
    done = subprocess.run([*pip, "-r", wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"pip could not install bunqueue-client: {done.stderr[-300:].strip()}")
    shutil.copy(wanted, had)


# -- Servers


@contextlib.asynccontextmanager
async def bunqueue(folder: Path) -> AsyncIterator[list[str]]:
    """Run bunqueue itself, with its data in a file; yield where it listens."""
    port = paired_ports(1)[0]
    environment = {
        **os.environ, "TCP_PORT": str(port), "HTTP_PORT": str(port + 1), "HOST": HOST, "BUNQUEUE_DATA_PATH": str(folder / "bunqueue.db"),
        # Its own default, 10,000 a minute, is used up by a measurement of seconds.
        "RATE_LIMIT_MAX_REQUESTS": "1000000000",
    }  # fmt: skip
    log = (folder / "bunqueue.log").open("wb")
    process = await asyncio.create_subprocess_exec(
        str(BUN), str(MODULES / "bunqueue" / "dist" / "main.js"), stdout=log, stderr=log, env=environment
    )
    try:
        await listening(port)
        yield [f"{HOST}:{port}"]
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def listening(port: int, timeout_s: float = 30) -> None:
    """Wait until something listens at a port."""
    ends = time.monotonic() + timeout_s
    while True:
        try:
            _, writer = await asyncio.open_connection(HOST, port)
        except OSError:
            if time.monotonic() > ends:
                raise
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return


def paired_ports(count: int) -> list[int]:
    """Return ports that are free, as are those after them: HTTP is looked for there."""
    found: list[int] = []
    while len(found) < count:
        for port in free_ports(20):
            with contextlib.suppress(OSError):
                with socket.socket() as one:
                    one.bind((HOST, port + 1))
                found.append(port)
                break
    return found


@contextlib.asynccontextmanager
async def nodes(*, balancer: bool) -> AsyncIterator[tuple[LocalCluster, list[str]]]:
    """Run three nodes; yield them and where clients connect: at each of them, or at a balancer."""
    cluster = LocalCluster(3, BUNQUEUE_VERSION=VERSION)
    for node, port in zip(cluster.nodes, paired_ports(3), strict=True):
        node.tcp_port, node.http_port = port, port + 1
        node.settings |= {"TCP_PORT": str(port), "HTTP_PORT": str(port + 1)}
    async with cluster:
        addresses = [f"{HOST}:{node.tcp_port}" for node in cluster.nodes]
        if not balancer:
            yield cluster, addresses
            return
        port = paired_ports(1)[0]
        async with TcpBalancer(cluster.folder, {port: "tcp_port", port + 1: "http_port"}, cluster.nodes):
            yield cluster, [f"{HOST}:{port}"]


# -- Parts


async def lines(program: Sequence[Any], addresses: Sequence[str], **more: str) -> AsyncIterator[tuple[str, Any]]:
    """Run a program that prints its answers; yield them. Raises RuntimeError when it does not end well."""
    environment = {**os.environ, "ADDRESSES": ",".join(addresses), "RUN": uuid.uuid4().hex[:8], **more}
    process = await asyncio.create_subprocess_exec(
        *map(str, program), stdout=asyncio.subprocess.PIPE, stderr=None, env=environment, limit=1 << 24
    )
    assert process.stdout is not None
    async for line in process.stdout:
        if line.startswith(b"{"):
            found = json.loads(line)
            yield found["name"], {"error": found["error"]} if "error" in found else found["answer"]
    if await process.wait():
        raise RuntimeError(f"{program[1]} ended with {process.returncode}")


async def answers_of(part: str, addresses: Sequence[str], *, short: bool) -> AsyncIterator[tuple[str, Any]]:
    """Run the checks of a part; yield their names and answers."""
    if part == "typescript":
        shutil.copy(CHECKS / "typescript" / "checks.ts", INSTALLED / "checks.ts")
        only = {"ONLY": SHORT} if short else {}
        async for found in lines([BUN, INSTALLED / "checks.ts"], addresses, **only):
            yield found
    elif part == "python":
        async for found in lines([PYTHON, CHECKS / "python_checks.py"], addresses):
            yield found
    elif part == "cli":
        queue = f"cli-{uuid.uuid4().hex[:8]}"
        cli = cli_checks.Cli(BUN, MODULES / "bunqueue" / "dist" / "cli" / "index.js", addresses, queue)
        async for found in cli_checks.checks(cli, short=short):
            yield found
    else:
        program = MODULES / "bunqueue" / "dist" / "mcp" / "index.js"
        server = await mcp_checks.Mcp.start(BUN, program, addresses[0])
        try:
            async for found in mcp_checks.checks(server, f"mcp-{uuid.uuid4().hex[:8]}"):
                yield found
        finally:
            await server.end()


class Comparison:
    """What was answered, against what is recorded."""

    def __init__(self) -> None:
        self.recorded: dict[str, dict[str, Any]] = read("answers.json")
        self.named: dict[str, dict[str, Any]] = read("differences.json")
        self.same = self.differs = 0
        self.wrong: list[str] = []

    def note(self, part: str, name: str, answer: Any) -> None:
        """Compare one answer."""
        answer = json.loads(json.dumps(answer))
        wanted = self.recorded.get(part, {}).get(name)
        difference = self.named.get(part, {}).get(name)
        if difference is not None and answer == difference["quorumq"]:
            self.differs += 1
        elif difference is None and answer == wanted:
            self.same += 1
        else:
            wanted = wanted if difference is None else difference["quorumq"]
            self.wrong.append(f"{part}: {name}\n    wanted   {json.dumps(wanted)}\n    answered {json.dumps(answer)}")


def read(name: str) -> dict[str, dict[str, Any]]:
    path = CHECKS / name
    found: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return found


def available(parts: Sequence[str]) -> list[str]:
    """Install what the parts need; return those that can run, and say of the others why not."""
    can = []
    for part in parts:
        try:
            (install_python if part == "python" else install_node)()
        except Missing as why:
            print(f"{part}: not run, {why}")
        else:
            can.append(part)
    return can


async def record(parts: Sequence[str], folder: Path) -> int:
    """Write down what bunqueue itself answers."""
    recorded = read("answers.json")
    async with bunqueue(folder) as addresses:
        for part in parts:
            recorded[part] = {name: answer async for name, answer in answers_of(part, addresses, short=False)}
            print(f"{part}: {len(recorded[part])} answers")
    text = json.dumps(recorded, indent=1, sort_keys=True, ensure_ascii=False)
    (CHECKS / "answers.json").write_text(text + "\n", "utf-8")
    return 0


async def compare(parts: Sequence[str], *, short: bool, balancer: bool) -> int:
    """Hold what a cluster answers against what is written down."""
    comparison = Comparison()
    async with nodes(balancer=balancer) as (cluster, addresses):
        print(f"three nodes, clients at {', '.join(addresses)}")
        for part in parts:
            began, same, differs, wrong = (
                time.monotonic(), comparison.same, comparison.differs, len(comparison.wrong)
            )  # fmt: skip
            async for name, answer in answers_of(part, addresses, short=short):
                comparison.note(part, name, answer)
            print(
                f"{part}: {comparison.same - same} the same, {comparison.differs - differs} different as named, "
                f"{len(comparison.wrong) - wrong} wrong, in {time.monotonic() - began:.0f} s"
            )
        await cluster.converged()
    for text in comparison.wrong:
        print(text)
    return 1 if comparison.wrong else 0


async def under_kills(seconds: float, *, balancer: bool) -> int:
    """Have clients add and work off jobs while a leader is killed every ten seconds; say what was lost or done twice."""
    shutil.copy(CHECKS / "typescript" / "workers.ts", INSTALLED / "workers.ts")
    async with nodes(balancer=balancer) as (cluster, addresses):
        environment = {**os.environ, "ADDRESSES": ",".join(addresses), "RUN": uuid.uuid4().hex[:8]}
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            str(BUN), str(INSTALLED / "workers.ts"), stdin=pipe, stdout=pipe, env=environment, limit=1 << 24
        )
        ends, kills = time.monotonic() + seconds, 0
        while time.monotonic() < ends:
            await asyncio.sleep(KILL_EVERY_S - DOWN_S)
            leader = await cluster.leader()
            await leader.kill()
            kills += 1
            await asyncio.sleep(DOWN_S)
            await leader.start()
            await cluster.ready([leader])
        assert process.stdin is not None
        process.stdin.write(b"enough\n")
        out, _ = await process.communicate()
        await cluster.converged()
    found = json.loads(out.splitlines()[-1])
    print(f"{kills} leaders killed, clients at {', '.join(addresses)}")
    for name, value in found.items():
        print(f"  {name}: {json.dumps(value)}")
    right = not found["lost"] and found["completions"] == found["counts"]["completed"] >= found["acknowledged"]
    print("nothing acknowledged is lost, no job was completed twice" if right else "WRONG")
    return 0 if right else 1


async def speeds(seconds: float, folder: Path) -> int:
    """Measure bunqueue, the same with every push durable, and three nodes, one after the other, with the same client."""
    shutil.copy(CHECKS / "typescript" / "speed.ts", INSTALLED / "speed.ts")

    async def measured(addresses: Sequence[str], *, durable: bool = False) -> dict[str, int]:
        environment = {**os.environ, "ADDRESSES": ",".join(addresses), "RUN": uuid.uuid4().hex[:8]}
        environment |= {"SECONDS": str(seconds), "DURABLE": str(int(durable))}
        process = await asyncio.create_subprocess_exec(
            str(BUN), str(INSTALLED / "speed.ts"), stdout=asyncio.subprocess.PIPE, env=environment
        )
        out, _ = await process.communicate()
        if process.returncode or not out:
            raise RuntimeError(
                f"speed.ts ended with {process.returncode} before it had measured all; what it said is above"
            )
        found: dict[str, int] = json.loads(out)
        return found

    async with bunqueue(folder) as addresses:
        default = await measured(addresses)
        durable = await measured(addresses, durable=True)
    async with nodes(balancer=False) as (_, addresses):
        ours = await measured(addresses)
    print(f"{'jobs a second':24}{'bunqueue':>10}{'durable':>10}{'3 nodes':>10}{'ratio':>8}{'ratio':>8}")
    for what, rate in ours.items():
        ratios = f"{rate / default[what]:8.2f}{rate / durable[what]:8.2f}"
        print(f"{what:24}{default[what]:10,}{durable[what]:10,}{rate:10,}{ratios}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/clients", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all by default")
    parser.add_argument("--short", action="store_true", help="only some checks, a minute in all")
    parser.add_argument("--balancer", action="store_true", help="clients know one address, of HAProxy in TCP mode")
    parser.add_argument("--kills", type=float, metavar="SECONDS", help="kill leaders for so long while clients work")
    parser.add_argument(
        "--speed", type=float, metavar="SECONDS", help="measure each kind of call for so long, beside bunqueue"
    )
    parser.add_argument("--record", action="store_true", help="write down what bunqueue itself answers")
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if asked.balancer and not shutil.which("haproxy"):
        print("not run: haproxy is not here")
        return 0
    parts = available(asked.parts or PARTS)
    if not parts:
        return 0
    if asked.record or asked.speed:
        with tempfile.TemporaryDirectory() as folder:
            if asked.speed:
                return asyncio.run(speeds(asked.speed, Path(folder)))
            return asyncio.run(record(parts, Path(folder)))
    if asked.kills:
        return asyncio.run(under_kills(asked.kills, balancer=asked.balancer))
    return asyncio.run(compare(parts, short=asked.short, balancer=asked.balancer))


if __name__ == "__main__":
    sys.exit(main())

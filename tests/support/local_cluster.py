"""A cluster of real node processes on this machine that can be killed, paused and started again.

Shared by the scripts and by tests/cluster.  Data lies in a temporary folder, ports are free ones; every wait is for
something the nodes say about themselves (/ready, /admin/cluster), with a deadline, never for a fixed time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from quorumq.cli.admin import NoAnswer, fetch

HOST = "127.0.0.1"
POLL_S = 0.02
# Settings for a cluster whose leader shall not change because the machine pauses for a second.
PATIENCE = {"ELECTION_MIN_MS": "4000", "ELECTION_MAX_MS": "5000"}
# What a run must not inherit: these would win over, or add to, what the cluster is started with.
OWN_PREFIXES = (
    "HTTP_PORT",
    "BULLMQ_PORT",
    "TCP_PORT",
    "PEER_PORT",
    "HOST",
    "NODE_ID",
    "PEERS",
    "DATA_PATH",
    "CONFIG_FILE",
    "AUTH_",
    "CLUSTER_",
    "TLS",
)


class ClusterTrouble(Exception):
    """The cluster did not do in time what was waited for; the message ends with the nodes' last log lines."""


_chance = random.SystemRandom()
"""Not the module's own, which a simulation seeds: two test processes that had played the same world chose the same ports."""
_given: set[int] = set()


def port_range() -> tuple[int, int]:
    """Return the first and the last port of this test process; each of those beside it has others."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    each = 20_000 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return 12_000 + worker * each, 12_000 + (worker + 1) * each - 1


def free_ports(count: int) -> list[int]:
    """Return ports that are free now and that nothing takes before a killed node wants its own back.

    The system gives outgoing connections ports from 32768 up, so that these are taken from below; none is given twice.
    """
    held: list[socket.socket] = []
    first, last = port_range()
    if len(_given) + count > (last - first) // 2:
        _given.clear()
    try:
        while len(held) < count:
            port = _chance.randint(first, last)
            if port in _given:
                continue
            candidate = socket.socket()
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind((HOST, port))
            except OSError:
                candidate.close()
            else:
                held.append(candidate)
                # Two sockets that only bind may have the same port.
                _given.add(port)
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


class LocalNode:
    """One node: its ports, its folder, its log, and its process when there is one."""

    def __init__(
        self, node_id: str, http_port: int, bullmq_port: int, peer_port: int, folder: Path, tcp_port: int | None = None
    ) -> None:
        self.id = node_id
        self.tcp_port = tcp_port
        self.http_port = http_port
        self.bullmq_port = bullmq_port
        self.peer_port = peer_port
        self.data = folder / node_id
        self.log = folder / f"{node_id}.log"
        self.process: asyncio.subprocess.Process | None = None
        self.settings: dict[str, str] = {}
        # Another address, and a command that starts the process somewhere else: a network namespace of its own.
        self.host = HOST
        self.within: tuple[str, ...] = ()
        # What runs: this checkout, unless a test puts another version there.
        self.program: tuple[str, ...] = (sys.executable, "-m", "quorumq")
        # By what it is known where it speaks TLS (TLS_CERT).
        self.tls: ssl.SSLContext | None = None

    @property
    def scheme(self) -> str:
        return "https" if self.settings.get("TLS_CERT") and self.tls is not None else "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.http_port}"

    @property
    def bullmq_url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.bullmq_port}"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.returncode is None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def rss_bytes(self) -> int:
        """Resident memory of the process."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def data_bytes(self, part: str = ".") -> int:
        """Bytes of all files in the data folder, or in one folder of it; a file that goes meanwhile counts as nothing."""
        total = 0
        for path in (self.data / part).rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size if path.is_file() else 0
        return total

    def log_text(self) -> str:
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""

    async def start(self) -> None:
        """Start the process; it may take a while until it is ready."""
        assert not self.running, f"{self.id} runs already"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(OWN_PREFIXES)}
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(*self.within, *self.program, "serve", "--while-stdin"),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=inherited | self.settings,
                start_new_session=True,
            )

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def kill(self) -> None:
        """kill -9, and wait until the process is gone."""
        if self.running:
            self.signal(signal.SIGKILL)
        if self.process is not None:
            await self.process.wait()

    async def stop(self, timeout_s: float = 30.0) -> int:
        """SIGTERM, and wait for the exit status; a node that does not stop in time is killed and that is an error."""
        assert self.process is not None
        if self.running:
            self.signal(signal.SIGTERM)
        try:
            return await asyncio.wait_for(self.process.wait(), timeout_s)
        except TimeoutError:
            await self.kill()
            raise ClusterTrouble(f"{self.id} did not stop within {timeout_s:.0f} s\n{self.tail()}") from None

    async def exited(self, timeout_s: float = 30.0) -> int:
        """Wait until the process ends by itself; return its exit status."""
        assert self.process is not None
        try:
            return await asyncio.wait_for(self.process.wait(), timeout_s)
        except TimeoutError:
            raise ClusterTrouble(f"{self.id} still runs after {timeout_s:.0f} s\n{self.tail()}") from None

    @property
    def token(self) -> str | None:
        """The first of AUTH_TOKENS, if there are any."""
        return self.settings.get("AUTH_TOKENS", "").partition(",")[0] or None

    @property
    def allowed(self) -> dict[str, str]:
        """Headers by which this node lets a request do everything."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    async def ask(self, path: str, timeout_s: float = 5.0) -> tuple[int, Any]:
        """GET a path of this node. Raises NoAnswer."""
        return await asyncio.to_thread(fetch, self.url + path, token=self.token, tls=self.tls, timeout_s=timeout_s)

    async def cluster(self) -> dict[str, Any]:
        """Return this node's /admin/cluster. Raises NoAnswer."""
        status, body = await self.ask("/admin/cluster")
        if status != 200 or not isinstance(body, dict):
            raise NoAnswer(f"{self.id} answered {status}")
        return body

    async def contents(self) -> tuple[int, str]:
        """Return the digest of all that this node holds, and the entry that it is of. Raises NoAnswer."""
        status, body = await self.ask("/admin/contents", 20.0)
        if status != 200 or not isinstance(body, dict):
            raise NoAnswer(f"{self.id} answered {status}")
        return body["index"], body["digest"]

    def tail(self, lines: int = 15) -> str:
        return f"--- {self.id}\n" + "\n".join(self.log_text().splitlines()[-lines:])


class LocalCluster:
    """Nodes n1, n2, … that know each other; an async context manager that leaves nothing behind.

    settings: environment variables for every node, on top of the ones that make them a cluster.
    """

    def __init__(self, nodes: int = 3, folder: Path | None = None, **settings: str) -> None:
        self.temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="quorumq-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        ports = iter(free_ports(4 * nodes))
        self.nodes = [
            LocalNode(f"n{i + 1}", next(ports), next(ports), next(ports), self.folder, next(ports))
            for i in range(nodes)
        ]
        peers = ",".join(f"{node.id}={HOST}:{node.peer_port}" for node in self.nodes)
        for node in self.nodes:
            node.settings = {
                "HOST": HOST,
                "HTTP_PORT": str(node.http_port),
                "BULLMQ_PORT": str(node.bullmq_port),
                "TCP_PORT": str(node.tcp_port),
                "NODE_ID": node.id,
                "PEERS": peers,
                "DATA_PATH": str(node.data),
                "CLUSTER_NAME": "local",
                "CLUSTER_SECRET": "a secret of this run",
                **settings,
            }

    async def __aenter__(self) -> LocalCluster:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Start every node that does not run and wait until all are ready."""
        await asyncio.gather(*(node.start() for node in self.nodes if not node.running))
        await self.ready()

    async def close(self) -> None:
        await asyncio.gather(*(node.kill() for node in self.nodes))
        if self.temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def running(self) -> list[LocalNode]:
        return [node for node in self.nodes if node.running]

    def by_id(self, node_id: str) -> LocalNode:
        return next(node for node in self.nodes if node.id == node_id)

    async def until(self, what: str, check: Callable[[], Any], timeout_s: float) -> Any:
        """Ask `check` (a coroutine function) again and again until it gives something true; return that.

        Raises ClusterTrouble after timeout_s, and at once when a node ends by itself meanwhile.
        """
        deadline = time.monotonic() + timeout_s
        alive = self.running()
        while True:
            try:
                if found := await check():
                    return found
            except NoAnswer:
                pass
            if dead := [node.id for node in alive if node.process and (node.process.returncode or 0) > 0]:
                raise ClusterTrouble(f"{', '.join(dead)} ended while waiting until {what}\n{self.tails()}")
            if time.monotonic() > deadline:
                raise ClusterTrouble(f"not within {timeout_s:.0f} s: {what}\n{self.tails()}")
            await asyncio.sleep(POLL_S)

    async def ready(self, nodes: Iterable[LocalNode] | None = None, timeout_s: float = 60.0) -> None:
        """Wait until every given node (else: every running one) answers /ready with 200."""

        async def all_ready() -> bool:
            answers = await asyncio.gather(*(node.ask("/ready") for node in waited))
            return all(status == 200 for status, _ in answers)

        waited = list(nodes) if nodes is not None else self.running()
        await self.until(f"{', '.join(node.id for node in waited)} ready", all_ready, timeout_s)

    async def leader(self, timeout_s: float = 30.0) -> LocalNode:
        """Return the running node that leads, once it says so itself and a majority of all nodes does."""

        async def agreed() -> LocalNode | None:
            answers = await asyncio.gather(*(node.cluster() for node in self.running()), return_exceptions=True)
            known = [answer for answer in answers if isinstance(answer, dict)]
            said = [answer["leader"] for answer in known]
            for answer in known:
                if answer["role"] == "leader" and said.count(answer["node_id"]) * 2 > len(self.nodes):
                    return self.by_id(answer["node_id"])
            return None

        found: LocalNode = await self.until("a majority knows the leader", agreed, timeout_s)
        return found

    async def followers(self) -> list[LocalNode]:
        leader = await self.leader()
        return [node for node in self.running() if node is not leader]

    async def converged(self, timeout_s: float = 60.0) -> str:
        """Wait until all nodes have applied the same entries and none comes any more; return the digest of all that they hold.

        Raises ClusterTrouble when what they did or what they hold differs.
        """

        async def at_rest() -> list[dict[str, Any]] | None:
            answers = await asyncio.gather(*(node.cluster() for node in self.nodes))
            if len({answer["applied_index"] for answer in answers}) != 1:
                return None
            for answer in answers:
                if answer["apart"] or answer["differing"]:
                    raise ClusterTrouble(f"{answer['node_id']} differs: {answer['apart'] or answer['differing']}")
            contents = await asyncio.gather(*(node.contents() for node in self.nodes))
            if len({index for index, _ in contents}) != 1 or contents[0][0] > answers[0]["applied_index"]:
                return None
            return [{**answer, "contents": digest} for answer, (_, digest) in zip(answers, contents, strict=True)]

        answers = await self.until("all nodes have applied the same entries", at_rest, timeout_s)
        for field in ("digest", "contents"):
            digests = {answer["node_id"]: answer[field] for answer in answers}
            if len(set(digests.values())) != 1:
                raise ClusterTrouble(f"{field} differ at index {answers[0]['applied_index']}: {digests}")
        return str(answers[0]["contents"])

    def tails(self) -> str:
        return "\n".join(node.tail() for node in self.nodes)

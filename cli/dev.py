"""A whole cluster on this machine, for trying things out: one process per node, watched from one terminal.

Every node has a folder, a log file and a settings file under one directory, so that a node that died, or was killed on
purpose, can be started again by hand.  Nothing here is meant for production; there each node is a service of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from quorumq.api.settings.rows import settings
from quorumq.cli.admin import NoAnswer, fetch

HOST = "127.0.0.1"
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
LAST_LINES = 5


class DevFailed(Exception):
    """The cluster cannot be started or went away; the message says what a user can do."""


@dataclass
class DevNode:
    """One node of the cluster: where it listens, where its files are, its process."""

    id: str
    http_port: int
    bullmq_port: int
    tcp_port: int
    peer_port: int
    directory: Path
    process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"{scheme()}://{HOST}:{self.http_port}"

    @property
    def bullmq_url(self) -> str:
        return f"{scheme()}://{HOST}:{self.bullmq_port}"

    @property
    def data(self) -> Path:
        return self.directory / self.id

    @property
    def log(self) -> Path:
        return self.directory / f"{self.id}.log"

    @property
    def settings_file(self) -> Path:
        return self.directory / f"{self.id}.toml"

    def last_lines(self) -> str:
        """Return the end of the node's log, which says why it died."""
        with self.log.open(encoding="utf-8", errors="replace") as lines:
            return "".join(deque(lines, maxlen=LAST_LINES)).rstrip()

    def status_text(self) -> str:
        code = self.process.returncode if self.process else None
        if code is None:
            return "is running"
        return f"was killed ({signal.Signals(-code).name})" if code < 0 else f"exited with status {code}"


def scheme() -> str:
    """How the nodes are spoken to, which have their certificate from the environment, if any."""
    return "https" if os.environ.get("TLS_CERT") else "http"


def own_certificate() -> ssl.SSLContext | None:
    """What trusts the nodes' certificate and no other, for whomever it is: they are this command's own processes."""
    if not (file := os.environ.get("TLS_CERT")):
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    # A file that cannot be used is what the nodes end with, and say.
    with contextlib.suppress(OSError):
        context.load_verify_locations(Path(file).expanduser())
    return context


def members(
    nodes: int, directory: Path, http_port: int, bullmq_port: int, peer_port: int, tcp_port: int | None = None
) -> list[DevNode]:
    """Return the nodes. tcp_port: of the first one, the others' come below it; left out, the one below its HTTP port."""
    tcp_port = http_port - 1 if tcp_port is None else tcp_port
    return [
        DevNode(f"n{i + 1}", http_port + i, bullmq_port + i, tcp_port - i, peer_port + i, directory)
        for i in range(nodes)
    ]


def write_settings(cluster: list[DevNode]) -> None:
    """Write each node's settings file, from which it is started here and can be started again by hand."""
    peers = "".join(f'{m.id} = "{HOST}:{m.peer_port}"\n' for m in cluster)
    for member in cluster:
        rows = {
            "node_id": member.id,
            "host": HOST,
            "http_port": member.http_port,
            "bullmq_port": member.bullmq_port,
            "tcp_port": member.tcp_port,
            "peer_port": member.peer_port,
            "data_path": str(member.data.resolve()),
            "cluster_name": "dev",
        }
        # A JSON text or number is also TOML.
        lines = "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in rows.items())
        member.settings_file.write_text(f"{lines}\n[peers]\n{peers}", "utf-8")


def remove(directory: Path) -> None:
    """Remove what an earlier cluster left in `directory`, and nothing else that may be there."""
    for settings_file in sorted(directory.glob("n*.toml")):
        node_id = settings_file.stem
        shutil.rmtree(directory / node_id, ignore_errors=True)
        for left in (directory / f"{node_id}.log", settings_file):
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_for_us(directory: Path) -> Iterator[None]:
    """Make `directory` and keep it to this process, so that no second cluster writes or removes what this one uses.

    Raises DevFailed when another `quorumq dev`, or a node that was started by hand, uses it, and when it cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = (directory / "lock").open("w")
    except OSError as error:
        raise DevFailed(f"the folder {directory} cannot be used: {error.strerror}") from None
    with handle:
        if not takes(handle.fileno()):
            raise DevFailed(f"another cluster runs in {directory}: stop it, or choose another folder with --data")
        for lock in sorted(directory.glob("n*/lock")):
            # A node holds the lock of its own folder.  Closing the file gives the lock back at once.
            with lock.open() as held:
                if not takes(held.fileno()):
                    raise DevFailed(f"a node runs in {lock.parent}: stop it, or choose another folder with --data")
        yield


def takes(descriptor: int) -> bool:
    """Try to lock an open file; False when another process holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def own_variables() -> frozenset[str]:
    """Environment variables for which the settings files have values of their own."""
    own = frozenset(
        {"NODE_ID", "HOST", "HTTP_PORT", "BULLMQ_PORT", "TCP_PORT", "PEER_PORT", "DATA_PATH", "CLUSTER_NAME", "PEERS"}
    )
    assert own <= {setting.env for setting in settings()}
    return own


def make_token() -> str:
    """Make a token and have every node take it, besides those that the environment names."""
    token = secrets.token_urlsafe(16)
    os.environ["AUTH_TOKENS"] = ",".join(filter(None, [os.environ.get("AUTH_TOKENS"), token]))
    return token


def child_environment() -> dict[str, str]:
    """Give the environment without what the settings files say: a variable would win over the file."""
    return {name: value for name, value in os.environ.items() if name not in own_variables()}


def given_variables() -> list[str]:
    """Return the settings that the nodes have from the environment: a node that is started again needs them, too."""
    return [row.env for row in settings() if row.env not in own_variables() and os.environ.get(row.env)]


def check_ports(cluster: list[DevNode]) -> None:
    """Raise DevFailed when a port is taken: another cluster may answer there, and be mistaken for this one."""
    for member in cluster:
        ports = (
            ("HTTP", member.http_port),
            ("BullMQ", member.bullmq_port),
            ("TCP", member.tcp_port),
            ("peer", member.peer_port),
        )
        for name, port in ports:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((HOST, port))
                except OSError as error:
                    raise DevFailed(
                        f"the {name} port of {member.id}, {port}, cannot be had: {error.strerror} "
                        f"(--{name.lower()}-port chooses another)"
                    ) from None


async def start(member: DevNode) -> None:
    """Start the member's process; its log lines go to its file."""
    with member.log.open("ab") as log:
        member.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "quorumq", "serve"),
            *("--config", str(member.settings_file), "--while-stdin"),
            # The pipe ends with this process, and the node with the pipe: no node outlives its terminal.
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=child_environment(),
            # Ctrl-C reaches this process only, which then stops the nodes in order.
            start_new_session=True,
        )


async def wait_ready(member: DevNode, deadline: float) -> None:
    """Wait until the member answers /ready. Raises DevFailed when it dies first or the time is over."""
    assert member.process is not None
    died = asyncio.ensure_future(member.process.wait())
    reason = "it does not answer"
    while time.monotonic() < deadline:
        done, _ = await asyncio.wait([died], timeout=0.05)
        if done:
            raise DevFailed(f"{member.id} {member.status_text()} before it was ready:\n{member.last_lines()}")
        try:
            status, body = await asyncio.to_thread(fetch, member.url + "/ready", timeout_s=2.0, tls=own_certificate())
        except NoAnswer:
            continue
        if status == 200:
            died.cancel()
            return
        reason = str(body.get("reason") or body.get("error") or body) if isinstance(body, dict) else str(body)
    raise DevFailed(f"{member.id} is not ready after {READY_TIMEOUT_S:.0f} s ({reason}); its log is {member.log}")


async def stop(cluster: list[DevNode], hurry: asyncio.Event) -> None:
    """Tell every node to stop and wait for it; kill what does not stop in time, or at once when `hurry` is set."""
    running = [m.process for m in cluster if m.process and m.process.returncode is None]
    for process in running:
        process.terminate()
    ends = asyncio.gather(*(process.wait() for process in running))
    impatient = asyncio.ensure_future(hurry.wait())
    either: list[asyncio.Future[Any]] = [ends, impatient]
    await asyncio.wait(either, timeout=STOP_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
    impatient.cancel()
    for process in running:
        if process.returncode is None:
            process.kill()
    await ends


def new_lines(member: DevNode, offset: int) -> tuple[list[str], int]:
    """Return the whole lines that the member logged after `offset`, and the offset behind them."""
    with member.log.open("rb") as log:
        log.seek(offset)
        data = log.read(1 << 20)
    data = data[: data.rfind(b"\n") + 1]
    return data.decode("utf-8", "replace").splitlines(), offset + len(data)


async def follow(member: DevNode, console: Console, offset: int) -> None:
    """Print the member's log lines as they come, with its name in front."""
    while True:
        lines, offset = new_lines(member, offset)
        for line in lines:
            console.print(f"{member.id} | {line}", markup=False, highlight=False, soft_wrap=True)
        await asyncio.sleep(0.2)


def command() -> str:
    """Return the command as the user's shell knows it."""
    return sys.argv[0] if Path(sys.argv[0]).name == "quorumq" else "quorumq"


def addresses(cluster: list[DevNode]) -> str:
    """Return where each node listens, a line for each, whole whatever the width of the terminal."""
    lines = []
    for member in cluster:
        assert member.process is not None
        lines.append(
            f"  {member.id}  {member.url}  BullMQ {member.bullmq_url}  TCP {HOST}:{member.tcp_port}  "
            f"pid {member.process.pid}  log {member.log}"
        )
    return "\n".join(lines)


async def watch(cluster: list[DevNode], console: Console, ended: asyncio.Event) -> None:
    """Say so when a node dies, until told to stop. Raises DevFailed when none is left."""
    stopping: asyncio.Future[Any] = asyncio.ensure_future(ended.wait())
    ends: dict[asyncio.Future[Any], DevNode] = {
        asyncio.ensure_future(m.process.wait()): m for m in cluster if m.process
    }
    while not ended.is_set():
        done, _ = await asyncio.wait([stopping, *ends], return_when=asyncio.FIRST_COMPLETED)
        for end in done - {stopping}:
            member = ends.pop(end)
            console.print(
                f"{member.id} {member.status_text()}; {len(ends)} of {len(cluster)} nodes are left", style="red"
            )
            if member.process and member.process.returncode != -signal.SIGKILL:
                console.print(member.last_lines(), markup=False, highlight=False, soft_wrap=True)
            given = f" (with {', '.join(given_variables())} set as here)" if given_variables() else ""
            console.print(
                f"start it again: {command()} serve --config {member.settings_file}{given}",
                highlight=False,
                soft_wrap=True,
            )
        if not ends:
            raise DevFailed("no node is left")
    stopping.cancel()


async def dev(cluster: list[DevNode], *, fresh: bool, show_logs: bool, with_token: bool = False) -> None:
    """Run the cluster until Ctrl-C, SIGTERM or SIGHUP. with_token: with one that is made for it. Raises DevFailed."""
    with folder_for_us(cluster[0].directory):
        token = make_token() if with_token else None
        await run(cluster, fresh=fresh, show_logs=show_logs, token=token)


async def run(cluster: list[DevNode], *, fresh: bool, show_logs: bool, token: str | None) -> None:
    """The same, in a folder that is ours."""
    console = Console()
    directory = cluster[0].directory
    check_ports(cluster)
    if fresh:
        remove(directory)
    write_settings(cluster)
    ended, hurry = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, lambda: (hurry if ended.is_set() else ended).set())
    began = time.monotonic()
    offsets = {m.id: m.log.stat().st_size if m.log.exists() else 0 for m in cluster}
    followers: list[asyncio.Task[None]] = []
    try:
        for member in cluster:
            await start(member)
        if show_logs:
            followers = [asyncio.create_task(follow(m, console, offsets[m.id])) for m in cluster]
        if await ready_or_stopped(cluster, ended):
            count = f"{len(cluster)} nodes" if len(cluster) > 1 else "1 node"
            text = f"ready: {count} in {time.monotonic() - began:.1f} s, data in {directory}"
            console.print(text, style="green", markup=False, soft_wrap=True)
            console.print(addresses(cluster), soft_wrap=True)
            console.print(f"documentation to browse and try: {cluster[0].url}/docs", soft_wrap=True)
            if token is not None:
                console.print(f"token: {token}", markup=False, highlight=False, soft_wrap=True)
                console.print(
                    "Every request needs it, as 'Authorization: Bearer …'; `quorumq status` takes it from QUORUMQ_TOKEN.",
                    markup=False,
                    soft_wrap=True,
                )
            elif not os.environ.get("AUTH_TOKENS") and not os.environ.get("AUTH_TOKENS_FILE"):
                console.print(
                    "BullMQ's and Open Archiver's APIs need a token: start with --with-token to use them.",
                    soft_wrap=True,
                )
            console.print("Ctrl-C stops them.")
            await watch(cluster, console, ended)
    finally:
        if any(m.process and m.process.returncode is None for m in cluster):
            console.print("stopping")
        await stop(cluster, hurry)
        for task in followers:
            task.cancel()


async def ready_or_stopped(cluster: list[DevNode], ended: asyncio.Event) -> bool:
    """Wait until every node is ready; False when told to stop before that. Raises DevFailed when one cannot be."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    stopping = asyncio.ensure_future(ended.wait())
    waits = asyncio.gather(*(wait_ready(member, deadline) for member in cluster))
    either: list[asyncio.Future[Any]] = [stopping, waits]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if ended.is_set():
        waits.cancel()
        # Asked how it ended, else asyncio complains about it.
        await asyncio.gather(waits, return_exceptions=True)
        return False
    await waits
    return True

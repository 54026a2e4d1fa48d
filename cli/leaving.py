"""How a node leaves the service of its clients: not ready but serving, then closed; and how `quorumq prestop` asks for the first half.

A balancer that follows `/ready` needs some polls to notice. So the node is first not ready, hands leadership over, gives its push
workers up and tells kept connections that they end, and takes and answers whatever still comes for SHUTDOWN_DELAY_MS. Only then it closes.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import signal
import time
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from quorumq.cluster.disk import private_file

log = logging.getLogger("quorumq")

FILE = "process.json"
POLL_S = 0.05
# What prestop waits beyond the delay: for the hand-over, and for a busy machine.
MORE_S = 15.0

Phase = Literal["serving", "leaving", "left"]


class Process(msgspec.Struct):
    """What a node writes beside its data for those who want to stop it. delay_ms: how long it serves on when it leaves."""

    pid: int
    delay_ms: int
    phase: Phase = "serving"


class ProcessFile:
    """The file in a node's data folder; it is of no use once the process has ended."""

    def __init__(self, folder: Path, delay_ms: int) -> None:
        self._path = folder / FILE
        self._process = Process(os.getpid(), delay_ms)

    def write(self, phase: Phase) -> None:
        """Say how far this node is. A disk that is full keeps nobody from leaving."""
        self._process.phase = phase
        unfinished = self._path.with_suffix(".part")
        try:
            with private_file(unfinished) as file:
                file.write(msgspec.json.encode(self._process))
            unfinished.replace(self._path)
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error.strerror)

    def remove(self) -> None:
        """The process ends."""
        self._path.unlink(missing_ok=True)


class LeavingServer(Protocol):
    """What has to be told that this node leaves (api/server.py)."""

    def leave(self) -> None: ...


class Leader(Protocol):
    """What hands leadership over (cluster/engine.py)."""

    @property
    def is_leader(self) -> bool: ...

    async def transfer_leadership(self, peer: str | None = None) -> bool: ...


class Drained(Protocol):
    """What ends long polls and gives push workers up (node/node.py)."""

    def drain(self) -> None: ...


class GracefulShutdown:
    """The first half, done once however often it is asked for.

    delay_s: how long the node takes and answers requests after it has ceased to be ready.
    """

    def __init__(self, server: LeavingServer, node: Drained, engine: Leader, file: ProcessFile, delay_s: float) -> None:
        self._server = server
        self._node = node
        self._engine = engine
        self._file = file
        self._delay_s = delay_s
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> asyncio.Task[None]:
        """Begin to leave, unless that has begun; the task ends when the listeners may close."""
        if self._task is None:
            self._task = asyncio.create_task(self._leave())
        return self._task

    def hurry(self) -> None:
        """Wait for nobody any more."""
        self._hurry.set()

    async def when_hurried(self) -> None:
        """Return when nobody is to be waited for any more."""
        await self._hurry.wait()

    async def _leave(self) -> None:
        ends = time.monotonic() + self._delay_s
        self._file.write("leaving")
        self._server.leave()
        self._node.drain()
        if self._engine.is_leader:
            await self._engine.transfer_leadership()
        left_s = ends - time.monotonic()
        if left_s > 0 and not self._hurry.is_set():
            log.info("serving for %.1f s more, until balancers have noticed", left_s)
            try:
                await asyncio.wait_for(self._hurry.wait(), left_s)
            except TimeoutError:
                pass
        self._file.write("left")


class NotRunning(Exception):
    """No node runs on that folder, or it cannot be told; says why."""


def ask_to_leave(folder: Path) -> str:
    """Have the node that runs on `folder` leave, and wait until it may be closed; return what became of it. Raises NotRunning."""
    process = running(folder)
    try:
        os.kill(process.pid, signal.SIGUSR1)
    except OSError as error:
        raise NotRunning(f"process {process.pid} cannot be told to leave: {error.strerror}") from None
    ends = time.monotonic() + process.delay_ms / 1000 + MORE_S
    while time.monotonic() < ends:
        try:
            if running(folder).phase == "left":
                return "it has left: it may be stopped, and does not wait again"
        except NotRunning:
            return "it has ended"
        time.sleep(POLL_S)
    raise NotRunning(f"process {process.pid} did not leave in time")


def running(folder: Path) -> Process:
    """What the node that runs on `folder` says of itself. Raises NotRunning."""
    try:
        process = msgspec.json.decode((folder / FILE).read_bytes(), type=Process)
        with (folder / "lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    return process
                raise
    except FileNotFoundError:
        pass
    except (OSError, msgspec.MsgspecError) as error:
        raise NotRunning(f"{folder / FILE} cannot be read: {error}") from None
    raise NotRunning(f"no node runs on {folder}")

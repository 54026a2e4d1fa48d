"""A cluster of world.py from outside: starting and ending it, being in its network, helm and kubectl, and faults.

The process that uses it must be root, and be alone in what it does with its main thread: that one moves into the cluster's network.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts.tools import control_plane, kubernetes
from tests.support.kubernetes.api import Api
from tests.support.kubernetes.control_plane import URL
from tests.support.kubernetes.processes import Image
from tests.support.kubernetes.world import SOCKET

NETWORK = 0x40000000
UNSHARE = ("unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc")
NEEDED = ("unshare", "nsenter", "setpriv", "ip", "nft", "mount", "openssl")
COMMAND_S = 600.0


class Trouble(Exception):
    """A command failed, or the cluster did not start; the message has what was said."""


def missing() -> str | None:
    """Why there can be no cluster here, or None."""
    if os.geteuid():
        return "it takes root to run pods in namespaces"
    for tool in NEEDED:
        if shutil.which(tool) is None:
            return f"there is no `{tool}`"
    done = subprocess.run(
        [*UNSHARE, "nft", "add", "table", "bridge", "probe"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["namespaces are not permitted"])[-1]
    try:
        control_plane.programs()
        kubernetes.helm()
        kubernetes.kubectl()
    except kubernetes.Unavailable as error:
        return str(error)
    return None


class Cluster:
    """folder: where everything of it is; a temporary one otherwise."""

    def __init__(self, folder: Path | None = None) -> None:
        self.temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="quorumq-kubernetes-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        # Containers of other users have their folders below.
        self.folder.chmod(0o755)
        self._outer: subprocess.Popen[str] | None = None

    def start(self, *, while_stdin: bool = True) -> None:
        """Start it; it ends with this process, unless it is told otherwise. Raises Trouble."""
        command = [*UNSHARE, sys.executable, "-m", "tests.support.kubernetes.world"]
        command += [str(self.folder), str(control_plane.programs()), *(["--while-stdin"] if while_stdin else [])]
        with (self.folder / "world.log").open("ab") as log:
            self._outer = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if while_stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert self._outer.stdout is not None
        if self._outer.stdout.readline().strip() != "ready":
            said = self.log_text()[-2000:]
            self.stop()
            raise Trouble(f"the cluster did not start:\n{said}")
        (self.folder / "pid").write_text(str(self._outer.pid))

    def stop(self) -> None:
        """End it, and everything in it."""
        if self._outer is not None:
            self._outer.kill()
            self._outer.wait()
            for pipe in (self._outer.stdin, self._outer.stdout):
                if pipe is not None:
                    pipe.close()
            self._outer = None
        if self.temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def log_text(self) -> str:
        path = self.folder / "world.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    @property
    def first(self) -> int:
        """Process number of its first process."""
        outer = int((self.folder / "pid").read_text())
        return int(Path(f"/proc/{outer}/task/{outer}/children").read_text().split()[0])

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Be in its network: this thread, and the threads and processes that it starts."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net") as before, open(f"/proc/{self.first}/ns/net") as inside:
            if libc.setns(inside.fileno(), NETWORK):
                raise OSError(ctypes.get_errno(), "the network of the cluster cannot be entered")
            try:
                yield
            finally:
                libc.setns(before.fileno(), NETWORK)

    # -- from within its network -------------------------------------------------------------------------------------

    @property
    def variables(self) -> dict[str, str]:
        """What helm and kubectl need."""
        own = {
            name: str(self.folder / name.lower()) for name in ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME")
        }
        return os.environ | {"KUBECONFIG": str(self.folder / "kubeconfig"), "HOME": str(self.folder)} | own

    def api(self) -> Api:
        config = json.loads((self.folder / "kubeconfig").read_text())
        return Api(URL, config["users"][0]["user"]["token"])

    async def run(self, *command: str, given: str | None = None) -> tuple[int, str]:
        """Run a program; return its status and what it said, errors included."""
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL if given is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self.variables,
        )
        try:
            said, _ = await asyncio.wait_for(process.communicate(None if given is None else given.encode()), COMMAND_S)
        finally:
            if process.returncode is None:
                process.kill()
        return process.returncode or 0, said.decode("utf-8", "replace")

    async def helm(self, *arguments: str) -> str:
        """Run helm. Raises Trouble."""
        return await self._done(str(kubernetes.helm()), *arguments)

    async def kubectl(self, *arguments: str, given: str | None = None) -> str:
        """Run kubectl. Raises Trouble."""
        return await self._done(str(kubernetes.kubectl()), *arguments, given=given)

    async def _done(self, *command: str, given: str | None = None) -> str:
        status, said = await self.run(*command, given=given)
        if status:
            raise Trouble(f"{Path(command[0]).name.partition('-')[0]} {' '.join(command[1:])}: {status}\n{said}")
        return said

    async def control(self, what: str, **given: Any) -> Any:
        """Do what only the outside of a cluster can (world.py's `Control`). Raises Trouble."""
        reader, writer = await asyncio.open_unix_connection(self.folder / SOCKET, limit=1 << 22)
        try:
            writer.write(json.dumps({"do": what} | given).encode() + b"\n")
            answer = json.loads(await reader.readline())
        finally:
            writer.close()
            await writer.wait_closed()
        if "error" in answer:
            raise Trouble(f"{what} {given}: {answer['error']}")
        return answer["ok"]

    def add_image(self, name: str, image: Image) -> None:
        """Make an image known by a name."""
        asyncio.run(self.control("image", name=name, **asdict(image)))

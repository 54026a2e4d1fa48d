"""Containers as processes: a root of their own, made of what an image holds and of volumes, with the rights that the pod gives them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.kubernetes.api import Object
from tests.support.kubernetes.network import Place

SPAWN = Path(__file__).with_name("container.py")
# What a distribution's image holds; the host's own, which nobody can write to.
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/opt", "/etc/ssl", "/etc/ld.so.cache", "/etc/alternatives")
PATH = "/usr/local/bin:/usr/bin:/bin"
KILLED = 137
FILES = {
    "/etc/passwd": "root:x:0:0::/root:/bin/sh\nquorumq:x:10001:10001::/var/lib/quorumq:/usr/sbin/nologin\n",
    "/etc/group": "root:x:0:\nquorumq:x:10001:\n",
    # All addresses of a name, not only the first.
    "/etc/host.conf": "multi on\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}


@dataclass
class Image:
    """What runs where an image's name stands. folders: what it brings beside the system's."""

    entrypoint: list[str]
    command: list[str]
    variables: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    workdir: str = "/"


@dataclass
class Rights:
    """Who a container's processes are."""

    user: int
    group: int
    groups: list[int]
    drop: bool
    no_new: bool
    read_only: bool

    @classmethod
    def of(cls, pod: Object, container: Object) -> Rights:
        """Read them from the security contexts."""
        whole, own = pod["spec"].get("securityContext") or {}, container.get("securityContext") or {}
        user = own.get("runAsUser", whole.get("runAsUser", 0))
        if own.get("runAsNonRoot", whole.get("runAsNonRoot")) and not user:
            raise ValueError("container has runAsNonRoot and image will run as root")
        return cls(
            user=user,
            group=own.get("runAsGroup", whole.get("runAsGroup", 0)),
            groups=[whole["fsGroup"]] if "fsGroup" in whole else [],
            drop="ALL" in (own.get("capabilities") or {}).get("drop", []),
            no_new=own.get("allowPrivilegeEscalation") is False,
            read_only=bool(own.get("readOnlyRootFilesystem")),
        )

    def arguments(self) -> list[str]:
        """Arguments of setpriv."""
        said = [f"--reuid={self.user}", f"--regid={self.group}"]
        said.append(f"--groups={','.join(map(str, self.groups))}" if self.groups else "--clear-groups")
        if self.drop:
            said += ["--bounding-set=-all", "--inh-caps=-all"]
        if self.no_new:
            said.append("--no-new-privs")
        return said


class Process:
    """A container that runs. folder: for its root and its specification."""

    def __init__(self, name: str, folder: Path, place: Place, log: Path) -> None:
        self.name = name
        self._folder = folder
        self._place = place
        self._log = log
        self._outer: asyncio.subprocess.Process | None = None
        self._killed = False
        self._rights: list[str] = []
        self._variables: dict[str, str] = {}

    async def start(
        self,
        image: Image,
        container: Object,
        rights: Rights,
        variables: dict[str, str],
        mounts: list[tuple[str, str, bool]],
        names: Path,
    ) -> None:
        root = self._folder / f"root-{self.name}"
        root.mkdir(parents=True, exist_ok=True)
        program = [*(container.get("command") or image.entrypoint), *self._arguments(image, container)]
        # The image's folders last: it may be that they are below one of a volume, such as /tmp.
        system, own = ([(one, one, True) for one in part if Path(one).exists()] for part in (SYSTEM, image.folders))
        spec: dict[str, Any] = {
            "root": str(root),
            "hostname": variables["HOSTNAME"],
            "read_only": rights.read_only,
            "files": FILES,
            "links": {"/etc/hosts": "/names/hosts"},
            "mounts": [*system, (str(names), "/names", True), *mounts, *own],
            "rights": rights.arguments(),
            "folder": container.get("workingDir") or image.workdir,
            "program": program,
        }
        path = self._folder / f"{self.name}.json"
        path.write_text(json.dumps(spec))
        self._rights, self._variables, self._killed = rights.arguments(), variables, False
        with self._log.open("ab") as log:
            self._outer = await asyncio.create_subprocess_exec(
                *("nsenter", f"--net={self._place.path}"),
                *("unshare", "--mount", "--propagation", "private", "--pid", "--uts", "--fork", "--kill-child"),
                *(sys.executable, "-I", str(SPAWN), str(path)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=variables,
                start_new_session=True,
            )

    @staticmethod
    def _arguments(image: Image, container: Object) -> list[str]:
        if container.get("args"):
            return container["args"]
        return [] if container.get("command") else image.command

    @property
    def running(self) -> bool:
        return self._outer is not None and self._outer.returncode is None

    @property
    def first(self) -> int | None:
        """Process number of the container's first process, as this process sees it."""
        if not self.running:
            return None
        assert self._outer is not None
        pid = self._outer.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            return None
        return int(children[0]) if children else None

    async def wait(self) -> int:
        """Wait for its end; return the status as Kubernetes has it."""
        assert self._outer is not None
        status = await self._outer.wait()
        # `unshare` does not tell of a signal.
        return KILLED if self._killed else 128 - status if status < 0 else status

    def signal(self, number: signal.Signals) -> None:
        """Send the first process a signal; as in any container, it gets only those that it handles, and SIGKILL."""
        self._killed |= number == signal.SIGKILL and self.running
        if pid := self.first:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        elif self.running and number == signal.SIGKILL:
            assert self._outer is not None
            self._outer.kill()

    async def execute(self, command: list[str], timeout_s: float | None = None) -> tuple[int, str]:
        """Run a command in the container; return its status and what it wrote. Not in time is status 124."""
        pid = self.first
        if pid is None:
            return KILLED, "the container does not run"
        process = await asyncio.create_subprocess_exec(
            *("nsenter", "-t", str(pid), "--mount", "--pid", "--net", "--uts", "--root", "--wd"),
            *("setpriv", *self._rights, *command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._variables,
        )
        try:
            said, _ = await asyncio.wait_for(process.communicate(), timeout_s)
        except TimeoutError:
            process.kill()
            await process.wait()
            return 124, ""
        return process.returncode or 0, said.decode("utf-8", "replace")

"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler as processes on the loopback of a network namespace of their own."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
from pathlib import Path

import aiohttp

from tests.support.kubernetes.api import Api, Refused
from tests.support.kubernetes.network import GATEWAY, SERVICES

URL = "https://127.0.0.1:6443"
READY_S = 120.0
LOOK_S = 0.1


class NotStarted(Exception):
    """The control plane did not become ready; says why."""


class ControlPlane:
    """programs: folder with the programs; etcd may also be on the path. folder: for state, logs and `kubeconfig`."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.token = secrets.token_hex(16)

    async def start(self) -> None:
        """Start all four; return when the API server is ready. Raises NotStarted."""
        folder = self._folder
        folder.mkdir(parents=True, exist_ok=True)
        command = ["openssl", "genrsa", "-out", str(folder / "accounts.key"), "2048"]
        subprocess.run(command, check=True, capture_output=True)
        (folder / "tokens.csv").write_text(f"{self.token},admin,admin,system:masters\n")
        (folder / "kubeconfig").write_text(json.dumps(self.kubeconfig()))
        own = self._programs / "etcd"
        self._run(
            str(own) if own.exists() else "etcd",
            f"--data-dir={folder}/etcd",
            # What it holds is gone with the test.
            "--unsafe-no-fsync",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--initial-advertise-peer-urls=http://127.0.0.1:2380",
            "--initial-cluster=default=http://127.0.0.1:2380",
        )
        self._run(
            "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            "--bind-address=127.0.0.1",
            f"--advertise-address={GATEWAY}",
            "--secure-port=6443",
            f"--cert-dir={folder}/certificates",
            f"--token-auth-file={folder}/tokens.csv",
            "--authorization-mode=RBAC",
            f"--service-cluster-ip-range={SERVICES}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={folder}/accounts.key",
            f"--service-account-key-file={folder}/accounts.key",
            "--allow-privileged",
            "--endpoint-reconciler-type=none",
        )
        await self._ready()
        config = f"--kubeconfig={folder}/kubeconfig"
        self._run(
            "kube-controller-manager",
            config,
            f"--service-account-private-key-file={folder}/accounts.key",
            "--leader-elect=false",
            "--port=0",
            "--secure-port=10257",
            "--bind-address=127.0.0.1",
            f"--cert-dir={folder}/certificates-of-controllers",
            # A lost machine is noticed in seconds.
            "--node-monitor-grace-period=20s",
            "--pod-eviction-timeout=10s",
        )
        self._run(
            *("kube-scheduler", config, "--leader-elect=false", "--port=0", "--secure-port=10259"),
            *("--bind-address=127.0.0.1", f"--cert-dir={folder}/certificates-of-scheduler"),
        )

    def kubeconfig(self) -> dict[str, object]:
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "tests",
            "clusters": [{"name": "tests", "cluster": {"server": URL, "insecure-skip-tls-verify": True}}],
            "users": [{"name": "admin", "user": {"token": self.token}}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "admin"}}],
        }

    def dead(self) -> list[str]:
        """Names of the programs that have ended."""
        return [name for name, process in self._processes.items() if process.poll() is not None]

    def _run(self, program: str, *arguments: str) -> None:
        path = self._programs / program
        name = Path(program).name
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [str(path) if path.exists() else program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def _ready(self) -> None:
        async with Api(URL, self.token) as api, asyncio.timeout(READY_S):
            while True:
                try:
                    await api.get("/readyz")
                    return
                except (aiohttp.ClientError, Refused, TimeoutError) as error:
                    if dead := self.dead():
                        raise NotStarted(f"{', '.join(dead)} ended; see {self._folder}: {error}") from None
                await asyncio.sleep(LOOK_S)

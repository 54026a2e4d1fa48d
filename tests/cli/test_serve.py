"""What `quorumq serve` says: why it cannot start, when it is ready, what about its settings is hardly meant."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quorumq.api.door import descriptor_max
from quorumq.api.settings.loading import load
from quorumq.cli import serve
from tests.cli.conftest import run


class Said(list[str]):
    """The lines that a node logs; `until` waits for one."""

    async def until(self, text: str) -> None:
        async with asyncio.timeout(10):
            while text not in "\n".join(self):
                await asyncio.sleep(0.001)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    lines = Said()
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: lines.append(f"{record.levelname} {record.getMessage()}"))
    monkeypatch.setattr(serve.log, "handlers", [handler])
    monkeypatch.setattr(serve.log, "level", logging.INFO)
    monkeypatch.setattr(serve, "LOOK_S", 0.001)
    return lines


@contextlib.asynccontextmanager
async def telling(peers: str, members: str, readiness: list[tuple[bool, str]]) -> Any:
    """A node's readiness, told as long as the context lasts. readiness: what each look finds, the last one for ever."""

    def look() -> tuple[bool, str]:
        return readiness.pop(0) if len(readiness) > 1 else readiness[0]

    engine: Any = SimpleNamespace(
        status=lambda: SimpleNamespace(members=[SimpleNamespace(id=m) for m in members.split()])
    )
    server: Any = SimpleNamespace(readiness=look)
    task = asyncio.create_task(
        serve.tell_readiness(load({}, {"PEERS": peers, "CLUSTER_SECRET": "s"} if peers else {}), engine, server)
    )
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_it_is_logged_why_a_node_is_not_ready_and_when_it_is(said: Said) -> None:
    waits, brief, ready = (False, "first start: waiting for n2"), (False, "no leader"), (True, "")
    async with telling("", "n1", [waits, waits, waits, ready, brief, ready, waits, waits, ready]):
        await said.until("INFO ready")
        async with asyncio.timeout(10):
            while len(said) < 4:
                await asyncio.sleep(0.001)
    # A reason that one look alone finds is an election, and not worth a line.
    assert said == ["INFO not ready: first start: waiting for n2", "INFO ready"] * 2


async def test_peers_that_are_no_members_are_warned_of_once(said: Said) -> None:
    peers = "n1=h:1,n2=h:2,n3=h:3"
    async with telling(peers, "n1", [(False, "no leader yet"), (True, ""), (False, "x"), (False, "x"), (True, "")]):
        async with asyncio.timeout(10):
            while said.count("INFO ready") < 2:
                await asyncio.sleep(0.001)
    (warning,) = [line for line in said if line.startswith("WARNING")]
    assert "PEERS names n2, n3, but by this node's log the members are n1" in warning
    said.clear()
    async with telling(peers, "n1 n2 n3", [(True, "")]):
        await said.until("INFO ready")
    async with telling("", "n1 n2 n3", [(True, "")]):
        async with asyncio.timeout(10):
            while len(said) < 2:
                await asyncio.sleep(0.001)
    assert said == ["INFO ready", "INFO ready"]


def start(*arguments: str, **environment: str) -> tuple[int, str]:
    """Run `serve` until it gives up; return its status and its errors."""
    status, _, error = run("serve", "--host", "127.0.0.1", *arguments, **environment)
    return status, error


def test_a_data_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    status, error = start("--data-path", str(file))
    assert (status, error) == (2, f"quorumq: DATA_PATH '{file}' (from the flag --data-path) is not a folder\n")
    status, error = start("--data-path", str(file / "below"))
    assert status == 2
    told = f"DATA_PATH '{file / 'below'}' (from the flag --data-path)"
    assert f"cannot go on: {told} cannot be used: Not a directory\n" in error


@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-host.invalid"])
def test_a_host_that_is_not_this_machine_is_named(tmp_path: Path, host: str) -> None:
    status, _, error = run("serve", "--http-port", "0", "--data-path", str(tmp_path), HOST=host)
    assert status == 2
    assert f"cannot go on: HOST '{host}' (from the environment) cannot be listened on: " in error
    assert "Errno" not in error


@pytest.mark.parametrize("port", ["--http-port", "--bullmq-port", "--peer-port"])
def test_a_port_that_the_system_keeps_to_itself_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: str
) -> None:
    """As for whoever is not root below 1024."""
    bind = socket.socket.bind

    def refuse(self: socket.socket, address: Any) -> None:
        if address[1] == 81:
            raise PermissionError(errno.EACCES, "Permission denied")
        bind(self, address)

    monkeypatch.setattr(serve, "uvloop", asyncio)
    monkeypatch.setattr(socket.socket, "bind", refuse)
    ports = {"--http-port": "0", "--bullmq-port": "0", "--peer-port": str(free_port()), port: "81"}
    status, error = start("--data-path", str(tmp_path), *(text for pair in ports.items() for text in pair))
    setting = port[2:].upper().replace("-", "_")
    assert status == 2
    assert f"cannot go on: {setting} '81' (from the flag {port}) cannot be listened on: Permission denied\n" in error


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def test_a_peer_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, error = start("--data-path", str(tmp_path), "--peer-port", str(port), "--http-port", "0")
    assert status == 1
    assert f"cannot go on: cannot listen on 127.0.0.1:{port} (HOST, PEER_PORT): Address already in use\n" in error


def test_a_full_disk_and_a_host_without_an_address_are_named_too() -> None:
    config = load({}, {"DATA_PATH": "/var/lib/q", "HOST": "no.such.host"})
    told = "DATA_PATH '/var/lib/q' (from the environment)"
    # A disk that is full can be empty again; a folder that is not the node's stays so.
    full = serve.named(OSError(errno.ENOSPC, "No space left on device"), config)
    assert str(full) == f"{told} cannot be used: No space left on device"
    assert serve.status_of(full) == 1
    below = serve.named(PermissionError(errno.EACCES, "Permission denied", "/var/lib/q/log"), config)
    assert str(below) == f"{told} cannot be used: Permission denied (/var/lib/q/log)"
    assert serve.status_of(below) == 2
    unknown = serve.named(socket.gaierror(socket.EAI_NONAME, "Name or service not known"), config)
    assert str(unknown) == "HOST 'no.such.host' (from the environment) cannot be listened on: Name or service not known"
    assert serve.status_of(unknown) == 2
    locked = OSError("/var/lib/q is in use by another process")
    assert serve.named(locked, config) is locked


def test_descriptors_are_raised_and_too_few_are_told(monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
    limits = [(1_024, 4_096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: limits.append(wanted))
    config = load({}, {})
    serve.tell_descriptors(config, *serve.raise_descriptor_limit())
    assert limits[-1] == (4_096, 4_096)
    assert said.pop() == (
        "WARNING 4096 file descriptors (ulimit -n): at most 3840 connections of clients, not 10000 (CONNECTIONS_MAX)"
    )
    assert descriptor_max(256) == 4_096 - 1 - 256
    limits.append((1_024, 1_048_576))
    serve.tell_descriptors(config, *serve.raise_descriptor_limit())
    assert limits[-1][0] == serve.DESCRIPTORS_WANTED
    assert said.pop() == f"INFO the limit of file descriptors was raised from 1024 to {serve.DESCRIPTORS_WANTED}"
    limits.append((100, 100))
    # Never more than half is kept back.
    assert descriptor_max(256) == 49


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, ["AUTH_TOKENS is not set", "CORS_ALLOW_ORIGIN is *", "TRUSTED_PROXIES is *"]),
        ({"HOST": "127.0.0.1"}, ["CORS_ALLOW_ORIGIN is *"]),
        ({"HOST": "127.0.0.1", "CORS_ALLOW_ORIGIN": "https://a.example"}, []),
        ({"AUTH_TOKENS": "t"}, ["METRICS_AUTH is not true", "WORKER_ENDPOINTS is any", "TRUSTED_PROXIES is *"]),
        (
            {"AUTH_TOKENS": "t", "METRICS_AUTH": "true", "WORKER_ENDPOINTS": "public", "TRUSTED_PROXIES": "none"},
            [],
        ),
        ({"HOST": "::1", "AUTH_TOKENS": "t", "WEBHOOK_ALLOW_PRIVATE": "true"}, ["WORKER_", "WEBHOOK_ALLOW_PRIVATE"]),
    ],
)
def test_what_is_open_is_said_in_a_line_each(settings: dict[str, str], words: list[str]) -> None:
    lines = list(serve.open_doors(load({}, settings)))
    assert len(lines) == len(words)
    assert all(line.startswith(word) for line, word in zip(lines, words, strict=True))

"""What `quorumq serve` says: why it cannot start, when it is ready, what about its settings is hardly meant."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cli import serve
from node.config import load
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
    task = asyncio.create_task(serve.tell_readiness(load({}, {"PEERS": peers} if peers else {}), engine, server))
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
    assert status == 1
    assert f"cannot go on: DATA_PATH {file} cannot be used: File exists\n" in error
    status, error = start("--data-path", str(file / "below"))
    assert status == 1
    assert f"cannot go on: DATA_PATH {file / 'below'} cannot be used: Not a directory\n" in error


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
    full = serve.named(OSError(errno.ENOSPC, "No space left on device"), config)
    assert str(full) == "DATA_PATH /var/lib/q cannot be used: No space left on device"
    below = serve.named(PermissionError(errno.EACCES, "Permission denied", "/var/lib/q/log"), config)
    assert str(below) == "DATA_PATH /var/lib/q cannot be used: Permission denied (/var/lib/q/log)"
    unknown = serve.named(socket.gaierror(socket.EAI_NONAME, "Name or service not known"), config)
    assert str(unknown) == "cannot listen on no.such.host:7790 (HOST, PEER_PORT): Name or service not known"
    locked = OSError("/var/lib/q is in use by another process")
    assert serve.named(locked, config) is locked

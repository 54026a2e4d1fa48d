"""What a node says of its disk, also when the file system does not answer."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path

import pytest

from quorumq.api import disk
from tests.api.conftest import Client


async def test_a_file_system_that_hangs_is_asked_once_and_holds_nobody_up(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, asked = threading.Event(), []
    real = shutil.disk_usage

    def hangs(folder: Path) -> object:
        asked.append(threading.current_thread())
        answers.wait()
        return real(folder)

    monkeypatch.setattr(disk, "PATIENCE_S", 0.05)
    monkeypatch.setattr(shutil, "disk_usage", hangs)
    watch = disk.DiskWatch(tmp_path)
    try:
        for _ in range(3):
            found = await watch.look(client.server.node)
            assert (found.full, found.error, found.free_bytes) == (False, None, None)
        assert len(asked) == 1
        assert asked[0].daemon, "it must not keep the process from ending"
    finally:
        answers.set()
    async with asyncio.timeout(30):
        while (found := await watch.look(client.server.node)).free_bytes is None:
            pass
    assert found.free_bytes > 0


async def test_those_who_ask_at_the_same_time_share_the_answer(client: Client, tmp_path: Path) -> None:
    watch = disk.DiskWatch(tmp_path)
    found = await asyncio.gather(*(watch.look(client.server.node) for _ in range(5)))
    assert all(one.free_bytes for one in found)
    (tmp_path / "file").write_bytes(b"12345")
    assert await watch.held_bytes() == 5

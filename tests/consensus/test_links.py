"""When a link dials: not before this node listens, and again at once when its peer has shown that it is there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from quorumq.cluster import links as module
from quorumq.cluster.links import Links
from tests.consensus.test_engine import Cluster

Dial = Callable[[], Awaitable[None]]


def links_of(tmp_path: Path, dialled: Dial) -> Links:
    """Links of n1 that reach nobody: `dialled` is what happens in place of opening a connection."""
    links = Links(Cluster(tmp_path, 2).config("n1"), None)  # type: ignore[arg-type]

    async def dial(*_: Any) -> bool:
        await dialled()
        return False

    links.dial = dial  # type: ignore[method-assign]
    return links


async def test_nobody_is_dialled_who_could_not_dial_back(tmp_path: Path) -> None:
    """A peer dials back at once; refused, it would wait, and this node would hear nothing of it meanwhile."""
    found: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def dial_back() -> None:
        host, _, port = links.config.listen.rpartition(":")
        heard = False
        with contextlib.suppress(ConnectionRefusedError):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.close()
            await writer.wait_closed()
            heard = True
        if not found.done():
            found.set_result(heard)

    links = links_of(tmp_path, dial_back)
    try:
        links.add_peer("n2", links.config.peers["n2"])
        for _ in range(10):
            # Turns in which the link would dial if it could.
            await asyncio.sleep(0)
        await links.start()
        assert await asyncio.wait_for(found, 5)
    finally:
        await links.stop()


async def test_a_peer_that_has_shown_itself_is_not_left_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first refusal is no reason to pause as long as for a peer that has been away for hours."""
    dials: asyncio.Queue[None] = asyncio.Queue()

    async def refused() -> None:
        dials.put_nowait(None)

    monkeypatch.setattr(module, "_RETRY_MOST_S", 7_200.0)
    monkeypatch.setattr(module, "_RETRY_FIRST_S", 3_600.0)
    links = links_of(tmp_path, refused)
    try:
        links.add_peer("n2", links.config.peers["n2"])
        await links.start()
        await asyncio.wait_for(dials.get(), 5)
        monkeypatch.setattr(module, "_RETRY_FIRST_S", 0.01)
        links.moved("n2", "127.0.0.1:1")
        for _ in range(2):
            await asyncio.wait_for(dials.get(), 5)
    finally:
        await links.stop()

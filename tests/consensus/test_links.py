"""When a link dials, and where; and which of a peer's connections counts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from quorumq.cluster import handshake
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


async def test_of_a_peers_connections_the_newest_counts_until_it_is_no_member(tmp_path: Path) -> None:
    async def nobody() -> None:
        pass

    links = links_of(tmp_path, nobody)
    ended: list[str] = []
    links.listener = SimpleNamespace(peer_reset=ended.append)  # type: ignore[assignment]
    closed: list[tuple[str, str]] = []

    def connection(name: str) -> Any:
        return SimpleNamespace(peer="n2", close=lambda why: closed.append((name, why)))

    old, new = connection("old"), connection("new")
    try:
        links.add_peer("n2", links.config.peers["n2"])
        for each in (old, new):
            links.inbound_ready("n2", each)
        assert closed == [("old", "replaced")]
        links.inbound_lost(old)
        assert ended == []
        links.drop_peer("n2")
        assert closed[1:] == [("new", "not a member any more")] and not links.known("n2")
        links.inbound_lost(new)
        assert ended == []
        links.add_peer("n2", links.config.peers["n2"])
        links.inbound_ready("n2", new)
        links.inbound_lost(new)
        assert ended == ["n2"]
    finally:
        await links.stop()


@pytest.mark.parametrize("how", ["the links stop", "it is no member any more", "nobody asks any more"])
async def test_a_connection_on_which_the_other_side_has_said_nothing_yet_ends_with_what_it_is_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Else it would stay open for the time of a handshake, and who is dropped be a peer once the other side answers."""
    monkeypatch.setattr(handshake, "HANDSHAKE_S", 3_600.0)
    greeted, ended = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read(1)
        greeted.set()
        while await reader.read(1 << 16):
            pass
        ended.set()
        writer.close()

    listener = SimpleNamespace(levels=lambda: (1, 1), cluster_id=str, seated_at=int)
    links = Links(Cluster(tmp_path, 2).config("n1"), listener)  # type: ignore[arg-type]
    host, _, port = links.config.peers["n2"].rpartition(":")
    server = await asyncio.start_server(silent, host, int(port))
    try:
        await links.start()
        asking = None
        if how == "nobody asks any more":
            asking = asyncio.create_task(links.ask(links.config.peers["n2"]))
        else:
            links.add_peer("n2", links.config.peers["n2"])
        await asyncio.wait_for(greeted.wait(), 30)
        if asking is not None:
            asking.cancel()
        elif how == "the links stop":
            await links.stop()
        else:
            links.drop_peer("n2")
        await asyncio.wait_for(ended.wait(), 30)
    finally:
        await links.stop()
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_links_stop_though_nobody_answers_where_they_dial(
    tmp_path: Path, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """One of the two has made the connection's protocol by then, and never tells it of its end."""

    async def dialled_and_stopped() -> None:
        links, refused = Links(Cluster(tmp_path, 2).config("n1"), SimpleNamespace()), asyncio.Event()  # type: ignore[arg-type]
        dial = links.dial

        async def dial_and_say(*args: Any) -> bool:
            done = await dial(*args)
            refused.set()
            return done

        links.dial = dial_and_say  # type: ignore[method-assign]
        links.add_peer("n2", links.config.peers["n2"])
        await links.start()
        await asyncio.wait_for(refused.wait(), 30)
        await asyncio.wait_for(links.stop(), 30)

    loop = new_loop()
    try:
        loop.run_until_complete(dialled_and_stopped())
    finally:
        loop.close()


async def test_the_settings_know_better_than_the_log_where_a_peer_is(tmp_path: Path) -> None:
    async def nobody() -> None:
        pass

    links = links_of(tmp_path, nobody)
    try:
        links.add_peer("n2", "n2:1")
        links.add_peer("n9", "n9:1")
        assert (links.addresses["n2"], links.addresses["n9"]) == (links.config.peers["n2"], "n9:1")
    finally:
        await links.stop()

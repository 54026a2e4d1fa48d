"""The proxy between members: what each fault does to a connection, by direction, and that healing undoes it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from quorumq.cluster import codec
from tests.support.links import Links, Manner
from tests.support.local_cluster import HOST, LocalCluster, LocalNode, free_ports

MOMENT_S = 0.25
LONG_S = 20.0


class Echo:
    """A node as far as a link knows: takes a hello, and sends back every byte that comes after."""

    def __init__(self) -> None:
        self.heard = b""
        self.writers: list[asyncio.StreamWriter] = []

    async def came(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(1 << 16):
                self.heard += piece
                writer.write(piece)
                await writer.drain()
        writer.close()


class World:
    """n2 behind a door, and n1's connection to it."""

    def __init__(self, links: Links, echo: Echo, address: str) -> None:
        self.links, self.echo, self.address = links, echo, address

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        hello = codec.dumps({"type": "hello", "from": "n1"})
        writer.write(struct.pack(">I", len(hello)) + hello)
        return reader, writer

    async def connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await self.dial()
        async with asyncio.timeout(LONG_S):
            (length,) = struct.unpack(">I", await reader.readexactly(4))
            await reader.readexactly(length)
        self.echo.heard = b""
        return reader, writer


async def silent(reader: asyncio.StreamReader) -> bool:
    """Whether nothing comes, not even an end."""
    try:
        async with asyncio.timeout(MOMENT_S):
            await reader.read(1)
    except TimeoutError:
        return True
    return False


async def comes(reader: asyncio.StreamReader, data: bytes) -> None:
    async with asyncio.timeout(LONG_S):
        assert await reader.readexactly(len(data)) == data


class Chance(random.Random):
    """Chance that always says the same."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def random(self) -> float:
        return self.value


@contextlib.asynccontextmanager
async def world(tmp_path: Path, chance: float = 0.9) -> AsyncIterator[World]:
    echo = Echo()
    (port,) = free_ports(1)
    server = await asyncio.start_server(echo.came, HOST, port)
    links = Links(Chance(chance))
    address = await links.open(LocalNode("n2", 0, 0, port, tmp_path))
    try:
        yield World(links, echo, address)
    finally:
        await links.close()
        server.close()
        for writer in echo.writers:
            writer.close()


async def test_a_whole_link_carries_both_ways_and_ends_with_either_end(tmp_path: Path) -> None:
    async with world(tmp_path) as found:
        reader, writer = await found.connected()
        writer.write(b"there")
        await comes(reader, b"there")
        found.echo.writers[0].close()
        async with asyncio.timeout(LONG_S):
            assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize("way, heard", [(("n1", "n2"), False), (("n2", "n1"), True)])
async def test_a_cut_holds_back_one_way_only_and_tells_nobody(
    tmp_path: Path, way: tuple[str, str], heard: bool
) -> None:
    async with world(tmp_path) as found:
        reader, writer = await found.connected()
        found.links.cut(*way)
        writer.write(b"lost")
        assert await silent(reader)
        assert (found.echo.heard == b"lost") is heard
        found.links.heal(*way)
        await comes(reader, b"lost")
        writer.close()


async def test_a_cut_that_heals_may_break_what_was_under_way(tmp_path: Path) -> None:
    async with world(tmp_path, chance=0.1) as found:
        reader, writer = await found.connected()
        found.links.cut("n1", "n2")
        writer.write(b"lost")
        assert await silent(reader)
        found.links.heal("n1", "n2")
        async with asyncio.timeout(LONG_S):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        assert found.links.broken >= 1 and found.echo.heard == b""
        writer.close()


@pytest.mark.parametrize("way", [("n1", "n2"), ("n2", "n1")])
async def test_nobody_connects_through_a_cut_in_either_direction(tmp_path: Path, way: tuple[str, str]) -> None:
    async with world(tmp_path) as found:
        found.links.cut(*way)
        reader, writer = await found.dial()
        assert await silent(reader)
        assert found.echo.writers == []
        found.links.heal(*way)
        async with asyncio.timeout(LONG_S):
            assert await reader.read(4) != b""
        writer.close()


async def test_the_end_of_a_process_does_not_show_through_a_cut(tmp_path: Path) -> None:
    async with world(tmp_path) as found:
        reader, writer = await found.connected()
        found.links.cut("n2", "n1")
        found.echo.writers[0].close()
        assert await silent(reader)
        found.links.heal("n2", "n1")
        async with asyncio.timeout(LONG_S):
            assert await reader.read() == b""
        writer.close()


async def test_a_cut_of_others_is_nothing_to_this_pair(tmp_path: Path) -> None:
    async with world(tmp_path) as found:
        found.links.cut("n3", "n2")
        reader, writer = await found.connected()
        writer.write(b"there")
        await comes(reader, b"there")
        writer.close()


async def test_a_slow_link_is_late_and_a_healed_one_is_not(tmp_path: Path) -> None:
    async with world(tmp_path) as found:
        reader, writer = await found.connected()
        found.links.treat([("n1", "n2")], Manner(delay_s=2 * MOMENT_S))
        writer.write(b"late")
        assert await silent(reader)
        await comes(reader, b"late")
        found.links.heal_all()
        assert found.links.manners == {}
        writer.write(b"soon")
        await comes(reader, b"soon")
        writer.close()


async def test_a_lossy_link_breaks_in_the_middle(tmp_path: Path) -> None:
    async with world(tmp_path, chance=0.0) as found:
        reader, writer = await found.connected()
        found.links.treat([("n1", "n2")], Manner(broken=0.5))
        writer.write(b"12345678")
        async with asyncio.timeout(LONG_S):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() in (b"", b"1234")
        assert found.links.broken == 1 and found.echo.heard in (b"", b"1234")
        writer.close()


async def test_one_who_says_no_hello_is_let_go(tmp_path: Path) -> None:
    async with world(tmp_path) as found:
        host, _, port = found.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(LONG_S):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()


async def test_a_cluster_behind_doors_elects_without_a_leader_that_is_cut_off(tmp_path: Path) -> None:
    cluster = LocalCluster(3, tmp_path)
    links = Links(random.Random(1))
    addresses = {node.id: await links.open(node) for node in cluster.nodes}
    peers = ",".join(f"{name}={address}" for name, address in addresses.items())
    for node in cluster.nodes:
        node.settings |= {"PEERS": peers, "PEER_PORT": str(node.peer_port)}
    try:
        async with cluster:
            leader = await cluster.leader()
            others = [node for node in cluster.nodes if node is not leader]
            for node in others:
                links.cut(leader.id, node.id)
                links.cut(node.id, leader.id)

            async def another() -> bool:
                return (await others[0].cluster())["leader"] in {node.id for node in others}

            await cluster.until("another one leads", another, 30)
            links.heal_all()
            await cluster.ready()
            await cluster.converged()
    finally:
        await links.close()

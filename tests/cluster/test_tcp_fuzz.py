"""Mutated frames at bunqueue's port: the node answers or ends the connection, others are not harmed, and memory comes back."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import Any

import msgpack
import pytest

from quorumq.api.dialects.bunqueue.routes import ROUTES
from tests.support.local_cluster import LocalCluster, LocalNode
from tests.support.tcp_client import TcpClient, framed

MIB = 1 << 20
# What a node may have grown by when it is idle again: its allocator keeps some, and the log's index of entries does.
KEPT_BYTES = 160 * MIB
NAMES = [
    *(command.name for route in ROUTES for command in route.commands),
    "Hello",
    "Auth",
    "SubscribeEvents",
    "UnsubscribeEvents",
]
FIELDS = (
    "queue", "data", "id", "ids", "jobs", "count", "timeout", "owner", "token", "tokens", "result", "results", "error", "name",
    "priority", "delay", "jobId", "customId", "repeat", "backoff", "dependsOn", "state", "limit", "config", "events", "url",
    "workerId", "groupId", "message", "progress", "lockTtl", "detach", "grace", "schedule", "repeatEvery", "reqId", "cmd",
)  # fmt: skip
# Those that take time on purpose, or change what the test itself looks at.
LEFT_OUT = {"WaitJob", "AddWebhook"}


class Fuzzer:
    """Makes frames: mostly right ones that something is done to."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.names = [name for name in NAMES if name not in LEFT_OUT]

    def value(self, depth: int = 0) -> Any:
        chance = self.chance
        match chance.randrange(14 if depth < 3 else 9):
            case 0:
                return chance.choice(("f1", "f2", "f3", "", "x" * 300, "é", "\U0001f600", "../x", "a b"))
            case 1:
                return chance.choice((0, 1, -1, 5, 2**31, 2**32, 2**53, 2**63, -(2**63), 10))
            case 2:
                return chance.choice((0.0, 1.5, 1e308, float("inf"), float("nan"), -0.0))
            case 3:
                return chance.choice((None, True, False))
            case 4:
                return chance.randbytes(chance.randrange(50))
            case 5:
                return msgpack.ExtType(chance.choice((0, 1, 5)), chance.randbytes(chance.choice((1, 4, 8))))
            case 6:
                return msgpack.Timestamp(chance.choice((0, 1_700_000_000, 2**33)), chance.choice((0, 5_000_000)))
            case 7:
                return chance.choice(("f1", "f2"))
            case 8:
                return chance.randrange(100)
            case 9 | 10:
                return [self.value(depth + 1) for _ in range(chance.randrange(4))]
            case 11:
                return {chance.choice(("$date", "$binary", "$literal", "$numberDouble")): self.value(depth + 1)}
            case _:
                return {chance.choice(FIELDS): self.value(depth + 1) for _ in range(chance.randrange(4))}

    def command(self) -> dict[str, Any]:
        chance = self.chance
        made: dict[str, Any] = {"cmd": chance.choice(self.names), "queue": chance.choice(("f1", "f2", "f3"))}
        for _ in range(chance.randrange(6)):
            made[chance.choice(FIELDS)] = self.value()
        if chance.random() < 0.3:
            made["jobs"] = [{"data": self.value()} for _ in range(3)]
        if chance.random() < 0.5:
            made["data"] = self.value()
        # Nobody is to wait here.
        if "timeout" in made and chance.random() < 0.95:
            made["timeout"] = 0
        made["reqId"] = str(chance.randrange(1000))
        return made

    def frame(self) -> bytes:
        """Return a frame, or what is none."""
        chance = self.chance
        body = bytearray(msgpack.packb(self.command()))
        match chance.randrange(10):
            case 0 | 1 | 2:
                pass
            case 3 | 4 | 5:
                for _ in range(chance.randrange(1, 4)):
                    body[chance.randrange(len(body))] = chance.randrange(256)
            case 6:
                del body[chance.randrange(len(body)) :]
            case 7:
                at = chance.randrange(len(body))
                body[at:at] = chance.choice(
                    (b"\xdd\xff\xff\xff\xff", b"\xdf\x7f\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 1200)
                )
            case 8:
                body = bytearray(chance.randbytes(chance.randrange(60)))
            case _:
                other = msgpack.packb(self.command())
                body[chance.randrange(len(body)) :] = other[chance.randrange(len(other)) :]
        made = bytearray(framed(bytes(body)))
        if chance.random() < 0.01:
            made[chance.randrange(4)] = chance.randrange(256)
        return bytes(made)


async def attack(port: int, fuzzer: Fuzzer, frames: int) -> int:
    """Send so many frames over connections that are left now and then; return how often a row failed that must not."""
    chance, sent, failed = fuzzer.chance, 0, 0
    while sent < frames:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        reading = asyncio.create_task(failures(reader))
        with contextlib.suppress(ConnectionError):
            for _ in range(min(frames - sent, chance.choice((1, 30, 300, 3000)))):
                writer.write(fuzzer.frame())
                sent += 1
                if sent % 50 == 0:
                    # How far ahead of the replies it gets is the node's affair.
                    await asyncio.wait_for(writer.drain(), 60)
                    await asyncio.sleep(0)
                if reading.done():
                    break
        if chance.random() < 0.5:
            writer.transport.abort()  # type: ignore[attr-defined]
        else:
            with contextlib.suppress(OSError):
                writer.write_eof()
        failed += await asyncio.wait_for(reading, 90)
        writer.close()
    return failed


async def failures(reader: asyncio.StreamReader) -> int:
    """Read replies to the end of the connection; each has to be a frame. Return how many say that the node itself failed."""
    failed = 0
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            body = await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
            reply = msgpack.unpackb(body, timestamp=1)
            failed += reply.get("error") == "Internal server error"
    return failed


class Bystander:
    """A client that works all the time, over one connection that has to stay."""

    def __init__(self, client: TcpClient) -> None:
        self.client = client
        self.rounds = 0
        self.worst_s = 0.0
        self.stopping = False

    async def work(self) -> None:
        while not self.stopping:
            began = time.monotonic()
            pushed = await self.client.ok("PUSH", queue="bystander", data={"n": self.rounds}, removeOnComplete=True)
            taken = await self.client.ok("PULL", queue="bystander", owner="b", timeout=10_000)
            assert (taken["job"]["id"], taken["job"]["data"]) == (pushed["id"], {"n": self.rounds})
            assert "data" not in await self.client.ok("ACK", id=pushed["id"], token=taken["token"])
            self.worst_s = max(self.worst_s, time.monotonic() - began)
            self.rounds += 1
            await asyncio.sleep(0.01)


async def clear(node: LocalNode) -> None:
    """Take away what the frames have made."""
    assert node.tcp_port is not None
    client = await TcpClient.open(node.tcp_port)
    for cron in (await client.ok("CronList"))["crons"]:
        await client.ok("CronDelete", name=cron["name"])
    for queue in (await client.ok("ListQueues"))["queues"]:
        await client.ok("Obliterate", queue=queue)
    await client.close()


async def fuzz(frames: int, seed: int, at_once: int = 4) -> None:
    print(f"seed {seed}")
    async with LocalCluster(1, CLIENT_BYTES_PER_S_MIN="100000") as cluster:
        (node,) = cluster.nodes
        assert node.tcp_port is not None
        bystander = Bystander(await TcpClient.open(node.tcp_port))
        working = asyncio.create_task(bystander.work())
        # What it takes at the beginning is not what the frames took.
        await attack(node.tcp_port, Fuzzer(seed), 500)
        before = node.rss_bytes()
        share = frames // at_once
        found = await asyncio.gather(*(attack(node.tcp_port, Fuzzer(seed + at), share) for at in range(at_once)))
        more = Fuzzer(seed + at_once)
        while bystander.rounds < 10:
            assert not working.done(), working.result()
            found.append(await attack(node.tcp_port, more, 500))
        bystander.stopping = True
        await asyncio.wait_for(working, 60)
        print(f"{bystander.rounds} rounds beside {frames} frames, the longest {bystander.worst_s * 1000:.0f} ms")
        assert sum(found) == 0
        assert "Traceback" not in node.log_text()
        await clear(node)
        await bystander.client.close()

        async def at_rest() -> bool:
            status, body = await node.ask("/health")
            return status == 200 and not body["connections"]["tcp"] and node.rss_bytes() < before + KEPT_BYTES

        await cluster.until("connections are gone and memory is back", at_rest, 60)
        print(f"memory: {before // MIB} MiB before, {node.rss_bytes() // MIB} MiB after")


async def test_mutated_frames_harm_nobody() -> None:
    await fuzz(6_000, seed=7)


@pytest.mark.long
@pytest.mark.timeout(3_600)
async def test_a_million_mutated_frames() -> None:
    await fuzz(1_000_000, seed=random.randrange(10**6))

"""A node's word on the clients that are connected to it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from quorumq.cluster.errors import Unavailable
from quorumq.node.connected import Connected
from quorumq.node.machine.operations.bullmq.presence import ListClients, NotePresence
from quorumq.node.machine.state.bullmq.presence import LEASE_MS, Client
from quorumq.node.machine.state.bullmq.sessions import FORGET_MS
from tests.support.world import START_MS, World


class Said:
    """One node of a world: what it said, and whether it gets through."""

    def __init__(self) -> None:
        self.world = World()
        self.said: list[NotePresence] = []
        self.cut = False
        self.connected = Connected("n1", self.world.machine, self.submit, lambda: self.world.now_ms)

    async def submit(self, operation: NotePresence) -> Any:
        if self.cut:
            raise Unavailable("cut off")
        self.said.append(operation)
        return self.world.do(operation)

    def shown(self) -> list[str]:
        return [client.id for client in self.world.ask(ListClients("q"))[0]]


@pytest.fixture
def node() -> Iterator[Said]:
    said = Said()
    yield said
    said.connected.stop()
    said.world.check()


def client(name: str) -> Client:
    return Client(name, "q", f"bull:{name}", "127.0.0.1")


async def test_those_who_come_are_known_at_once_and_those_who_leave_are_told_together(node: Said) -> None:
    node.world.do(NotePresence("n1", [client("of the process before")]))
    for name in "abc":
        await node.connected.register(client(name))
    assert node.shown() == ["a", "b", "c"]
    node.connected.unregister("a")
    node.connected.unregister("b")
    node.connected.unregister("nobody")
    await asyncio.sleep(0.01)
    assert node.shown() == ["c"]
    assert node.said[-1].left == ["a", "b"]
    assert len(node.said) == 4


async def test_the_lease_is_renewed_and_what_was_lost_is_said_again(node: Said) -> None:
    await node.connected.renew()
    assert node.said == []
    await node.connected.register(client("a"))
    node.world.wait(LEASE_MS - 1)
    await node.connected.renew()
    node.world.wait(LEASE_MS - 1)
    assert node.shown() == ["a"]
    node.world.wait(1)
    assert node.shown() == []
    node.world.do(NotePresence("n2"))
    await node.connected.renew()
    assert node.shown() == ["a"]
    assert [said.whole for said in node.said] == [True, False, False, True]
    node.cut = True
    node.connected.unregister("a")
    await asyncio.sleep(0.01)
    with pytest.raises(Unavailable):
        await node.connected.register(client("b"))
    node.cut = False
    await node.connected.renew()
    assert node.shown() == ["b"]


async def test_a_session_with_a_connection_is_not_forgotten(node: Said) -> None:
    table = node.world.machine.state.bullmq.sessions
    for session in ("here", "gone"):
        table.enter(session, 0, START_MS)
    node.connected.join("here")
    node.connected.join("here")
    node.connected.join("unknown")
    node.connected.leave("here")
    for _ in range(3):
        await node.connected.renew()
        node.world.wait(FORGET_MS // 2)
    await node.connected.renew()
    assert list(table.by_id) == ["here"]
    # Those that were heard of of late are not told of.
    assert [said.sessions for said in node.said] == [["here"]] * 3
    node.connected.leave("here")
    node.world.wait(FORGET_MS)
    await node.connected.renew()
    table.age(node.world.now_ms)
    assert not table.by_id

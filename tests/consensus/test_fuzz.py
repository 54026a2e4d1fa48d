"""Broken messages, sent by strangers and by members: they end their own connection, and nothing else.

What is broken comes from real messages (mutate.py), from one seed. A stranger must not even change a term; a member that
proved itself may, as members may, but must not stop a node, nor leave its log in two minds.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from quorumq.cluster import codec, messages
from quorumq.cluster.engine import Engine
from quorumq.cluster.environment import NodeEnvironment
from quorumq.cluster.errors import NotUnderstood
from quorumq.cluster.frames import frame
from quorumq.cluster.handshake import PROTOCOL, LinkListener, proof_of
from quorumq.cluster.log import Log
from quorumq.cluster.raft import Raft
from quorumq.cluster.replica import Batch, Replica, encode_batches
from tests.consensus.counting import Recorder
from tests.consensus.disks import MemoryDisk
from tests.consensus.mutate import Mutator, Recorded, record
from tests.consensus.test_engine import PATIENCE, Cluster, fresh, running, until

SECRET = "known"
# What a member may say without being believed more than itself. A sound message of another kind can rewrite history when it
# is a lie, which Raft does not defend against.
HARMLESS = {
    "batch",
    "batch_no",
    "read",
    "read_index",
    "round",
    "round_ok",
    "pre_vote",
    "pre_vote_granted",
    "response_vote",
}
HARMLESS |= {"next_node_idx", "snapshot_held", "snapshot_installed", "changed"}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return asyncio.run(record(tmp_path_factory.mktemp("recorded")))


@pytest.fixture
def seed() -> int:
    chosen = random.randrange(1 << 32)
    print(f"seed {chosen}")
    return chosen


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


class Dialler:
    """A connection to a node's peer port, and the handshake of somebody who knows the secret."""

    def __init__(self, cluster: Cluster, target: str, name: str = "n3") -> None:
        self._address = cluster.peers[target].split(":")
        self._target = target
        self._name = name
        self.writer: asyncio.StreamWriter | None = None

    async def connect(self) -> None:
        host, port = self._address
        self.reader, self.writer = await asyncio.open_connection(host, int(port))

    async def read(self) -> dict[str, Any]:
        (length,) = struct.unpack(">I", await self.reader.readexactly(4))
        return codec.loads(await self.reader.readexactly(length))

    def send(self, body: bytes) -> None:
        assert self.writer is not None
        self.writer.write(frame(body))

    def hello(self, **changes: Any) -> bytes:
        self.nonce = b"n" * 16
        hello = {
            "type": "hello",
            "protocol": PROTOCOL,
            "cluster": "quorumq",
            "cluster_id": "",
            "from": self._name,
            "to": self._target,
            "address": "127.0.0.1:1",
            "nonce": self.nonce,
        }
        return codec.dumps(hello | changes)

    async def prove(self) -> None:
        await self.connect()
        self.send(self.hello())
        challenge = await self.read()
        nonces = self.nonce + challenge["nonce"]
        proof = proof_of(SECRET, "dialler", self._name, self._target, "quorumq", nonces)
        self.send(codec.dumps({"type": "proof", "proof": proof}))
        assert (await self.read())["type"] == "welcome"

    async def closed(self) -> bool:
        """Give the node the chance to close, and say whether it did."""
        self.send(codec.dumps({"type": "ping"}))
        try:
            while (await asyncio.wait_for(self.read(), 10))["type"] != "pong":
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            return True
        return False

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


@contextlib.asynccontextmanager
async def two_of_three(directory: Path, **settings: int) -> AsyncIterator[Cluster]:
    """A cluster whose third node is away, so that somebody else can take its name."""
    cluster = Cluster(directory, secret=SECRET, **settings)
    async with running(cluster):
        await cluster.write("n1", b"first")
        await until(lambda: all(engine.status().ready for engine in cluster.engines.values()))
        await cluster.stop("n3", transfer=True)
        await cluster.write("n1", b"second")
        for engine in cluster.engines.values():
            await fresh(engine)
        yield cluster
        for engine in cluster.engines.values():
            assert not engine.failed.done(), engine.failed


async def strangers(cluster: Cluster, mutator: Mutator, handshakes: Mutator, connections: int) -> None:
    for number in range(connections):
        dialler = Dialler(cluster, "n1")
        await dialler.connect()
        try:
            stage = number % 4
            if stage == 1:
                dialler.send(handshakes.body())
            elif stage == 2:
                dialler.send(dialler.hello())
                await dialler.read()
                dialler.send(handshakes.body())
            elif stage == 3:
                dialler.send(dialler.hello(**{mutator.rng.choice(("from", "to", "nonce")): mutator.value()}))
            for _ in range(3):
                dialler.send(mutator.body())
            assert dialler.writer is not None
            if number % 8 == 0:
                dialler.writer.write(mutator.rng.randbytes(mutator.rng.randrange(200)))
            dialler.writer.write_eof()
            await asyncio.wait_for(dialler.reader.read(), 10)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            dialler.close()


async def fuzz_by_strangers(directory: Path, recorded: Recorded, seed: int, connections: int, **settings: int) -> None:
    async with two_of_three(directory, **settings) as cluster:
        before = {node: engine.status() for node, engine in cluster.engines.items()}
        mutator, handshakes = Mutator(seed, recorded.messages), Mutator(seed + 1, recorded.handshakes)
        await strangers(cluster, mutator, handshakes, connections // 4)
        memory = resident_bytes()
        await strangers(cluster, mutator, handshakes, connections - connections // 4)
        assert resident_bytes() - memory < 20 << 20
        for node, engine in cluster.engines.items():
            after = engine.status()
            assert (after.term, after.leader, after.applied_index) == (
                before[node].term,
                before[node].leader,
                before[node].applied_index,
            )
            assert not engine._links._unproven
        await cluster.write("n2", b"third")


async def test_strangers_change_nothing_whatever_they_send(tmp_path: Path, recorded: Recorded, seed: int) -> None:
    await fuzz_by_strangers(tmp_path, recorded, seed, 800, **PATIENCE)


def may_be_sent(body: bytes) -> bool:
    """Whether it is broken, or harmless."""
    try:
        message = codec.loads(body)
        messages.check(message, 1 << 20)
    except ValueError:
        return True
    return message["type"] in HARMLESS


async def fuzz_by_a_member(directory: Path, recorded: Recorded, seed: int, frames: int, **settings: int) -> None:
    mutator = Mutator(seed, recorded.messages)
    async with two_of_three(directory, **settings) as cluster:
        sent = memory = 0
        while sent < frames:
            dialler = Dialler(cluster, mutator.rng.choice(("n1", "n2")))
            await dialler.prove()
            try:
                for _ in range(mutator.rng.randrange(1, 40)):
                    body = mutator.body()
                    if may_be_sent(body):
                        dialler.send(body)
                    sent += 1
                await dialler.closed()
            except ConnectionError:
                pass
            finally:
                dialler.close()
            for engine in cluster.engines.values():
                assert not engine.failed.done(), engine.failed
            if sent > frames // 4 and not memory:
                memory = resident_bytes()
        assert resident_bytes() - memory < 40 << 20
        await cluster.start("n3")
        for node in cluster.peers:
            assert await cluster.write(node, b"after " + node.encode())
            await fresh(cluster.engines[node])
        assert len({engine.status().digest for engine in cluster.engines.values()}) == 1


async def test_a_member_that_sends_nonsense_stops_nobody(tmp_path: Path, recorded: Recorded, seed: int) -> None:
    await fuzz_by_a_member(tmp_path, recorded, seed, 3000)


class Alone(NodeEnvironment):
    """Memory for a disk, links that lead nowhere, and the id of the cluster whose messages were recorded."""

    def __init__(self, cluster_id: str) -> None:
        self.cluster_id = cluster_id
        self.disks: dict[str, MemoryDisk] = {}
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def disk(self, directory: Path) -> Any:
        return self.disks.setdefault(directory.name, MemoryDisk())

    def lock(self, directory: Path) -> None:
        return None

    def make_private(self, directory: Path) -> None:
        pass

    def links(self, config: Any, listener: LinkListener) -> Any:
        return self

    def random_bits(self, bits: int) -> int:
        return int(self.cluster_id, 16) if bits == 128 else super().random_bits(bits)

    # What the engine asks of its links.

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    def add_peer(self, peer: str, address: str) -> None:
        pass

    def drop_peer(self, peer: str) -> None:
        pass

    def connected(self, peer: str) -> bool:
        return True

    def send(self, peer: str, message: dict[str, Any]) -> bool:
        self.sent.append((peer, message))
        del self.sent[:-100]
        return True


class Driven:
    """One engine, fed by hand: n1 of three, as a follower of n2 or as their leader."""

    def __init__(self, directory: Path, cluster_id: str, **settings: int) -> None:
        self.around = Alone(cluster_id)
        usual = {"snapshot_log_entries": 10**9, "election_min_ms": 60_000, "election_max_ms": 60_001}
        self.engine = Engine(Cluster(directory).config("n1", **(usual | settings)), Recorder(), self.around)

    async def start(self) -> None:
        await self.engine.start()
        for peer in ("n2", "n3"):
            self.engine.message_received(peer, {"type": "present", "term": 0, "history": False, "whole": True})
            wall_ms = self.around.wall_ms()
            self.engine.message_received(
                peer, {"type": "vitals", "wall_ms": wall_ms, "log_ms": None, "disk_ms": 0}
            )  # fmt: skip
        self.engine._driver.drive()
        await until(lambda: self.raft.may_vote)
        for peer in ("n2", "n3"):
            self.engine.peer_up(peer)

    @property
    def raft(self) -> Raft:
        return self.engine._raft

    def receive(self, peer: str, message: Any) -> bool:
        """As the transport does it: whether the connection would stand."""
        try:
            messages.check(message, 1 << 20)
            self.engine.message_received(peer, message)
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
            return False
        return True

    def lead(self) -> None:
        """Win an election."""
        term = self.raft.term
        self.raft._election_due()
        for peer in ("n2", "n3"):
            self.receive(peer, {"type": "pre_vote_granted", "term": term + 1})
        for peer in ("n2", "n3"):
            self.receive(peer, {"type": "response_vote", "term": self.raft.term})
        assert self.raft.is_leader
        self.acknowledge()

    def acknowledge(self) -> None:
        """Both others hold all that is here."""
        self.engine._driver.drive()
        for peer in ("n2", "n3"):
            self.receive(
                peer,
                {
                    "type": "next_node_idx",
                    "term": self.raft.term,
                    "next_node_idx": self.raft.journal.last_index + 1,
                    "reset": False,
                    "success": True,
                },
            )
        self.engine._driver.drive()

    def whole(self) -> None:
        """Neither stopped, nor of two minds: the log in memory is the one on the disk, without gaps."""
        assert not self.engine.failed.done(), self.engine.failed
        held = self.engine._log
        entries = [held[position] for position in range(len(held))]
        assert [entry[1] for entry in entries] == list(range(entries[0][1], entries[0][1] + len(entries)))
        assert all(type(part) is kind for entry in entries for part, kind in zip(entry, (bytes, int, int), strict=True))
        assert self.raft.commit_index <= held.last_index
        assert self.raft.applied_index <= max(1, self.raft.commit_index)
        held.flush()
        read = Log(self.around.disks["log"], 1 << 30)
        assert [read[position] for position in range(len(read))] == entries
        assert (read.term, read.voted_for) == (held.term, held.voted_for)


async def drive(directory: Path, recorded: Recorded, seed: int, count: int) -> None:
    """Broken messages in every role; a role is taken up again and again, as they may end it."""
    mutator = Mutator(seed, recorded.messages)
    done = 0
    while done < count:
        driven = Driven(directory, recorded.cluster_id)
        await driven.start()
        if mutator.rng.random() < 0.5:
            driven.lead()
        try:
            for _ in range(250):
                done += 1
                peer = mutator.rng.choice(("n2", "n3"))
                try:
                    message = codec.loads(mutator.body())
                except ValueError:
                    continue
                driven.receive(peer, message)
                driven.engine._driver.drive()
                if driven.raft.is_leader and mutator.rng.random() < 0.1:
                    driven.raft.propose(b"\x93\x00\x01\x90")
                    driven.acknowledge()
                if driven.engine.failed.done():
                    # A sound message that says something else than what is committed: a member that lies, to which the
                    # answer is to stop rather than to believe it.
                    said = str(driven.engine.failed.exception())
                    assert "the leader contradicts committed entry" in said, (message, said)
                    break
            else:
                driven.whole()
        finally:
            await driven.engine.stop(transfer=False)


async def test_no_broken_message_of_a_member_stops_a_node_or_leaves_it_in_two_minds(
    tmp_path: Path, recorded: Recorded, seed: int
) -> None:
    await drive(tmp_path, recorded, seed, 5_000)


async def test_a_snapshot_of_another_cluster_changes_nothing(tmp_path: Path, recorded: Recorded) -> None:
    pieces = {
        message["name"]: message
        for message in map(codec.loads, recorded.messages["snapshot_piece"])
        if message["offset"] == 0
    }
    begins = [codec.loads(body) for body in recorded.messages["snapshot_begin"]]
    begin = next(
        each for each in begins if each["name"] in pieces and len(pieces[each["name"]]["data"]) == each["size"]
    )
    driven = Driven(tmp_path, "f" * 32)
    await driven.start()
    try:
        driven.lead()
        # The other members of this one's cluster lead from here on, and one of them is not of this cluster.
        driven.acknowledge()
        state, name = driven.engine.machine.digest(), driven.engine.cluster_id()
        assert name == "f" * 32
        with contextlib.suppress(ValueError):
            driven.engine.message_received("n2", begin)
            driven.engine.message_received("n2", pieces[begin["name"]])
        assert (driven.engine.machine.digest(), driven.engine.cluster_id()) == (state, name)
        assert not driven.engine.failed.done()
    finally:
        await driven.engine.stop(transfer=False)


@pytest.mark.parametrize("following", [0, 1000, 2**40])
@pytest.mark.parametrize("success", [False, True])
async def test_a_follower_that_counts_wrongly_is_sent_nothing_it_cannot_take(
    tmp_path: Path, recorded: Recorded, following: int, success: bool
) -> None:
    driven = Driven(tmp_path, recorded.cluster_id)
    await driven.start()
    try:
        driven.lead()
        answer = {"type": "next_node_idx", "term": driven.raft.term, "success": success, "reset": not success}
        driven.receive("n3", {**answer, "next_node_idx": following})
        driven.around.sent.clear()
        driven.raft.propose(b"\x93\x00\x01\x90")
        await until(lambda: any(peer == "n3" for peer, _ in driven.around.sent))
        for peer, message in driven.around.sent:
            if peer == "n3":
                messages.check(codec.loads(codec.dumps(message)), 1 << 20)
        # And once it says what is so, it is sent what it lacks.
        driven.receive("n3", {**answer, "success": False, "reset": True, "next_node_idx": 2})
        driven.around.sent.clear()
        await until(
            lambda: any(peer == "n3" and message.get("entries") for peer, message in driven.around.sent), timeout_s=5
        )
        assert not driven.engine.failed.done()
    finally:
        await driven.engine.stop(transfer=False)


@pytest.mark.parametrize(
    "entry",
    [
        (0, "soon", []),
        (0, 1, [(1, 2, 3, 4, 5)]),
        (0, 1, [("n1", 1, 1, 1, "text")]),
        (0, 1, [("n1", 1, "one", 1, b"x")]),
        (0, 1, [("n1", "one", 1, 1, b"x"), ("n1", 1, 1, 1)]),
        (1, 1, 5),
        (2, 1, 7),
        (0, 1),
        None,
    ],
)
def test_an_entry_that_cannot_be_read_changes_nothing_and_is_not_skipped(entry: Any) -> None:
    replica = Replica(Recorder(), lambda batch, outcome: None)
    before = replica.head()
    with pytest.raises(NotUnderstood):
        replica.apply(3, codec.dumps(entry))
    assert (replica.head(), replica.machine.digest()) == (before, Recorder().digest())
    replica.apply(4, encode_batches(7, [Batch("n1", 1, 1, 1, b"sound")]))
    assert replica.machine.applied == [b"sound"]  # type: ignore[attr-defined]


async def test_every_message_that_is_acted_upon_is_checked_first(tmp_path: Path) -> None:
    driven = Driven(tmp_path, "f" * 32)
    await driven.start()
    handled = set(driven.engine._handlers) | {name[4:] for name in vars(Raft) if name.startswith("_on_")}
    await driven.engine.stop(transfer=False)
    assert handled == set(messages.FIELDS)


def test_every_real_message_passes(recorded: Recorded) -> None:
    for samples in recorded.messages.values():
        for body in samples:
            messages.check(codec.loads(body), 1 << 20)
    seldom = {"change", "changed", "stale_term", "batch_no", "stepped_down", "timeout_now"}
    seldom |= {"relay", "relay_ask", "relay_open", "relay_closed"}
    assert set(recorded.messages) | seldom >= set(messages.FIELDS)


@pytest.mark.parametrize(
    "body",
    [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 100_000, b"\x81" * 100_000],
)
def test_lengths_that_lie_cost_nothing(body: bytes) -> None:
    with pytest.raises(ValueError, match="not a message"):
        codec.loads(body)


async def test_what_is_logged_of_a_broken_frame_does_not_quote_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with two_of_three(tmp_path) as cluster:
        with caplog.at_level(logging.DEBUG):
            for body in (
                codec.dumps({"type": "batch", "batch": ("n3", 1, "job data", 1, b"job data")}),
                codec.dumps({"job data": "job data"}),
                b"\xa9job data\xff",
            ):
                dialler = Dialler(cluster, "n1")
                await dialler.prove()
                dialler.send(body)
                assert await dialler.closed()
                dialler.close()
            dialler = Dialler(cluster, "n1", name="evil\n2026 ERROR forged line")
            await dialler.connect()
            dialler.send(dialler.hello())
            assert await dialler.closed()
            dialler.close()
        assert "broken frame" in caplog.text
        assert "job data" not in caplog.text and "forged" not in caplog.text


@pytest.mark.long
@pytest.mark.timeout(3600)
async def test_a_million_broken_messages(tmp_path: Path, recorded: Recorded, seed: int) -> None:
    await fuzz_by_strangers(tmp_path / "strangers", recorded, seed, 20_000, **PATIENCE)
    await fuzz_by_a_member(tmp_path / "member", recorded, seed, 100_000, **PATIENCE)
    await drive(tmp_path / "driven", recorded, seed, 850_000)

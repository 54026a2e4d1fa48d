"""Real messages of a cluster, and a generator of broken ones made from them."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest import mock

from quorumq.cluster import codec
from quorumq.cluster.handshake import PeerConnection
from quorumq.cluster.links import Links
from tests.consensus.test_engine import Cluster, fresh, running, until, write

SAMPLES_OF_A_KIND = 40
NUMBERS = [-1, 0, 1, 2, 3, 255, 2**31, 2**32 - 1, 2**62 - 1, 2**62, 2**63 - 1, 2**64 - 1, -(2**63)]


def deep(levels: int) -> bytes:
    """A list in a list in a list …"""
    return b"\x91" * levels + b"\xc0"


class Recorded:
    """Bodies of frames by the type of their message, those of the handshakes apart."""

    def __init__(self) -> None:
        self.messages: dict[str, list[bytes]] = defaultdict(list)
        self.handshakes: dict[str, list[bytes]] = defaultdict(list)
        self.cluster_id = ""

    def add(self, kinds: dict[str, list[bytes]], message: dict[str, Any]) -> None:
        samples = kinds[message["type"]]
        if len(samples) < SAMPLES_OF_A_KIND:
            samples.append(codec.dumps(message))


async def record(directory: Path) -> Recorded:
    """Let a cluster do everything it can, and keep what its nodes said to each other."""
    recorded = Recorded()
    deliver, send = Links.deliver, PeerConnection.send

    def delivered(self: Links, peer: str, message: dict[str, Any]) -> None:
        recorded.add(recorded.messages, message)
        deliver(self, peer, message)

    def sent(self: PeerConnection, message: dict[str, Any]) -> None:
        recorded.add(recorded.handshakes, message)
        send(self, message)

    cluster = Cluster(
        directory, snapshot_log_entries=40, tail_entries=5, segment_bytes=2000, snapshot_interval_ms=50, secret="known"
    )
    with mock.patch.object(Links, "deliver", delivered), mock.patch.object(PeerConnection, "send", sent):
        async with running(cluster):
            for number in range(20):
                node = f"n{number % 3 + 1}"
                await cluster.write(node, b"%d" % number * (1 + number * 20))
                await fresh(cluster.engines[node])
            recorded.cluster_id = (await cluster.led()).cluster_id()
            await (await cluster.led()).transfer_leadership()
            await cluster.write("n1", b"after")
            follower = cluster.follower().node_id
            await cluster.stop(follower)
            shutil.rmtree(directory / follower)
            survivor = next(iter(cluster.engines))
            await asyncio.gather(*(write(cluster.engines[survivor], b"%d" % number) for number in range(50)))
            for number in range(60):
                await cluster.write(survivor, b"%d" % number)
            await until(lambda: cluster.leader.status().snapshot_index > 40)
            await cluster.start(follower)
            await fresh(cluster.engines[follower])
            # Wiped, it does not vote at once, and without its vote there would be no leader after this one.
            await until(lambda: cluster.engines[follower]._raft.may_vote)
            await cluster.stop((await cluster.led()).node_id)
            await until(lambda: any(engine.is_leader for engine in cluster.engines.values()))
    return recorded


class Mutator:
    """Broken copies of what was recorded, the same for the same seed."""

    def __init__(self, seed: int, samples: dict[str, list[bytes]]) -> None:
        self.rng = random.Random(seed)
        self._samples = samples
        self._kinds = sorted(samples)
        self._fields = [value for kind in self._kinds for body in samples[kind] for value in codec.loads(body).values()]

    def sample(self) -> bytes:
        """A message as it was."""
        return self.rng.choice(self._samples[self.rng.choice(self._kinds)])

    def body(self) -> bytes:
        """The body of a frame, broken in its bytes or in its fields."""
        rng = self.rng
        if rng.random() < 0.5:
            return codec.dumps(self.message())
        body = bytearray(self.sample())
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            at = rng.randrange(len(body)) if body else 0
            how = rng.randrange(6)
            if how == 0 and body:
                body[at] ^= 1 << rng.randrange(8)
            elif how == 1:
                del body[at:]
            elif how == 2:
                piece = body[at : at + rng.randrange(1, 40)]
                body[at:at] = piece
            elif how == 3:
                body[at:at] = rng.randbytes(rng.randrange(1, 20))
            elif how == 4:
                # Lengths far beyond what follows: of a list, a map, a text, bytes, an extension.
                body[at:at] = bytes([rng.choice((0xDD, 0xDF, 0xDB, 0xC6, 0xC9))]) + rng.randbytes(4)
            else:
                body[at:at] = deep(rng.choice((3, 100, 2000)))
        return bytes(body)

    def message(self) -> dict[Any, Any]:
        """A message whose encoding is sound and whose fields are not."""
        rng = self.rng
        message = dict(codec.loads(self.sample()))
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            fields = list(message)
            if not fields:
                break
            field = rng.choice(fields)
            how = rng.randrange(6)
            if how == 0:
                del message[field]
            elif how == 1:
                message[field] = self.value()
            elif how == 2:
                message[field] = rng.choice(self._fields)
            elif how == 3:
                message[rng.choice(fields)] = message[field]
            elif how == 4:
                message[field] = self.inside(message[field])
            else:
                message[rng.choice(("transmission", "serialized", "data", "entries", 7, b"type", None))] = self.value()
        return message

    def inside(self, value: Any) -> Any:
        """The value, with something changed in it."""
        rng = self.rng
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            changed = rng.choice((value + 1, value - 1, value + rng.randrange(1, 1000), -value, value * 2**40))
            return min(max(changed, -(2**63)), 2**64 - 1)
        if isinstance(value, (str, bytes)):
            at = rng.randrange(len(value) + 1)
            return value[:at] + value[at + rng.randrange(3) :]
        if isinstance(value, (tuple, list)) and value:
            at = rng.randrange(len(value))
            how = rng.randrange(4)
            parts = list(value)
            if how == 0:
                del parts[at]
            elif how == 1:
                parts.insert(at, parts[at])
            elif how == 2:
                parts[at] = self.value()
            else:
                parts[at] = self.inside(parts[at])
            return tuple(parts)
        return self.value()

    def value(self) -> Any:
        """Anything at all."""
        rng = self.rng
        simple = [None, True, False, 1.5, float("inf"), "", "x", "\n" * 300, b"", b"\x00", b"y" * 300, (), {}, ((),)]
        return rng.choice([*simple, *NUMBERS, rng.choice(self._fields), {"type": "append_entries"}, [[[[1]]]]])

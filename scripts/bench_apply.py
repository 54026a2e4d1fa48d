#!/usr/bin/env python3
"""Measure the state machine alone: microseconds per job in apply, memory per waiting job, image and restore.

    python scripts/bench_apply.py [--jobs 1000000] [--data-bytes 200] [--events]

No network, no log: this is what every node pays for every job, whoever leads. Times are CPU time of this process. Budget,
on one core: 6 µs a job for each of push, pull and ack in batches of 100; 1.2 KB a waiting job; a million waiting jobs
restored in 20 s.
"""

from __future__ import annotations

import argparse
import gc
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operation import Operation
from quorumq.node.machine.operations.jobs import PushJobs
from quorumq.node.machine.operations.runs import AckJobs, PullJobs
from quorumq.node.machine.state import JobSpec, Options

BATCH = 100
START_MS = 1_800_000_000_000
RESULT = b'{"sha256":"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08","lines":12}'
encode = msgspec.msgpack.Encoder().encode


def resident_bytes() -> int:
    """Return the memory of this process that is in RAM."""
    with Path("/proc/self/statm").open("rb") as file:
        return int(file.read().split()[1]) * 4096


def ids(count: int, prefix: str) -> list[str]:
    """Return ids as long as those the API makes."""
    return [f"{prefix}-6983-7000-946f-{i:012x}" for i in range(count)]


class Bench:
    """A machine that is fed encoded batches, and a table of what that took."""

    def __init__(self, *, events: bool) -> None:
        self.machine = Machine()
        self.machine.events_wanted = events
        self.now_ms = START_MS

    def feed(self, name: str, jobs: int, operations: Iterator[Operation]) -> None:
        """Apply operations, and print what that took."""
        took = self.took(operations)
        print(f"{name:<44}{took / jobs * 1e6:8.2f} µs a job{jobs / took:12,.0f} jobs/s")

    def took(self, operations: Iterator[Operation]) -> float:
        """Apply each operation as an entry of its own; return the CPU seconds of that, those of encoding left out."""
        took = 0.0
        # In parts, so that the encoded batches do not stand in memory beside the state.
        part: list[bytes] = []
        for operation in operations:
            part.append(encode([operation]))
            if len(part) == 100:
                took += self.apply(part)
                part = []
        return took + self.apply(part)

    def apply(self, payloads: list[bytes]) -> float:
        began = time.process_time()
        for payload in payloads:
            self.now_ms += 1
            self.machine.apply(self.machine.index + 1, self.now_ms, [payload])
        return time.process_time() - began


def pushes(names: list[str], data: bytes, size: int, options: list[Options], queue: str) -> Iterator[Operation]:
    for at in range(0, len(names), size):
        specs = [JobSpec(name, data, options[i % len(options)]) for i, name in enumerate(names[at : at + size])]
        yield PushJobs(queue, specs)


def pulls(count: int, owner: str | None) -> Iterator[Operation]:
    for at in range(0, count, BATCH):
        yield PullJobs("bench", BATCH, owner, None if owner is None else 30_000, f"{at:032x}")


def acks(names: list[str], *, locked: bool) -> Iterator[Operation]:
    for at in range(0, len(names), BATCH):
        part = names[at : at + BATCH]
        tokens = [f"{at:032x}-{i}" for i in range(len(part))] if locked else []
        yield AckJobs(part, tokens, [RESULT] * len(part))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the state machine alone.")
    parser.add_argument("--jobs", type=int, default=1_000_000, help="waiting jobs held")
    parser.add_argument("--data-bytes", type=int, default=200)
    parser.add_argument("--events", action="store_true", help="collect events, as a node with listeners does")
    parser.add_argument("--gc", action="store_true", help="leave the garbage collector on while measuring")
    given = parser.parse_args()

    data = b'"' + b"x" * (given.data_bytes - 2) + b'"'
    bench = Bench(events=given.events)
    print(f"Python {platform.python_version()}, {given.jobs:,} jobs of {given.data_bytes} bytes, batches of {BATCH}")
    names = ids(given.jobs, "019ce9d7")
    gc.collect()
    if not given.gc:
        gc.disable()
    before = resident_bytes()
    bench.feed("push in bulks of 100", given.jobs, pushes(names, data, BATCH, [Options()], "bench"))
    # The names belong to this script; the machine has copies of its own.
    print(f"{'memory a waiting job':<44}{(resident_bytes() - before) / given.jobs:8.0f} bytes")

    began = time.process_time()
    pieces = list(bench.machine.image())
    took = time.process_time() - began
    size = sum(map(len, pieces))
    print(f"{'image of all jobs':<44}{took:8.2f} s{size / 1e6:12,.0f} MB in {len(pieces)} pieces")
    other = Machine()
    began = time.process_time()
    other.restore(pieces)
    print(f"{'restore':<44}{time.process_time() - began:8.2f} s")
    assert other.digest() == bench.machine.digest()
    del other, pieces
    gc.collect()

    part = given.jobs // 5 // BATCH * BATCH
    plain, locked = names[:part], names[part : 2 * part]
    bench.feed("pull in batches of 100", part, pulls(part, None))
    bench.feed("ack in batches of 100", part, acks(plain, locked=False))
    bench.feed("pull in batches of 100, locked", part, pulls(part, "worker"))
    bench.feed("ack in batches of 100, locked", part, acks(locked, locked=True))
    more = ids(part, "019cffff")
    bench.feed("push one by one", part, pushes(more, data, 1, [Options()], "single"))
    mixed = [Options(priority=p, max_attempts=5, backoff=500) for p in range(11)]
    bench.feed("push in bulks of 100, 11 priorities", part, pushes(ids(part, "019caaaa"), data, BATCH, mixed, "mixed"))
    delayed = [Options(delay_ms=d * 60_000) for d in range(1, 11)]
    bench.feed("push in bulks of 100, delayed", part, pushes(ids(part, "019cbbbb"), data, BATCH, delayed, "delayed"))
    assert bench.machine.errors == 0


if __name__ == "__main__":
    main()

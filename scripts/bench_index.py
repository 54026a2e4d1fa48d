#!/usr/bin/env python3
"""Compare what could carry the jobs' indexes: `Ranked` beside the structures of sortedcontainers, each under the whole state machine.

    python scripts/bench_index.py [--jobs 100000] [--rounds 3]

Each candidate runs in processes of its own, one after the other in every round; the least of the rounds counts. Memory is of a waiting
job with all that it needs, times are microseconds of CPU a job, in batches of 100. The last two are of the index alone:
a job taken out of the middle, and a job put in there. node/DESIGN.md has the table.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sortedcontainers import SortedDict, SortedKeyList, SortedList

from quorumq.node.machine.state import Options
from quorumq.node.machine.state.job import DELAYED, WAITING, Job, due_rank_of, rank_of
from quorumq.node.machine.state.queue import Queue, QueueSettings
from quorumq.node.machine.state.ranked import Ranked
from scripts.bench_apply import BATCH, Bench, acks, ids, pulls, pushes, resident_bytes


class Pairs:
    """A SortedList of (rank, job)."""

    def __init__(self) -> None:
        self.items: Any = SortedList()

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Job]:
        return (job for _, job in self.items)

    def add(self, rank: int, job: Job) -> None:
        self.items.add((rank, job))

    def remove(self, rank: int) -> Job:
        job: Job = self.items.pop(self.items.bisect_left((rank,)))[1]
        return job

    def pop_first(self, count: int) -> list[Job]:
        # One by one from the front is faster than a slice of it.
        return [self.items.pop(0)[1] for _ in range(min(count, len(self)))]

    def after(self, rank: int | None, limit: int) -> list[tuple[int, Job]]:
        begin = 0 if rank is None else self.items.bisect_left((rank + 1,))
        return list(self.items.islice(begin, begin + limit))


class Keyed:
    """A SortedKeyList of records, which works ranks out of them; what of, the state of its first job says."""

    def __init__(self) -> None:
        self.items: Any = None
        self.rank_of: Callable[[Job], int]

    def __len__(self) -> int:
        return 0 if self.items is None else len(self.items)

    def __iter__(self) -> Iterator[Job]:
        return iter(self.items or ())

    def add(self, rank: int, job: Job) -> None:
        if self.items is None:
            self.rank_of = {WAITING: rank_of, DELAYED: due_rank_of}.get(job.state, attrgetter("ending"))
            self.items = SortedKeyList(key=self.rank_of)
        self.items.add(job)

    def remove(self, rank: int) -> Job:
        job: Job = self.items.pop(self.items.bisect_key_left(rank))
        return job

    def pop_first(self, count: int) -> list[Job]:
        return [self.items.pop(0) for _ in range(min(count, len(self)))]

    def after(self, rank: int | None, limit: int) -> list[tuple[int, Job]]:
        begin = 0 if rank is None else self.items.bisect_key_right(rank)
        return [(self.rank_of(job), job) for job in islice(self.items or (), begin, begin + limit)]


class Mapped:
    """A SortedDict from rank to job."""

    def __init__(self) -> None:
        self.items: Any = SortedDict()

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Job]:
        return iter(self.items.values())

    def add(self, rank: int, job: Job) -> None:
        self.items[rank] = job

    def remove(self, rank: int) -> Job:
        job: Job = self.items.pop(rank)
        return job

    def pop_first(self, count: int) -> list[Job]:
        return [self.items.popitem(0)[1] for _ in range(min(count, len(self.items)))]

    def after(self, rank: int | None, limit: int) -> list[tuple[int, Job]]:
        return [(each, self.items[each]) for each in islice(self.items.irange(rank, inclusive=(False, True)), limit)]


CANDIDATES: dict[str, Any] = {
    "Ranked": Ranked,
    "SortedList of (rank, job)": Pairs,
    "SortedKeyList of records": Keyed,
    "SortedDict": Mapped,
}


def measure(name: str, count: int) -> dict[str, float]:
    """Return the figures of one candidate, in this process."""
    for module in [each for each in sys.modules.values() if getattr(each, "Ranked", None) is Ranked]:
        if module.__name__ != __name__:
            vars(module)["Ranked"] = CANDIDATES[name]
    assert type(Queue("q", QueueSettings()).ready) is CANDIDATES[name]
    bench, names, data = Bench(events=False), ids(count, "019ce9d7"), b'"' + b"x" * 198 + b'"'
    gc.collect()
    gc.disable()
    found: dict[str, float] = {}
    before = resident_bytes()
    found["push"] = bench.took(pushes(names, data, BATCH, [Options()], "bench")) / count
    found["bytes"] = (resident_bytes() - before) / count
    part = count // 2 // BATCH * BATCH
    found["pull"] = bench.took(pulls(part, None)) / part
    found["ack"] = bench.took(acks(names[:part], locked=False)) / part
    assert bench.machine.errors == 0
    index: Any = bench.machine.state.queues["bench"].ready
    waiting = list(index)
    some = random.Random(1).sample(waiting, min(20_000, len(waiting) // 2))
    began = time.process_time()
    for job in some:
        index.remove(rank_of(job))
    found["remove"] = (time.process_time() - began) / len(some)
    began = time.process_time()
    for job in some:
        index.add(rank_of(job), job)
    found["insert"] = (time.process_time() - began) / len(some)
    assert list(index) == waiting
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare what could carry the jobs' indexes.")
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=CANDIDATES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.jobs)))
        return
    best: dict[str, dict[str, float]] = {}
    for _ in range(given.rounds):
        for name in CANDIDATES:
            command = [sys.executable, __file__, "--one", name, "--jobs", str(given.jobs)]
            one = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            old = best.setdefault(name, one)
            best[name] = {key: min(old[key], one[key]) for key in one}
    print(f"{given.jobs:,} jobs, the least of {given.rounds} rounds")
    print(f"{'':<28}{'bytes':>7}" + "".join(f"{key:>9}" for key in ("push", "pull", "ack", "remove", "insert")))
    for name, one in best.items():
        times = "".join(f"{one[key] * 1e6:9.2f}" for key in ("push", "pull", "ack", "remove", "insert"))
        print(f"{name:<28}{one['bytes']:7.0f}{times}")


if __name__ == "__main__":
    main()

"""How long writes pause when the leader dies, hands over or freezes: real processes, one client, many rounds.

The client writes one job after another to a node that stays up; the pause is the longest time between two
acknowledgements around the fault. Any error it sees is counted, and there should be none. With `--load` other clients push, take
and complete jobs at every node all the while. Every pause that is longer than `--over` is printed with what the nodes' logs
say of it, and how long they waited for a processor meanwhile (pauses.py). `--keep` writes the rounds to a file, `--table` prints
those of several files.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import signal
import statistics
import sys
import time
from pathlib import Path

import aiohttp
import msgspec

from scripts.tools.pauses import Meter, Pause, parts_of, said, table, wall
from tests.support.local_cluster import LocalCluster, LocalNode

TARGETS_MS = {"kill": (300, 700), "transfer": (150, None), "freeze": (2000, 2000)}


class Writer:
    """Pushes job after job to one node and remembers when each was acknowledged."""

    def __init__(self, node: LocalNode, session: aiohttp.ClientSession) -> None:
        self._url = f"{node.url}/queues/failover/jobs"
        self._session = session
        self._task = asyncio.create_task(self._write())
        self.acknowledged: list[float] = []
        self.errors: list[str] = []

    async def _write(self) -> None:
        body = json.dumps({"data": {"n": 1}}).encode()
        while True:
            async with self._session.post(self._url, data=body) as response:
                text = await response.text()
                if response.status == 200:
                    self.acknowledged.append(time.monotonic())
                else:
                    self.errors.append(f"{response.status} {text[:120]}")

    async def flows(self, count: int = 50) -> None:
        """Wait until `count` further writes were acknowledged."""
        goal = len(self.acknowledged) + count
        while len(self.acknowledged) < goal:
            if self._task.done():
                self._task.result()
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def longest_pause(self, since: float) -> tuple[float, float]:
        """When the longest pause after `since` began and ended, by time.monotonic()."""
        times = [at for at in self.acknowledged if at >= since]
        before = [at for at in self.acknowledged if at < since][-1:]
        return max(itertools.pairwise(before + times), key=lambda pair: pair[1] - pair[0])

    def pause_at(self, moment: float) -> float:
        """How many milliseconds passed between the acknowledgements around a moment."""
        before = [at for at in self.acknowledged if at < moment]
        return (next(at for at in self.acknowledged if at >= moment) - before[-1]) * 1000


class Load:
    """Clients at every node, each of which pushes, takes and completes one job after another; what fails is tried again."""

    def __init__(self, nodes: list[LocalNode], count: int, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._tasks = [asyncio.create_task(self._cycle(node, n)) for n in range(count) for node in nodes]
        self.cycles = 0

    async def _cycle(self, node: LocalNode, number: int) -> None:
        queue = f"{node.url}/queues/load-{node.id}-{number}/jobs"
        while True:
            with contextlib.suppress(aiohttp.ClientError, KeyError, TypeError, ValueError):
                await self._ask("POST", queue, {"data": {"to": "someone@example.com"}})
                job = (await self._ask("GET", queue))["job"]
                await self._ask("POST", f"{node.url}/jobs/{job['id']}/ack", {"result": {"sent": True}})
                self.cycles += 1
                continue
            await asyncio.sleep(0.05)

    async def _ask(self, method: str, url: str, body: object = None) -> dict[str, dict[str, str]]:
        async with self._session.request(method, url, json=body) as response:
            answer: dict[str, dict[str, str]] = await response.json(content_type=None)
            return answer

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def one_round(
    cluster: LocalCluster, kind: str, session: aiohttp.ClientSession, number: int = 0, load: int = 0
) -> Pause:
    """Inflict the fault on the leader once; returns the pause, and what is known of its reason."""
    leader = await cluster.leader()
    others = [node for node in cluster.running() if node is not leader]
    busy = Load(cluster.running(), load, session)
    writer = Writer(others[0], session)
    await writer.flows()
    meter = Meter(others, cluster.folder)
    began = time.monotonic()
    if kind == "kill":
        await leader.kill()
    elif kind == "transfer":
        leader.signal(signal.SIGTERM)
    else:
        leader.signal(signal.SIGSTOP)
    died = time.monotonic()
    await writer.flows(100)
    start, end = writer.longest_pause(began)
    machine = meter.read(start, end)
    await busy.stop()
    await writer.stop()
    if kind == "freeze":
        leader.signal(signal.SIGCONT)
    elif kind == "transfer":
        await leader.exited()
    if not leader.running:
        await leader.start()
    lines, ms = said(others, wall(start), wall(end)), (end - start) * 1000
    # On a busy machine a process may take long to start; nothing is measured meanwhile.
    await cluster.ready(timeout_s=600)
    await cluster.converged(timeout_s=600)
    return Pause(number, ms, writer.pause_at(died), parts_of(lines, ms), machine, writer.errors, lines)


async def measure(kinds: list[str], rounds: int, load: int, over_ms: float, keep: Path | None) -> int:
    worst = 0
    # Every connection of the load may be under way at once.
    unbounded = aiohttp.TCPConnector(limit=0)
    async with LocalCluster() as cluster, aiohttp.ClientSession(connector=unbounded) as session:
        for kind in kinds:
            pauses: list[Pause] = []
            for number in range(1, rounds + 1):
                pauses.append(await one_round(cluster, kind, session, number, load))
                if keep is not None:
                    with keep.open("ab") as file:
                        file.write(msgspec.json.encode(pauses[-1]) + b"\n")
            times = [pause.ms for pause in pauses]
            errors = [error for pause in pauses for error in pause.errors]
            median_target, most_target = TARGETS_MS[kind]
            median, most = statistics.median(times), max(times)
            met = median <= median_target and (most_target is None or most <= most_target) and not errors
            worst |= not met
            print(
                f"{kind:<9} {rounds} rounds: writes paused {median:.0f} ms at the median, {most:.0f} ms at most, "
                f"{len(errors)} errors   target {median_target}/{most_target or '-'} ms {'met' if met else 'NOT met'}",
                flush=True,
            )
            for error in errors[:3]:
                print(f"    {error}")
            print(table(pauses, over_ms), flush=True)
    return worst


def kept(files: list[Path]) -> list[Pause]:
    """Read the rounds that `--keep` wrote."""
    decode = msgspec.json.Decoder(Pause).decode
    return [decode(line) for file in files for line in file.read_bytes().splitlines()]


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/failover", description=__doc__)
    parser.add_argument(
        "kinds", nargs="*", metavar="KIND", help=f"which faults: {', '.join(TARGETS_MS)} (default: all)"
    )
    parser.add_argument("--rounds", type=int, default=20, help="of each fault (default: 20)")
    parser.add_argument("--load", type=int, default=0, help="clients at each node that push, take and complete jobs")
    parser.add_argument(
        "--over", type=float, default=500, help="explain pauses longer than this many ms (default: 500)"
    )
    parser.add_argument("--keep", type=Path, help="append each round to this file")
    parser.add_argument("--table", type=Path, nargs="+", help="run nothing, print the rounds of these files")
    args = parser.parse_args()
    if args.table:
        print(table(kept(args.table), args.over))
        return 0
    if unknown := sorted(set(args.kinds) - set(TARGETS_MS)):
        parser.error(f"no such fault: {', '.join(unknown)}")
    return asyncio.run(measure(args.kinds or list(TARGETS_MS), args.rounds, args.load, args.over, args.keep))


if __name__ == "__main__":
    sys.exit(main())

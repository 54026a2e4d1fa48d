"""How long writes pause when the leader dies, hands over or freezes: real processes, one client, many rounds.

The client writes one job after another to a node that stays up; the pause is the longest time between two
acknowledgements around the fault. Any error it sees is counted, and there should be none.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import signal
import statistics
import sys
import time

import aiohttp

from scripts.tools.local_cluster import LocalCluster, LocalNode

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

    def longest_pause_ms(self, since: float) -> float:
        times = [at for at in self.acknowledged if at >= since]
        before = [at for at in self.acknowledged if at < since][-1:]
        times = before + times
        return max(b - a for a, b in itertools.pairwise(times)) * 1000


async def one_round(cluster: LocalCluster, kind: str, session: aiohttp.ClientSession) -> tuple[float, list[str]]:
    """Inflict the fault on the leader once; returns the pause in milliseconds and the errors the client saw."""
    leader = await cluster.leader()
    client_of = next(node for node in cluster.running() if node is not leader)
    writer = Writer(client_of, session)
    await writer.flows()
    began = time.monotonic()
    if kind == "kill":
        await leader.kill()
    elif kind == "transfer":
        leader.signal(signal.SIGTERM)
    else:
        leader.signal(signal.SIGSTOP)
    await writer.flows(100)
    await writer.stop()
    if kind == "freeze":
        leader.signal(signal.SIGCONT)
    elif kind == "transfer":
        await leader.exited()
    if not leader.running:
        await leader.start()
    await cluster.ready()
    await cluster.converged()
    return writer.longest_pause_ms(began), writer.errors


async def measure(kinds: list[str], rounds: int) -> int:
    worst = 0
    async with LocalCluster() as cluster, aiohttp.ClientSession() as session:
        for kind in kinds:
            pauses: list[float] = []
            errors: list[str] = []
            for _ in range(rounds):
                pause, seen = await one_round(cluster, kind, session)
                pauses.append(pause)
                errors += seen
            median_target, most_target = TARGETS_MS[kind]
            median, most = statistics.median(pauses), max(pauses)
            met = median <= median_target and (most_target is None or most <= most_target) and not errors
            worst |= not met
            print(
                f"{kind:<9} {rounds} rounds: writes paused {median:.0f} ms at the median, {most:.0f} ms at most, "
                f"{len(errors)} errors   target {median_target}/{most_target or '-'} ms {'met' if met else 'NOT met'}",
                flush=True,
            )
            for error in errors[:3]:
                print(f"    {error}")
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/failover", description=__doc__)
    parser.add_argument(
        "kinds", nargs="*", metavar="KIND", help=f"which faults: {', '.join(TARGETS_MS)} (default: all)"
    )
    parser.add_argument("--rounds", type=int, default=20, help="of each fault (default: 20)")
    args = parser.parse_args()
    if unknown := sorted(set(args.kinds) - set(TARGETS_MS)):
        parser.error(f"no such fault: {', '.join(unknown)}")
    return asyncio.run(measure(args.kinds or list(TARGETS_MS), args.rounds))


if __name__ == "__main__":
    sys.exit(main())

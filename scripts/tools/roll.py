"""Rolling restarts behind a balancer, again and again until there were enough requests; how many of them failed, for each run.

The client pushes, pulls and acknowledges about as many times a second as it is told to and repeats nothing. What counts is that no request
fails, that no job is lost and that none is acknowledged twice; the exit status is 1 when that is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import Any

from tests.support.balancer import Balancer
from tests.support.haproxy import PROGRAM, Haproxy
from tests.support.local_cluster import ClusterTrouble, LocalCluster
from tests.support.rolling import Client, Load, lost, roll

BALANCERS = ("plain", "haproxy-0", "haproxy")
WORKERS = 4
# Acknowledgements between two steps, so that each state is one for some seconds.
ACKED = 150


def before(cluster: LocalCluster, which: str, poll_ms: int) -> Any:
    """The balancer by its name: without retries of its own, HAProxy with none, and as it comes."""
    if which == "plain":
        return Balancer(cluster.nodes, look_s=poll_ms / 1000)
    return Haproxy(cluster.nodes, inter_ms=poll_ms, retries=0 if which == "haproxy-0" else None)


async def one_run(which: str, arguments: argparse.Namespace) -> list[str]:
    """Restart all nodes until there were enough requests; print a row and return what went wrong."""
    async with (
        LocalCluster(3, SHUTDOWN_DELAY_MS=str(arguments.delay)) as cluster,
        before(cluster, which, arguments.poll) as balancer,
    ):
        began, rounds = time.monotonic(), 0
        async with Load(Client(balancer.url, arguments.rate), WORKERS) as client:
            while client.requests < arguments.requests:
                await roll(cluster, client, ACKED)
                rounds += 1
        took_s = time.monotonic() - began
        await cluster.converged()
        wrong = [*client.failed, *(f"{job} was acknowledged twice" for job in client.doubled)]
        wrong += await lost(client, cluster.nodes[0])
    per_s = client.requests / took_s
    print(
        f"{which:10} {client.requests:7,} {per_s:9.0f}/s {3 * rounds:9} {len(client.failed):7} {len(client.doubled):8} "
        f"{len(wrong) - len(client.failed) - len(client.doubled):5}",
        flush=True,
    )
    for line in wrong[:10]:
        print(f"           {line}", flush=True)
    return wrong


async def run(arguments: argparse.Namespace) -> int:
    print("balancer   requests       rate  restarts  failed  doubled  lost")
    wrong = []
    for which in arguments.balancers or BALANCERS:
        if which != "plain" and PROGRAM is None:
            print(f"{which:10} haproxy is not there")
            continue
        for _ in range(arguments.runs):
            wrong += await one_run(which, arguments)
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/roll", description=__doc__)
    parser.add_argument("balancers", nargs="*", help=f"of {', '.join(BALANCERS)}; all of them when left out")
    parser.add_argument("--runs", type=int, default=3, help="of each balancer, in a row (3)")
    parser.add_argument("--requests", type=int, default=8_000, help="of each run, at least (8,000)")
    parser.add_argument("--rate", type=float, default=180, help="requests a second that are tried (180)")
    parser.add_argument("--poll", type=int, default=500, help="milliseconds between two looks of the balancer (500)")
    parser.add_argument("--delay", type=int, default=5_000, help="SHUTDOWN_DELAY_MS (5,000)")
    arguments = parser.parse_args()
    if unknown := set(arguments.balancers) - set(BALANCERS):
        parser.error(f"no balancer is called {', '.join(sorted(unknown))}")
    try:
        return asyncio.run(run(arguments))
    except ClusterTrouble as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

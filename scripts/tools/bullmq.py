"""BullMQ on quorumq: the adapter's own tests, and BullMQ's own, unedited test files, against a cluster of three nodes.

`adapter` installs what clients/bullmq-node/package-lock.json names, builds it and runs its tests; where Node is not here it says so and
is content. `suite` needs a checkout of BullMQ with its dependencies (BULLMQ_SRC) and the harness that runs any backend
(BULLMQ_HARNESS); each file of tests has a process of its own, and a limit of time. `bench` measures the same loads on Redis and PostgreSQL,
which you start, round by round in the same run; it needs `ioredis` and `pg` in the adapter's node_modules for them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.local_cluster import LocalCluster

HERE = Path(__file__).resolve().parents[2]
ADAPTER = HERE / "clients" / "bullmq-node"
HARNESS = HERE.parent / "shared" / "conformance" / "bullmq-suite"
# What has to pass: passed of Redis itself where that is known.
FILES = {
    "async_fifo_queue": 7, "bulk": 4, "child-pool": 16, "child_stdio_null": 2, "clean": 33, "concurrency": 10, "deduplication": 28,
    "delay": 11, "events": 17, "flow": 74, "getters": 43, "job": 77, "job_cancellation": 23, "job_cancellation_advanced": 21,
    "lock_manager": 19, "obliterate": 2, "pause": 13, "queue": 30, "rate_limiter": 26, "sandboxed_process": 99, "stalled_jobs": 14,
    "telemetry_interface": 29, "worker": 123,
}  # fmt: skip
# Which tests are not expected to pass, by file, and why.
EXEMPT = HERE / "docs" / "bullmq-tests.md"
DOWN_S = 3.0
# Until it is ready again; a busy machine takes long.
BACK_S = 300.0


class Kill(NamedTuple):
    """Which leader was killed, and when, in milliseconds since the epoch."""

    node: str
    at_ms: int


class Missing(Exception):
    """It cannot run here; the message says why."""


def run(command: Sequence[str], folder: Path) -> None:
    """Run a command to its end. Raises Missing with what it said last."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"{' '.join(command)} failed: {(done.stderr or done.stdout)[-300:].strip()}")


def build() -> None:
    """Install what the adapter needs, once, and compile it. Raises Missing."""
    if not shutil.which("npm") or not shutil.which("node"):
        raise Missing("node and npm are not here")
    wanted, had = ADAPTER / "package-lock.json", ADAPTER / "node_modules" / ".quorumq-lock.json"
    if not had.exists() or had.read_bytes() != wanted.read_bytes():
        print("installing what the adapter needs into clients/bullmq-node, once", file=sys.stderr)
        run(["npm", "ci", "--no-progress", "--ignore-scripts", "--fetch-retries=1"], ADAPTER)
        shutil.copy(wanted, had)
    done = subprocess.run(["npm", "run", "--silent", "build"], cwd=ADAPTER, check=False)
    if done.returncode:
        raise SystemExit("the adapter does not compile")


async def ended(*command: str, folder: Path, environment: dict[str, str], timeout_s: float, out: Any = None) -> int:
    """Run a program to its end, or to the end of its time; return how it ended."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=os.environ | environment, stdout=out, stderr=out, start_new_session=True
    )
    try:
        async with asyncio.timeout(timeout_s):
            return await process.wait()
    except TimeoutError:
        return 124
    finally:
        # What it has started goes with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def nodes_of(cluster: LocalCluster) -> str:
    return ",".join(node.bullmq_url for node in cluster.nodes)


async def adapter(arguments: argparse.Namespace) -> int:
    """Run the adapter's own tests."""
    try:
        build()
    except Missing as error:
        print(f"bullmq adapter: left out, {error}")
        return 0
    async with LocalCluster(3) as cluster:
        await cluster.ready()
        tests = sorted(str(path) for path in (ADAPTER / "test").glob("*.test.mjs"))
        return await ended(
            "node", "--test", "--test-timeout=60000", *tests,
            folder=ADAPTER, environment={"QUORUMQ_NODES": nodes_of(cluster)}, timeout_s=180,
        )  # fmt: skip


@contextlib.asynccontextmanager
async def leaders_killed(cluster: LocalCluster, every_s: float, down_s: float = DOWN_S) -> AsyncIterator[list[Kill]]:
    """Kill the leader every so often, and start it again; yield who was. Raises an ExceptionGroup with what went wrong with a node."""
    killed: list[Kill] = []
    over = asyncio.Event()

    async def pause(seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), seconds)

    async def go_on() -> None:
        await pause(every_s)
        while not over.is_set():
            leader = await cluster.leader()
            killed.append(Kill(leader.id, time.time_ns() // 1_000_000))
            await leader.kill()
            await pause(down_s)
            await leader.start()
            await cluster.ready(timeout_s=BACK_S)
            await pause(every_s)

    # A node that does not come back ends whatever runs meanwhile, which would wait for the next kill for ever. One that is down at the
    # end is started: whoever comes next has all of them.
    async with asyncio.TaskGroup() as group:
        if every_s:
            group.create_task(go_on())
        try:
            yield killed
        finally:
            over.set()


async def suite(arguments: argparse.Namespace) -> int:
    """Run BullMQ's own tests; print what became of each file, and the names of tests that failed."""
    source, harness = os.environ.get("BULLMQ_SRC"), Path(os.environ.get("BULLMQ_HARNESS", HARNESS))
    if not source or not (harness / "run.sh").exists():
        raise SystemExit(
            "BULLMQ_SRC has to name a checkout of BullMQ with its dependencies, BULLMQ_HARNESS the harness"
        )
    if not arguments.redis:
        build()
    out = Path(arguments.out or tempfile.mkdtemp(prefix="bullmq-suite-")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    async with contextlib.AsyncExitStack() as stack:
        environment = {"BULLMQ_SRC": source, "NODE_OPTIONS": "--max-old-space-size=1200"}
        cluster = None
        if not arguments.redis:
            environment |= {"QUORUMQ_BACKEND": str(ADAPTER / "suite.mjs")}
            settings = {"CLOCK": "clients"} if arguments.client_clock else {}
            nodes = os.environ.get("QUORUMQ_NODES")
            if not nodes:
                cluster = await stack.enter_async_context(LocalCluster(1 if arguments.client_clock else 3, **settings))
                await cluster.ready()
                nodes = nodes_of(cluster)
            environment["QUORUMQ_NODES"] = nodes
        failed = 0
        for name in arguments.files or FILES:
            began = time.monotonic()
            report = out / f"{name}.json"
            report.unlink(missing_ok=True)
            killing = leaders_killed(cluster, arguments.kill_every) if cluster is not None else nothing()
            with (out / f"{name}.log").open("wb") as log:
                async with killing as killed:
                    more = ["-t", arguments.test] if arguments.test else []
                    # What a test leaves behind is cleaned up by hooks, which have a time of their own.
                    limits = ("testTimeout", "hookTimeout") if arguments.patience else ()
                    more += [f"--{limit}={arguments.patience}" for limit in limits]
                    await ended(
                        str(harness / "run.sh"), *more,
                        folder=out, environment=environment | {"SUITE": name, "REPORT": str(report)},
                        timeout_s=arguments.limit, out=log,
                    )  # fmt: skip
            spared = exempt(
                client_clock=arguments.client_clock,
                kills=bool(arguments.kill_every),
                published="BULLMQ_DIST" in os.environ,
            )
            failed += show(name, report, time.monotonic() - began, len(killed), spared)
        print(f"reports and logs: {out}")
        return 1 if failed else 0


def exempt(*, client_clock: bool, kills: bool, published: bool) -> list[tuple[str, str]]:
    """Return file and part of the name of each test that need not pass, from the tables of the documentation."""
    left_out = [
        heading
        for heading, holds in (
            ("a clock of their own", not client_clock),
            ("a published library", published),
            ("measure time", kills),
        )
        if not holds
    ]
    found = []
    for section in EXEMPT.read_text("utf-8").split("\n## ")[1:]:
        if not section.partition("\n")[0].endswith(tuple(left_out)):
            found += re.findall(r"^\| `(\S+)` \| (.+?) \| .+? \|$", section, re.MULTILINE)
    return found


@contextlib.asynccontextmanager
async def nothing() -> AsyncIterator[list[Kill]]:
    yield []


def show(name: str, report: Path, took_s: float, kills: int, spared: list[tuple[str, str]]) -> int:
    """Print what became of one file; return how many of its tests failed. spared: those that may, by file and part of their name."""
    if not report.exists():
        print(f"{name:28} did not end in its time, or did not begin ({took_s:.0f} s)", flush=True)
        return 1
    tests = [one for found in json.loads(report.read_bytes())["testResults"] for one in found["assertionResults"]]
    counts = {status: sum(one["status"] == status for one in tests) for status in ("passed", "failed")}
    rest = len(tests) - sum(counts.values())
    known = f" of {FILES[name]}" if name in FILES else ""
    killed = f", {kills} leaders killed" if kills else ""
    print(
        f"{name:28} {counts['passed']} passed{known}, {counts['failed']} failed, {rest} skipped, {took_s:.0f} s{killed}",
        flush=True,
    )
    failed = 0
    for one in tests:
        if one["status"] == "failed":
            is_spared = any(name == file and part in one["fullName"] for file, part in spared)
            failed += not is_spared
            # One that ran out of time may say nothing.
            why = ((one["failureMessages"] or [""])[0] or "no word of why").partition("\n")[0]
            print(f"    {'(may fail) ' if is_spared else ''}{one['fullName']}: {why[:160]}", flush=True)
    return failed


def longest_after(kill: Kill, pauses: list[list[int]], until: Kill | None) -> tuple[int, int]:
    """Return the longest of the pauses that ended after a kill and before the next one, and when it did; 0 and 0 for none."""
    end_ms = until.at_ms if until is not None else sys.maxsize
    return max(((length, ended_ms) for ended_ms, length in pauses if kill.at_ms <= ended_ms < end_ms), default=(0, 0))


async def kills(arguments: argparse.Namespace) -> int:
    """Kill leaders under jobs and workers; print what they saw of it."""
    build()
    folder = Path(arguments.out).resolve() if arguments.out else None
    async with LocalCluster(3, folder) as cluster:
        await cluster.ready()
        environment = os.environ | {
            "QUORUMQ_NODES": nodes_of(cluster), "JOBS": str(arguments.jobs), "WORKERS": str(arguments.workers),
            "PACE_MS": str(arguments.times * arguments.every * 1000 / arguments.jobs),
        }  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            "node", "test/kills.mjs", cwd=ADAPTER, env=environment,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None and process.stdin is not None
        try:
            # Until a killed node is ready again takes as long as the machine makes it.
            async with asyncio.timeout(arguments.times * (arguments.every + 60) + 150):
                await process.stdout.readline()
                async with leaders_killed(cluster, arguments.every, down_s=arguments.every / 4) as killed:
                    while len(killed) < arguments.times:
                        await asyncio.sleep(0.2)
                    await asyncio.sleep(arguments.every / 4)
                    process.stdin.close()
                    text = await process.stdout.readline()
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    found = json.loads(text)
    pauses = found.pop("pauses")
    for kill, until in zip(killed, [*killed[1:], None], strict=True):
        pause_ms, ended_ms = longest_after(kill, pauses, until)
        over = f", over {ended_ms - kill.at_ms} ms after it" if pause_ms else ""
        print(
            f"{kill.node} killed at {datetime.fromtimestamp(kill.at_ms / 1000, UTC):%H:%M:%S.%f}: longest pause {pause_ms} ms{over}"
        )
    longest_ms = max((length for _, length in pauses), default=0)
    print(json.dumps({"leaders killed": len(killed), "longestPauseMs": longest_ms, **found}))
    well = found["ran"] == found["completed"] == found["jobs"] and not found["twice"] and not found["errors"]
    return 0 if well else 1


async def bench(arguments: argparse.Namespace) -> int:
    """Measure BullMQ on three nodes, and beside it on the servers that are named, one of each; all share this machine with the load."""
    build()
    async with LocalCluster(3) as cluster:
        await cluster.ready()
        environment = {
            "QUORUMQ_NODES": nodes_of(cluster), "ROUNDS": str(arguments.rounds), "SECONDS": str(arguments.seconds), "LOADS": arguments.load,
        }  # fmt: skip
        limit_s = 60 + 7 * 3 * arguments.rounds * (arguments.seconds + 60)
        return await ended("node", "bench.mjs", folder=ADAPTER, environment=environment, timeout_s=limit_s)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bullmq", description=__doc__)
    parts = parser.add_subparsers(required=True)
    one = parts.add_parser("adapter", help="the adapter's own tests against three nodes")
    one.set_defaults(do=adapter)
    one = parts.add_parser("suite", help="BullMQ's own tests; QUORUMQ_NODES names nodes that run already")
    one.set_defaults(do=suite)
    one.add_argument("files", nargs="*", help="files of tests, by their names without an end; all by default")
    one.add_argument("--test", help="only tests whose names match")
    one.add_argument(
        "--patience", type=int, help="milliseconds for one test, where the machine is too slow for BullMQ's 10,000"
    )
    one.add_argument("--limit", type=float, default=240, help="seconds for one file")
    one.add_argument("--out", help="folder for reports and logs")
    one.add_argument("--kill-every", type=float, default=0, help="kill the leader every so many seconds")
    one.add_argument(
        "--client-clock", action="store_true", help="one node with CLOCK=clients, for tests under fake clocks"
    )
    one.add_argument("--redis", action="store_true", help="on Redis at REDIS_PORT instead, to compare")
    one = parts.add_parser("kills", help="jobs and workers while leaders are killed")
    one.set_defaults(do=kills)
    one.add_argument("--times", type=int, default=10, help="how often a leader is killed")
    one.add_argument("--every", type=float, default=6, help="seconds between two kills")
    one.add_argument("--jobs", type=int, default=600, help="at least; as many more as it takes until the last kill")
    one.add_argument("--workers", type=int, default=20)
    one.add_argument("--out", help="folder for the nodes' data and logs, which stays")
    one = parts.add_parser("bench", help="how fast it is, beside REDIS_URL and POSTGRES_URL where they are set")
    one.set_defaults(do=bench)
    one.add_argument("--rounds", type=int, default=3)
    one.add_argument("--seconds", type=float, default=4)
    one.add_argument("--load", default="", help="only loads with this in their names")
    arguments = parser.parse_args()
    return asyncio.run(arguments.do(arguments))


if __name__ == "__main__":
    sys.exit(main())

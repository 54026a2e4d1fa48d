"""Replays recorded cases against three real nodes: on the leader, on a follower, on all in turn, and while nodes are killed.

A case may take longer while nodes die, and none may fail. What is repeated on the way is only what a client may repeat: a
request that nobody answered, under its idempotency key, and a case whose WebSocket or stream ended with its node, or whose
requests came too late for what it says.  The cases and their runners are in tests/conformance; another folder is named on the
command line or by QUORUMQ_CONFORMANCE.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import importlib.util
import json
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp

from quorumq.api import tokens
from tests.support.balancer import Balancer
from tests.support.local_cluster import HOST, ClusterTrouble, LocalCluster, LocalNode

FOLDER = Path(os.environ.get("QUORUMQ_CONFORMANCE") or Path(__file__).parents[2] / "tests" / "conformance")
TOKEN = "t-conformance"
BULLMQ_PREFIX = "/bullmq"
# Cases at once: most of them wait for something.
AT_ONCE = 12
KILL_EVERY_S = 10.0
# A kill is over when the node is back; the longest that may take.
BACK_S = 60.0
# Runs of one case whose connection keeps ending with its node.
RUNS_MAX = 20
# How often a case's connections are looked at, and how long it may go on when one of them has ended.
LOOK_S = 0.1
GRACE_S = 3.0
# What a part that ran shows of the traces in its nodes' logs, in lines each.
TRACE_LINES = 12
# Added to what a case waits for when a new leader may have to be found first.
LONGER_S = 15
# The same where a job may be held by a lock of a dead node's first: its length, and some.
LOCKED_S = 45
# Cases that mean something only while their requests follow each other faster than this, sleeps apart: later a token has
# come back, or a due time has passed, and the other answer is the right one. A disk that takes as long for one write is enough.
HASTE_S = {
    "concurrency-1-by-default": 0.3,
    "concurrency-3": 0.4,
    "cron-deleted-stops": 0.3,
    "delay-change-longer": 0.2,
    "delayed-job-waits": 0.2,
    "exponential-backoff-doubles": 0.2,
    "limiter": 0.5,
    "move-to-delayed-comes-back": 0.3,
    "rate-limit-blocks": 0.5,
    "rate-limit-clear": 1.0,
    "stall-heartbeat-keeps-active": 0.5,
    "timeout-defaults-to-3-s": 0.8,
}
Spec = dict[str, Any]
PortOf = Callable[[LocalNode], int]


def load_module(path: Path) -> ModuleType:
    """Import a runner from its file."""
    spec = importlib.util.spec_from_file_location(f"recorded_{path.stem}", path)
    assert spec and spec.loader, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def http_port(node: LocalNode) -> int:
    return node.http_port


def bullmq_port(node: LocalNode) -> int:
    return node.bullmq_port


@dataclass(frozen=True)
class Access:
    """Who the client is. token: with every right, None where none is needed.  given: variables of cases, others' tokens."""

    token: str | None = None
    given: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)


OPEN = Access()


def closed(folder: Path) -> Access:
    """Make tokens: one with every right, and one that may only read, in a file of its own."""
    file = folder / "tokens"
    secret, token = tokens.make("reader", ["read"], ["*"])
    tokens.change(file, lambda known: [token])
    return Access(TOKEN, {"user_token": secret}, {"AUTH_TOKENS": TOKEN, "AUTH_TOKENS_FILE": str(file)})


@dataclass(frozen=True)
class Suite:
    """The cases of one file against one place where its dialect is served.

    prefix: what the paths of BullMQ's dialect begin with there.
    needs_token: whether the dialect refuses everybody while no token is configured.
    """

    name: str
    runner: ModuleType
    specs: Sequence[Spec]
    port_of: PortOf = http_port
    prefix: str = ""
    needs_token: bool = False

    def cases(self, access: Access) -> list[Spec]:
        """Return the cases that can be run as this client: some need a token, some that none is known, some another's."""
        if self.needs_token:
            known = set(access.given) if access.token else None
            return [spec for spec in self.specs if known is not None and known.issuperset(spec.get("needs", []))]
        missing = "no-token" if access.token else "token"
        return [spec for spec in self.specs if missing not in spec.get("needs", [])]

    async def run(self, base: str, access: Access, lost: Callable[[], float] | None = None) -> list[str]:
        """Run all cases of this client once; return what failed, as text, and what no answer should be.

        lost: says when a node was last killed, for cases whose connection may have ended with it;
        None while none is.
        """
        specs = self.cases(access)
        if lost is not None:
            specs = [unhurried(spec) for spec in specs]
            # So that a kill meets other cases in each round.
            random.shuffle(specs)
            if self.needs_token:
                specs = [patient(spec) for spec in specs]
        troubles: list[str] = []
        play = self.play_proxy if self.needs_token else self.play
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=120),
            trace_configs=[noting(troubles)],
        ) as session:
            failed = await play(session, base, specs, access, lost)
        return failed + [f"{self.name}: {text}" for text in troubles]

    async def play(
        self,
        session: aiohttp.ClientSession,
        base: str,
        specs: list[Spec],
        access: Access,
        lost: Callable[[], float] | None,
    ) -> list[str]:
        async def one(spec: Spec) -> str | None:
            for run in range(RUNS_MAX):
                began = time.monotonic()
                try:
                    await together(self.runner.Case(spec, session, base, access.token))
                except (self.runner.Mismatch, ConnectionError) as error:
                    # Its socket may have ended with its node: a client would open another one and begin anew.
                    cut = is_stream(spec) and lost is not None and lost() >= began
                    if run < RUNS_MAX - 1 and (cut or came_too_late(spec, time.monotonic() - began, str(error))):
                        continue
                    return f"{self.name} {spec['group']}/{spec['id']}: {error}"
                return None
            return None

        return await failures(one, specs)

    async def play_proxy(
        self,
        session: aiohttp.ClientSession,
        base: str,
        specs: list[Spec],
        access: Access,
        lost: Callable[[], float] | None,
    ) -> list[str]:
        target = self.runner.Target(session, base, access.token)
        # Also for the requests that are not in the case: with the last one it takes its worker away.
        target.send = functools.partial(below, self.prefix, target.send)
        endpoint = self.runner.Endpoint(target)
        await endpoint.start()

        async def one(spec: Spec) -> str | None:
            lines: list[str] = []
            for _ in range(RUNS_MAX):
                began = time.monotonic()
                try:
                    lines = await self.runner.run_case(spec, target, endpoint, 0, access.given)
                except (aiohttp.ClientError, TimeoutError) as error:
                    # Of the request with which it takes its worker away.
                    lines = [f"at its end: {type(error).__name__}: {error}"]
                if not lines:
                    return None
                # A call that a killed node was making is made again, so the endpoint may have seen more than it should.
                cut = "endpoint" in spec and lost is not None and lost() >= began
                if not (cut or came_too_late(spec, time.monotonic() - began, " ".join(lines))):
                    break
            return f"{self.name} {spec['group']}/{spec['id']}: {' '.join(lines)}"

        try:
            return await failures(one, specs)
        finally:
            await endpoint.runner.cleanup()


async def failures(play: Callable[[Spec], Awaitable[str | None]], specs: list[Spec]) -> list[str]:
    """Play cases, some at once; return what went wrong in those that failed."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def gated(spec: Spec) -> str | None:
        async with gate:
            return await play(spec)

    return [text for text in await asyncio.gather(*map(gated, specs)) if text]


def noting(troubles: list[str]) -> aiohttp.TraceConfig:
    """Have a session note every answer that tells of the server's own trouble; 503 asks to come again and is none."""

    async def look(session: object, context: object, params: aiohttp.TraceRequestEndParams) -> None:
        status = params.response.status
        if status >= 500 and status != 503:
            troubles.append(f"{params.method} {params.url.path} was answered with {status}")

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(look)
    return trace


async def together(case: Any) -> None:
    """Run a case, and end it some time after a socket or stream of its ended, for which it would wait in vain.

    Raises what the case raises, and ConnectionError.
    """
    if any("ws_close" in step for step in case.spec["steps"]):
        # It closes a connection itself and goes on.
        await case.run()
        return
    running = asyncio.ensure_future(case.run())
    try:
        while not (await asyncio.wait([running], timeout=LOOK_S))[0]:
            # At its end the case closes what it opened, which takes a moment.
            if (
                any(reader.done() for reader in case.readers)
                and not (await asyncio.wait([running], timeout=GRACE_S))[0]
            ):
                raise ConnectionError("a socket or stream ended long before the case")
        running.result()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def is_stream(spec: Spec) -> bool:
    return any(key.startswith(("ws_", "sse_")) for step in spec["steps"] for key in step)


def unhurried(node: Any) -> Any:
    """Take the upper bounds on times out of a case: while there is no leader everything takes longer."""
    if isinstance(node, list):
        return [unhurried(item) for item in node]
    if not isinstance(node, dict):
        return node
    more: Spec = {}
    for key, value in node.items():
        if key == "ms" and isinstance(value, list):
            more[key] = [value[0], 120_000]
        elif key == "retry" and isinstance(value, int | float):
            more[key] = value + LONGER_S
        elif key == "within_ms" and isinstance(value, int | float):
            more[key] = value + LOCKED_S * 1000
        else:
            more[key] = unhurried(value)
    if "ws_recv" in node or "sse_recv" in node:
        more["timeout"] = node.get("timeout", 3) + LONGER_S
    return more


def patient(spec: Spec) -> Spec:
    """Have a case that looks at the state after some time look again; a GET of its dialect changes nothing."""
    longer = {"within_ms": LOCKED_S * 1000}
    steps = [longer | step if step.get("method") == "GET" else step for step in spec["steps"]]
    return {**spec, "steps": steps}


def waits_s(spec: Spec, steps: int | None = None) -> float:
    """Return how long a case sleeps, or how long its first steps do."""
    return float(sum(step.get("sleep", 0) + step.get("sleep_ms", 0) / 1000 for step in spec["steps"][:steps]))


def came_too_late(spec: Spec, took_s: float, said: str) -> bool:
    """Say whether a case that failed took so long, its own sleeps apart, that its answers may differ from the recorded ones.

    said: what it failed with; a case ends with the step that this names, and has not slept what comes after.
    """
    at = re.search(r"\bstep (\d+)", said)
    return took_s - waits_s(spec, int(at[1]) if at else None) > HASTE_S.get(spec["id"], float("inf"))


async def below(prefix: str, send: Callable[[Spec], Awaitable[Any]], step: Spec) -> Any:
    """Send a request with the prefix before its path, unless that is the same everywhere, as Open Archiver's are."""
    path = step["path"]
    return await send(step if path.startswith("/v1/") else {**step, "path": prefix + path})


def suites_of(folder: Path) -> list[Suite]:
    """Read every file of cases in a folder, the longest cases of each first; each for every place that serves its dialect."""
    runners = {name: folder / f"{name}.py" for name in ("replay", "replay_proxy")}
    modules = {name: load_module(path) for name, path in runners.items() if path.is_file()}
    found: list[Suite] = []
    for path in sorted(folder.glob("*.jsonl")):
        specs = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
        specs.sort(key=waits_s, reverse=True)
        dialect = path.stem.partition("-")[0]
        if dialect == "bunqueue" and "replay" in modules:
            found.append(Suite(path.stem, modules["replay"], specs))
        elif dialect in ("bullmq", "openarchiver") and "replay_proxy" in modules:
            runner = modules["replay_proxy"]
            found.append(Suite(f"{path.stem} on its port", runner, specs, bullmq_port, needs_token=True))
            name = f"{path.stem} beside bunqueue"
            found.append(Suite(name, runner, specs, prefix=BULLMQ_PREFIX, needs_token=True))
    return found


# -- Killing -----------------------------------------------------------------------------------------------------------

Choose = Callable[[LocalCluster, int], Awaitable[LocalNode]]


async def the_leader(cluster: LocalCluster, number: int) -> LocalNode:
    """Kill whoever leads."""
    return await cluster.leader()


async def in_turn(cluster: LocalCluster, number: int) -> LocalNode:
    """Kill one node after the other."""
    return cluster.nodes[number % len(cluster.nodes)]


def the_leader_but(spared: LocalNode) -> Choose:
    """Kill whoever leads, and have another one lead before when that is the node to spare."""

    async def choose(cluster: LocalCluster, number: int) -> LocalNode:
        while (leader := await cluster.leader()) is spared:
            url = f"{spared.url}/admin/cluster/transfer"
            token = spared.settings.get("AUTH_TOKENS")
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            async with aiohttp.ClientSession(headers=headers) as session, session.post(url, json={}) as answer:
                await answer.read()
        return leader

    return choose


@dataclass
class Kills:
    """Kills a node, starts it again, and so on in fixed intervals, until told to stop."""

    cluster: LocalCluster
    choose: Choose
    every_s: float = KILL_EVERY_S
    victims: list[str] = field(default_factory=list)
    under_way: bool = False
    last_at: float = 0.0

    def when(self) -> float:
        """When a node was last dead or coming back: now, while one is."""
        return time.monotonic() if self.under_way else self.last_at

    async def run(self) -> None:
        while True:
            began = time.monotonic()
            victim = await self.choose(self.cluster, len(self.victims))
            self.under_way = True
            await victim.kill()
            self.victims.append(victim.id)
            # The others have found a leader by then, or not: both must be survived.
            await asyncio.sleep(min(1.0, self.every_s / 10))
            await victim.start()
            await self.cluster.ready([victim], BACK_S)
            self.under_way, self.last_at = False, time.monotonic()
            await asyncio.sleep(max(0.0, began + self.every_s - time.monotonic()))

    @contextlib.asynccontextmanager
    async def going_on(self) -> AsyncIterator[Kills]:
        """Kill meanwhile; at the end all nodes run and are ready. Raises what went wrong with the nodes."""
        task = asyncio.create_task(self.run())
        try:
            yield self
        finally:
            if not task.done():
                task.cancel()
            ended = await asyncio.gather(task, return_exceptions=True)
        if isinstance(ended[0], ClusterTrouble):
            raise ended[0]
        await self.cluster.start()


# -- Runs --------------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What came of a run: cases run, what failed."""

    name: str
    cases: int = 0
    kills: int = 0
    repeated: int = 0
    seconds: float = 0.0
    failed: list[str] = field(default_factory=list)

    def line(self) -> str:
        verdict = "ok  " if not self.failed else "FAIL"
        about = f"{self.cases} cases, {self.kills} kills, {self.repeated} requests repeated, {self.seconds:.0f} s"
        return f"{verdict} {self.name}: {about}" + "".join(f"\n       {text}" for text in self.failed)


async def calm(cluster: LocalCluster, suites: Sequence[Suite], access: Access) -> Result:
    """Run every case on the leader, on a follower and on all in turn, side by side, because cases mostly wait."""
    result = Result("on the leader, a follower, all in turn" + with_or_without(access))
    began, logged = time.monotonic(), log_sizes(cluster)
    leader, follower = await cluster.leader(), (await cluster.followers())[0]
    for suite in usable(suites, access):
        async with Balancer(cluster.nodes, port_of=suite.port_of) as balancer:
            urls = [f"http://{HOST}:{suite.port_of(node)}" for node in (leader, follower)]
            for failed in await asyncio.gather(*(suite.run(url, access) for url in (*urls, balancer.url))):
                result.failed += failed
        result.cases += 3 * len(suite.cases(access))
    result.seconds = time.monotonic() - began
    await cluster.converged()
    result.failed += traces(cluster, logged)
    return result


async def killing(
    cluster: LocalCluster,
    suites: Sequence[Suite],
    access: Access,
    name: str,
    choose: Choose,
    seconds: float,
    spared: LocalNode | None = None,
    every_s: float = KILL_EVERY_S,
) -> Result:
    """Run every case again and again while nodes are killed, through a balancer or at the node that is spared.

    Ends after the round that is under way when the seconds are over, but not before three kills.
    """
    result = Result(name + with_or_without(access))
    began, logged = time.monotonic(), log_sizes(cluster)
    kills = Kills(cluster, choose, every_s)
    chosen = usable(suites, access)
    assert chosen, "no case that this client can run"
    async with kills.going_on():
        while not result.failed and (time.monotonic() < began + seconds or len(kills.victims) < 3):
            for suite in chosen:
                if spared is not None:
                    # No connection of this client may end, so a case with one is not begun anew.
                    when = kills.when if suite.needs_token else never
                    result.failed += await suite.run(f"http://{HOST}:{suite.port_of(spared)}", access, when)
                else:
                    # One that does not look who is ready: what is lost with a node is what this is about.
                    async with Balancer(cluster.nodes, repeats=True, follows=False, port_of=suite.port_of) as balancer:
                        result.failed += await suite.run(balancer.url, access, kills.when)
                        result.repeated += balancer.repeated
                result.cases += len(suite.cases(access))
    result.kills = len(kills.victims)
    result.seconds = time.monotonic() - began
    await cluster.converged()
    result.failed += traces(cluster, logged)
    return result


def never() -> float:
    return 0.0


def usable(suites: Sequence[Suite], access: Access) -> list[Suite]:
    return [suite for suite in suites if suite.cases(access)]


def log_sizes(cluster: LocalCluster) -> list[int]:
    return [len(node.log_text()) for node in cluster.nodes]


def traces(cluster: LocalCluster, before: Sequence[int]) -> list[str]:
    """Return the tracebacks that came into the nodes' logs since they were as long as `before`: nodes have no reason for any."""
    found: list[str] = []
    for node, start in zip(cluster.nodes, before, strict=True):
        lines = node.log_text()[start:].splitlines()
        starts = [at for at, line in enumerate(lines) if "Traceback (most recent call last)" in line]
        found += ["\n       ".join([f"{node.id} logged:", *lines[max(0, at - 1) : at + TRACE_LINES]]) for at in starts]
    return found


def with_or_without(access: Access) -> str:
    return ", with a token" if access.token else ""


async def main(arguments: argparse.Namespace) -> int:
    suites = suites_of(arguments.cases)
    if not suites:
        print(f"no cases, or no runner for them, in {arguments.cases}")
        return 2
    suites = [
        replace(suite, specs=[spec for spec in suite.specs if arguments.case in spec["id"]] * arguments.copies)
        for suite in suites
        if arguments.only in suite.name
    ]
    if not any(suite.specs for suite in suites):
        print("no case of this name")
        return 2
    results: list[Result] = []

    def say(result: Result) -> None:
        results.append(result)
        print(result.line(), flush=True)

    seconds = arguments.minutes * 60
    with tempfile.TemporaryDirectory() as folder:
        for access in (OPEN, closed(Path(folder))):
            if not usable(suites, access):
                continue
            async with LocalCluster(3, **access.settings) as cluster:
                spared = cluster.nodes[0]
                say(await calm(cluster, suites, access))
                for name, choose, kept in (
                    ("the leader is killed", the_leader, None),
                    ("every node in turn is killed", in_turn, None),
                    ("the leader is killed, the client's node is not", the_leader_but(spared), spared),
                ):
                    say(await killing(cluster, suites, access, name, choose, seconds, kept, arguments.every))
    failed = sum(len(result.failed) for result in results)
    kills = sum(result.kills for result in results)
    print(f"{sum(result.cases for result in results)} cases run, {kills} kills, {failed} failed")
    return 1 if failed else 0


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, default=FOLDER, help="folder with files of cases and their runners")
    parser.add_argument("--minutes", type=float, default=2.0, help="of each part in which nodes are killed")
    parser.add_argument("--every", type=float, default=KILL_EVERY_S, metavar="S", help="seconds from kill to kill")
    parser.add_argument("--only", default="", metavar="WORD", help="files whose name holds this word")
    parser.add_argument("--case", default="", metavar="WORD", help="cases whose id holds this word")
    parser.add_argument("--copies", type=int, default=1, help="of each case in a round, side by side")
    return parser.parse_args(given)


if __name__ == "__main__":
    sys.exit(asyncio.run(main(arguments())))

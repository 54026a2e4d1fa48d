"""WebSockets: commands, every documented event, patterns, the old form, tokens, bounds, and what happens on disconnection."""

from __future__ import annotations

import asyncio
import gc
import json
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from quorumq.api.commands import connection
from quorumq.api.dialects.bunqueue.commands import HELD_CHECKED, TakenJobs
from quorumq.api.dialects.bunqueue.events import NAMES, PATTERNS, Subscription, messages_of
from quorumq.api.dialects.bunqueue.routes import ROUTES
from quorumq.api.events.feed import SendQueue
from quorumq.node.machine import events as happened
from quorumq.node.machine.events import Event
from quorumq.node.machine.operations.runs import Pulled
from quorumq.node.machine.state import State
from tests.api.conftest import Client, Serve

# The document's list: each event with the keys of its payload, those of this node's figures included.
DOCUMENTED = {
    "job:pushed": "queue jobId",
    "job:active": "queue jobId",
    "job:completed": "queue jobId",
    "job:failed": "queue jobId error",
    "job:removed": "queue jobId prev",
    "job:promoted": "jobId",
    "job:progress": "queue jobId progress",
    "job:delayed": "queue jobId delay",
    "job:stalled": "queue jobId",
    "job:retried": "queue jobId",
    "job:discarded": "jobId",
    "job:priority-changed": "jobId newPriority",
    "job:data-updated": "jobId",
    "job:delay-changed": "jobId newDelay",
    "job:expired": "queue jobId ttl age",
    "queue:counts": "queue waiting active completed failed delayed",
    "queue:paused": "queue",
    "queue:resumed": "queue",
    "queue:drained": "queue count",
    "queue:cleaned": "queue state count",
    "queue:obliterated": "queue",
    "queue:created": "queue",
    "queue:removed": "queue",
    "queue:idle": "queue idleSeconds",
    "queue:threshold": "queue size threshold",
    "flow:completed": "parentJobId queue childrenCount",
    "flow:failed": "parentJobId failedChildId queue error",
    "dlq:added": "queue jobId reason",
    "dlq:retried": "queue jobId",
    "dlq:retry-all": "queue count",
    "dlq:purged": "queue count",
    "cron:created": "name queue nextRun",
    "cron:deleted": "name",
    "cron:fired": "name queue",
    "cron:updated": "name queue nextRun",
    "cron:missed": "name queue error",
    "cron:skipped": "name queue reason",
    "worker:connected": "workerId name queues",
    "worker:disconnected": "workerId",
    "worker:heartbeat": "workerId",
    "worker:overloaded": "workerId name activeJobs concurrency overloadedSeconds",
    "worker:error": "workerId name failedJobs processedJobs failureRate",
    "ratelimit:set": "queue max",
    "ratelimit:cleared": "queue",
    "ratelimit:hit": "queue jobId",
    "concurrency:set": "queue concurrency",
    "concurrency:cleared": "queue",
    "webhook:added": "id url events",
    "webhook:removed": "id",
    "webhook:fired": "id event statusCode",
    "webhook:failed": "id event error",
    "stats:snapshot": "",
    "health:status": "",
    "storage:status": "",
    "server:started": "",
    "server:shutdown": "",
    "server:memory-warning": "heapUsedMB thresholdMB rssMB",
    "storage:size-warning": "sizeMB thresholdMB",
    "config:stall-changed": "queue config",
    "config:dlq-changed": "queue config",
}
SAMPLES: dict[str, Any] = {
    "str": "x",
    "str | None": None,
    "int": 1,
    "int | None": None,
    "int | float": 1,
    "float": 0.5,
    "bool": True,
    "tuple[str, ...]": ("q",),
}


class Socket:
    """A WebSocket as tests use it."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self.number = 0
        self.seen: list[Any] = []

    async def next(self) -> Any:
        message = await self.ws.receive(timeout=10)
        assert message.type == aiohttp.WSMsgType.TEXT, message
        return json.loads(message.data)

    async def until(self, wanted: Callable[[Any], bool]) -> Any:
        """Return the first message that is wanted; what comes before it is kept in `seen`."""
        for at, message in enumerate(self.seen):
            if wanted(message):
                return self.seen.pop(at)
        while True:
            message = await self.next()
            if wanted(message):
                return message
            self.seen.append(message)

    async def event(self, name: str) -> Any:
        return (await self.until(lambda message: message.get("event") == name))["data"]

    async def send(self, cmd: str, **fields: Any) -> str:
        self.number += 1
        await self.ws.send_json({"cmd": cmd, **fields, "reqId": str(self.number)})
        return str(self.number)

    async def reply(self, number: str) -> Any:
        answer = await self.until(lambda message: message.get("reqId") == number)
        assert list(answer)[-1] == "reqId"
        del answer["reqId"]
        return answer

    async def run(self, cmd: str, **fields: Any) -> Any:
        return await self.reply(await self.send(cmd, **fields))

    async def ok(self, cmd: str, **fields: Any) -> Any:
        answer = await self.run(cmd, **fields)
        assert answer["ok"] is True, answer
        return answer

    async def raw(self, text: str) -> Any:
        await self.ws.send_str(text)
        return await self.until(lambda message: "ok" in message)


Open = Callable[..., Awaitable[Socket]]


@pytest.fixture
async def connect() -> AsyncIterator[Open]:
    sockets: list[Socket] = []

    async def start(client: Client, *subscribed: str, path: str = "/ws", **more: Any) -> Socket:
        socket = Socket(await client.session.ws_connect(client.base + path, **more))
        sockets.append(socket)
        if subscribed:
            answer = await socket.ok("Subscribe", events=list(subscribed))
            assert answer["subscribed"] == list(subscribed)
        return socket

    yield start
    for socket in sockets:
        await socket.ws.close()


def later(client: Client, ms: int) -> None:
    """Move the log's clock on from now."""
    client.engine.clock = lambda: time.time_ns() // 1_000_000 + ms


# -- Events ------------------------------------------------------------------------------------------------------------


def test_every_documented_event_is_known() -> None:
    assert set(DOCUMENTED) <= NAMES
    assert {f"{name.partition(':')[0]}:*" for name in NAMES} | {"*"} | NAMES <= PATTERNS


@pytest.mark.parametrize("kind", Event.__subclasses__(), ids=lambda kind: kind.__name__)
def test_payloads_have_the_documented_keys(kind: Any) -> None:
    event = kind(**{name: SAMPLES[text] for name, text in kind.__annotations__.items()})
    messages = list(messages_of(State(), 1234, event))
    assert messages[0].name == event.name and messages[0].at_ms == 1234
    data = json.loads(messages[0].data)
    assert set(DOCUMENTED.get(event.name, "").split()) <= set(data)
    assert "type" not in data
    frame = json.loads(messages[0].frame)
    assert frame == {"event": event.name, "ts": 1234, "data": data}
    if event.name.startswith("job:"):
        old = json.loads(messages[0].legacy or b"")
        assert (old["queue"], old["jobId"], old["timestamp"]) == ("x", "x", 1234)


async def test_the_life_of_jobs(client: Client, connect: Open) -> None:
    ws = await connect(client, "*")
    job = await client.push()
    assert await ws.event("queue:created") == {"queue": "q"}
    assert await ws.event("job:pushed") == {"queue": "q", "jobId": job}
    await client.pull()
    assert await ws.event("job:active") == {"queue": "q", "jobId": job}
    await client.post(f"/jobs/{job}/progress", {"progress": 40})
    assert await ws.event("job:progress") == {"queue": "q", "jobId": job, "progress": 40}
    await client.post(f"/jobs/{job}/move-to-delayed", {"delay": 40_000})
    assert await ws.event("job:delayed") == {"queue": "q", "jobId": job, "delay": 40_000}
    await client.send("PUT", f"/jobs/{job}/delay", {"delay": 50_000})
    assert (await ws.event("job:delay-changed"))["newDelay"] == 50_000
    await client.send("PUT", f"/jobs/{job}/data", {"data": 2})
    assert (await ws.event("job:data-updated"))["jobId"] == job
    await client.send("PUT", f"/jobs/{job}/priority", {"priority": 3})
    assert (await ws.event("job:priority-changed"))["newPriority"] == 3
    await client.post(f"/jobs/{job}/promote")
    assert (await ws.event("job:promoted"))["jobId"] == job
    await client.pull()
    await client.post(f"/jobs/{job}/fail", {"error": "boom"})
    assert await ws.event("job:failed") == {"queue": "q", "jobId": job, "error": "boom"}
    assert await ws.event("job:retried") == {"queue": "q", "jobId": job, "prev": "failed"}
    await client.post(f"/jobs/{job}/discard")
    assert (await ws.event("job:discarded"))["jobId"] == job
    assert (await ws.event("dlq:added"))["reason"]
    await client.post("/queues/q/dlq/retry", {"jobId": job})
    assert await ws.event("dlq:retried") == {"queue": "q", "jobId": job, "count": 1}
    await client.pull()
    await client.post(f"/jobs/{job}/ack", {})
    assert await ws.event("job:completed") == {"queue": "q", "jobId": job}
    other = await client.push()
    await client.delete(f"/jobs/{other}")
    assert await ws.event("job:removed") == {"queue": "q", "jobId": other, "prev": "waiting"}


async def test_what_time_brings(client: Client, connect: Open) -> None:
    ws = await connect(client, "job:*", "cron:*")
    short = await client.push(ttl=15_000)
    slow = await client.push("slow", timeout=15_000)
    await client.pull("slow")
    parent = await client.push("slow", dependsOn=[slow])
    assert await ws.event("job:waiting-children") == {"queue": "slow", "jobId": parent, "dependsOn": [slow]}
    await client.post("/crons", {"name": "c", "queue": "cq", "data": 1, "repeatEvery": 60_000})
    later(client, 20_000)
    await client.push("other")
    expired = await ws.event("job:expired")
    assert (expired["queue"], expired["jobId"], expired["ttl"]) == ("q", short, 15_000)
    assert expired["age"] >= 15_000
    assert await ws.event("job:timeout") == {"queue": "slow", "jobId": slow, "timeout": 15_000}
    assert (await ws.event("job:failed"))["error"]


async def test_stalled_jobs_and_lost_locks(client: Client, connect: Open) -> None:
    ws = await connect(client, "job:stalled", "job:lock-expired")
    first = await client.push("locks")
    await client.take("locks", lockTtl=1_000)
    later(client, 5_000)
    await client.push("other")
    assert (await ws.event("job:lock-expired"))["jobId"] == first
    second = await client.push("stalls")
    await client.pull("stalls")
    later(client, 500_000)
    await client.push("other")
    assert (await ws.until(lambda m: m.get("event") == "job:stalled" and m["data"]["jobId"] == second))["data"][
        "queue"
    ] == "stalls"


async def test_queues_limits_and_settings(client: Client, connect: Open) -> None:
    ws = await connect(client, "queue:*", "ratelimit:*", "concurrency:*", "config:*", "dlq:*")
    await client.push()
    await client.post("/queues/q/pause")
    assert await ws.event("queue:paused") == {"queue": "q"}
    await client.post("/queues/q/resume")
    assert await ws.event("queue:resumed") == {"queue": "q"}
    await client.post("/queues/q/clean", {"grace": 0, "state": "waiting"})
    assert await ws.event("queue:cleaned") == {"queue": "q", "state": "waiting", "count": 1}
    await client.push()
    await client.post("/queues/q/drain")
    assert await ws.event("queue:drained") == {"queue": "q", "count": 1}
    await client.send("PUT", "/queues/q/rate-limit", {"limit": 9})
    assert await ws.event("ratelimit:set") == {"queue": "q", "max": 9}
    await client.delete("/queues/q/rate-limit")
    assert await ws.event("ratelimit:cleared") == {"queue": "q"}
    await client.send("PUT", "/queues/q/concurrency", {"limit": 3})
    assert await ws.event("concurrency:set") == {"queue": "q", "concurrency": 3}
    await client.delete("/queues/q/concurrency")
    assert await ws.event("concurrency:cleared") == {"queue": "q"}
    await client.send("PUT", "/queues/q/stall-config", {"config": {"maxStalls": 5}})
    assert (await ws.event("config:stall-changed"))["config"]["maxStalls"] == 5
    await client.send("PUT", "/queues/q/dlq-config", {"config": {"maxAge": 5000}})
    assert (await ws.event("config:dlq-changed"))["config"]["maxAge"] == 5000
    job = await client.push()
    await client.post(f"/jobs/{job}/discard")
    await client.post("/queues/q/dlq/retry", {})
    assert await ws.event("dlq:retry-all") == {"queue": "q", "count": 1}
    await client.post(f"/jobs/{job}/discard")
    await client.post("/queues/q/dlq/purge")
    assert await ws.event("dlq:purged") == {"queue": "q", "count": 1}
    await client.post("/queues/q/obliterate")
    assert await ws.event("queue:obliterated") == {"queue": "q"}
    assert await ws.event("queue:removed") == {"queue": "q"}


async def test_crons_workers_and_webhooks(client: Client, connect: Open) -> None:
    ws = await connect(client, "cron:*", "worker:*", "webhook:*")
    cron = {"name": "c", "queue": "q", "data": 1, "repeatEvery": 60_000}
    await client.post("/crons", {**cron, "immediately": True})
    created = await ws.event("cron:created")
    assert (created["name"], created["queue"], created["every"]) == ("c", "q", 60_000) and created["nextRun"] > 0
    await client.post("/crons", cron)
    assert (await ws.event("cron:updated"))["name"] == "c"
    await client.delete("/crons/c")
    assert await ws.event("cron:deleted") == {"name": "c"}
    worker = (await client.post("/workers", {"name": "w", "queues": ["q"]})).json["data"]["workerId"]
    connected = await ws.event("worker:connected")
    assert (connected["workerId"], connected["name"], connected["queues"]) == (worker, "w", ["q"])
    await client.post(f"/workers/{worker}/heartbeat")
    assert await ws.event("worker:heartbeat") == {"workerId": worker}
    await client.delete(f"/workers/{worker}")
    assert await ws.event("worker:disconnected") == {"workerId": worker}
    hook = (await client.post("/webhooks", {"url": "https://example.com/h", "events": ["job.completed"]})).json["data"]
    assert await ws.event("webhook:added") == {
        "id": hook["webhookId"],
        "url": "https://example.com/h",
        "events": ["job.completed"],
    }
    await client.delete(f"/webhooks/{hook['webhookId']}")
    assert await ws.event("webhook:removed") == {"id": hook["webhookId"]}


async def test_flows_and_throttled_jobs(client: Client, connect: Open) -> None:
    ws = await connect(client, "flow:*", "ratelimit:hit")
    child = await client.push()
    parent = await client.push("parents", dependsOn=[child])
    await client.pull()
    await client.post(f"/jobs/{child}/ack", {})
    assert await ws.event("flow:completed") == {"parentJobId": parent, "queue": "parents", "childrenCount": 1}
    child = await client.push(maxAttempts=1)
    parent = await client.push("parents", dependsOn=[child])
    await client.pull()
    await client.post(f"/jobs/{child}/fail", {})
    failed = {"parentJobId": parent, "failedChildId": child, "queue": "parents", "error": None}
    assert await ws.event("flow:failed") == failed
    await client.send("PUT", "/queues/slow/rate-limit", {"limit": 1})
    await client.push("slow")
    second = await client.push("slow")
    await client.pull("slow")
    assert await ws.event("ratelimit:hit") == {"queue": "slow", "jobId": second}
    assert await client.pull("slow") is None
    assert ws.seen == []


async def test_a_queue_that_lies_idle(serve: Serve, connect: Open) -> None:
    client = await serve(queue_idle_threshold_ms=100)
    ws = await connect(client, "queue:idle")
    job = await client.push()
    await client.push("other")
    await client.pull()
    await client.post(f"/jobs/{job}/ack", {})
    idle = await ws.event("queue:idle")
    assert idle["queue"] == "q" and idle["idleSeconds"] in range(20)
    # Once, until something happens in it again.
    watch = client.server.streams.watch
    assert watch.interval_s == 0.02
    for _ in range(3):
        await watch.look()
    await client.delete(f"/jobs/{await client.push()}")
    idle = await ws.event("queue:idle")
    assert idle["queue"] == "q" and idle["idleSeconds"] in range(20)
    assert ws.seen == []


async def test_a_queue_that_grows_too_long(serve: Serve, connect: Open) -> None:
    client = await serve(queue_size_threshold=2)
    ws = await connect(client, "queue:threshold")
    await client.post("/queues/q/jobs/bulk", {"jobs": [{"data": 1}, {"data": 2, "delay": 60_000}]})
    await client.push()
    assert await ws.event("queue:threshold") == {"queue": "q", "size": 3, "threshold": 2}
    await client.push()
    await client.server.streams.watch.look()
    await client.post("/queues/q/drain")
    await client.server.streams.watch.look()
    await client.post("/queues/q/jobs/bulk", {"jobs": [{"data": 1}] * 5})
    assert (await ws.event("queue:threshold"))["size"] == 5
    assert ws.seen == []


async def test_a_worker_that_is_always_full(serve: Serve, connect: Open) -> None:
    client = await serve(worker_overload_threshold_ms=100)
    ws = await connect(client, "worker:overloaded")
    full, free = [
        (await client.post("/workers", {"name": name, "queues": ["q"], "concurrency": 2})).json["data"]["workerId"]
        for name in ("full", "free")
    ]
    await client.post(f"/workers/{full}/heartbeat", {"activeJobs": 2})
    await client.post(f"/workers/{free}/heartbeat", {"activeJobs": 1})
    told = {"workerId": full, "name": "full", "activeJobs": 2, "concurrency": 2, "overloadedSeconds": 0}
    assert await ws.event("worker:overloaded") == told
    watch = client.server.streams.watch
    await watch.look()
    await client.post(f"/workers/{full}/heartbeat", {"activeJobs": 0})
    await watch.look()
    await client.post(f"/workers/{full}/heartbeat", {"activeJobs": 3})
    assert (await ws.event("worker:overloaded"))["activeJobs"] == 3
    assert ws.seen == []


async def test_a_node_that_grows_too_large(serve: Serve, connect: Open, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "1").write_bytes(bytes(3 << 20))
    client = await serve(memory_warning_mb=1, storage_warning_mb=2, data_path=tmp_path)
    ws = await connect(client, "server:memory-warning", "storage:size-warning")
    watch = client.server.streams.watch
    await watch.look()
    memory = await ws.event("server:memory-warning")
    assert memory["thresholdMB"] == 1 and memory["heapUsedMB"] > 1 and memory["rssMB"] > 1
    assert await ws.event("storage:size-warning") == {"sizeMB": 3.0, "thresholdMB": 2}
    # Not with every look.
    await watch.look()
    await ws.ok("Ping")
    assert ws.seen == []


async def test_promoting_all_and_workers_that_fall_silent(client: Client, connect: Open) -> None:
    ws = await connect(client, "job:promoted", "worker:*")
    jobs = [await client.push(delay=60_000) for _ in range(2)]
    await client.post("/queues/q/promote-jobs", {})
    assert [(await ws.event("job:promoted"))["jobId"] for _ in jobs] == jobs
    worker = (await client.post("/workers", {"name": "w", "queues": ["q"]})).json["data"]["workerId"]
    later(client, 100_000)
    await client.push("other")
    assert await ws.event("worker:removed-stale") == {"workerId": worker, "name": "w"}
    assert await ws.event("worker:disconnected") == {"workerId": worker}


async def test_counts_of_many_changes_are_told_once(client: Client, connect: Open) -> None:
    ws = await connect(client, "queue:counts")
    await client.post("/queues/q/jobs/bulk", {"jobs": [{"data": 1}, {"data": 2, "delay": 60_000}]})
    counts = {"waiting": 1, "prioritized": 0, "active": 0, "completed": 0, "failed": 0, "delayed": 1}
    assert await ws.event("queue:counts") == {"queue": "q", **counts}
    await client.pull()
    assert await ws.event("queue:counts") == {"queue": "q", **counts, "waiting": 0, "active": 1}
    assert ws.seen == []


async def test_figures(client: Client, connect: Open) -> None:
    await client.push()
    streams = client.server.streams
    ws = await connect(client, "stats:*", "health:*", "storage:*")
    streams.feed.publish(await streams.stats())
    stats = await ws.event("stats:snapshot")
    assert (stats["waiting"], stats["totalPushed"], stats["workers"], stats["cronJobs"]) == (1, 1, 0, 0)
    assert stats["queues"] == {"q": {"waiting": 1, "active": 0, "delayed": 0, "dlq": 0, "paused": False}}
    assert streams.health().connections.ws == 1 and streams.health().ok is True
    assert (await streams.storage()).disk_full is False
    assert (await client.get("/health")).json["connections"]["ws"] == 1


async def test_nothing_is_collected_while_nobody_listens(client: Client, connect: Open) -> None:
    machine = client.server.node.machine
    await client.push()
    assert not machine.events_wanted and machine.state.events is None
    ws = await connect(client, "job:pushed")
    await client.push()
    assert machine.state.events
    await ws.ws.close()
    while machine.events_wanted:
        await client.get("/ping")
    await client.push()
    assert machine.state.events is None


async def test_the_old_form(client: Client, connect: Open) -> None:
    ws = await connect(client)
    await ws.ok("Ping")
    job = await client.push(data={"n": 1})
    first = await ws.next()
    assert isinstance(first.pop("timestamp"), int)
    assert first == {"eventType": "pushed", "queue": "q", "jobId": job}
    await client.pull()
    assert (await ws.next())["eventType"] == "pulled"
    await client.post(f"/jobs/{job}/progress", {"progress": 10})
    assert (await ws.next())["data"] == {"progress": 10, "message": None}
    await client.post(f"/jobs/{job}/fail", {"error": "e", "unrecoverable": True})
    failed = await ws.next()
    assert (failed["eventType"], failed["error"], failed["data"], failed["terminal"]) == ("failed", "e", {"n": 1}, True)
    await client.post("/queues/q/pause")
    paused = await ws.next()
    assert (paused["eventType"], paused["jobId"]) == ("paused", "")
    await client.post("/queues/q/resume")
    assert (await ws.next())["eventType"] == "resumed"
    done = await client.push()
    await client.pull()
    await client.post(f"/jobs/{done}/ack", {"result": {"r": 1}})
    assert [(await ws.next())["eventType"] for _ in range(2)] == ["pushed", "pulled"]
    assert (await ws.next())["data"] == {"r": 1}


async def test_only_one_queue(client: Client, connect: Open) -> None:
    old = await connect(client, path="/ws/queues/q")
    new = await connect(client, "job:*", "queue:created", path="/ws/queues/q")
    await client.push("other")
    job = await client.push("q")
    assert (await old.next())["jobId"] == job
    assert await new.event("queue:created") == {"queue": "q"}
    assert await new.event("job:pushed") == {"queue": "q", "jobId": job}


# -- Subscribing -------------------------------------------------------------------------------------------------------


async def test_subscribe_and_unsubscribe(client: Client, connect: Open) -> None:
    ws = await connect(client, "server:shutdown")
    assert (await ws.ok("Subscribe", events=["job:*"]))["subscribed"] == ["server:shutdown", "job:*"]
    for wrong in ([], "job:*", None):
        assert (await ws.run("Subscribe", events=wrong))["error"] == "events must be a non-empty array"
    assert (await ws.run("Subscribe", events=["job:*", "zzz", 5]))["error"] == "Invalid: zzz, 5"
    assert (await ws.ok("Unsubscribe", events=["job:*"]))["subscribed"] == ["server:shutdown"]
    assert (await ws.ok("Unsubscribe", events=[]))["subscribed"] == []
    job = await client.push()
    # Neither events nor the old form: only the reply comes.
    assert (await ws.ok("GetState", id=job))["state"] == "waiting"
    assert ws.seen == []


def test_patterns() -> None:
    subscription = Subscription()
    assert not subscription.wants("job:pushed")
    subscription.add(["job:*", "queue:counts"])
    assert subscription.wants("job:pushed") and subscription.wants("queue:counts")
    assert not subscription.wants("queue:paused") and not subscription.wants("jobs:pushed")
    subscription.remove(["job:progress"])
    assert subscription.wants("job:pushed") and not subscription.wants("job:progress")
    subscription.add(["job:*"])
    assert subscription.wants("job:progress")
    subscription.add(["*"])
    subscription.remove(["job:*"])
    assert list(subscription.patterns) == ["queue:counts", "*"]
    assert subscription.wants("dlq:added") and not subscription.wants("job:pushed")
    subscription.remove([])
    assert not any(map(subscription.wants, NAMES))


# -- Commands ----------------------------------------------------------------------------------------------------------


async def test_the_commands_of_a_worker(client: Client, connect: Open) -> None:
    ws = await connect(client, "server:shutdown")
    job = (await ws.ok("PUSH", queue="q", data={"x": 1}, priority=2, tags=["t"]))["id"]
    ids = (await ws.ok("PUSHB", queue="q", jobs=[{"data": 1}, {"data": 2}, {"data": 3, "customId": "c"}]))["ids"]
    assert ids[2] == "c"
    assert (await ws.ok("GetJob", id=job))["job"]["data"] == {"x": 1}
    assert (await ws.ok("GetJobByCustomId", customId="c"))["job"]["id"] == "c"
    assert [one["id"] for one in (await ws.ok("GetJobs", queue="q", state="waiting", limit=1))["jobs"]] == [job]
    assert (await ws.ok("GetJobCounts", queue="q"))["counts"]["waiting"] == 4
    assert (await ws.ok("GetCountsPerPriority", queue="q"))["counts"] == {"0": 3, "2": 1}
    assert (await ws.ok("Count", queue="q"))["count"] == 4
    assert (await ws.ok("PULL", queue="q"))["job"]["id"] == job
    await ws.ok("Progress", id=job, progress=30, message="m")
    assert await ws.ok("GetProgress", id=job) == {"ok": True, "progress": 30, "message": "m"}
    assert (await ws.ok("JobHeartbeat", id=job))["data"] == {"ok": True}
    assert (await ws.ok("JobHeartbeatB", ids=[job]))["data"] == {"ok": True, "count": 1}
    await ws.ok("AddLog", id=job, message="hello", level="warn")
    assert (await ws.ok("GetLogs", id=job))["data"]["count"] == 1
    await ws.ok("ClearLogs", id=job)
    await ws.ok("Update", id=job, data={"x": 2})
    await ws.ok("ACK", id=job, result={"ok": 1})
    assert (await ws.ok("GetResult", id=job))["result"] == {"ok": 1}
    assert (await ws.ok("WaitJob", id=job, timeout=1000))["completed"] is True
    assert (await ws.run("ACK", id=job))["error"] == "Job not found or not active"
    pulled = await ws.ok("PULL", queue="q", owner="me", lockTtl=20_000)
    assert pulled["job"]["id"] == ids[0] and pulled["token"]
    await ws.ok("ExtendLock", id=ids[0], token=pulled["token"], duration=20_000)
    locks = await ws.ok("ExtendLocks", ids=[ids[0]], tokens=[pulled["token"]], durations=[20_000])
    assert locks["count"] == 1
    assert (await ws.run("FAIL", id=ids[0], error="e"))["ok"] is False
    await ws.ok("FAIL", id=ids[0], error="e1", token=pulled["token"])
    await ws.ok("ChangeDelay", id=ids[0], delay=50_000)
    await ws.ok("ChangePriority", id=ids[0], priority=9)
    await ws.ok("Promote", id=ids[0])
    batch = await ws.ok("PULLB", queue="q", count=2, owner="me", lockTtl=20_000)
    taken = [one["id"] for one in batch["jobs"]]
    assert taken == [ids[0], ids[1]]
    await ws.ok("ACKB", ids=taken, tokens=batch["tokens"], results=[1, 2])
    assert (await ws.ok("PULL", queue="none"))["job"] is None
    assert await ws.ok("PULL", queue="none", owner="me") == {"ok": True, "job": None, "token": None}


async def test_the_commands_of_an_operator(client: Client, connect: Open) -> None:
    ws = await connect(client, "server:shutdown")
    job = (await ws.ok("PUSH", queue="q", data=1))["id"]
    await ws.ok("Discard", id=job)
    assert (await ws.ok("Dlq", queue="q", count=10))["jobs"][0]["id"] == job
    assert (await ws.ok("GetDlqStats", queue="q"))["data"]["stats"]["total"] == 1
    assert (await ws.ok("RetryDlq", queue="q", jobId=job))["count"] == 1
    assert (await ws.ok("PurgeDlq", queue="q"))["count"] == 0
    await ws.ok("Cancel", id=job)
    await ws.ok("Pause", queue="q")
    assert (await ws.ok("IsPaused", queue="q"))["paused"] is True
    await ws.ok("Resume", queue="q")
    assert (await ws.ok("ListQueues"))["queues"] == ["q"]
    assert (await ws.ok("PromoteJobs", queue="q", count=5))["count"] == 0
    assert (await ws.ok("RetryCompleted", queue="q"))["count"] == 0
    assert (await ws.ok("Clean", queue="q", grace=0, state="waiting", limit=1))["ids"] == []
    assert (await ws.ok("Drain", queue="q"))["count"] == 0
    for cmd, fields in {"RateLimit": {"limit": 5, "duration": 2000}, "SetConcurrency": {"limit": 2}}.items():
        await ws.ok(cmd, queue="q", **fields)
    for cmd in ("RateLimitClear", "ClearConcurrency"):
        await ws.ok(cmd, queue="q")
    await ws.ok("SetStallConfig", queue="q", config={"maxStalls": 4})
    assert (await ws.ok("GetStallConfig", queue="q"))["config"]["maxStalls"] == 4
    await ws.ok("SetDlqConfig", queue="q", config={"maxEntries": 5})
    assert (await ws.ok("GetDlqConfig", queue="q"))["config"]["maxEntries"] == 5
    cron = (await ws.ok("Cron", name="c", queue="q", data=1, repeatEvery=60_000))["cron"]
    assert (await ws.ok("CronGet", name="c"))["cron"] == cron
    assert (await ws.ok("CronList"))["crons"] == [cron]
    await ws.ok("CronDelete", name="c")
    assert (await ws.run("CronDelete", name="c"))["error"] == "Cron job not found"
    worker = (await ws.ok("RegisterWorker", name="w", queues=["q"], concurrency=3))["data"]["workerId"]
    await ws.ok("Heartbeat", id=worker, activeJobs=1, processed=2, failed=0)
    assert (await ws.ok("ListWorkers"))["data"]["stats"]["totalProcessed"] == 2
    assert (await ws.ok("UnregisterWorker", workerId=worker))["data"] == {"removed": True}
    hook = (await ws.ok("AddWebhook", url="https://example.com/h", events=["job.completed"]))["data"]["webhookId"]
    await ws.ok("SetWebhookEnabled", id=hook, enabled=False)
    assert (await ws.ok("ListWebhooks"))["data"]["stats"] == {"total": 1, "enabled": 0}
    await ws.ok("RemoveWebhook", webhookId=hook)
    assert (await ws.ok("Stats"))["stats"]["totalPushed"] == 1
    assert (await ws.ok("Metrics"))["metrics"]["totalPushed"] == 1
    assert "bunqueue_jobs_waiting" in (await ws.ok("Prometheus"))["data"]["metrics"]
    assert (await ws.ok("StorageStatus"))["data"]["diskFull"] is False
    assert await ws.ok("CompactMemory") == {"ok": True}
    assert (await ws.ok("Ping"))["data"]["pong"] is True
    assert (await ws.ok("Hello", protocolVersion=2))["protocolVersion"] == 3
    await ws.ok("Obliterate", queue="q")


async def test_the_commands_of_a_dashboard(client: Client, connect: Open) -> None:
    ws = await connect(client, "server:shutdown")
    job = (await ws.ok("PUSH", queue="q", data=1, priority=5))["id"]
    overview = (await ws.ok("DashboardOverview"))["data"]
    assert overview["stats"]["waiting"] == 1 and overview["crons"] == {"total": 0, "list": [], "truncated": False}
    assert (await ws.ok("DashboardQueues"))["data"]["queues"][0]["name"] == "q"
    await ws.ok("Discard", id=job)
    shown = (await ws.ok("DashboardQueue", queue="q", includeJobs=True))["data"]
    assert shown["counts"]["failed"] == 1 and shown["counts"]["totalFailed"] == 1
    assert [one["id"] for one in shown["dlqPreview"]] == [one["id"] for one in shown["jobs"]] == [job]
    assert (await ws.ok("RemoveDlqJob", queue="q", jobId=job))["data"] == {"removed": True}
    assert (await ws.ok("RemoveDlqJob", queue="q", jobId=job))["data"] == {"removed": False}
    none = {"rateLimit": None, "rateLimitTtl": -2, "concurrencyLimit": None, "maxed": False, "blockedBy": []}
    none |= {"limitedGroups": 0}
    assert (await ws.ok("GetQueueLimits", queue="q"))["data"]["limits"] == none
    await ws.ok("SetConcurrency", queue="q", limit=2)
    await ws.ok("RateLimit", queue="q", limit=0, duration=2000, ttl=60_000)
    limits = (await ws.ok("GetQueueLimits", queue="q"))["data"]["limits"]
    assert 0 < limits.pop("rateLimitTtl") <= 60_000
    shown = {
        "rateLimit": {"max": 0, "duration": 2000},
        "concurrencyLimit": 2,
        "maxed": True,
        "blockedBy": ["rateLimit"],
        "limitedGroups": 0,
    }
    assert limits == shown


async def test_the_commands_for_groups(client: Client, connect: Open) -> None:
    ws = await connect(client, "server:shutdown")
    group = {"queue": "q", "groupId": "g"}
    for _ in range(3):
        await ws.ok("PUSH", data=1, **group)
    assert (await ws.ok("GetGroupJobsCount", **group))["data"] == {"count": 3}
    assert (await ws.ok("GetGroupsJobsCount", queue="q"))["data"] == {"count": 3}
    assert (await ws.ok("GetGroupConcurrency", **group))["data"] == {"concurrency": 1}
    await ws.ok("SetGroupConcurrency", concurrency=2, **group)
    assert len((await ws.ok("PULLB", queue="q", count=5))["jobs"]) == 2
    assert (await ws.ok("GetGroupActiveCount", **group))["data"] == {"count": 2}
    assert (await ws.ok("RemoveGroupConcurrency", **group))["data"] == {"removed": 1}
    assert (await ws.ok("RemoveGroupConcurrency", **group))["data"] == {"removed": 0}
    assert (await ws.ok("PauseGroup", **group))["data"] == {"changed": True}
    assert (await ws.ok("IsGroupPaused", **group))["data"] == {"paused": True}
    assert (await ws.ok("ResumeGroup", **group))["data"] == {"changed": True}
    assert (await ws.run("SetGroupConcurrency", **group))["error"] == "concurrency is required"
    assert (await ws.run("GetGroupConcurrency", queue="q"))["error"] == "groupId is required"


async def test_the_commands_for_unique_keys(client: Client, connect: Open) -> None:
    ws = await connect(client, "server:shutdown")
    job = (await ws.ok("PUSH", queue="q", data=1, uniqueKey="k"))["id"]
    assert (await ws.ok("GetDeduplicationJobId", queue="q", deduplicationId="k"))["data"] == {"jobId": job}
    assert (await ws.ok("RemoveDeduplicationKey", queue="q", deduplicationId="k"))["data"] == {"count": 1}
    assert (await ws.ok("RemoveDeduplicationKey", queue="q", deduplicationId="k"))["data"] == {"count": 0}
    assert (await ws.ok("GetDeduplicationJobId", queue="q", deduplicationId="k"))["data"] == {"jobId": None}
    second = (await ws.ok("PUSH", queue="q", data=1, uniqueKey="k"))["id"]
    assert second != job
    assert (await ws.ok("RemoveJobDeduplicationKey", id=job))["data"] == {"removed": False}
    assert (await ws.ok("RemoveJobDeduplicationKey", id=second))["data"] == {"removed": True}


def test_no_two_rows_are_one_command(client: Client) -> None:
    names = [command.name for route in ROUTES for command in route.commands]
    assert len(names) == len(set(names)) > 100
    assert client.server.streams.commands.route("Nope") is None


async def test_messages_that_are_no_commands(client: Client, connect: Open) -> None:
    ws = await connect(client, "server:shutdown")
    assert await ws.raw("{bad") == {"ok": False, "error": "Invalid JSON"}
    assert await ws.raw("[]") == {"ok": False, "error": "Invalid command"}
    assert await ws.raw('{"x":1}') == {"ok": False, "error": "Invalid command"}
    assert await ws.raw('{"cmd":"Ping2","reqId":7}') == {"ok": False, "error": "Unknown command: Ping2", "reqId": 7}
    assert await ws.raw('{"cmd":"Pause","queue":"q"}') == {"ok": True}
    # Half a surrogate pair: only in data does it mean anything.
    for text in ('{"cmd":"Auth","token":"\\ud800"}', '{"cmd":"\\ud800"}', '{"cmd":"GetJob","id":"\\ud800"}'):
        assert (await ws.raw(text))["ok"] is False
    assert (await ws.run("PULL", queue="b d"))["error"] == "Queue name contains invalid characters"
    assert (await ws.run("GetJob"))["error"] == "id is required"
    assert (await ws.run("GetJob", id="nope"))["error"] == "Job not found"
    # Over HTTP these are 404.
    found = ("GetResult", "GetChildrenValues", "GetFailedChildrenValues", "GetIgnoredChildrenFailures", "GetLogs")
    for name in (*found, "ClearLogs", "RemoveUnprocessedChildren", "RemoveJobDeduplicationKey"):
        assert (await ws.run(name, id="nope"))["ok"] is True
    assert (await ws.run("PUSH", queue="q"))["error"] == "data is required"
    await ws.ws.send_bytes(b'{"cmd":"IsPaused","queue":"q","reqId":"b"}')
    assert (await ws.reply("b"))["paused"] is True


async def test_a_long_pull_holds_up_nobody(client: Client, connect: Open) -> None:
    ws = await connect(client, "server:shutdown")
    waiting = await ws.send("PULL", queue="q", timeout=20_000)
    assert (await ws.ok("Ping"))["data"]["pong"] is True
    job = (await ws.ok("PUSH", queue="q", data=1))["id"]
    assert (await ws.reply(waiting))["job"]["id"] == job


async def test_without_a_quorum(client: Client, connect: Open) -> None:
    ws = await connect(client, "server:shutdown")
    client.engine.available = False
    answer = await ws.run("PUSH", queue="q", data=1)
    assert (answer["ok"], answer["code"]) == (False, "not_applied")
    client.engine.available = True


# -- Ends --------------------------------------------------------------------------------------------------------------


async def test_jobs_go_back_when_the_connection_ends(client: Client, connect: Open) -> None:
    watcher = await connect(client, "job:waiting")
    ws = await connect(client, "server:shutdown")
    jobs = [await client.push() for _ in range(4)]
    taken = await ws.ok("PULLB", queue="q", count=2)
    assert [one["id"] for one in taken["jobs"]] == jobs[:2]
    assert (await ws.ok("PULL", queue="q", detach=True))["job"]["id"] == jobs[2]
    await ws.ok("ACK", id=jobs[1])
    await ws.ws.close()
    assert (await watcher.event("job:waiting"))["jobId"] == jobs[0]
    assert [await client.state(job) for job in jobs] == ["waiting", "completed", "active", "waiting"]
    again = await client.pull()
    assert (again["id"], again["attempts"], again["stallCount"]) == (jobs[0], 0, 0)


async def test_nothing_is_left_of_a_connection_that_was_lost(client: Client, connect: Open) -> None:
    """The timer of its next ping kept all that it had for a minute and a half."""
    socket = await connect(client, "server:shutdown")
    sessions = client.server.sessions
    left = weakref.ref(next(iter(sessions)).ws)  # type: ignore[attr-defined]
    connection = socket.ws._response.connection
    assert connection is not None and connection.transport is not None
    connection.transport.abort()
    async with asyncio.timeout(10):
        while left() is not None:
            gc.collect()
            await asyncio.sleep(0.01)


async def test_a_lost_connection_ends_its_pulls(client: Client, connect: Open) -> None:
    ws = await connect(client, "server:shutdown")
    await ws.send("PULL", queue="q", timeout=20_000)
    await ws.ok("Ping")
    waiters = client.server.node.waiters
    assert waiters.count == 1
    connection = ws.ws._response.connection
    assert connection is not None and connection.transport is not None
    connection.transport.abort()
    watcher = await connect(client, "server:shutdown")
    while waiters.count:
        await watcher.ok("Ping")
    job = await client.push()
    assert (await client.pull())["id"] == job


def test_what_is_held_is_looked_through_now_and_then() -> None:
    held = TakenJobs()
    held.take(Pulled([]))
    assert held.release() is None
    held.fences = {str(number): number for number in range(HELD_CHECKED)}
    held.tidy(lambda job_id, fence: fence % 2 == 0)
    assert len(held.fences) == HELD_CHECKED // 2
    held.tidy(lambda job_id, fence: False)
    assert len(held.fences) == HELD_CHECKED // 2


async def test_stopping_says_so(client: Client, connect: Open) -> None:
    ws = await connect(client, "server:*")
    await client.server.stop(5)
    assert await ws.event("server:shutdown") == {"reason": "the node is stopping"}
    message = await ws.ws.receive(timeout=5)
    assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, aiohttp.WSCloseCode.GOING_AWAY)


# -- Tokens and bounds -------------------------------------------------------------------------------------------------


async def test_tokens(serve: Serve, connect: Open) -> None:
    client = await serve(auth_tokens=("secret",))
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await connect(client, headers={"Authorization": "Bearer wrong"})
    assert refused.value.status == 401
    known = await connect(client, "job:pushed", headers={"Authorization": "Bearer secret"})
    ws = await connect(client)
    assert (await ws.run("PUSH", queue="q", data=1))["error"] == "Not authenticated"
    assert (await ws.run("Subscribe", events=["*"]))["error"] == "Not authenticated"
    assert (await ws.run("Auth", token="wrong"))["error"] == "Invalid token"
    await known.ok("PUSH", queue="q", data=1)
    await known.event("job:pushed")
    assert await ws.ok("Auth", token="secret") == {"ok": True}
    # What happened before was not for it.
    assert ws.seen == []
    await ws.ok("PUSH", queue="q", data=2)


async def test_no_token_in_time(serve: Serve, connect: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "AUTH_S", 0.01)
    client = await serve(auth_tokens=("secret",))
    ws = await connect(client)
    assert (await ws.ws.receive(timeout=5)).type == aiohttp.WSMsgType.CLOSE


async def test_too_many_connections(serve: Serve, connect: Open) -> None:
    client = await serve(websockets_max=1)
    await connect(client)
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await connect(client)
    assert refused.value.status == 503


async def test_too_many_commands_under_way(client: Client, connect: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "UNDER_WAY_MAX", 1)
    ws = await connect(client, "server:shutdown")
    await ws.send("PULL", queue="q", timeout=20_000)
    assert (await ws.run("PULL", queue="q"))["code"] == "busy"


async def test_a_request_that_is_no_handshake(client: Client) -> None:
    assert (await client.get("/ws")).status == 426
    assert (await client.get("/ws", headers={"Upgrade": "websocket", "Connection": "upgrade"})).status == 400
    assert (await client.get("/ws/queues/b%20d")).status == 400
    assert client.server.websockets == 0


async def test_a_request_that_is_no_handshake_needs_a_token_like_any_other(serve: Serve) -> None:
    client = await serve(auth_tokens=("secret",))
    for path in ("/ws", "/ws/queues/q"):
        assert (await client.get(path)).status == 401
        assert (await client.get(path, headers={"Authorization": "Bearer wrong"})).status == 401
        assert (await client.get(path, headers={"Authorization": "Bearer secret"})).status == 426


async def test_a_slow_client_misses_events_but_not_replies() -> None:
    send_queue = SendQueue(10)
    send_queue.offer(b"x" * 11)
    send_queue.offer(b"missed")
    send_queue.put(b"reply")
    send_queue.end()
    assert send_queue.full and send_queue.missed == 1
    assert [await send_queue.take() for _ in range(3)] == [b"x" * 11, b"reply", None]
    assert not send_queue.full


def test_kinds_of_events_that_clients_cannot_tell_apart() -> None:
    names = [str(kind.__struct_config__.tag) for kind in Event.__subclasses__()]
    assert len(names) == len(set(names))
    assert happened.JobPushed("q", "1").name == "job:pushed"


async def test_acknowledging_once_more_is_told_as_late(client: Client, connect: Open) -> None:
    ws = await connect(client, "server:shutdown")
    jobs = [await client.push() for _ in range(3)]
    taken = await ws.ok("PULLB", queue="q", count=3, owner="w")
    tokens = taken["tokens"]
    first = await ws.ok("ACKB", ids=jobs[:2], tokens=tokens[:2], results=[1, 2])
    assert "data" not in first
    # No answer came, so all of them are said again, with one more.
    again = await ws.ok("ACKB", ids=jobs, tokens=tokens, results=[1, 2, 3])
    assert again["data"] == {"ignoredIndices": [0, 1], "ignoredIds": jobs[:2]}
    assert [await client.state(job) for job in jobs] == ["completed"] * 3
    # A token that another delivery replaced ends no run, and neither does an id that nobody knows.
    job = await client.push()
    await ws.ok("PULLB", queue="q", count=1, owner="w")
    late = await ws.ok("ACKB", ids=[job, "none"], tokens=[tokens[0], "t"])
    assert late["data"] == {"ignoredIndices": [0, 1], "ignoredIds": [job, "none"]}
    assert await client.state(job) == "active"
    # Without a token nobody says that it had been his.
    assert (await ws.run("ACKB", ids=[jobs[0]]))["ok"] is False

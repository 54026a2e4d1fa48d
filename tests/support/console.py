"""What a console written for the documented server does, page by page: each request that it sends, and what it needs of the answer.

It treats `ok: false` as an error whatever the status, calls what it finds in answers without looking whether it is there, and
sends `Content-Type` with every request, also where there is no body. So every need below is one that a page breaks without.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

# Sends a request: method, path and body; returns status and decoded answer.
Ask = Callable[[str, str, Any], Awaitable[tuple[int, Any]]]

COUNTED = dict.fromkeys(("waiting", "active", "delayed", "completed", "failed"), int)
MEGABYTES = {"heapUsed": int, "heapTotal": int, "rss": int}
CRON = {"name": str, "queue": str, "schedule": (str, None), "repeatEvery": (int, None), "nextRun": int, "executions": int,
        "maxLimit": (int, None), "timezone": str}  # fmt: skip
WORKER = {"id": str, "name": str, "queues": [str], "concurrency": int, "hostname": str, "pid": int, "status": str,
          "registeredAt": int, "lastSeen": int, "activeJobs": int, "processedJobs": int, "failedJobs": int,
          "currentJob": (str, None), "uptime": int}  # fmt: skip
SHARES = {"p50": float, "p95": float, "p99": float}
OVERVIEW = {
    "stats": {**dict.fromkeys(("waiting", "active", "delayed", "completed", "dlq", "totalPushed", "totalPulled",
                               "totalCompleted", "totalFailed", "uptime"), int)},
    "throughput": dict.fromkeys(("pushPerSec", "pullPerSec", "completePerSec", "failPerSec"), float),
    "latency": {
        "averages": dict.fromkeys(("pushMs", "pullMs", "ackMs"), float),
        "percentiles": dict.fromkeys(("push", "pull", "ack"), SHARES),
    },
    "memory": MEGABYTES,
    "collections": {},
    "workers": {"total": int, "active": int, "list": [WORKER], "truncated": bool},
    "crons": {"total": int, "list": [CRON], "truncated": bool},
    "storage": {"diskFull": bool, "error": (str, None), "since": (int, None)},
    "timestamp": int,
}  # fmt: skip
JOB = {"id": str, "queue": str, "state": str, "priority": int, "createdAt": int, "runAt": int, "attempts": int,
       "maxAttempts": int, "progress": float, "tags": [str], "dependsOn": [str],
       "timeline": [{"state": str, "timestamp": int}]}  # fmt: skip
DEAD = {"job": JOB, "enteredAt": int, "reason": str, "error": (str, None),
        "attempts": [{"attempt": int, "failedAt": int, "reason": str, "duration": int}]}  # fmt: skip
DLQ_CONFIG = {
    "autoRetry": bool,
    "autoRetryInterval": int,
    "maxAutoRetries": int,
    "maxAge": (int, None),
    "maxEntries": int,
}
STALL_CONFIG = {"enabled": bool, "stallInterval": int, "maxStalls": int, "gracePeriod": int}


def holds(shape: Any, value: Any, at: str = "the answer") -> None:
    """Raise AssertionError unless a value has everything that a shape names. A tuple names what it may be, a list its items."""
    if isinstance(shape, dict):
        assert isinstance(value, dict), f"{at} is no object: {value!r}"
        for key, inner in shape.items():
            assert key in value, f"{at} lacks {key}"
            holds(inner, value[key], f"{at}.{key}")
    elif isinstance(shape, list):
        assert isinstance(value, list), f"{at} is no list: {value!r}"
        for number, item in enumerate(value):
            holds(shape[0], item, f"{at}[{number}]")
    elif isinstance(shape, tuple):
        assert any(value is None if kind is None else isinstance(value, kind) for kind in shape), f"{at}: {value!r}"
    elif shape is float:
        assert isinstance(value, int | float) and not isinstance(value, bool), f"{at}: {value!r}"
    else:
        assert isinstance(value, shape) and not (shape is int and isinstance(value, bool)), f"{at}: {value!r}"


class Console:
    """The console at work in one queue."""

    def __init__(self, ask: Ask, queue: str) -> None:
        self._ask = ask
        self.queue = queue
        self.path = f"/queues/{quote(queue, safe='')}"
        self.asked = 0

    async def call(self, method: str, path: str, body: Any = None, *, needs: Any = None) -> Any:
        """Send a request as the console does; its answer has to be a success and to have what is needed."""
        status, answer = await self._ask(method, path, body)
        self.asked += 1
        assert status == 200, f"{method} {path}: {status} {answer}"
        assert not isinstance(answer, dict) or answer.get("ok") is not False, f"{method} {path}: {answer}"
        if needs is not None:
            holds(needs, answer, f"{method} {path}")
        return answer

    async def push(self, **options: Any) -> str:
        answer = await self.call("POST", f"{self.path}/jobs", {"data": {"by": "console"}, **options}, needs={"id": str})
        return str(answer["id"])

    async def take(self, count: int = 1) -> list[str]:
        answer = await self.call(
            "POST", f"{self.path}/jobs/pull-batch", {"count": count}, needs={"jobs": [{"id": str}]}
        )
        return [job["id"] for job in answer["jobs"]]

    async def listed(self, *states: str) -> list[str]:
        """Read a page of jobs as the lists do: the filter is called `states`."""
        asked = f"states={'%2C'.join(states)}&" if states else ""
        found = await self.call("GET", f"{self.path}/jobs/list?{asked}limit=50&offset=0", needs={"jobs": [JOB]})
        return [job["id"] for job in found["jobs"]]

    # -- Pages

    async def look_around(self) -> None:
        """Open every page that only shows something."""
        await self.call("GET", "/dashboard", needs=OVERVIEW)
        brief = {"name": str, "waiting": int, "delayed": int, "active": int, "dlq": int, "paused": bool}
        page = {"queues": [brief], "total": int, "limit": int, "offset": int, "timestamp": int}
        await self.call("GET", "/dashboard/queues?limit=500&offset=0", needs=page)
        await self.call("GET", "/queues/summary", needs=[{"name": str, "paused": bool, "counts": COUNTED}])
        detail = {"name": str, "counts": {**COUNTED, "prioritized": int, "paused": int}, "paused": bool,
                  "priorityCounts": {}, "dlqPreview": [{"id": str, "attempts": int, "createdAt": int}],
                  "timestamp": int}  # fmt: skip
        await self.call("GET", f"/dashboard{self.path}?includeJobs=false", needs=detail)
        stats = {"stats": {**OVERVIEW["stats"], **OVERVIEW["throughput"]}, "collections": {},  # type: ignore[dict-item]
                 "memory": {**MEGABYTES, "external": int, "arrayBuffers": int}}  # fmt: skip
        await self.call("GET", "/stats", needs=stats)
        await self.call("GET", "/storage", needs={"data": OVERVIEW["storage"]})
        await self.call("GET", "/health", needs={"ok": bool, "version": str})
        await self.call("GET", "/ping", needs={"data": {"pong": bool, "time": int}})
        heap = {"objectCount": int, "protectedCount": int, "globalCount": int}
        types = [{"type": str, "count": int}]
        await self.call(
            "GET", "/heapstats", needs={"memory": MEGABYTES, "heap": heap, "collections": {}, "topObjectTypes": types}
        )
        await self.call("POST", "/gc", needs={"before": MEGABYTES, "after": MEGABYTES})
        await self.call("GET", f"{self.path}/counts", needs={"counts": COUNTED})
        await self.call("GET", "/crons", needs={"crons": [CRON]})
        hook = {"id": str, "url": str, "events": [str], "queue": (str, None), "createdAt": int,
                "lastTriggered": (int, None), "successCount": int, "failureCount": int, "enabled": bool}  # fmt: skip
        await self.call("GET", "/webhooks", needs={"data": {"webhooks": [hook]}})
        await self.call("GET", "/workers", needs={"data": {"workers": [WORKER]}})

    async def inspect(self, job_id: str) -> Any:
        """Open a job's page; return the job."""
        path = f"/jobs/{quote(job_id, safe='')}"
        job = (await self.call("GET", path, needs={"job": JOB}))["job"]
        await self.call("GET", f"{path}/result")
        await self.call("GET", f"{path}/logs", needs={"data": {"logs": [{"message": str}], "count": int}})
        await self.call("GET", f"{path}/children", needs={"data": {"values": {}}})
        return job

    # -- Actions

    async def work_on_jobs(self) -> None:
        """Press every button of a job, in the states in which the console shows it."""
        first = await self.push(priority=5, maxAttempts=1, tags=["a"], jobId=f"{self.queue}-first")
        await self.call("GET", f"/jobs/custom/{self.queue}-first", needs={"job": JOB})
        await self.call("PUT", f"/jobs/{first}/data", {"data": {"changed": True}})
        await self.call("PUT", f"/jobs/{first}/priority", {"priority": 9})
        await self.call("PUT", f"/jobs/{first}/delay", {"delay": 60_000})
        assert await self.listed("delayed", "waiting") == [first]
        await self.call("POST", f"/jobs/{first}/promote")
        assert await self.listed("active", "failed") == [] and await self.listed("waiting") == [first]
        assert await self.take() == [first]
        await self.call("POST", f"/jobs/{first}/progress", {"progress": 40, "message": "on the way"})
        await self.call("POST", f"/jobs/{first}/logs", {"message": "seen", "level": "warn"})
        assert (await self.inspect(first))["progress"] == 40
        await self.call("DELETE", f"/jobs/{first}/logs")
        await self.call("POST", f"/jobs/{first}/move-to-delayed", {"delay": 60_000})
        await self.call("POST", f"/jobs/{first}/move-to-wait")
        assert await self.take() == [first]
        # "Retry" of an active job, here of one that a worker holds by a lock.
        await self.call("POST", f"/jobs/{first}/move-to-wait")
        await self.call("POST", f"{self.path}/jobs/pull-batch", {"count": 1, "owner": "w", "lockTtl": 60_000})
        await self.call("POST", f"/jobs/{first}/move-to-wait")
        assert await self.take() == [first]
        await self.call("POST", f"/jobs/{first}/fail", {"error": "as the operator wished"})
        assert (await self.inspect(first))["state"] == "failed"
        dead = await self.call("GET", f"{self.path}/dlq?limit=100&offset=0", needs={"entries": [DEAD], "total": int})
        assert [entry["job"]["id"] for entry in dead["entries"]] == [first]
        stats = {"total": int, "byReason": {}, "byQueue": {}, "pendingRetry": int, "expired": int,
                 "oldestEntry": (int, None), "newestEntry": (int, None)}  # fmt: skip
        await self.call("GET", f"{self.path}/dlq/stats", needs={"stats": stats})
        assert (await self.call("POST", f"{self.path}/dlq/retry", {"jobId": first}))["count"] == 1
        assert await self.take() == [first]
        await self.call("POST", "/jobs/ack-batch", {"ids": [first]})
        assert (await self.inspect(first))["state"] == "completed"
        assert (await self.call("POST", f"{self.path}/retry-completed", {"id": first}))["count"] == 1
        await self.call("DELETE", f"/jobs/{first}")
        discarded = await self.push()
        await self.call("POST", f"/jobs/{discarded}/discard")
        assert (await self.call("POST", f"{self.path}/dlq/purge"))["count"] == 1

    async def work_on_the_queue(self) -> None:
        """Press every button of a queue, and change each of its settings."""
        jobs = [{"data": n, "delay": 60_000 if n > 2 else 0} for n in range(5)]
        await self.call("POST", f"{self.path}/jobs/bulk", {"jobs": jobs}, needs={"ids": [str]})
        await self.call("POST", f"{self.path}/pause")
        await self.call("POST", f"{self.path}/resume")
        assert (await self.call("POST", f"{self.path}/promote-jobs", {"count": 1}))["count"] == 1
        assert (await self.call("POST", f"{self.path}/promote-jobs"))["count"] == 1
        ids = await self.take(5)
        assert len(ids) == 5
        await self.call("POST", "/jobs/ack-batch", {"ids": ids})
        assert (await self.call("POST", f"{self.path}/retry-completed"))["count"] == 5
        assert (await self.call("POST", f"{self.path}/clean", {"grace": 0, "state": "waiting", "limit": 2}))[
            "count"
        ] == 2
        assert (await self.call("POST", f"{self.path}/drain"))["count"] == 3
        await self.call("PUT", f"{self.path}/rate-limit", {"limit": 10})
        await self.call("DELETE", f"{self.path}/rate-limit")
        await self.call("PUT", f"{self.path}/concurrency", {"concurrency": 3})
        await self.call("DELETE", f"{self.path}/concurrency")
        await self.call("PUT", f"{self.path}/stall-config", {"config": {"enabled": True, "stallInterval": 20_000}})
        await self.call("GET", f"{self.path}/stall-config", needs={"config": STALL_CONFIG})
        await self.call("PUT", f"{self.path}/dlq-config", {"config": {"autoRetry": False, "maxAge": None}})
        await self.call("GET", f"{self.path}/dlq-config", needs={"config": DLQ_CONFIG})

    async def work_on_the_rest(self) -> None:
        """Make and remove a cron, a webhook and a worker."""
        cron = {"name": f"cron of {self.queue}", "queue": self.queue, "data": {}, "schedule": "0 3 * * *",
                "timezone": "Europe/Rome", "priority": 1, "preventOverlap": True, "jobOptions": {"maxAttempts": 2}}  # fmt: skip
        await self.call("POST", "/crons", cron)
        assert cron["name"] in [
            one["name"] for one in (await self.call("GET", "/crons", needs={"crons": [CRON]}))["crons"]
        ]
        hook = {"url": "https://example.com/hook", "events": ["job.pushed", "job.failed"], "queue": self.queue}
        made = (await self.call("POST", "/webhooks", hook))["data"]["webhookId"]
        await self.call("PUT", f"/webhooks/{made}/enabled", {"enabled": False})
        worker = (await self.call("POST", "/workers", {"name": "w", "queues": [self.queue]}))["data"]["workerId"]
        await self.look_around()
        await self.call("DELETE", f"/workers/{worker}")
        await self.call("DELETE", f"/webhooks/{made}")
        await self.call("DELETE", f"/crons/{quote(str(cron['name']), safe='')}")

    async def fill_in_every_form(self) -> None:
        """Send each form with all of its fields, and with as few as it lets one send."""
        full = {"priority": 7, "delay": 60_000, "maxAttempts": 4, "backoff": {"type": "exponential", "delay": 500},
                "timeout": 30_000, "removeOnComplete": True, "removeOnFail": True, "durable": True, "lifo": True}  # fmt: skip
        advanced = {"tags": ["a", "b"], "groupId": "g", "uniqueKey": "k"}
        first = await self.push(**full, **advanced, jobId=f"{self.queue}/full")
        job = await self.inspect(first)
        holds({"backoff": int, "backoffConfig": {"type": str, "delay": int}, "timeout": int, "groupId": str, "data": {},
               "removeOnComplete": bool, "removeOnFail": bool, "parentId": (str, None), "childrenIds": [str]}, job)  # fmt: skip
        # What a copy of it is pushed with is what it was pushed with.
        copied = ("priority", "maxAttempts", "timeout", "removeOnComplete", "removeOnFail", "tags", "groupId")
        assert [job[key] for key in copied] == [{**full, **advanced}[key] for key in copied]
        assert {key: job["backoffConfig"][key] for key in ("type", "delay")} == full["backoff"]
        await self.push(dependsOn=[first])
        await self.call("POST", f"{self.path}/jobs", {"data": None}, needs={"id": str})
        # The same many times; and what an import of lines makes: options that are left out, data of any kind.
        same = {"data": {"n": 1}, **full, "tags": ["a"], "groupId": "g", "dependsOn": [first]}
        lines = [*[same] * 20, *({"data": data, "ttl": 60_000} for data in ("text", 1.5, [1], None, True, {}))]
        made = await self.call("POST", f"{self.path}/jobs/bulk", {"jobs": lines}, needs={"ids": [str]})
        assert len(set(made["ids"])) == len(lines)
        await self.call("POST", f"{self.path}/clean", {"grace": 0, "limit": 1000}, needs={"count": int})
        # A form is given what the node has, sends all of it, and is to find it again.
        for name, needed, changed in (
            ("stall-config", STALL_CONFIG, {"maxStalls": 5, "gracePeriod": 0, "enabled": False}),
            ("dlq-config", DLQ_CONFIG, {"maxAge": None, "autoRetry": True, "maxEntries": 50}),
            ("dlq-config", DLQ_CONFIG, {"maxAge": 90_000}),
        ):
            config = (await self.call("GET", f"{self.path}/{name}", needs={"config": needed}))["config"] | changed
            await self.call("PUT", f"{self.path}/{name}", {"config": config})
            assert (await self.call("GET", f"{self.path}/{name}"))["config"] == config
        every = {"name": f"every {self.queue}", "queue": self.queue, "data": {}, "repeatEvery": 3_600_000, "maxLimit": 3,
                 "immediately": True, "skipIfNoWorker": True, "skipMissedOnRestart": True, "timezone": "Asia/Tokyo",
                 "jobOptions": {"maxAttempts": 2, "backoff": 0, "timeout": 1000}}  # fmt: skip
        least = {"name": f"least {self.queue}", "queue": self.queue, "data": {}, "schedule": "*/5 * * * *"}
        for cron in (every, least):
            await self.call("POST", "/crons", cron)
        held = {one["name"]: one for one in (await self.call("GET", "/crons", needs={"crons": [CRON]}))["crons"]}
        assert (held[every["name"]]["repeatEvery"], held[every["name"]]["maxLimit"]) == (3_600_000, 3)
        for cron in (every, least):
            await self.call("DELETE", f"/crons/{quote(str(cron['name']), safe='')}")
        hook = {"url": "https://example.com/all", "secret": "s" * 20,
                "events": ["job.pushed", "job.started", "job.completed", "job.failed", "job.progress"]}  # fmt: skip
        made = await self.call("POST", "/webhooks", hook, needs={"data": {"webhookId": str}})
        await self.call("DELETE", f"/webhooks/{made['data']['webhookId']}")

    async def measure(self, jobs: int = 2_000) -> None:
        """Run the benchmark as its page does, one producer and one worker, leave some jobs and let it tidy up."""
        await self.call("GET", "/dashboard", needs=OVERVIEW)
        body = {"data": {"i": 0, "blob": "x" * 128}, "durable": False, "removeOnComplete": True}
        for _ in range(jobs // 1_000):
            made = await self.call("POST", f"{self.path}/jobs/bulk", {"jobs": [body] * 1_000}, needs={"ids": [str]})
            assert len(made["ids"]) == 1_000
        while ids := await self.take(1_000):
            await self.call("POST", "/jobs/ack-batch", {"ids": ids[:-1]})
            await self.call("POST", f"/jobs/{ids[-1]}/fail", {})
            if len(ids) < 10:
                break
        for state in ("waiting", "completed", "failed", "delayed"):
            await self.call("POST", f"{self.path}/clean", {"state": state, "limit": 1_000_000}, needs={"count": int})
        left = (await self.call("GET", f"{self.path}/counts", needs={"counts": COUNTED}))["counts"]
        assert not any(left[state] for state in ("waiting", "completed", "failed", "delayed")), left

    async def draw_a_flow(self) -> None:
        """Go from any job of a flow up to its root, and down again by its children and what they depend on."""
        other = f"{self.queue}-other"
        names = [f"{self.queue} {name}" for name in ("root", "left", "right", "leaf")]
        root, left, right, leaf = names
        before = await self.push()

        def job(name: str, queue: str, children: list[str], parent: tuple[str, str] | None, **more: Any) -> Any:
            data: dict[str, Any] = {"__childrenIds": children} if children else {}
            if parent is not None:
                data |= {"__parentId": parent[0], "__parentQueue": parent[1]}
            tied: dict[str, Any] = {"parentId": parent[0]} if parent else {}
            needs = [*children, *more.pop("dependsOn", [])]
            given = {"data": data, "childrenIds": children, "dependsOn": needs, **tied, **more}
            return {"id": name, "queue": queue, "input": given}

        tree = [
            job(root, self.queue, [left, right], None),
            job(left, other, [leaf], (root, self.queue)),
            job(right, other, [], (root, self.queue)),
            job(leaf, self.queue, [], (left, other)),
        ]
        await self.call("POST", "/flows", {"jobs": tree})
        await self.push(dependsOn=[leaf, before])
        at, climbed = leaf, [leaf]
        while parent := (await self.inspect(at))["parentId"]:
            climbed.append(at := parent)
        assert climbed == [leaf, left, root]
        seen: dict[str, Any] = {}
        waiting = [root]
        while waiting:
            found = await self.inspect(waiting.pop())
            seen[found["id"]] = (found["queue"], found["state"], found["childrenIds"])
            waiting += [*found["childrenIds"], *(one for one in found["dependsOn"] if one not in found["childrenIds"])]
        assert seen == {
            root: (self.queue, "waiting-children", [left, right]),
            left: (other, "waiting-children", [leaf]),
            right: (other, "waiting", []),
            leaf: (self.queue, "waiting", []),
        }
        await self.call("POST", f"/queues/{quote(other, safe='')}/obliterate")

    async def everything(self) -> None:
        """Do all of it, and leave nothing behind."""
        await self.work_on_jobs()
        await self.work_on_the_queue()
        await self.work_on_the_rest()
        await self.fill_in_every_form()
        await self.draw_a_flow()
        await self.call("POST", f"{self.path}/obliterate")
        await self.measure()
        await self.call("POST", f"{self.path}/obliterate")

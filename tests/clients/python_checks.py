"""What a program sees that uses bunqueue's Python client. Runs with that client's own interpreter: ADDRESSES, RUN in the environment.

Prints a line of JSON for each check: its name and what it saw, without ids and times.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from bunqueue import Bunqueue, Queue, UnrecoverableError, Worker

ADDRESSES = os.environ.get("ADDRESSES", "127.0.0.1:6789").split(",")
RUN = os.environ.get("RUN", str(time.time_ns() % 10**6))
turn = itertools.count()
CHECKS: list[tuple[str, Callable[[str], Any]]] = []


def check(name: str) -> Callable[[Callable[[str], Any]], Callable[[str], Any]]:
    def enter(doing: Callable[[str], Any]) -> Callable[[str], Any]:
        CHECKS.append((name, doing))
        return doing

    return enter


def connection() -> dict[str, Any]:
    host, _, port = ADDRESSES[next(turn) % len(ADDRESSES)].rpartition(":")
    return {"host": host, "port": int(port)}


def until(what: Callable[[], Any], timeout_s: float = 20) -> Any:
    ends = time.monotonic() + timeout_s
    while not (found := what()):
        if time.monotonic() > ends:
            raise TimeoutError("it did not happen in time")
        time.sleep(0.02)
    return found


class Doing:
    """A worker that notes what it did; its lists are written from threads."""

    def __init__(self, queue: str, processor: Callable[[Any], Any], **more: Any) -> None:
        self.completed: list[Any] = []
        self.failed: list[str] = []
        self.lock = threading.Lock()
        self.worker = Worker(queue, processor, **connection(), poll_timeout_ms=200, **more)
        self.worker.on("completed", lambda job, result, *more: self.note(self.completed, [job.name, result]))
        self.worker.on("failed", lambda job, error, *more: self.note(self.failed, str(error)))
        self.worker.on("error", lambda *more: None)

    def note(self, where: list[Any], what: Any) -> None:
        with self.lock:
            where.append(what)

    def __enter__(self) -> Doing:
        return self

    def __exit__(self, *_: object) -> None:
        self.worker.close(5)


@check("add and find")
def _(name: str) -> Any:
    with_queue = Queue(name, **connection())
    job = with_queue.add("hello", {"a": [1, None, "ü"]})
    found = with_queue.get_job(job.id)
    return [found.name, found.data, with_queue.get_state(job.id), with_queue.count()]


@check("a job that there is not")
def _(name: str) -> Any:
    queue = Queue(name, **connection())
    return [queue.get_job("none"), queue.get_state("none")]


@check("options of a job")
def _(name: str) -> Any:
    queue = Queue(name, **connection())
    job = queue.add("x", 1, priority=4, delay=60_000, attempts=2, job_id=f"{name}-own")
    again = queue.add("x", 2, job_id=f"{name}-own")
    return [again.id == job.id, queue.get_state(job.id), queue.get_counts_per_priority()]


@check("many at once")
def _(name: str) -> Any:
    queue = Queue(name, **connection())
    ids = queue.add_bulk([{"name": "x", "data": {"n": n}} for n in range(100)])
    return [len(set(ids)), queue.count(), queue.get_job(ids[42]).data]


@check("data of every kind")
def _(name: str) -> Any:
    queue = Queue(name, **connection())
    kinds = [None, True, 0, -1, 1.5, 2**40, "x", [], {"a": {"b": []}}, 10**15]
    return [queue.get_job(queue.add("k", kind).id).data for kind in kinds]


@check("counts and lists")
def _(name: str) -> Any:
    queue = Queue(name, **connection())
    queue.add("a", 1)
    queue.add("late", 1, delay=60_000)
    counts = queue.get_job_counts()
    return [
        counts["waiting"], counts["delayed"], [job.name for job in queue.get_waiting()], [job.name for job in queue.get_delayed()],
        queue.get_waiting_count(), queue.get_active_count(), name in [str(one) for one in queue.list_queues()],
    ]  # fmt: skip


@check("a worker")
def _(name: str) -> Any:
    queue = Queue(name, **connection())
    job = queue.add("sum", {"a": 1, "b": 2})
    with Doing(name, lambda job: {"sum": job.data["a"] + job.data["b"]}) as doing:
        until(lambda: doing.completed)
    until(lambda: queue.get_state(job.id) == "completed")
    return [doing.completed, queue.get_result(job.id)]


@check("many jobs, four at a time")
def _(name: str) -> Any:
    queue = Queue(name, **connection())
    queue.add_bulk([{"name": "x", "data": {"n": n}} for n in range(200)])
    seen: list[int] = []
    with Doing(name, lambda job: seen.append(job.data["n"]), concurrency=4) as doing:
        until(lambda: len(doing.completed) == 200)
        until(lambda: queue.get_completed_count() == 200)
    return [len(seen), len(set(seen)), queue.get_job_counts()["waiting"]]


@check("a failed run is repeated")
def _(name: str) -> Any:
    queue = Queue(name, **connection())
    job = queue.add("x", 1, attempts=3, backoff=50)
    runs: list[int] = []

    def flaky(job: Any) -> str:
        runs.append(1)
        if len(runs) < 3:
            raise ValueError(f"no {len(runs)}")
        return "well"

    with Doing(name, flaky) as doing:
        until(lambda: doing.completed)
        until(lambda: queue.get_state(job.id) == "completed")
    return [len(runs), doing.failed]


@check("dead letters")
def _(name: str) -> Any:
    queue = Queue(name, **connection())
    job = queue.add("bad", {"n": 7}, attempts=1)

    def broken(job: Any) -> None:
        raise ValueError("broken")

    with Doing(name, broken):
        until(lambda: queue.get_state(job.id) == "failed")
    dead = queue.get_dlq()
    return [len(dead), queue.retry_dlq(job.id), queue.get_state(job.id), queue.purge_dlq()]


@check("an error that no repeat helps")
def _(name: str) -> Any:
    queue = Queue(name, **connection())
    job = queue.add("bad", 1, attempts=5)
    runs: list[int] = []

    def broken(job: Any) -> None:
        runs.append(1)
        raise UnrecoverableError("never")

    with Doing(name, broken):
        until(lambda: queue.get_state(job.id) == "failed")
    return len(runs)


@check("progress and log lines")
def _(name: str) -> Any:
    queue = Queue(name, **connection())
    job = queue.add("p", 1)
    during: list[Any] = []

    def report(job: Any) -> None:
        job.update_progress(40, "on the way")
        job.log("a line")
        during.append(queue.get_progress(job.id)["progress"])

    with Doing(name, report):
        until(lambda: queue.get_state(job.id) == "completed")
    return [during, [line["message"] for line in queue.get_job_logs(job.id)]]


@check("pause, resume, drain, obliterate")
def _(name: str) -> Any:
    queue = Queue(name, **connection())
    queue.pause()
    paused = queue.is_paused()
    queue.resume()
    for _ in range(3):
        queue.add("x", 1)
    drained = queue.drain()
    queue.add("x", 1)
    queue.obliterate()
    return [paused, queue.is_paused(), drained, queue.count()]


@check("changing jobs")
def _(name: str) -> Any:
    queue = Queue(name, **connection())
    job = queue.add("x", {"n": 1}, delay=60_000)
    queue.update_job_data(job.id, {"n": 2})
    queue.change_job_priority(job.id, 5)
    queue.promote_job(job.id)
    state = queue.get_state(job.id)
    data = queue.get_job(job.id).data
    queue.remove(job.id)
    return [state, data, queue.get_job(job.id)]


@check("waiting for a job")
def _(name: str) -> Any:
    queue = Queue(name, **connection())
    job = queue.add("x", {"n": 20})
    with Doing(name, lambda job: job.data["n"] + 1):
        return queue.wait_for_job(job.id, 10_000)


@check("a cron")
def _(name: str) -> Any:
    queue = Queue(name, **connection())
    queue.every(f"{name}-c", 300, {"a": 1})
    with Doing(name, lambda job: job.data) as doing:
        until(lambda: len(doing.completed) >= 2)
    found = queue.get_job_scheduler(f"{name}-c")
    queue.remove_job_scheduler(f"{name}-c")
    return [doing.completed[0][1]["a"], found["repeatEvery"], queue.get_job_scheduler(f"{name}-c")]


@check("limits")
def _(name: str) -> Any:
    queue = Queue(name, **connection())
    queue.set_global_concurrency(1)
    queue.set_global_rate_limit(50)
    for n in range(4):
        queue.add("x", n)
    now, most = [0], [0]

    def work(job: Any) -> None:
        now[0] += 1
        most[0] = max(most[0], now[0])
        time.sleep(0.05)
        now[0] -= 1

    with Doing(name, work, concurrency=4) as doing:
        until(lambda: len(doing.completed) == 4)
    queue.remove_global_concurrency()
    queue.remove_global_rate_limit()
    return most[0]


@check("settings")
def _(name: str) -> Any:
    queue = Queue(name, **connection())
    queue.set_stall_config({"maxStalls": 5})
    queue.set_dlq_config({"maxEntries": 9})
    return [queue.get_stall_config()["maxStalls"], queue.get_dlq_config()["maxEntries"]]


@check("workers are known")
def _(name: str) -> Any:
    queue = Queue(name, **connection())
    with Doing(name, lambda job: None):
        found = until(lambda: [one for one in queue.get_workers() if name in one["queues"]])
    until(lambda: not [one for one in queue.get_workers() if name in one["queues"]])
    return len(found)


@check("webhooks")
def _(name: str) -> Any:
    queue = Queue(name, **connection())
    added = queue.add_webhook("https://example.com/hook", ["job.completed"], queue=name)
    found = [one for one in queue.list_webhooks() if one["queue"] == name]
    queue.remove_webhook(added)
    return [len(found), found[0]["events"]]


@check("simple mode")
def _(name: str) -> Any:
    done: list[Any] = []
    app = Bunqueue(name, processor=lambda job: {"got": job.data}, **connection())
    app.on("completed", lambda job, result, *more: done.append([job.name, result]))
    try:
        app.add("one", {"n": 1})
        until(lambda: done)
    finally:
        app.close()
    return done


@check("ping, hello and figures")
def _(name: str) -> Any:
    queue = Queue(name, **connection())
    return [queue.ping(), "waiting" in queue.get_stats(), "totalPushed" in queue.get_metrics()]


def main() -> None:
    for number, (name, doing) in enumerate(CHECKS):
        line: dict[str, Any] = {"name": name}
        try:
            line["answer"] = doing(f"python-{RUN}-{number}")
        except Exception as error:
            line["error"] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        print(json.dumps(line), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()

"""BullMQ's rules over HTTP, one test for each that sections 1 to 5 and 8 of the recorded semantics state.

Sections: 1 states and transitions, 2 processing by hand, 3 stalled jobs, 4 attempts and backoff, 5 order, 8 rate limits. Where a rule is
kept otherwise the test says so, and docs/compatibility.md says why.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from tests.api.bullmq import Bull
from tests.support.local import wall_ms

LOCK_MS = 30_000


@pytest.fixture
async def bull(serve: Any) -> Bull:
    return Bull(await serve(auth_tokens=("tok1",)))


def later(bull: Bull, ms: int) -> None:
    """Let time pass for the log, and what is due by then happen."""
    ahead = bull.engine.clock() - wall_ms() + ms
    bull.engine.clock = lambda: wall_ms() + ahead
    bull.engine.apply_now([])


# -- 1 States and transitions


async def test_1_a_new_job_waits_is_prioritized_or_delayed(bull: Bull) -> None:
    waiting = await bull.add()
    prioritized = await bull.add(priority=3)
    delayed = await bull.add(delay=60_000)
    # A delay goes before a priority.
    both = await bull.add(delay=60_000, priority=3)
    assert [await bull.state(one) for one in (waiting, prioritized, delayed, both)] == [
        "waiting",
        "prioritized",
        "delayed",
        "delayed",
    ]
    assert await bull.state("nope") == "unknown"


async def test_1_paused_is_a_list_and_never_a_state(bull: Bull) -> None:
    job = await bull.add("plain")
    await bull.add("first", priority=1)
    await bull.post("/queues/que/pause")
    assert await bull.state(job) == "waiting"
    counts = await bull.counts()
    assert (counts["waiting"], counts["paused"], counts["prioritized"]) == (0, 1, 1)
    assert await bull.names("waiting") == ["plain"]
    assert await bull.next() is None
    await bull.post("/queues/que/resume")
    counts = await bull.counts()
    assert (counts["waiting"], counts["paused"]) == (1, 0)


async def test_1_a_delayed_job_waits_when_its_time_has_come(bull: Bull) -> None:
    plain, prioritized = await bull.add(delay=60_000), await bull.add(delay=60_000, priority=2)
    assert (await bull.job(plain))["delay"] == 60_000
    later(bull, 60_000)
    assert [await bull.state(plain), await bull.state(prioritized)] == ["waiting", "prioritized"]
    assert (await bull.job(plain))["delay"] == 0


async def test_1_promote_lets_a_delayed_job_wait_no_longer(bull: Bull) -> None:
    job = await bull.add(delay=60_000)
    assert (await bull.post(f"/queues/que/jobs/{job}/promote")).body == b"OK"
    assert await bull.state(job) == "waiting"
    assert (await bull.job(job))["delay"] == 0


async def test_1_a_fetch_counts_a_start_and_locks(bull: Bull) -> None:
    await bull.add()
    job = await bull.next()
    assert (job["attemptsStarted"], job["attemptsMade"], job["token"]) == (1, 0, "t1")
    assert job["processedOn"] >= job["timestamp"]
    assert "token" not in await bull.job(job["id"])


async def test_1_completing_counts_an_attempt(bull: Bull) -> None:
    await bull.add()
    job = await bull.next()
    assert await bull.complete(job, {"a": [1]}) == {"state": "completed", "next": None}
    done = await bull.job(job["id"])
    assert (done["attemptsMade"], done["attemptsStarted"], done["returnvalue"]) == (1, 1, {"a": [1]})
    assert done["finishedOn"] >= done["processedOn"]


async def test_1_failing_the_last_attempt_fails_the_job(bull: Bull) -> None:
    await bull.add()
    job = await bull.next()
    assert (await bull.fail(job, "no luck"))["state"] == "failed"
    done = await bull.job(job["id"])
    assert (done["attemptsMade"], done["attemptsStarted"], done["failedReason"]) == (1, 1, "no luck")
    assert "finishedOn" in done


async def test_1_failing_with_a_backoff_delays(bull: Bull) -> None:
    await bull.add(attempts=2, backoff={"type": "fixed", "delay": 5000})
    job = await bull.next()
    assert (await bull.fail(job))["state"] == "delayed"
    found = await bull.job(job["id"])
    assert (found["attemptsMade"], found["delay"], "finishedOn" in found) == (1, 5000, False)


async def test_1_failing_without_a_backoff_goes_to_the_back(bull: Bull) -> None:
    await bull.add("a", attempts=2)
    await bull.add_many("b", "c")
    job = await bull.next()
    assert (await bull.fail(job))["state"] == "waiting"
    assert await bull.run() == ["b", "c", "a"]


async def test_1_failing_a_lifo_job_without_a_backoff_goes_to_the_front(bull: Bull) -> None:
    await bull.add("a", attempts=2, lifo=True)
    await bull.add_many("b", "c")
    await bull.fail(await bull.next())
    assert await bull.run() == ["a", "b", "c"]


async def test_1_moving_to_wait_goes_first_and_is_no_attempt(bull: Bull) -> None:
    await bull.add_many("a", "b")
    job = await bull.next()
    assert (await bull.move(job, "move-to-wait")).json["state"] == "waiting"
    again = await bull.next()
    assert (again["name"], again["attemptsStarted"], again["attemptsMade"]) == ("a", 2, 0)
    await bull.complete(again)
    done = await bull.job(again["id"])
    assert (done["attemptsStarted"], done["attemptsMade"]) == (2, 1)


async def test_1_moving_to_delayed_is_no_attempt(bull: Bull) -> None:
    await bull.add()
    job = await bull.next()
    until = bull.engine.clock() + 5000
    assert (await bull.move(job, "move-to-delayed", timestamp=until)).json["state"] == "delayed"
    found = await bull.job(job["id"])
    assert found["attemptsMade"] == 0
    assert 4000 < found["delay"] <= 5000
    later(bull, 5000)
    again = await bull.next()
    assert (again["attemptsStarted"], again["attemptsMade"]) == (2, 0)


@pytest.mark.parametrize("state", ["failed", "completed"])
async def test_1_a_finished_job_is_retried_with_its_attempts(bull: Bull, state: str) -> None:
    await bull.add("a")
    job = await bull.next()
    if state == "failed":
        await bull.fail(job)
    else:
        await bull.complete(job, 5)
    await bull.add("b")
    assert (await bull.post(f"/queues/que/jobs/{job['id']}/retry", {"state": state})).body == b"OK"
    again = await bull.job(job["id"])
    assert again["attemptsMade"] == 1
    assert again["returnvalue"] is None
    assert not {"finishedOn", "processedOn", "failedReason"} & set(again)
    assert await bull.run() == ["b", "a"]


async def test_1_a_retry_may_reset_the_attempts(bull: Bull) -> None:
    await bull.add()
    job = await bull.next()
    await bull.fail(job)
    await bull.post(f"/queues/que/jobs/{job['id']}/retry", {"resetAttemptsMade": True})
    assert (await bull.job(job["id"]))["attemptsMade"] == 0


ERRORS = {
    "-1 no such job": (404, "Missing key for job nope. moveToFinished"),
    "-3 retry of a job that waits": (409, "Job 1 is not in the failed state. reprocessJob"),
    "-3 promote of a job that waits": (409, "Job 1 is not in the delayed state. promote"),
    "-2 a job that nobody holds": (409, "Missing lock for job 1. moveToFinished"),
}


async def test_1_errors_are_those_of_bullmq(bull: Bull) -> None:
    await bull.add()
    found = {
        "-1 no such job": await bull.move("nope", "move-to-completed"),
        "-3 retry of a job that waits": await bull.post("/queues/que/jobs/1/retry"),
        "-3 promote of a job that waits": await bull.post("/queues/que/jobs/1/promote"),
        "-2 a job that nobody holds": await bull.move("1", "move-to-completed"),
    }
    assert {name: (answer.status, answer.body.decode()) for name, answer in found.items()} == ERRORS


# -- 2 Processing by hand


async def test_2_nothing_there_is_null(bull: Bull) -> None:
    assert await bull.next() is None
    await bull.add()
    await bull.post("/queues/que/pause")
    assert await bull.next() is None


async def test_2_a_request_waits_for_a_job(bull: Bull) -> None:
    waiting = asyncio.create_task(bull.next(timeout=10_000))
    while not bull.server.node.waiters.count:
        await asyncio.sleep(0)
    job = await bull.add()
    assert (await waiting)["id"] == job


async def test_2_an_extended_lock_lasts(bull: Bull) -> None:
    await bull.add()
    job = await bull.next()
    later(bull, LOCK_MS - 1000)
    answer = await bull.move(job, "extend-lock", duration=60_000)
    assert answer.json["lockUntil"] >= bull.engine.clock() + 59_000
    later(bull, 59_000)
    assert await bull.state(job["id"]) == "active"
    later(bull, 1001)
    assert await bull.state(job["id"]) == "waiting"


async def test_2_a_lock_is_not_extended_by_a_wrong_token(bull: Bull) -> None:
    """BullMQ answers 0 there; over HTTP it is an error, which no client overlooks."""
    await bull.add()
    answer = await bull.move(await bull.next(), "extend-lock", token="other", duration=1000)
    assert (answer.status, answer.body) == (409, b"Lock mismatch for job 1. Cmd extendLock from active")


async def test_2_completing_fetches_the_next_job_when_asked_to(bull: Bull) -> None:
    await bull.add_many("a", "b")
    first = await bull.next()
    following = (await bull.complete(first, fetchNext=True))["next"]
    assert (following["name"], following["token"], following["attemptsStarted"]) == ("b", "t1", 1)
    assert await bull.complete(following, fetchNext=True) == {"state": "completed", "next": None}


async def test_2_failing_fetches_the_next_job_when_asked_to(bull: Bull) -> None:
    await bull.add_many("a", "b")
    first = await bull.next()
    answer = await bull.fail(first, fetchNext=True)
    assert (answer["state"], answer["next"]["name"]) == ("failed", "b")


async def test_2_a_wrong_token_is_a_mismatch(bull: Bull) -> None:
    await bull.add()
    job = await bull.next()
    for what, body in (("move-to-completed", {}), ("move-to-failed", {"error": "x"})):
        answer = await bull.move(job, what, token="other", **body)
        assert (answer.status, answer.body) == (409, b"Lock mismatch for job 1. Cmd moveToFinished from active")
    assert await bull.state(job["id"]) == "active"


async def test_2_a_lock_that_ran_out_completes_while_nobody_else_has_the_job(bull: Bull) -> None:
    """BullMQ refuses that (-2) though nobody took the job; here work that was done is not thrown away."""
    await bull.add()
    job = await bull.next()
    later(bull, LOCK_MS + 1)
    assert await bull.state(job["id"]) == "waiting"
    assert (await bull.complete(job, 1))["state"] == "completed"
    done = await bull.job(job["id"])
    assert (done["attemptsMade"], done["attemptsStarted"], done["stalledCounter"]) == (1, 1, 1)


async def test_2_a_lock_that_ran_out_does_not_complete_the_job_of_another(bull: Bull) -> None:
    await bull.add()
    job = await bull.next("t1")
    later(bull, LOCK_MS + 1)
    assert (await bull.next("t2"))["id"] == job["id"]
    answer = await bull.move(job, "move-to-completed", token="t1")
    assert (answer.status, answer.body) == (409, b"Lock mismatch for job 1. Cmd moveToFinished from active")


async def test_2_twice_is_a_missing_lock(bull: Bull) -> None:
    await bull.add()
    job = await bull.next()
    await bull.complete(job)
    answer = await bull.move(job, "move-to-completed")
    assert (answer.status, answer.body) == (409, b"Missing lock for job 1. moveToFinished")


async def test_2_moving_to_wait_goes_in_front_of_its_priority(bull: Bull) -> None:
    await bull.add("first", priority=5)
    job = await bull.next()
    await bull.add("second", priority=5)
    await bull.add("better", priority=4)
    await bull.move(job, "move-to-wait")
    assert await bull.run() == ["better", "first", "second"]


async def test_2_a_locked_job_cannot_be_removed(bull: Bull) -> None:
    await bull.add()
    job = await bull.next()
    answer = await bull.delete("/queues/que/jobs/1")
    assert (answer.status, answer.body) == (
        409,
        b"Job 1 could not be removed because it is locked by another worker",
    )
    await bull.complete(job)
    assert (await bull.delete("/queues/que/jobs/1")).body == b"OK"
    assert (await bull.get("/queues/que/jobs/1")).status == 404


async def test_2_one_token_may_hold_many_jobs(bull: Bull) -> None:
    await bull.add_many("a", "b")
    first, second = await bull.next(), await bull.next()
    await bull.complete(second)
    await bull.complete(first)
    assert (await bull.counts())["completed"] == 2


# -- 3 Stalled jobs


async def test_3_a_stalled_job_goes_first_and_that_is_no_attempt(bull: Bull) -> None:
    """Checked when the lock runs out, not once or twice in half a minute; so the check of the document finds nothing left."""
    await bull.add_many("a", "b", "c")
    stalled = await bull.next()
    later(bull, LOCK_MS + 1)
    assert (await bull.post("/queues/que/stalled-check")).status == 200
    found = await bull.job(stalled["id"])
    assert (found["stalledCounter"], found["attemptsMade"], "failedReason" in found) == (1, 0, False)
    assert await bull.run() == ["a", "b", "c"]
    assert (await bull.job(stalled["id"]))["attemptsStarted"] == 2


async def test_3_extending_keeps_a_job_from_stalling(bull: Bull) -> None:
    await bull.add()
    job = await bull.next()
    for _ in range(4):
        later(bull, LOCK_MS - 5000)
        await bull.move(job, "extend-lock")
    found = await bull.job(job["id"])
    assert (found["stalledCounter"], await bull.state(job["id"])) == (0, "active")


async def test_3_more_stalls_than_allowed_fail_the_job(bull: Bull) -> None:
    """BullMQ waits until a worker takes the job to fail it; here it fails at once."""
    await bull.add(attempts=5)
    for _ in range(2):
        assert await bull.next() is not None
        later(bull, LOCK_MS + 1)
    failed = await bull.job("1")
    assert failed["failedReason"] == "job stalled more than allowable limit"
    assert (failed["attemptsMade"], failed["attemptsStarted"], failed["stalledCounter"]) == (1, 2, 2)
    assert await bull.state("1") == "failed"


async def test_3_a_job_of_a_repetition_may_stall_for_ever(bull: Bull) -> None:
    await bull.add(repeat={"every": 100 * LOCK_MS, "immediately": True})
    for stalls in range(4):
        job = await bull.next()
        assert (job["stalledCounter"], job["attemptsMade"]) == (stalls, 0)
        later(bull, LOCK_MS + 1)
    assert await bull.state(job["id"]) == "waiting"


# -- 4 Attempts and backoff


async def test_4_one_run_by_default(bull: Bull) -> None:
    for opts in ({}, {"attempts": 0}, {"attempts": 1}):
        await bull.add(**opts)
        assert (await bull.fail(await bull.next()))["state"] == "failed"


async def test_4_as_many_runs_as_attempts(bull: Bull) -> None:
    await bull.add(attempts=3)
    states = [(await bull.fail(await bull.next()))["state"] for _ in range(3)]
    assert states == ["waiting", "waiting", "failed"]


@pytest.mark.parametrize(
    "body",
    [
        {"error": "no use", "unrecoverable": True},
        {"error": {"name": "UnrecoverableError", "message": "no use", "stack": "at x"}},
    ],
)
async def test_4_an_unrecoverable_error_fails_at_once(bull: Bull, body: Any) -> None:
    await bull.add(attempts=5)
    job = await bull.next()
    assert (await bull.move(job, "move-to-failed", **body)).json["state"] == "failed"
    assert (await bull.job(job["id"]))["failedReason"] == "no use"


# Long enough that none is over before the test has looked.
DELAYS = [
    (30_000, [30_000, 30_000, 30_000]),
    ({"type": "fixed", "delay": 40_000}, [40_000, 40_000, 40_000]),
    ({"type": "exponential", "delay": 20_000}, [20_000, 40_000, 80_000]),
    ({"type": "linear", "delay": 20_000}, [20_000, 40_000, 60_000]),
    ({"type": "exponential", "delay": 90_000_000}, [90_000_000, 180_000_000, 360_000_000]),
]


@pytest.mark.parametrize(("backoff", "delays"), DELAYS)
async def test_4_backoff(bull: Bull, backoff: Any, delays: list[int]) -> None:
    """Fixed, a number, exponential from 1x, linear (the document names it), and no upper bound."""
    await bull.add(attempts=4, backoff=backoff)
    for delay in delays:
        await bull.fail(await bull.next())
        assert (await bull.job("1"))["delay"] == delay
        assert await bull.next() is None
        later(bull, delay)


async def test_4_jitter_takes_off_no_more_than_its_share(bull: Bull) -> None:
    seen = []
    for number in range(1, 21):
        await bull.add(attempts=2, backoff={"type": "fixed", "delay": 1_000_000, "jitter": 0.5})
        await bull.fail(await bull.next())
        seen.append((await bull.job(str(number)))["delay"])
    assert all(500_000 <= delay <= 1_000_000 for delay in seen)
    assert len(set(seen)) > 10


async def test_4_an_unknown_backoff_is_refused(bull: Bull) -> None:
    """BullMQ Proxy takes such a job, and it stays active when it fails."""
    answer = await bull.post(
        "/queues/que/jobs", [{"name": "a", "data": 1, "opts": {"attempts": 2, "backoff": {"type": "mine"}}}]
    )
    assert answer.status == 400


async def test_4_one_entry_of_the_stacktrace_for_each_failure(bull: Bull) -> None:
    await bull.add(attempts=3)
    await bull.fail(await bull.next(), "one")
    await bull.fail(await bull.next(), {"message": "two", "stack": "Error: two\n    at work"})
    await bull.complete(await bull.next(), "at last")
    job = await bull.job("1")
    assert job["stacktrace"] == ["one", "Error: two\n    at work"]


async def test_4_the_failed_reason_stays_on_a_job_that_completes_later(bull: Bull) -> None:
    await bull.add(attempts=2)
    await bull.fail(await bull.next(), "first try")
    await bull.complete(await bull.next(), "fine")
    job = await bull.job("1")
    assert (job["failedReason"], job["returnvalue"], job["attemptsMade"]) == ("first try", "fine", 2)


# -- 5 Order


async def test_5_order_of_a_queue(bull: Bull) -> None:
    """Lifo, then first come first served, then by priority, lower first; lifo is ignored where a priority is given."""
    await bull.add_many("f1", "f2")
    await bull.add("p5a", priority=5)
    await bull.add("p1", priority=1)
    await bull.add("p5b", priority=5)
    await bull.add("l1", lifo=True)
    await bull.add("l2", lifo=True)
    await bull.add("p5l", priority=5, lifo=True)
    assert await bull.run() == ["l2", "l1", "f1", "f2", "p1", "p5a", "p5b", "p5l"]


async def test_5_a_changed_priority_puts_a_job_last_among_its_new_equals(bull: Bull) -> None:
    await bull.add_many("plain", "moved")
    await bull.add("p2", priority=2)
    assert (await bull.post("/queues/que/jobs/2/change-priority", {"priority": 2})).body == b"OK"
    assert (await bull.job("2"))["priority"] == 2
    assert await bull.run() == ["plain", "p2", "moved"]


async def test_5_a_changed_priority_may_put_a_job_first_among_its_new_equals(bull: Bull) -> None:
    await bull.add("p2", priority=2)
    await bull.add("moved", priority=9)
    await bull.post("/queues/que/jobs/2/change-priority", {"priority": 2, "lifo": True})
    assert await bull.run() == ["moved", "p2"]


async def test_5_due_jobs_go_to_the_back(bull: Bull) -> None:
    await bull.add("late", delay=60_000)
    await bull.add("late5", delay=60_000, priority=5)
    await bull.add_many("a", "b")
    await bull.add("p5", priority=5)
    later(bull, 60_000)
    assert await bull.run() == ["a", "b", "late", "p5", "late5"]


async def test_5_equal_delays_are_first_come_first_served(bull: Bull) -> None:
    await bull.add_many(*({"name": f"d{i}", "opts": {"delay": 1000}} for i in range(5)))
    later(bull, 1000)
    assert await bull.run() == ["d0", "d1", "d2", "d3", "d4"]


# -- 8 Rate limits


async def test_8_a_rate_limited_queue_gives_out_nothing_for_a_while(bull: Bull) -> None:
    await bull.add("a")
    job = await bull.next()
    assert (await bull.post("/queues/que/rate-limit", {"duration": 60_000})).body == b"OK"
    moved = (await bull.move(job, "move-to-wait")).json
    assert moved["state"] == "waiting"
    # Both tell how long it is not worth asking.
    assert 50_000 < moved["ttl"] <= 60_000
    assert 50_000 < (await bull.get("/queues/que/rate-limit")).json["ttl"] <= 60_000
    assert await bull.next() is None
    assert await bull.state(job["id"]) == "waiting"
    later(bull, 60_000)
    again = await bull.next()
    assert (again["id"], again["attemptsStarted"], again["attemptsMade"]) == (job["id"], 2, 0)


async def test_8_those_who_wait_get_a_job_when_the_limit_ends(bull: Bull) -> None:
    await bull.add()
    began = asyncio.get_running_loop().time()
    await bull.post("/queues/que/rate-limit", {"duration": 150})
    assert await bull.next(timeout=10_000) is not None
    assert asyncio.get_running_loop().time() - began > 0.1


async def test_8_a_limit_is_taken_back(bull: Bull) -> None:
    await bull.add()
    await bull.post("/queues/que/rate-limit", {"duration": 60_000})
    assert (await bull.delete("/queues/que/rate-limit")).body == b"OK"
    assert (await bull.get("/queues/que/rate-limit")).json == {"ttl": 0}
    assert await bull.next() is not None


async def test_8_a_global_rate_limit_counts_starts_in_a_fixed_window(bull: Bull) -> None:
    body = {"max": 2, "duration": 20_000}
    assert (await bull.send("PUT", "/queues/que/global-rate-limit", body)).body == b"OK"
    assert (await bull.get("/queues/que")).json["globalRateLimit"] == body
    await bull.add_many(*"abcde")
    assert [job and job["name"] for job in [await bull.next() for _ in range(3)]] == ["a", "b", None]
    later(bull, 20_000)
    assert [job and job["name"] for job in [await bull.next() for _ in range(3)]] == ["c", "d", None]
    assert (await bull.delete("/queues/que/global-rate-limit")).body == b"OK"
    assert (await bull.next())["name"] == "e"


async def test_8_a_global_concurrency_bounds_active_jobs(bull: Bull) -> None:
    assert (await bull.send("PUT", "/queues/que/global-concurrency", {"concurrency": 2})).body == b"OK"
    assert (await bull.get("/queues/que")).json["globalConcurrency"] == 2
    await bull.add_many(*"abcd")
    taken = [await bull.next() for _ in range(3)]
    assert [job and job["name"] for job in taken] == ["a", "b", None]
    await bull.complete(taken[0])
    assert (await bull.next())["name"] == "c"
    assert await bull.next() is None
    assert (await bull.delete("/queues/que/global-concurrency")).body == b"OK"
    assert (await bull.next())["name"] == "d"


async def test_8_limits_that_are_none_are_refused(bull: Bull) -> None:
    for path, body, text in (
        ("global-rate-limit", {"max": 0, "duration": 1}, "Invalid max 0"),
        ("global-rate-limit", {"max": 1}, "duration is required"),
        ("global-concurrency", {}, "concurrency is required"),
        ("global-concurrency", {"concurrency": 1.5}, "Invalid concurrency 1.5"),
    ):
        answer = await bull.send("PUT", f"/queues/que/{path}", body)
        assert (answer.status, answer.body.decode()) == (400, text)


@contextlib.asynccontextmanager
async def endpoint() -> AsyncIterator[tuple[str, list[Any]]]:
    """Serve an endpoint of a push worker; yield its URL, and what it was sent."""
    calls: list[Any] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        calls.append(await request.json())
        return web.json_response("done")

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/", calls
    finally:
        await runner.cleanup()


async def test_8_a_limiter_counts_starts_in_a_window_for_the_whole_queue(bull: Bull) -> None:
    """Whoever takes a job counts: what the worker took is missing for those who process by hand."""
    await bull.add_many("a", "b", "c", "d")
    state = bull.server.node.machine.state
    async with endpoint() as (url, calls):
        opts = {"limiter": {"max": 2, "duration": 60_000}, "concurrency": 4}
        body = {"queue": "que", "endpoint": {"url": url, "method": "POST"}, "opts": opts}
        assert (await bull.post("/workers", body)).body == b"OK"
        await bull.until(lambda: len(state.queues["que"].completed) == 2)
        assert [call["job"]["name"] for call in calls] == ["a", "b"]
        assert await bull.next() is None
        assert 0 < (await bull.get("/queues/que/rate-limit")).json["ttl"] <= 60_000
        assert (await bull.counts())["waiting"] == 2
        later(bull, 60_000)
        # Those who wait look at the clock of the machine; what wakes them here is a new job.
        await bull.add("e")
        await bull.until(lambda: len(state.queues["que"].completed) == 4)
        assert (await bull.counts())["waiting"] == 1
        assert (await bull.delete("/workers/que")).body == b"OK"

"""The life of a job over HTTP: taking, finishing, failing, locks, progress, cancelling, reading."""

from __future__ import annotations

import asyncio
import re
from typing import Any
from urllib.parse import quote

import pytest

from quorumq.api.dialects.bunqueue.routes import ROUTES
from tests.api.conftest import Client

JOB_KEYS = {
    "id", "queue", "name", "data", "createdAt", "runAt", "startedAt", "completedAt", "attempts", "backoff",
    "backoffConfig", "dependsOn", "childrenIds", "childrenCompleted", "tags", "progress", "progressMessage",
    "stacktrace", "repeat", "durable", "lastHeartbeat", "stallCount", "priority", "lifo", "maxAttempts",
    "removeOnComplete", "removeOnFail", "ttl", "timeout", "uniqueKey", "customId", "parentId", "groupId",
    "stallTimeout", "stackTraceLimit", "keepLogs", "sizeLimit", "failParentOnFailure", "removeDependencyOnFailure",
    "continueParentOnFailure", "ignoreDependencyOnFailure", "deduplicationTtl", "deduplicationExtend",
    "deduplicationReplace", "debounceId", "debounceTtl", "timeline",
}  # fmt: skip


class TestPull:
    async def test_the_job_object(self, client: Client) -> None:
        job_id = await client.push(data={"to": "u"}, priority=3, tags=["t1"])
        job = await client.pull()
        assert set(job) == JOB_KEYS | {"fencingToken"}
        shown = {
            "id": job_id,
            "queue": "q",
            "name": "default",
            "data": {"to": "u"},
            "completedAt": None,
            "attempts": 0,
            "backoff": 1000,
            "backoffConfig": None,
            "dependsOn": [],
            "tags": ["t1"],
            "progress": 0,
            "progressMessage": None,
            "repeat": None,
            "durable": False,
            "stallCount": 0,
            "priority": 3,
            "lifo": False,
            "maxAttempts": 3,
            "removeOnComplete": False,
            "removeOnFail": False,
            "ttl": None,
            "timeout": None,
            "uniqueKey": None,
            "customId": None,
            "groupId": None,
        }
        assert {name: job[name] for name in shown} == shown
        assert job["createdAt"] == job["runAt"] <= job["startedAt"]
        assert [step["state"] for step in job["timeline"]][-1] == "active"

    async def test_nothing_to_take(self, client: Client) -> None:
        assert (await client.get("/queues/never/jobs")).json == {"ok": True, "job": None}
        answer = await client.post("/queues/never/jobs/pull-batch", {"count": 10})
        assert answer.json == {"ok": True, "jobs": []}
        answer = await client.post("/queues/never/jobs/pull-batch", {"count": 10, "owner": "w"})
        assert answer.json == {"ok": True, "jobs": [], "tokens": []}
        assert (await client.get("/queues")).json["queues"] == []

    async def test_order(self, client: Client) -> None:
        for data, options in [
            ("a", {}),
            ("b", {"priority": 5}),
            ("c", {"priority": 5}),
            ("d", {"priority": -3}),
            ("e", {"priority": 5, "lifo": True}),
            ("f", {"lifo": True}),
            ("g", {"lifo": True}),
            ("h", {}),
        ]:
            await client.push(data=data, **options)
        assert [(await client.pull())["data"] for _ in range(8)] == list("ebcgfahd")

    @pytest.mark.parametrize(
        ("timeout", "error"),
        [
            ("60001", "timeout must be at most 60000"),
            ("-1", "timeout must be at least 0"),
            ("abc", "timeout must be a finite number"),
            ("Infinity", "timeout must be a finite number"),
            ("nan", "timeout must be a finite number"),
            ("1_0", "timeout must be a finite number"),
        ],
    )
    async def test_timeout_rules(self, client: Client, timeout: str, error: str) -> None:
        answer = await client.get(f"/queues/q/jobs?timeout={timeout}")
        assert (answer.status, answer.error) == (400, error)

    @pytest.mark.parametrize("timeout", ["", "0", "1.5", "1e1", "%2010%20"])
    async def test_timeouts_that_are_fine(self, client: Client, timeout: str) -> None:
        assert (await client.get(f"/queues/q/jobs?timeout={timeout}")).json["job"] is None

    @pytest.mark.parametrize(
        ("body", "error"),
        [
            ({"count": 0}, "count must be at least 1"),
            ({"count": -1}, "count must be at least 1"),
            ({"count": 1001}, "count must be at most 1000"),
            ({"count": "5"}, "count must be a number"),
            ({"count": True}, "count must be a number"),
            ({}, "count is required"),
            ({"count": None}, "count is required"),
            ({"count": 1, "timeout": 60_001}, "timeout must be at most 60000"),
            ({"count": 1, "timeout": "1"}, "timeout must be a number"),
            ({"count": 1, "owner": "w", "lockTtl": 0}, "lockTtl must be at least 1"),
            ({"count": 1, "owner": "w", "lockTtl": "x"}, "lockTtl must be a number"),
            ({"count": 1, "lockTtl": "x"}, "lockTtl must be a number"),
        ],
        ids=str,
    )
    async def test_batch_rules(self, client: Client, body: Any, error: str) -> None:
        await client.push()
        answer = await client.post("/queues/q/jobs/pull-batch", body)
        assert (answer.status, answer.error) == (400, error)
        assert (await client.counts())["active"] == 0

    async def test_batch_bodies(self, client: Client) -> None:
        assert (await client.post("/queues/q/jobs/pull-batch", raw=b"{")).error == "Invalid JSON body"
        assert (await client.post("/queues/q/jobs/pull-batch")).error == "count is required"

    async def test_a_fraction_counts_as_the_whole_below(self, client: Client) -> None:
        await client.post("/queues/q/jobs/bulk", {"jobs": [{"data": 1}, {"data": 2}]})
        assert len((await client.post("/queues/q/jobs/pull-batch", {"count": 1.5})).json["jobs"]) == 1

    async def test_locks_and_fencing_tokens(self, client: Client) -> None:
        await client.post("/queues/q/jobs/bulk", {"jobs": [{"data": n} for n in range(4)]})
        answer = await client.post("/queues/q/jobs/pull-batch", {"count": 3, "owner": "w1", "lockTtl": 5000})
        jobs, tokens = answer.json["jobs"], answer.json["tokens"]
        assert [job["token"] for job in jobs] == tokens
        assert len(set(tokens)) == 3
        assert all(job["owner"] == "w1" and job["lockExpiresAt"] > job["startedAt"] for job in jobs)
        unlocked = await client.pull()
        fences = [job["fencingToken"] for job in [*jobs, unlocked]]
        assert fences == sorted(set(fences))
        assert "token" not in unlocked
        shown = (await client.get(f"/jobs/{jobs[0]['id']}")).json["job"]
        assert "token" not in shown, "a reader must not be able to act for the worker"


class TestAck:
    async def test_with_a_result(self, client: Client) -> None:
        job_id = await client.push()
        await client.pull()
        assert (await client.post(f"/jobs/{job_id}/ack", {"result": {"sent": True}})).json == {"ok": True}
        assert await client.state(job_id) == "completed"
        assert (await client.get(f"/jobs/{job_id}/result")).json == {"ok": True, "id": job_id, "result": {"sent": True}}
        job = (await client.get(f"/jobs/{job_id}")).json["job"]
        assert (job["state"], job["returnvalue"], job["progress"]) == ("completed", {"sent": True}, 100)
        assert job["completedAt"] >= job["startedAt"]

    async def test_the_progress_that_was_reported_stays(self, client: Client) -> None:
        job_id = await client.push()
        await client.pull()
        await client.post(f"/jobs/{job_id}/progress", {"progress": 50})
        await client.post(f"/jobs/{job_id}/ack")
        assert (await client.get(f"/jobs/{job_id}")).json["job"]["progress"] == 50

    @pytest.mark.parametrize("text", [b"0", b'""', b"null", b"[1, 2]", b'"\\ud800"'])
    async def test_any_result_is_kept_as_it_is(self, client: Client, text: bytes) -> None:
        job_id = await client.push()
        await client.pull()
        assert (await client.post(f"/jobs/{job_id}/ack", raw=b'{"result":%b}' % text)).status == 200
        assert b'"result":%b}' % text in (await client.get(f"/jobs/{job_id}/result")).body

    async def test_without_a_body(self, client: Client) -> None:
        job_id = await client.push()
        await client.pull()
        assert (await client.post(f"/jobs/{job_id}/ack")).json == {"ok": True}
        assert (await client.get(f"/jobs/{job_id}/result")).json == {"ok": True, "id": job_id}

    async def test_of_what_is_not_active(self, client: Client) -> None:
        waiting = await client.push()
        for job_id in ("nope", waiting):
            for path in ("ack", "fail"):
                answer = await client.post(f"/jobs/{job_id}/{path}", {})
                assert (answer.status, answer.error) == (400, "Job not found or not active")
        await client.pull()
        await client.post(f"/jobs/{waiting}/ack")
        assert (await client.post(f"/jobs/{waiting}/ack")).error == "Job not found or not active"

    async def test_a_token_on_an_unlocked_job_is_ignored(self, client: Client) -> None:
        job_id = await client.push()
        await client.pull()
        assert (await client.post(f"/jobs/{job_id}/ack", {"token": "bogus"})).json == {"ok": True}

    @pytest.mark.parametrize("path", ["ack", "fail"])
    async def test_a_locked_job_needs_its_token(self, client: Client, path: str) -> None:
        job_id = await client.push()
        _, token = await client.take()
        missing = await client.post(f"/jobs/{job_id}/{path}", {})
        assert (missing.status, missing.error) == (400, f"Lock token required for job {job_id}")
        for wrong in ("bogus", 5, {"a": 1}):
            answer = await client.post(f"/jobs/{job_id}/{path}", {"token": wrong})
            assert (answer.status, answer.error) == (400, f"Invalid or expired lock token for job {job_id}")
        assert await client.state(job_id) == "active"
        assert (await client.post(f"/jobs/{job_id}/{path}", {"token": token})).json == {"ok": True}

    async def test_bad_json_changes_nothing(self, client: Client) -> None:
        job_id = await client.push()
        await client.pull()
        for path in (f"/jobs/{job_id}/ack", f"/jobs/{job_id}/fail", "/jobs/ack-batch"):
            answer = await client.post(path, raw=b"{")
            assert (answer.status, answer.error) == (400, "Invalid JSON body")
        assert await client.state(job_id) == "active"

    async def test_batch(self, client: Client) -> None:
        ids = [await client.push(data=n) for n in range(3)]
        await client.post("/queues/q/jobs/pull-batch", {"count": 3})
        answer = await client.post("/jobs/ack-batch", {"ids": ids, "results": [{"a": 1}, None, {"c": 3}]})
        assert answer.json == {"ok": True}
        results = [(await client.get(f"/jobs/{job_id}/result")).json["result"] for job_id in ids]
        assert results == [{"a": 1}, None, {"c": 3}]
        again = await client.post("/jobs/ack-batch", {"ids": ids})
        assert (again.status, again.error[:24]) == (400, "Job not found or not act")

    async def test_batch_with_tokens(self, client: Client) -> None:
        job_id = await client.push()
        _, token = await client.take()
        bad = await client.post("/jobs/ack-batch", {"ids": [job_id], "tokens": ["bad"]})
        assert (bad.status, bad.error) == (400, f"Invalid or expired lock token for job {job_id}")
        assert (
            await client.post("/jobs/ack-batch", {"ids": [job_id], "tokens": [token], "results": [5]})
        ).status == 200

    async def test_of_a_batch_the_good_ones_are_done(self, client: Client) -> None:
        job_id = await client.push()
        await client.pull()
        answer = await client.post("/jobs/ack-batch", {"ids": [job_id, "nope"]})
        assert (answer.status, answer.error[:24]) == (400, "Job not found or not act")
        assert await client.state(job_id) == "completed"

    @pytest.mark.parametrize(
        ("body", "error"),
        [
            ({}, "ids must be an array"),
            ({"ids": "x"}, "ids must be an array"),
            ({"ids": ["a", "b"], "results": [1]}, "ACKB results length must match ids length"),
            ({"ids": ["a", "b"], "tokens": ["t"]}, "ACKB tokens length must match ids length"),
            ({"ids": ["a"], "tokens": "t"}, "tokens must be an array"),
            ({"ids": ["a"] * 10_001}, "ids must have at most 10000 items"),
        ],
        ids=lambda value: str(value)[:40],
    )
    async def test_batch_rules(self, client: Client, body: Any, error: str) -> None:
        answer = await client.post("/jobs/ack-batch", body)
        assert (answer.status, answer.error) == (400, error)

    async def test_an_empty_batch(self, client: Client) -> None:
        assert (await client.post("/jobs/ack-batch", {"ids": []})).json == {"ok": True}


class TestFail:
    async def test_a_retry_waits(self, client: Client) -> None:
        job_id = await client.push()
        await client.pull()
        assert (await client.post(f"/jobs/{job_id}/fail", {"error": "SMTP refused"})).json == {"ok": True}
        job = (await client.get(f"/jobs/{job_id}")).json["job"]
        assert (job["state"], job["attempts"], job["failedReason"]) == ("delayed", 1, "SMTP refused")
        assert job["startedAt"] is None
        assert [step["state"] for step in job["timeline"]][:3] == ["waiting", "active", "failed"]
        late = await client.post(f"/jobs/{job_id}/ack", {})
        assert (late.status, await client.state(job_id)) == (400, "delayed")

    async def test_the_last_attempt_goes_to_the_dead_letters(self, client: Client) -> None:
        job_id = await client.push(data={"n": 1}, maxAttempts=1)
        await client.pull()
        await client.post(f"/jobs/{job_id}/fail", {"error": "boom"})
        assert await client.state(job_id) == "failed"
        dlq = (await client.get("/queues/q/dlq")).json
        assert dlq["total"] == 1
        assert [job["id"] for job in dlq["jobs"]] == [job_id]
        entry = dlq["entries"][0]
        assert (entry["reason"], entry["error"], entry["retryCount"]) == ("max_attempts_exceeded", "boom", 0)
        assert entry["job"]["id"] == job_id
        assert entry["expiresAt"] == entry["enteredAt"] + 604_800_000
        run = entry["attempts"][0]
        assert (run["attempt"], run["error"]) == (1, "boom")
        assert run["duration"] == run["failedAt"] - run["startedAt"]

    async def test_an_error_need_not_be_text(self, client: Client) -> None:
        job_id = await client.push(maxAttempts=1)
        await client.pull()
        assert (await client.post(f"/jobs/{job_id}/fail", {"error": {"code": 5}})).status == 200
        assert (await client.get(f"/jobs/{job_id}")).json["job"]["failedReason"] == '{"code":5}'

    async def test_the_stacks_of_failed_runs(self, client: Client) -> None:
        job_id = await client.push(maxAttempts=4, backoff=0)
        assert (await client.get(f"/jobs/{job_id}")).json["job"]["stacktrace"] is None
        for stack in (None, "Error: a\n  at b", ["Error: c", "  at d"], "x" * 70_000):
            await client.pull()
            assert (await client.post(f"/jobs/{job_id}/fail", {"error": "e", "stack": stack})).status == 200
        shown = (await client.get(f"/jobs/{job_id}")).json["job"]["stacktrace"]
        assert shown == ["Error: a\n  at b", "Error: c\n  at d", "x" * 65_536]
        assert (await client.get("/queues/q/dlq")).json["entries"][0]["job"]["stacktrace"] == shown

    @pytest.mark.parametrize("stack", [5, {}, [], [5], ""])
    async def test_a_stack_that_is_none(self, client: Client, stack: Any) -> None:
        job_id = await client.push()
        await client.pull()
        assert (await client.post(f"/jobs/{job_id}/fail", {"stack": stack})).status == 200

    async def test_unrecoverable(self, client: Client) -> None:
        job_id = await client.push()
        await client.pull()
        await client.post(f"/jobs/{job_id}/fail", {"error": "boom", "unrecoverable": True})
        assert await client.state(job_id) == "failed"

    async def test_remove_on_fail(self, client: Client) -> None:
        job_id = await client.push(maxAttempts=1, removeOnFail=True)
        await client.pull()
        await client.post(f"/jobs/{job_id}/fail")
        assert await client.state(job_id) == "unknown"
        assert (await client.get("/queues/q/dlq")).json == {"ok": True, "jobs": [], "entries": [], "total": 0}

    async def test_dead_letters_by_page(self, client: Client) -> None:
        ids = []
        for n in range(3):
            ids.append(await client.push(data=n, maxAttempts=1))
            await client.pull()
            await client.post(f"/jobs/{ids[-1]}/fail")

        async def page(query: str) -> list[str]:
            body = (await client.get(f"/queues/q/dlq{query}")).json
            assert body["total"] == 3
            assert [entry["job"]["id"] for entry in body["entries"]] == [job["id"] for job in body["jobs"]]
            return [job["id"] for job in body["jobs"]]

        assert await page("") == ids
        assert await page("?count=1") == ids[:1]
        assert await page("?limit=2") == ids[:2]
        assert await page("?limit=2&offset=1") == ids[1:]
        bad = await client.get("/queues/q/dlq?count=x")
        assert (bad.status, bad.error) == (400, "count must be a finite number")


class TestReads:
    async def test_unknown_ids(self, client: Client) -> None:
        answer = await client.get("/jobs/nope")
        assert (answer.status, answer.error) == (404, "Job not found")
        assert (await client.get("/jobs/nope/state")).json == {"ok": True, "id": "nope", "state": "unknown"}
        assert (await client.get("/jobs/nope/progress")).status == 404

    @pytest.mark.parametrize("query", ["", "?consistency=stale"])
    async def test_what_belongs_to_a_job_that_is_not_there_is_not_found(self, client: Client, query: str) -> None:
        """One that never was, one that was removed, and one that was removed when it completed."""
        removed = await client.push()
        assert (await client.post(f"/jobs/{removed}/logs", {"message": "m"})).status == 200
        for path in ("result", "children", "logs"):
            assert (await client.get(f"/jobs/{removed}/{path}{query}")).status == 200
        assert (await client.delete(f"/jobs/{removed}/logs")).status == 200
        assert (await client.delete(f"/jobs/{removed}")).status == 200
        forgotten = await client.push(removeOnComplete=True)
        await client.pull()
        assert (await client.post(f"/jobs/{forgotten}/ack", {"result": 1})).status == 200
        for job_id in ("nope", removed, forgotten):
            for method, path in (("GET", "result"), ("GET", "children"), ("GET", "logs"), ("DELETE", "logs")):
                answer = await client.send(method, f"/jobs/{job_id}/{path}{query if method == 'GET' else ''}")
                assert (answer.status, answer.error) == (404, "Job not found"), (job_id, method, path)

    @pytest.mark.parametrize(
        ("method", "path"),
        [(route.method, route.path) for route in ROUTES if re.match(r"/jobs/\{id\}(?!/state$)", route.path)],
    )
    async def test_every_route_of_a_job_says_that_it_is_not_there(self, client: Client, method: str, path: str) -> None:
        """404, or the text that the document gives with 400; never as if something had been done."""
        body = None if method in {"GET", "DELETE"} else {
            "delay": 1, "progress": 1, "message": "m", "data": 1, "priority": 1, "token": "t", "duration": 1000, "timeout": 1,
            "parentId": "other",
        }  # fmt: skip
        answer = await client.send(method, path.replace("{id}", "nope"), body)
        with_400 = {"ack", "fail", "promote", "move-to-wait", "heartbeat", "extend-lock"}
        assert answer.status == (400 if path.rpartition("/")[2] in with_400 else 404), answer.json
        assert answer.json["ok"] is False

    async def test_what_a_worker_says_of_a_run_is_kept_as_far_as_it_was_said(self, client: Client) -> None:
        """No stack where none was sent; a word of its own as level, of which 256 characters stay."""
        job = await client.push(backoff=0, maxAttempts=9)
        for sent, shown in (
            ({}, None),
            ({"stack": "at one"}, ["at one"]),
            ({}, ["at one"]),
            ({"stack": "at two"}, ["at one", "at two"]),
        ):
            assert (await client.get("/queues/q/jobs?timeout=5000")).json["job"]["id"] == job
            assert (await client.post(f"/jobs/{job}/fail", {"error": "e", **sent})).status == 200
            assert (await client.get(f"/jobs/{job}")).json["job"]["stacktrace"] == shown
        assert (await client.post(f"/jobs/{job}/logs", {"message": "m", "level": "x" * 300})).status == 200
        assert (await client.get(f"/jobs/{job}/logs")).json["data"]["logs"][0]["level"] == "x" * 256

    @pytest.mark.parametrize("end", ["", "ack", "fail"])
    async def test_a_custom_id_is_answered_as_the_id_in_every_state(self, client: Client, end: str) -> None:
        await client.push(jobId="mine", maxAttempts=1)
        if end:
            await client.pull()
            assert (await client.post(f"/jobs/mine/{end}", {})).status == 200
        answer = await client.get("/jobs/custom/mine")
        assert answer.status == 200 and answer.json == (await client.get("/jobs/mine")).json

    async def test_unknown_ids_are_not_decoded_in_paths(self, client: Client) -> None:
        assert (await client.get("/jobs/a%20b/state")).json == {"ok": True, "id": "a%20b", "state": "unknown"}
        assert (await client.get("/jobs/%zz/state")).json["id"] == "%zz"
        assert (await client.get("/jobs/%ff")).status == 404

    @pytest.mark.parametrize(
        "name", ["a b", "a/b?c#d", "\u00e9\U0001f600", "%41", "100%", "..", "bull:q:7", "\U0001f600" * 1024]
    )
    async def test_any_id_can_be_worked_on(self, client: Client, name: str) -> None:
        await client.push(jobId=name)
        path = "/jobs/" + quote(name, safe="").replace(".", "%2e")
        assert (await client.get(path)).json["job"]["id"] == name
        assert (await client.get(f"{path}/state")).json == {"ok": True, "id": name, "state": "waiting"}
        assert (await client.pull())["id"] == name
        assert (await client.post(f"{path}/progress", {"progress": 5})).status == 200
        assert (await client.post(f"{path}/ack", {"result": 1})).status == 200
        assert (await client.get(f"{path}/result?consistency=stale")).json["result"] == 1

    async def test_a_repeat_about_a_decoded_id_is_one_request(self, client: Client) -> None:
        await client.push(jobId="a b", removeOnComplete=True)
        await client.pull()
        for _ in range(2):
            answer = await client.post("/jobs/a%20b/ack", {"result": 1}, headers={"Idempotency-Key": "once"})
            assert (answer.status, answer.json) == (200, {"ok": True})
        assert await client.state("a%20b") == "unknown"

    async def test_ids_are_decoded_below_a_queue_too(self, client: Client) -> None:
        await client.push(jobId="a b")
        await client.post("/jobs/a%20b/discard")
        assert (await client.delete("/queues/q/dlq/a%20b")).status == 200
        assert await client.state("a%20b") == "unknown"

    async def test_decoding_without_a_quorum(self, client: Client) -> None:
        await client.push(jobId="a b")
        client.engine.available = False
        assert (await client.get("/jobs/a%20b/state")).status == 503
        assert (await client.get("/jobs/a%20b/state?consistency=stale")).json["state"] == "waiting"

    async def test_an_id_is_taken_as_it_stands_first(self, client: Client) -> None:
        for name in ("a b", "a%20b"):
            await client.push(jobId=name)
        assert (await client.get("/jobs/a%20b")).json["job"]["id"] == "a%20b"
        await client.delete("/jobs/a%20b")
        assert (await client.get("/jobs/a%20b")).json["job"]["id"] == "a b"

    @pytest.mark.parametrize(
        "path", ["/jobs/{id}", "/jobs/{id}/state", "/jobs/{id}/result", "/queues", "/queues/q/counts"]
    )
    async def test_stale_reads(self, client: Client, path: str) -> None:
        path = path.format(id=await client.push())
        client.engine.available = False
        stale = await client.get(path + "?consistency=stale")
        assert stale.status == 200
        fresh = await client.get(path)
        assert (fresh.status, fresh.json["code"]) == (503, "unavailable")
        assert int(fresh.headers["Retry-After"]) >= 1
        bad = await client.get(path + "?consistency=maybe")
        assert (bad.status, bad.error) == (400, "consistency must be 'stale' or 'linearizable'")

    async def test_remove_on_complete(self, client: Client) -> None:
        job_id = await client.push(removeOnComplete=True)
        await client.pull()
        await client.post(f"/jobs/{job_id}/ack", {"result": 1})
        assert (await client.get(f"/jobs/{job_id}")).status == 404
        assert await client.state(job_id) == "unknown"


class TestCancel:
    async def test_waiting_delayed_and_active(self, client: Client) -> None:
        active = await client.push()
        await client.pull()
        for job_id in (active, await client.push(), await client.push(delay=60_000)):
            assert (await client.delete(f"/jobs/{job_id}")).json == {"ok": True}
            assert await client.state(job_id) == "unknown"
            assert (await client.get(f"/jobs/{job_id}")).status == 404
        assert (await client.post(f"/jobs/{active}/ack")).status == 400

    async def test_what_cannot_be_cancelled(self, client: Client) -> None:
        done = await client.push()
        await client.pull()
        await client.post(f"/jobs/{done}/ack")
        for job_id in ("nope", done):
            answer = await client.delete(f"/jobs/{job_id}")
            assert (answer.status, answer.error) == (404, "Job not found or cannot be cancelled")
        assert await client.state(done) == "completed"


class TestLocks:
    async def test_heartbeats(self, client: Client) -> None:
        job_id = await client.push()
        none = "Job not found or not active (or invalid token)"
        for unknown in (job_id, "nope"):
            answer = await client.post(f"/jobs/{unknown}/heartbeat", {})
            assert (answer.status, answer.error) == (400, none)
        await client.pull()
        for body in ({}, None, {"duration": "odd"}):
            answer = await client.post(f"/jobs/{job_id}/heartbeat", body)
            assert answer.json == {"ok": True, "data": {"ok": True}}
        bogus = await client.post(f"/jobs/{job_id}/heartbeat", {"token": "bogus"})
        assert (bogus.status, bogus.error) == (400, none)

    async def test_heartbeats_of_a_locked_job(self, client: Client) -> None:
        job_id = await client.push()
        job, token = await client.take(lockTtl=10_000)
        for body in ({"token": token, "duration": 30_000}, {"token": token}, {}):
            assert (await client.post(f"/jobs/{job_id}/heartbeat", body)).status == 200
        assert (await client.post(f"/jobs/{job_id}/heartbeat", {"token": "bad"})).status == 400
        shown = (await client.get(f"/jobs/{job_id}")).json["job"]
        assert shown["lockExpiresAt"] >= job["lockExpiresAt"]

    async def test_batches_of_heartbeats(self, client: Client) -> None:
        job_id = await client.push()
        _, token = await client.take()
        for body, count in (
            ({"ids": [job_id, "nope"]}, 1),
            ({"ids": []}, 0),
            ({"ids": [job_id], "tokens": [token]}, 1),
            ({"ids": [job_id], "tokens": ["bad"]}, 0),
        ):
            answer = await client.post("/jobs/heartbeat-batch", body)
            assert answer.json == {"ok": True, "data": {"ok": True, "count": count}}
        answer = await client.post("/jobs/heartbeat-batch", {})
        assert (answer.status, answer.error) == (400, "ids must be an array")

    async def test_extending(self, client: Client) -> None:
        job_id = await client.push()
        job, token = await client.take(lockTtl=10_000)
        for body in ({"duration": 30_000, "token": token}, {"duration": 30_000}, {"token": token}):
            assert (await client.post(f"/jobs/{job_id}/extend-lock", body)).json == {"ok": True}
        assert (await client.get(f"/jobs/{job_id}")).json["job"]["lockExpiresAt"] > job["lockExpiresAt"]
        for path, body in ((job_id, {"token": "bad"}), ("nope", {"token": "x"})):
            answer = await client.post(f"/jobs/{path}/extend-lock", {"duration": 1000, **body})
            assert (answer.status, answer.error) == (400, "Lock not found or invalid token")
        bad = await client.post(f"/jobs/{job_id}/extend-lock", {"token": token, "duration": -1})
        assert (bad.status, bad.error) == (400, "duration must be at least 1")

    async def test_extending_what_is_not_locked(self, client: Client) -> None:
        job_id = await client.push()
        await client.pull()
        answer = await client.post(f"/jobs/{job_id}/extend-lock", {"duration": 30_000})
        assert (answer.status, answer.error) == (400, "Lock not found or invalid token")

    async def test_extending_many(self, client: Client) -> None:
        job_id = await client.push()
        _, token = await client.take()
        body = {"ids": [job_id, "nope"], "tokens": [token, "x"], "durations": [30_000, 60_000]}
        assert (await client.post("/jobs/extend-locks", body)).json == {"ok": True, "count": 1}
        for wrong in ({}, {"ids": [job_id]}, {"ids": [job_id], "tokens": []}, {**body, "durations": [1]}):
            assert (await client.post("/jobs/extend-locks", wrong)).status == 400


class TestProgress:
    async def test_of_an_active_job(self, client: Client) -> None:
        job_id = await client.push()
        await client.pull()
        path = f"/jobs/{job_id}/progress"
        assert (await client.get(path)).json == {"ok": True, "progress": 0, "message": None}
        assert (await client.post(path, {"progress": 75, "message": "Processing"})).json == {"ok": True}
        assert (await client.get(path)).json == {"ok": True, "progress": 75, "message": "Processing"}
        for sent, shown in ((150, 100), (-5, 0), (12.5, 12.5)):
            await client.post(path, {"progress": sent})
            assert (await client.get(path)).json == {"ok": True, "progress": shown, "message": "Processing"}
        for odd, error in (({"progress": "x"}, "must be a number"), ({"message": "m"}, "is required")):
            answer = await client.post(path, odd)
            assert (answer.status, answer.error) == (400, f"progress {error}")
        shown_job = (await client.get(f"/jobs/{job_id}")).json["job"]
        assert (shown_job["progress"], shown_job["progressMessage"]) == (12.5, "Processing")

    async def test_of_other_jobs(self, client: Client) -> None:
        job_id = await client.push()
        text = "Job is not active (current state: waiting)"
        read = await client.get(f"/jobs/{job_id}/progress")
        assert (read.status, read.error) == (404, text)
        write = await client.post(f"/jobs/{job_id}/progress", {"progress": 5})
        assert (write.status, write.error) == (400, text)
        assert (await client.post("/jobs/nope/progress", {"progress": 5})).error == "Job not found"


class TestPromote:
    async def test_a_delayed_job(self, client: Client) -> None:
        job_id = await client.push(delay=60_000)
        assert (await client.post(f"/jobs/{job_id}/promote")).json == {"ok": True}
        assert (await client.pull())["id"] == job_id

    async def test_any_other(self, client: Client) -> None:
        waiting = await client.push()
        for job_id in (waiting, "nope"):
            answer = await client.post(f"/jobs/{job_id}/promote")
            assert (answer.status, answer.error) == (400, "Job not found or not delayed")


class TestWait:
    async def test_it_times_out(self, client: Client) -> None:
        job_id = await client.push()
        answer = await client.post(f"/jobs/{job_id}/wait", {"timeout": 30})
        assert answer.json == {"ok": True, "completed": False}

    async def test_it_ends_with_the_job(self, client: Client) -> None:
        job_id = await client.push()
        await client.pull()
        waiting = asyncio.ensure_future(client.post(f"/jobs/{job_id}/wait", {"timeout": 10_000}))
        while not client.server.under_way:
            await asyncio.sleep(0)
        await client.post(f"/jobs/{job_id}/ack", {"result": {"sent": True}})
        assert (await waiting).json == {"ok": True, "completed": True, "result": {"sent": True}}

    async def test_a_job_that_is_removed_when_it_completes(self, client: Client) -> None:
        job_id = await client.push(removeOnComplete=True)
        await client.pull()
        waiting = asyncio.ensure_future(client.post(f"/jobs/{job_id}/wait", {"timeout": 10_000}))
        while not client.server.under_way:
            await asyncio.sleep(0)
        await client.post(f"/jobs/{job_id}/ack")
        assert (await waiting).json == {"ok": True, "completed": True}

    async def test_a_completed_job(self, client: Client) -> None:
        job_id = await client.push()
        await client.pull()
        await client.post(f"/jobs/{job_id}/ack", {"result": 5})
        for body in ({"timeout": 10_000}, None):
            answer = await client.post(f"/jobs/{job_id}/wait", body)
            assert answer.json == {"ok": True, "completed": True, "result": 5}

    @pytest.mark.parametrize(
        ("body", "error"),
        [
            ({"timeout": -1}, "timeout must be at least 0"),
            ({"timeout": 600_001}, "timeout must be at most 600000"),
            ({"timeout": "x"}, "timeout must be a number"),
        ],
        ids=str,
    )
    async def test_rules(self, client: Client, body: Any, error: str) -> None:
        answer = await client.post("/jobs/nope/wait", body)
        assert (answer.status, answer.error) == (400, error)

    async def test_unknown(self, client: Client) -> None:
        answer = await client.post("/jobs/nope/wait", {"timeout": 10})
        assert (answer.status, answer.error) == (404, "Job not found")

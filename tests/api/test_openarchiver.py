"""Open Archiver's Jobs API: as its document says, and beyond it as the recorded server answers."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from quorumq.api import tokens
from quorumq.api.dialects.openarchiver import render
from quorumq.api.dialects.openarchiver.routes import parse_int, window
from quorumq.api.mounts import main_dialects
from quorumq.api.openapi import document
from scripts.tools.conformance import FOLDER
from tests.api.conftest import Client, Serve

HEADERS = {"Authorization": "Bearer t"}
STATES = ("active", "completed", "failed", "delayed", "waiting", "paused")
JOB_KEYS = [
    "id", "name", "data", "state", "failedReason", "timestamp", "processedOn", "finishedOn", "attemptsMade", "stacktrace",
    "returnValue", "ingestionSourceId", "error",
]  # fmt: skip


@pytest.fixture
async def client(serve: Serve) -> Client:
    return await serve(auth_tokens=("t",))


async def add(client: Client, *jobs: Any, queue: str = "ingestion") -> list[Any]:
    """Add jobs as Open Archiver's own producer does."""
    made = [{"name": "initial-import", "data": {"ingestionSourceId": "src-1"}, **job} for job in jobs]
    answer = await client.bullmq.post(f"/queues/{queue}/jobs", made, headers=HEADERS)
    assert answer.status == 200, answer.body
    added: list[Any] = answer.json
    return added


async def work(client: Client, how: str, queue: str = "ingestion", **body: Any) -> Any:
    """Take the next job and finish it, or leave it active."""
    job = (await client.bullmq.post(f"/queues/{queue}/jobs/next", {"token": "w"}, headers=HEADERS)).json
    if how != "leave":
        path = f"/queues/{queue}/jobs/{job['id']}/move-to-{how}"
        answer = await client.bullmq.post(path, {"token": "w", **body}, headers=HEADERS)
        assert answer.status == 200, answer.body
    return job


async def page(client: Client, query: str = "", queue: str = "ingestion") -> Any:
    answer = await client.get(f"/v1/jobs/queues/{queue}{query}", headers=HEADERS)
    assert answer.status == 200, answer.body
    return answer.json


async def counts(client: Client, queue: str = "ingestion") -> dict[str, int]:
    """Return the counts of a queue, which both requests give alike."""
    listed = (await client.get("/v1/jobs/queues", headers=HEADERS)).json["queues"]
    (found,) = [one["counts"] for one in listed if one["name"] == queue]
    assert (await page(client, queue=queue))["counts"] == found
    shown: dict[str, int] = found
    return shown


def none_but(**some: int) -> dict[str, int]:
    return dict.fromkeys(STATES, 0) | some


async def one_of_each(client: Client) -> dict[str, str]:
    """Make a job in each state that a queue that is not paused has; return their ids."""
    ids = {}
    for state, job in (("completed", {}), ("failed", {}), ("active", {}), ("delayed", {"opts": {"delay": 60_000}})):
        ids[state] = (await add(client, job))[0]["id"]
        if state == "active":
            await work(client, "leave")
        elif state != "delayed":
            await work(
                client, state, **({"error": "Error: Connection timed out"} if state == "failed" else {"returnValue": 7})
            )
    ids["waiting"] = (await add(client, {}))[0]["id"]
    return ids


class TestQueues:
    async def test_none(self, client: Client) -> None:
        assert (await client.get("/v1/jobs/queues", headers=HEADERS)).json == {"queues": []}

    async def test_all_queues_in_order_of_creation(self, client: Client) -> None:
        for queue in ("ingestion", "indexing"):
            await add(client, {}, queue=queue)
        await client.post("/queues/bunqueues/jobs", {"data": 1}, headers=HEADERS)
        body = (await client.get("/v1/jobs/queues", headers=HEADERS)).body
        assert [one["name"] for one in json.loads(body)["queues"]] == ["ingestion", "indexing", "bunqueues"]
        # As the document shows it, to the order of the keys.
        assert list(json.loads(body)["queues"][0]) == ["name", "counts"]
        assert list(json.loads(body)["queues"][0]["counts"]) == list(STATES)

    async def test_counts(self, client: Client) -> None:
        await one_of_each(client)
        assert await counts(client) == none_but(active=1, completed=1, failed=1, delayed=1, waiting=1)

    async def test_a_paused_queue_has_its_waiting_jobs_under_paused(self, client: Client) -> None:
        await add(client, {}, {}, {"opts": {"delay": 60_000}})
        await client.post("/queues/ingestion/pause", headers=HEADERS)
        assert await counts(client) == none_but(paused=2, delayed=1)
        await client.post("/queues/ingestion/resume", headers=HEADERS)
        assert await counts(client) == none_but(waiting=2, delayed=1)

    async def test_no_job_is_in_no_count_for_its_priority(self, client: Client) -> None:
        await add(client, {}, {"opts": {"priority": 5}})
        await client.post("/queues/ingestion/jobs", {"data": 1, "priority": 5}, headers=HEADERS)
        assert (await counts(client))["waiting"] == 3
        await client.post("/queues/ingestion/pause", headers=HEADERS)
        assert await counts(client) == none_but(paused=3)


class TestJob:
    async def test_a_failed_job_has_every_key_of_the_document_in_its_order(self, client: Client) -> None:
        (added,) = await add(client, {"opts": {"attempts": 1}})
        await work(
            client, "failed", error="Error: Connection timed out", stack="Error: Connection timed out\n  at import"
        )
        (job,) = (await page(client))["jobs"]
        assert list(job) == JOB_KEYS
        assert (job["id"], job["name"], job["data"]) == (added["id"], "initial-import", {"ingestionSourceId": "src-1"})
        assert job["state"] == "failed"
        assert job["failedReason"] == job["error"] == "Error: Connection timed out"
        assert added["timestamp"] == job["timestamp"] <= job["processedOn"] <= job["finishedOn"]
        assert job["attemptsMade"] == 1
        assert job["stacktrace"] == ["Error: Connection timed out\n  at import"]
        assert job["returnValue"] is None
        assert job["ingestionSourceId"] == "src-1"

    async def test_what_a_job_does_not_have_is_left_out(self, client: Client) -> None:
        await add(client, {"data": {"n": 1}})
        (job,) = (await page(client, "?status=waiting"))["jobs"]
        assert list(job) == ["id", "name", "data", "state", "timestamp", "attemptsMade", "stacktrace", "returnValue"]
        assert (job["attemptsMade"], job["stacktrace"], job["returnValue"]) == (0, [], None)

    async def test_a_completed_job(self, client: Client) -> None:
        await add(client, {})
        await work(client, "completed", returnValue={"mails": 3})
        (job,) = (await page(client, "?status=completed"))["jobs"]
        assert (job["state"], job["returnValue"], job["attemptsMade"]) == ("completed", {"mails": 3}, 1)
        assert "error" not in job
        assert "failedReason" not in job
        assert job["processedOn"] <= job["finishedOn"]

    async def test_a_job_that_waits_for_another_run(self, client: Client) -> None:
        await add(client, {"opts": {"attempts": 3, "backoff": {"type": "fixed", "delay": 60_000}}})
        await work(client, "failed", error="boom")
        (job,) = (await page(client, "?status=delayed"))["jobs"]
        # The reason stays, and is no error as long as there is hope.
        assert (job["failedReason"], job["attemptsMade"]) == ("boom", 1)
        assert "error" not in job
        assert "finishedOn" not in job

    async def test_a_job_at_work(self, client: Client) -> None:
        await add(client, {})
        await work(client, "leave")
        (job,) = (await page(client, "?status=active"))["jobs"]
        assert (job["state"], job["attemptsMade"]) == ("active", 0)
        assert "processedOn" in job

    async def test_jobs_of_the_other_dialect(self, client: Client) -> None:
        job_id = (await client.post("/queues/mail/jobs", {"data": [1], "name": "send"}, headers=HEADERS)).json["id"]
        await client.get("/queues/mail/jobs", headers=HEADERS)
        await client.post(f"/jobs/{job_id}/fail", {"unrecoverable": True}, headers=HEADERS)
        (job,) = (await page(client, queue="mail"))["jobs"]
        assert (job["id"], job["name"], job["data"]) == (job_id, "send", [1])
        # Its worker said nothing, so the server says what it knows.
        assert job["failedReason"] == job["error"]
        assert job["error"]

    @pytest.mark.parametrize(
        ("data", "source"),
        [
            (b'{"ingestionSourceId":"a"}', b'"a"'),
            (b' {"x":{"ingestionSourceId":"inner"},"ingestionSourceId": 5}', b"5"),
            (b'{"ingestionSourceId":null}', b"null"),
            (b'{"ingestionSourceId":{"a": 1}}', b'{"a": 1}'),
            (b'{"x":{"ingestionSourceId":"inner"}}', None),
            (b'["ingestionSourceId"]', None),
            (b'"ingestionSourceId"', None),
            (b"null", None),
            (b"{}", None),
            # Half a surrogate pair, before the field, in it, and beside what stands for one; nesting beyond any decoder.
            (b'{"\\ud800":1,"ingestionSourceId":"a"}', b'"a"'),
            (b'{"ingestionSourceId":"\\ud800"}', b'"\\ud800"'),
            (b'{"x\\ud800\\ue000":1,"ingestionSourceId":"a"}', None),
            (b'{"ingestionSourceId":' + b"[" * 5000 + b"]" * 5000 + b"}", None),
        ],
    )
    def test_the_source(self, data: bytes, source: bytes | None) -> None:
        assert render.source_of(data) == source

    async def test_half_a_surrogate_pair_is_passed_on(self, client: Client) -> None:
        raw = b'[{"name":"a","data":{"\\ud800":1,"ingestionSourceId":"s\\udc00"}}]'
        assert (await client.bullmq.post("/queues/ingestion/jobs", raw=raw, headers=HEADERS)).status == 200
        answer = await client.get("/v1/jobs/queues/ingestion?status=waiting", headers=HEADERS)
        assert answer.status == 200
        assert b'"data":{"\\ud800":1,"ingestionSourceId":"s\\udc00"},' in answer.body
        assert b'"returnValue":null,"ingestionSourceId":"s\\udc00"}' in answer.body

    async def test_large_data_is_passed_on_as_it_came(self, client: Client) -> None:
        text = "x" * 2_000_000
        await add(client, *({"data": {"text": text, "ingestionSourceId": f"s{at}"}} for at in range(4)))
        found = await page(client, "?status=waiting")
        assert [job["ingestionSourceId"] for job in found["jobs"]] == ["s0", "s1", "s2", "s3"]
        assert all(job["data"]["text"] == text for job in found["jobs"])

    async def test_a_client_that_leaves_in_the_middle_of_a_page(self, client: Client) -> None:
        await add(client, *({"data": {"text": "x" * 3_000_000}} for _ in range(4)))
        async with aiohttp.ClientSession() as session:
            answer = await session.get(f"{client.base}/v1/jobs/queues/ingestion?status=waiting", headers=HEADERS)
            await answer.content.readany()
            answer.close()
        assert (await page(client, "?limit=1"))["counts"]["waiting"] == 4


class TestStatus:
    async def test_one_status_at_a_time(self, client: Client) -> None:
        ids = await one_of_each(client)
        for status, job_id in ids.items():
            found = await page(client, f"?status={status}")
            assert [(job["id"], job["state"]) for job in found["jobs"]] == [(job_id, status)]
            assert found["pagination"]["totalJobs"] == 1
            assert found["counts"] == none_but(active=1, completed=1, failed=1, delayed=1, waiting=1)

    @pytest.mark.parametrize("query", ["", "?status=", "?status=failed", "?page=1"])
    async def test_failed_is_the_default(self, client: Client, query: str) -> None:
        ids = await one_of_each(client)
        assert [job["id"] for job in (await page(client, query))["jobs"]] == [ids["failed"]]

    @pytest.mark.parametrize(
        "query", ["?status=nope", "?status=FAILED", "?status=failed&status=active", "?status=unknown"]
    )
    async def test_what_is_no_status_has_no_jobs(self, client: Client, query: str) -> None:
        await one_of_each(client)
        found = await page(client, query)
        assert found["jobs"] == []
        assert found["pagination"] == {"currentPage": 1, "totalPages": 0, "totalJobs": 0, "limit": 10}

    async def test_the_originals_other_words(self, client: Client) -> None:
        plain, low = await add(client, {}, {"opts": {"priority": 3}})
        assert [job["id"] for job in (await page(client, "?status=wait"))["jobs"]] == [plain["id"], low["id"]]
        (job,) = (await page(client, "?status=prioritized"))["jobs"]
        assert (job["id"], job["state"]) == (low["id"], "prioritized")
        body = {"data": 1, "dependsOn": [plain["id"]]}
        answer = await client.post("/queues/ingestion/jobs", {**body, "dependsOn": []}, headers=HEADERS)
        parent = await client.post(
            "/queues/ingestion/jobs", {**body, "dependsOn": [answer.json["id"]]}, headers=HEADERS
        )
        (job,) = (await page(client, "?status=waiting-children"))["jobs"]
        assert (job["id"], job["state"]) == (parent.json["id"], "waiting-children")

    async def test_a_paused_queue(self, client: Client) -> None:
        await add(client, {}, {"opts": {"priority": 1}})
        await client.post("/queues/ingestion/pause", headers=HEADERS)
        assert (await page(client, "?status=waiting"))["jobs"] == []
        found = await page(client, "?status=paused")
        assert [job["state"] for job in found["jobs"]] == ["paused", "paused"]
        assert found["pagination"]["totalJobs"] == 2
        await client.post("/queues/ingestion/resume", headers=HEADERS)
        assert (await page(client, "?status=paused"))["jobs"] == []


class TestPages:
    async def test_oldest_first(self, client: Client) -> None:
        names = [f"j{at}" for at in range(4)]
        await add(client, *({"name": name} for name in names))
        assert [job["name"] for job in (await page(client, "?status=waiting"))["jobs"]] == names
        for at in range(4):
            await work(client, "completed" if at % 2 else "failed", **({} if at % 2 else {"error": "x"}))
        assert [job["name"] for job in (await page(client, "?status=completed"))["jobs"]] == ["j1", "j3"]
        assert [job["name"] for job in (await page(client))["jobs"]] == ["j0", "j2"]

    async def test_delayed_soonest_first(self, client: Client) -> None:
        await add(client, *({"name": f"j{delay}", "opts": {"delay": delay * 10_000}} for delay in (3, 1, 2)))
        assert [job["name"] for job in (await page(client, "?status=delayed"))["jobs"]] == ["j1", "j2", "j3"]

    async def test_every_page_of_jobs_that_wait_with_and_without_a_priority(self, client: Client) -> None:
        await add(client, *({"name": f"p{at}", "opts": {"priority": at}} for at in (2, 1)))
        await add(client, *({"name": f"j{at}"} for at in range(5)))
        expected = ["j0", "j1", "j2", "j3", "j4", "p1", "p2"]
        for limit in range(1, 9):
            seen = []
            for number in range(1, 9):
                found = await page(client, f"?status=waiting&limit={limit}&page={number}")
                seen += [job["name"] for job in found["jobs"]]
                assert found["pagination"] == {
                    "currentPage": number,
                    "totalPages": -(-7 // limit),
                    "totalJobs": 7,
                    "limit": limit,
                }
            assert seen == expected[: 8 * limit], limit

    @pytest.mark.parametrize(
        ("query", "names", "current", "pages", "limit"),
        [
            ("", 10, 1, 2, 10),
            ("&page=2", 2, 2, 2, 10),
            ("&page=9", 0, 9, 2, 10),
            ("&page=0", 10, 1, 2, 10),
            ("&page=abc", 10, 1, 2, 10),
            ("&page=2.9", 2, 2, 2, 10),
            ("&page=2x", 2, 2, 2, 10),
            ("&page=&limit=", 10, 1, 2, 10),
            ("&limit=0", 10, 1, 2, 10),
            ("&limit=2.9", 2, 1, 6, 2),
            ("&limit=abc", 10, 1, 2, 10),
            ("&limit=-5", 0, 1, 0, -5),
            ("&limit=12", 12, 1, 1, 12),
            ("&limit=5000", 12, 1, 1, 5000),
            ("&limit=20000", 12, 1, 1, 20_000),
            ("&limit=99999999999999999999", 12, 1, 1, 999_999_999_999_999),
            ("&limit=20000&page=2", 0, 2, 1, 20_000),
            ("&limit=20000&page=-1", 0, -1, 1, 20_000),
            ("&page=-1&limit=5", 5, -1, 3, 5),
            ("&page=-9", 0, -9, 2, 10),
        ],
    )
    async def test_numbers_as_javascript_reads_them(
        self, client: Client, query: str, names: int, current: int, pages: int, limit: int
    ) -> None:
        await add(client, *({"name": f"j{at}"} for at in range(12)))
        found = await page(client, f"?status=waiting{query}")
        assert len(found["jobs"]) == names
        expected = {"currentPage": current, "totalPages": pages, "totalJobs": 12, "limit": limit}
        assert found["pagination"] == expected

    async def test_a_page_has_a_bound_that_it_says(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        await add(client, *({"name": f"j{at}"} for at in range(12)))
        monkeypatch.setattr("quorumq.api.dialects.openarchiver.routes.LIMIT_MAX", 8)
        for number, names in ((1, 8), (2, 4), (3, 0)):
            found = await page(client, f"?status=waiting&limit=100&page={number}")
            assert len(found["jobs"]) == names
            assert found["pagination"] == {"currentPage": number, "totalPages": 2, "totalJobs": 12, "limit": 8}
        # Fewer than the bound: nothing has to be bounded.
        assert (await page(client, "?status=delayed&limit=100"))["pagination"]["limit"] == 100

    def test_pages_from_the_end(self) -> None:
        assert [window(12, number, 5) for number in (1, 2, 3, 4)] == [(0, 5), (5, 5), (10, 2), (0, 0)]
        # Page -1 of five is what Redis gives for -10 to -6.
        assert window(12, -1, 5) == (2, 5)
        assert window(7, -1, 5) == (0, 2)
        assert window(3, -1, 5) == (0, 0)
        assert window(0, 1, 10) == (0, 0)

    def test_parse_int(self) -> None:
        found = [parse_int([text]) for text in ("5", " 5", "+5", "-5", "5e3", "0x10", "", "x", "٣")]
        assert found == [5, 5, 5, -5, 5, 0, 0, 0, 0]
        assert parse_int(None) == 0
        assert parse_int(["2", "3"]) == 2


class TestErrors:
    async def test_an_unknown_queue(self, client: Client) -> None:
        for name in ("none", "a%20b", "x" * 300, "%F0%9F%98%80"):
            answer = await client.get(f"/v1/jobs/queues/{name}", headers=HEADERS)
            assert (answer.status, answer.json) == (404, {"message": "Queue not found"})

    async def test_an_obliterated_queue_is_unknown(self, client: Client) -> None:
        await add(client, {})
        await client.post("/queues/ingestion/obliterate", headers=HEADERS)
        assert (await client.get("/v1/jobs/queues/ingestion", headers=HEADERS)).status == 404
        assert (await client.get("/v1/jobs/queues", headers=HEADERS)).json == {"queues": []}

    async def test_a_queue_of_another_tenant(self, serve: Serve, tmp_path: Path) -> None:
        path = tmp_path / "tokens"
        secret, token = tokens.make("mine", ["manage:all"], ["mine"])
        tokens.change(path, lambda known: [token])
        client = await serve(auth_tokens=("t",), auth_tokens_file=path)
        await add(client, {}, queue="theirs")
        for name in ("theirs", "nobodys"):
            answer = await client.get(f"/v1/jobs/queues/{name}", headers={"X-API-KEY": secret})
            assert (answer.status, answer.json) == (403, {"message": "Forbidden: the token is not for this queue"})

    async def test_malformed_paths(self, client: Client) -> None:
        assert (await client.get("/v1/jobs/queues/%zz", headers=HEADERS)).status == 400
        for path in ("/v1/jobs", "/v1/jobs/", "/v1/jobs/queues/", "/v1/jobs/queues/a/b"):
            assert (await client.get(path, headers=HEADERS)).json == {"message": "Not found"}

    async def test_stale_reads_without_a_quorum(self, client: Client) -> None:
        await add(client, {})
        client.engine.available = False
        assert (await client.get("/v1/jobs/queues", headers=HEADERS)).status == 503
        answer = await client.get("/v1/jobs/queues?consistency=stale", headers=HEADERS)
        assert answer.json["queues"][0]["counts"]["waiting"] == 1


class TestRetention:
    """Open Archiver keeps the last 1,000 completed and 5,000 failed jobs of a queue: here a setting of the queue."""

    async def test_it_is_set_and_shown(self, client: Client) -> None:
        path = "/admin/queues/ingestion/retention"
        before = (await client.get(path, headers=HEADERS)).json
        assert before == {
            "ok": True,
            "queue": "ingestion",
            "completed": 10_000,
            "completedBytes": 256 << 20,
            "failed": 10_000,
            "failedAgeMs": 604_800_000,
            "failedBytes": 256 << 20,
            "own": [],
        }
        wanted = {"completed": 1_000, "failed": 5_000, "failedAgeMs": None}
        own = {"own": ["completed", "failed", "failedAgeMs"]}
        assert (await client.send("PUT", path, wanted, headers=HEADERS)).json == before | wanted | own
        assert (await client.send("PUT", path, {"completedBytes": 5}, headers=HEADERS)).json["completed"] == 1_000
        own = {"own": ["completed", "completedBytes", "failed", "failedAgeMs"]}
        assert (await client.get(path, headers=HEADERS)).json == before | wanted | own | {"completedBytes": 5}
        own["own"].append("failedBytes")
        wanted["failedBytes"] = 6
        assert (await client.send("PUT", path, {"failedBytes": 6}, headers=HEADERS)).json["failed"] == 5_000
        assert (await client.get(path, headers=HEADERS)).json == before | wanted | own | {"completedBytes": 5}
        assert (await client.send("DELETE", path, headers=HEADERS)).json == before

    async def test_one_setting_holds_for_all_queues_but_those_with_their_own(self, client: Client) -> None:
        """Open Archiver's own numbers, for every queue that there is or will be."""
        path, own = "/admin/retention", "/admin/queues/{}/retention"
        built_in = {"ok": True, "completed": 10_000, "completedBytes": 256 << 20, "failed": 10_000}
        built_in |= {"failedAgeMs": 604_800_000, "failedBytes": 256 << 20}
        assert (await client.get(path, headers=HEADERS)).json == built_in
        await client.send("PUT", own.format("special"), {"completed": 2}, headers=HEADERS)
        wanted = {"completed": 1_000, "failed": 5_000, "failedAgeMs": None}
        keyed = HEADERS | {"Idempotency-Key": "default"}
        for _ in range(2):
            assert (await client.send("PUT", path, wanted, headers=keyed)).json == built_in | wanted
        assert (await client.get(path, headers=HEADERS)).json == built_in | wanted
        for queue, kept in (("special", {"completed": 2}), ("ingestion", {}), ("yet-to-come", {})):
            found = (await client.get(own.format(queue), headers=HEADERS)).json
            assert found == built_in | wanted | kept | {"queue": queue, "own": list(kept)}
        for body in ({"completed": -1}, {"queue": "q"}, [], {"failedAgeMs": 0}):
            assert (await client.send("PUT", path, body, headers=HEADERS)).status == 400

    async def test_a_cluster_with_an_older_member_has_no_default(self, client: Client) -> None:
        client.server.node.machine.state.level = 0
        for method, path in (("PUT", "/admin/retention"), ("DELETE", "/admin/queues/q/retention")):
            body = {"completed": 5} if method == "PUT" else None
            answer = await client.send(method, path, body, headers=HEADERS)
            assert (answer.status, answer.json["code"]) == (503, "level_too_low")

    async def test_what_is_beyond_it_goes(self, client: Client) -> None:
        await add(client, *({"name": f"j{at}"} for at in range(8)))
        for at in range(8):
            await work(client, "completed" if at % 2 else "failed", **({} if at % 2 else {"error": "x"}))
        body = {"completed": 3, "failed": 2}
        assert (await client.send("PUT", "/admin/queues/ingestion/retention", body, headers=HEADERS)).status == 200
        assert await counts(client) == none_but(completed=3, failed=2)
        assert [job["name"] for job in (await page(client))["jobs"]] == ["j4", "j6"]
        assert [job["name"] for job in (await page(client, "?status=completed"))["jobs"]] == ["j3", "j5", "j7"]

    @pytest.mark.parametrize(
        "body", [{"completed": -1}, {"completed": "5"}, {"completed": None}, {"failedAgeMs": 0}, {"other": 1}, [], 5]
    )
    async def test_what_is_refused(self, client: Client, body: Any) -> None:
        answer = await client.send("PUT", "/admin/queues/ingestion/retention", body, headers=HEADERS)
        assert (answer.status, answer.json["code"]) == (400, "invalid_request")
        assert (await client.get("/v1/jobs/queues", headers=HEADERS)).json == {"queues": []}

    async def test_a_repeat_with_the_same_key_is_one_request(self, client: Client) -> None:
        path, keyed = "/admin/queues/ingestion/retention", HEADERS | {"Idempotency-Key": "k"}
        body = {"completed": 5, "failed": 5}
        assert (await client.send("PUT", path, body, headers=keyed)).status == 200
        await client.send("PUT", path, {"completed": 7, "failed": 7}, headers=HEADERS)
        again = await client.send("PUT", path, body, headers=keyed)
        assert (again.json["completed"], again.json["failed"]) == (7, 7)
        assert (await client.send("PUT", path, {"completed": 1}, headers=keyed)).status in (400, 422)


RUNNER = FOLDER / "replay_proxy.py"


@pytest.mark.parametrize("where", ["main", "bullmq"])
@pytest.mark.parametrize("group", ["auth", "queues", "jobs", "pages", "document-only"])
async def test_recorded_cases(serve: Serve, tmp_path: Path, group: str, where: str) -> None:
    """The cases add their jobs with BullMQ's requests, so on the main listener that is put in front of them."""
    path = tmp_path / "tokens"
    secret, token = tokens.make("user", ["read", "produce", "consume"], ["*"])
    tokens.change(path, lambda known: [token])
    client = await serve(auth_tokens=("admin",), auth_tokens_file=path)
    base = client.bullmq.base
    cases = FOLDER / "openarchiver.jsonl"
    if where == "main":
        base = client.base
        text = cases.read_text("utf-8")
        for path_there in ("/queues/", "/workers"):
            text = text.replace(f'"path": "{path_there}', f'"path": "/bullmq{path_there}')
        cases = tmp_path / "cases.jsonl"
        cases.write_text(text, "utf-8")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(RUNNER),
        *("--base", base, "--token", "admin", "--file", str(cases), "--group", group),
        *("--var", f"user_token={secret}", "--settle-ms", "0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    assert group in output.decode()


def test_what_the_openapi_document_says_of_errors() -> None:
    """They are `message`, whatever other dialects have."""
    paths = document(main_dialects(), "1")["paths"]
    for path in ("/v1/jobs/queues", "/v1/jobs/queues/{queue}"):
        answers = paths[path]["get"]["responses"]
        assert {"400", "401", "403", "404", "429", "503"} <= answers.keys()
        for status, answer in answers.items():
            if status != "200":
                schema = answer["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ArchiverError"}
                assert "`code`" not in answer["description"] and "`error`" not in answer["description"]
    assert document(main_dialects(), "1")["components"]["schemas"]["ArchiverError"]["required"] == ["message"]

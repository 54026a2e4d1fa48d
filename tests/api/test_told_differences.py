"""Rows of docs/compatibility.md, each tried by a request: what it says of our answers is what comes."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import aiohttp
import pytest

from tests.api.bullmq import Bull
from tests.api.conftest import Client, Serve

T = {"Authorization": "Bearer tok1"}
BENCH = "/queues/que/jobs"


@pytest.fixture
async def bull(serve: Serve) -> Bull:
    return Bull(await serve(auth_tokens=("tok1",)))


# -- Requests in general -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"[]", b"5", b'"x"', b"null"])
@pytest.mark.parametrize("path", ["/queues/q/jobs", "/jobs/ack-batch", "/crons", "/webhooks", "/queues/q/clean"])
async def test_a_body_that_is_no_object(client: Client, path: str, body: bytes) -> None:
    answer = await client.post(path, raw=body)
    assert (answer.status, answer.error) == (400, "Request body must be a JSON object")


async def test_a_queue_without_a_name(client: Client) -> None:
    for method, path in [("GET", "/queues//jobs"), ("POST", "/queues//jobs"), ("POST", "/queues//pause"),
                         ("GET", "/queues//counts"), ("PUT", "/queues//rate-limit"), ("DELETE", "/queues//concurrency"),
                         ("GET", "/events/queues/")]:  # fmt: skip
        answer = await client.send(method, path)
        assert (answer.status, answer.error) == (400, "Queue name is required"), path
    assert (await client.get("/admin/queues//retention")).status == 404


async def test_texts_that_are_inflated(client: Client) -> None:
    body = json.dumps({"data": "x" * 1000}).encode()
    for encoding, packed in (("gzip", gzip.compress(body)), ("deflate", zlib.compress(body))):
        assert (await client.post("/queues/q/jobs", raw=packed, headers={"Content-Encoding": encoding})).status == 200
    for encoding in ("br", "zstd"):
        answer = await client.post("/queues/q/jobs", raw=body, headers={"Content-Encoding": encoding})
        assert answer.status == 415 and "gzip" in answer.headers["Accept-Encoding"]
    assert (await client.post("/queues/q/jobs", raw=body, headers={"Content-Encoding": "x-own"})).status == 200
    assert (await client.counts())["waiting"] == 3


async def test_an_id_whose_encoding_is_malformed_stays_as_it_is(client: Client) -> None:
    assert (await client.get("/queues/%zz/counts")).status == 400
    assert (await client.get("/jobs/%zz")).status == 404
    job = await client.push(jobId="a b/é")
    assert (await client.get("/jobs/a%20b%2F%C3%A9")).json["job"]["id"] == job


async def test_several_origins_are_named_one_at_a_time(serve: Serve) -> None:
    client = await serve(cors_allow_origin="https://a.example,https://b.example")
    for origin, allowed in (("https://b.example", "https://b.example"), ("https://c.example", "https://a.example")):
        answer = await client.get("/stats", headers={"Origin": origin})
        assert answer.headers.get("Access-Control-Allow-Origin") == allowed
        assert "Origin" in answer.headers["Vary"]


async def test_lists_that_are_missing_or_mistyped(client: Client) -> None:
    for path, body, words in [
        ("/jobs/ack-batch", {}, "ids"),
        ("/jobs/ack-batch", {"ids": "x"}, "ids"),
        ("/queues/q/jobs/bulk", {}, "jobs must be an array"),
        ("/queues/q/jobs/bulk", {"jobs": {}}, "jobs must be an array"),
        ("/jobs/extend-locks", {"ids": ["x"]}, "tokens"),
        ("/webhooks", {"url": "https://example.com"}, "events must be an array"),
    ]:
        answer = await client.post(path, body)
        assert answer.status == 400 and words in answer.error, (path, answer.body)
    assert (await client.post("/queues/q/jobs/bulk", {"jobs": []})).json["ids"] == []


# -- Jobs and queues ---------------------------------------------------------------------------------------------------


async def test_what_becomes_of_a_result_and_of_progress(client: Client) -> None:
    job = await client.push()
    assert "result" not in (await client.get(f"/jobs/{job}/result")).json
    await client.pull()
    assert (await client.post(f"/jobs/{job}/progress", {"progress": "half"})).status == 400
    await client.post(f"/jobs/{job}/progress", {"progress": 30})
    await client.post(f"/jobs/{job}/ack", {"result": None})
    assert (await client.get(f"/jobs/{job}")).json["job"]["progress"] == 30


async def test_names_of_a_limit(client: Client) -> None:
    for name in ("limit", "concurrency"):
        assert (await client.send("PUT", "/queues/q/concurrency", {name: 2})).status == 200
        assert (await client.get("/queues/q/limits")).json["limits"]["concurrencyLimit"] == 2
    assert (await client.send("PUT", "/queues/q/rate-limit", {"limit": 1.5})).status == 400
    assert (await client.send("PUT", "/queues/q/rate-limit", {"limit": 5, "ttl": 0})).status == 400


async def test_a_queue_that_a_limit_of_nothing_stops_says_so(client: Client) -> None:
    await client.push()
    await client.send("PUT", "/queues/q/rate-limit", {"limit": 0})
    assert await client.pull() is None
    assert (await client.get("/queues/q/limits")).json["limits"]["blockedBy"] == ["rateLimit"]


async def test_settings_that_are_not_known_are_not_kept(client: Client) -> None:
    config = {"maxStalls": 2, "maxStals": 9}
    assert (await client.send("PUT", "/queues/q/stall-config", {"config": config})).status == 200
    kept = (await client.get("/queues/q/stall-config")).json["config"]
    assert kept["maxStalls"] == 2 and "maxStals" not in kept
    assert (await client.send("PUT", "/queues/q/dlq-config", {"config": {"maxAge": 0}})).status == 400


async def test_what_clean_takes(client: Client) -> None:
    await client.push()
    await client.push(delay=60_000)
    assert (await client.post("/queues/q/clean", {"grace": 0, "state": "nonsense"})).json["count"] == 0
    cleaned = (await client.post("/queues/q/clean", {"grace": 0, "state": "delayed", "limit": 1_000_000})).json
    assert cleaned["count"] == len(cleaned["ids"]) == 1
    assert (await client.counts())["waiting"] == 1


async def test_which_queues_there_are(client: Client) -> None:
    await client.post("/queues/paused-only/pause")
    await client.send("PUT", "/queues/limited-only/rate-limit", {"limit": 5})
    job = await client.push("real")
    assert (await client.get("/queues")).json["queues"] == ["real"]
    await client.delete(f"/jobs/{job}")
    assert (await client.get("/queues")).json["queues"] == ["real"]
    assert (await client.get("/queues/paused-only/paused")).json["paused"] is True


async def test_jobs_with_a_priority_wait(client: Client) -> None:
    high = await client.push(priority=5)
    low = await client.push()
    assert await client.state(high) == "waiting"
    assert (await client.counts())["waiting"] == 2 and (await client.counts())["prioritized"] == 0
    listed = (await client.get("/queues/q/jobs/list?state=prioritized")).json["jobs"]
    assert [job["id"] for job in listed] == [high] != [low]


async def test_a_repetition_has_an_identity_of_its_own(client: Client) -> None:
    before = await client.push()
    for wrong in ({"jobId": "x"}, {"dependsOn": [before]}):
        answer = await client.post("/queues/q/jobs", {"data": 1, "repeat": {"every": 1000}, **wrong})
        assert answer.status == 400, wrong
    for repeat, status in (({"cron": "* * * * *"}, 200), ({"pattern": "* * * * *"}, 200), ({"every": 4e12}, 400)):
        assert (await client.post("/queues/q/jobs", {"data": 1, "repeat": repeat})).status == status


async def test_the_end_of_a_job_that_is_cancelled_discarded_or_unknown(client: Client) -> None:
    job = await client.push()
    await client.pull()
    assert (await client.delete(f"/jobs/{job}")).status == 200 and await client.state(job) == "unknown"
    assert (await client.delete(f"/jobs/{job}")).status == 404
    kept = await client.push(removeOnFail=True)
    await client.post(f"/jobs/{kept}/discard")
    assert await client.state(kept) == "failed"
    for what in ("result", "children", "logs", "progress"):
        assert (await client.get(f"/jobs/{job}/{what}")).status == 404, what
    assert (await client.get(f"/jobs/{job}/state")).json["state"] == "unknown"


async def test_lines_of_log_have_a_message_and_any_level(client: Client) -> None:
    job = await client.push()
    path = f"/jobs/{job}/logs"
    assert (await client.post(path, {"level": "info"})).status == 400
    assert (await client.post(path, {"message": "m", "level": "x" * 300})).status == 200
    (line,) = (await client.get(path)).json["data"]["logs"]
    assert line["level"] == "x" * 256


async def test_one_request_holds_up_nobody(client: Client) -> None:
    for body in (
        {"ids": [str(n) for n in range(10_001)]},
        {"ids": "x"},
    ):
        assert (await client.post("/jobs/ack-batch", body)).status == 400
    many = [str(n) for n in range(5_001)]
    for jobs in ([{"data": 1}] * 10_001, [{"data": 1, "dependsOn": many}] * 10):
        assert (await client.post("/queues/q/jobs/bulk", {"jobs": jobs})).status == 400
    halves = b'{"data":["' + rb"\ud83d" * 20_001 + b'"]}'
    assert (await client.post("/queues/q/jobs", raw=halves)).status == 400
    assert (await client.post("/queues/q/jobs", raw=b'{"data":' + b"[" * 1_500 + b"]" * 1_500 + b"}")).status == 400
    assert (await client.post("/workers", {"name": "w", "queues": [f"q{n}" for n in range(1_001)]})).status == 400
    assert (await client.get("/queues")).json["queues"] == []


async def test_a_page_of_dead_letters_has_both_forms(client: Client) -> None:
    for _ in range(3):
        job = await client.push(maxAttempts=1)
        await client.pull()
        await client.post(f"/jobs/{job}/fail", {"error": "x"})
    page = (await client.get("/queues/q/dlq?count=2")).json
    assert len(page["jobs"]) == len(page["entries"]) == 2 and page["total"] == 3
    page = (await client.get("/queues/q/dlq?limit=2&offset=2")).json
    assert len(page["jobs"]) == len(page["entries"]) == 1


# -- Crons, workers and webhooks ---------------------------------------------------------------------------------------


async def test_what_a_cron_has_to_have(client: Client) -> None:
    whole = {"name": "c", "queue": "q", "data": {}, "schedule": "0 3 * * *"}
    for left_out in ("name", "queue", "data", "schedule"):
        assert (await client.post("/crons", {k: v for k, v in whole.items() if k != left_out})).status == 400
    for wrong in ({"repeatEvery": 1000}, {"queue": "b d"}, {"timezone": "utc"}, {"timezone": "+02:00"}):
        assert (await client.post("/crons", whole | wrong)).status == 400, wrong
    assert (await client.post("/crons", whole)).status == 200
    (cron,) = (await client.get("/crons")).json["crons"]
    assert cron["timezone"] == "UTC"


async def test_what_a_worker_tells_of_itself(client: Client) -> None:
    assert (await client.post("/workers/nobody/heartbeat", {})).status == 404
    made = (await client.post("/workers", {"name": "w", "queues": "mail", "workerId": "w1"})).json["data"]
    path = f"/workers/{made['workerId']}/heartbeat"
    assert (await client.post(path, raw=b"{broken")).status == 200
    assert (await client.post(path, raw=b"[]")).status == 400
    assert (await client.post(path, {"activeJobs": -1})).status == 400
    await client.post("/workers", {"name": "other", "queues": ["x"], "workerId": "w1", "concurrency": 9})
    (worker,) = (await client.get("/workers")).json["data"]["workers"]
    assert (worker["name"], worker["queues"], worker["concurrency"]) == ("w", ["x"], 9)
    assert (await client.post("/workers", {"name": "w", "queues": ["b d"]})).status == 400


async def test_a_webhook_keeps_its_secret(client: Client) -> None:
    hook = {"url": "https://example.com/h", "events": ["pushed", "job.failed", "progress"], "secret": "very secret"}
    made = (await client.post("/webhooks", hook)).json["data"]["webhookId"]
    assert b"very secret" not in (await client.get("/webhooks")).body
    assert (await client.send("PUT", f"/webhooks/{made}/enabled", {"enabled": "yes"})).status == 400
    assert (await client.send("PUT", "/webhooks/none/enabled", {"enabled": True})).status == 404
    for url in ("http://example.com/h", "https://localhost/", "https://2130706433/", "https://%31%32%37.0.0.1/",
                "https://[::ffff:7f00:1]/", "https://169.254.169.254/"):  # fmt: skip
        assert (await client.post("/webhooks", hook | {"url": url})).status == 400, url


# -- Monitoring --------------------------------------------------------------------------------------------------------


async def test_what_is_asked_of_the_server_itself(client: Client) -> None:
    assert (await client.post("/health")).status == 404
    stats = (await client.get("/stats")).json
    assert stats["stats"]["uptime"] < 60 and "waitingDepsTotal" in stats["collections"]
    assert {"queues", "workers", "webhooks"} <= stats["stats"].keys() | stats.keys()
    storage = (await client.get("/storage")).json
    assert storage["diskFull"] is storage["data"]["diskFull"] is False


# -- BullMQ Proxy ------------------------------------------------------------------------------------------------------


async def added(bull: Bull, *jobs: Any, queue: str = "que") -> Any:
    answer = await bull.post(f"/queues/{queue}/jobs", [{"name": "n", **job} for job in jobs])
    assert answer.status == 200, answer.body
    return answer.json


@pytest.mark.parametrize("data", [0, "", False, None])
async def test_bullmq_data_that_is_falsy_is_data(bull: Bull, data: Any) -> None:
    (job,) = await added(bull, {"data": data})
    assert (await bull.get(f"{BENCH}/{job['id']}")).json["data"] == data


@pytest.mark.parametrize(
    ("job", "status"),
    [
        ({"name": 5}, 400),
        ({"opts": {"backoff": {"type": "linear", "delay": 100}, "attempts": 2}}, 200),
        ({"opts": {"backoff": {"type": "linear"}, "attempts": 2}}, 200),
        ({"opts": {"backoff": {"type": "own"}}}, 400),
        ({"opts": {"backoff": 500}}, 200),
        ({"opts": {"backoff": {"type": "fixed", "delay": 5, "jitter": 0.5}}}, 200),
        ({"opts": {"backoff": {"type": "fixed", "delay": 5, "jitter": 2}}}, 400),
        ({"opts": {"deduplication": {"id": ""}}}, 400),
        ({"opts": {"deduplication": {"id": "d", "keepLastIfActive": True}}}, 400),
        ({"opts": {"deduplication": {"id": "d", "ttl": 10, "extend": True, "replace": True}}}, 200),
        ({"opts": "x"}, 400),
        ({"opts": None}, 200),
        ({"opts": 5}, 400),
        ({"opts": {"removeOnComplete": "yes"}}, 400),
        ({"opts": {"removeOnComplete": {"count": 5}}}, 200),
        ({"opts": {"timestamp": 5}}, 400),
        ({"opts": {"keepLogs": 5}}, 400),
        ({"opts": {"priority": 2_097_153}}, 400),
        ({"opts": {"priority": 2_097_152}}, 200),
        ({"opts": {"delay": 100 * 366 * 86_400_000}}, 400),
        ({"opts": {"jobId": 5}}, 400),
        ({"name": "x" * 1025}, 400),
    ],
)
async def test_bullmq_options_that_are_taken_or_refused(bull: Bull, job: Any, status: int) -> None:
    answer = await bull.post(BENCH, [{"name": "n", "data": 1, **job}])
    assert answer.status == status, answer.body


async def test_bullmq_requests_that_nobody_can_read(bull: Bull) -> None:
    for raw in (b"{", b""):
        answer = await bull.post(BENCH, raw=raw)
        assert answer.status == 400 and answer.headers["Content-Type"].startswith("text/plain")
    assert (await bull.post("/queues/a:b/jobs", [{"name": "n", "data": 1}])).status == 400
    assert (await bull.post(BENCH, [None])).body == b"name is required"
    assert (await bull.get(f"{BENCH}/none")).headers["Content-Type"].startswith("text/plain")
    answer = await bull.get(f"{BENCH}/none", headers={"Content-Type": "application/json"})
    assert answer.status == 404 and answer.json["error"]
    assert (await bull.get("/nothing", token=None)).status == 404
    assert (await bull.get(f"{BENCH}?statuses=nonsense")).status == 400


async def test_bullmq_pages_of_several_statuses(bull: Bull) -> None:
    jobs = await added(bull, *({"data": n} for n in range(3)), {"data": 3, "opts": {"delay": 60_000}},
                       {"data": 4, "opts": {"priority": 5}})  # fmt: skip
    ids = [job["id"] for job in jobs]

    async def listed(query: str) -> list[str]:
        return [job["id"] for job in (await bull.get(f"{BENCH}?{query}")).json["jobs"]]

    assert sorted(await listed("length=10")) == sorted(ids) == sorted(await listed("statuses=,&length=0"))
    assert await listed("statuses=waiting,prioritized,delayed&start=2&length=2") == [ids[0], ids[4]]


async def test_bullmq_first_pages(bull: Bull) -> None:
    async with bull.client.session.head(bull.base + "/") as answer:
        assert answer.status == 200
    assert (await bull.get("/", token=None)).headers["Content-Type"].startswith("text/plain")
    async with bull.client.session.get(bull.base + "/", headers={"Accept": "application/json"}) as answer:
        assert answer.headers["Content-Type"] == "application/json" and await answer.json()
    async with bull.client.session.get(
        bull.base + "/", headers={"Accept": "text/html"}, allow_redirects=False
    ) as answer:
        assert answer.status in (302, 303, 307) and answer.headers["Location"].lstrip("/") == "docs"
    assert (await bull.get("/ws/queues/que")).status == 404


async def test_bullmq_without_tokens_lets_nobody_in(client: Client) -> None:
    answer = await client.bullmq.get("/queues")
    assert answer.status == 401


async def test_bullmq_workers_that_cannot_be(serve: Serve) -> None:
    bull = Bull(await serve(auth_tokens=("tok1",), worker_endpoints=("any",)))
    endpoint = {"url": "http://example.com/x", "method": "POST"}
    for body in (
        {"queue": 5, "endpoint": endpoint},
        {"queue": "que", "endpoint": endpoint | {"method": 5}},
        {"queue": "que", "endpoint": endpoint, "opts": {"concurrency": 0}},
        {"queue": "que", "endpoint": endpoint, "opts": {"removeOnComplete": []}},
        {"queue": "que", "endpoint": endpoint | {"headers": {"bad name": "x"}}},
        None,
    ):
        answer = await bull.post("/workers", body, raw=b"null" if body is None else None)
        assert answer.status == 400, (body, answer.body)
    assert (await bull.post("/workers", raw=b"{")).status == 400


# -- Open Archiver -----------------------------------------------------------------------------------------------------


async def test_archiver_pages(serve: Serve) -> None:
    client = await serve(auth_tokens=("tok1",))
    for name in ("a", "b"):
        await client.bullmq.post("/queues/ingestion/jobs", [{"name": name, "data": 1}], headers=T)
    page = "/v1/jobs/queues/ingestion"

    async def asked(query: str) -> Any:
        answer = await client.get(f"{page}?{query}", headers=T)
        assert answer.status == 200, answer.body
        return answer.json

    assert (await asked(""))["jobs"] == (await asked("status="))["jobs"] == []
    assert len((await asked("status=waiting"))["jobs"]) == 2
    assert (await asked("status=nonsense"))["jobs"] == (await asked("status=waiting&status=failed"))["jobs"] == []
    assert (await asked("status=waiting&page=0&limit=text"))["pagination"]["limit"] == 10
    assert (await asked("status=waiting&limit=1&page=2"))["jobs"][0]["name"] == "b"
    assert (await client.get("/v1/jobs/queues/none", headers=T)).json == {"message": "Queue not found"}
    assert (await client.get("/v1/jobs/none", headers=T)).json == {"message": "Not found"}
    assert (await client.get("/v1/jobs/queues", headers={"X-API-KEY": "tok1"})).status == 200
    assert (await client.get("/v1/jobs/queues/%zz", headers=T)).status == 400


async def test_archiver_jobs_with_a_priority_do_not_vanish(serve: Serve) -> None:
    client = await serve(auth_tokens=("tok1",))
    await client.bullmq.post("/queues/ing/jobs", [{"name": "p", "data": 1, "opts": {"priority": 3}}], headers=T)
    await client.bullmq.post("/queues/ing/jobs", [{"name": "n", "data": 1}], headers=T)

    async def names(status: str) -> list[str]:
        found = await client.get(f"/v1/jobs/queues/ing?status={status}", headers=T)
        return [job["name"] for job in found.json["jobs"]]

    async def counts() -> Any:
        (queue,) = (await client.get("/v1/jobs/queues", headers=T)).json["queues"]
        return queue["counts"]

    assert await names("waiting") == ["n", "p"] and await names("prioritized") == ["p"]
    assert (await counts())["waiting"] == 2
    await client.bullmq.post("/queues/ing/pause", headers=T)
    assert await names("paused") == ["n", "p"] and await names("waiting") == []
    assert ((await counts())["waiting"], (await counts())["paused"]) == (0, 2)


# -- Commands ----------------------------------------------------------------------------------------------------------


async def test_commands_and_their_replies(serve: Serve) -> None:
    client = await serve()
    async with client.session.ws_connect(f"{client.base}/ws") as ws:

        async def command(**given: Any) -> Any:
            await ws.send_json({**given, "reqId": "7"})
            while True:
                message = await ws.receive_json(timeout=10)
                if message.get("reqId") == "7":
                    return message

        assert (await command(cmd="Auth", token="anything"))["ok"] is True
        assert (await command(cmd="Hello"))["server"] == "quorumq"
        for unknown in ("SubscribeEvents", "UnsubscribeEvents", "Nonsense"):
            assert (await command(cmd=unknown, queue="q"))["ok"] is False
        for name, more in (("GetResult", {}), ("GetLogs", {}), ("ClearLogs", {}), ("GetChildrenValues", {})):
            assert (await command(cmd=name, id="nope", **more))["ok"] is True, name
        await ws.send_str("\ufeff" + json.dumps({"cmd": "Ping", "reqId": "8"}))
        while (message := await ws.receive_json(timeout=10)).get("reqId") != "8":
            pass
        assert message["ok"] is True


async def test_a_handshake_of_another_page(serve: Serve) -> None:
    client = await serve(cors_allow_origin="https://a.example")
    async with client.session.ws_connect(f"{client.base}/ws", headers={"Origin": "https://a.example"}) as ws:
        assert not ws.closed
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await client.session.ws_connect(f"{client.base}/ws", headers={"Origin": "https://b.example"})
    assert refused.value.status == 403

"""`Idempotency-Key` over HTTP: a repeat is not done again and gets the first answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.api.conftest import Client, Serve


def key(text: str = "k1", **more: str) -> dict[str, str]:
    return {"Idempotency-Key": text} | more


async def test_a_push_is_done_once(client: Client) -> None:
    answers = [await client.post("/queues/q/jobs", {"data": 1}, headers=key()) for _ in range(3)]
    assert len({answer.body for answer in answers}) == 1
    assert (await client.counts())["waiting"] == 1
    assert (await client.post("/queues/q/jobs", {"data": 1}, headers=key("k2"))).body != answers[0].body
    assert (await client.counts())["waiting"] == 2


async def test_repeats_at_the_same_time(client: Client) -> None:
    answers = await asyncio.gather(
        *(client.post("/queues/q/jobs/bulk", {"jobs": [{"data": 1}] * 3}, headers=key()) for _ in range(8))
    )
    assert len({answer.body for answer in answers}) == 1
    assert (await client.counts())["waiting"] == 3


async def test_the_answer_is_that_of_then(client: Client) -> None:
    await client.post("/queues/q/jobs/bulk", {"jobs": [{"data": 1}] * 3})
    first = await client.post("/queues/q/drain", headers=key())
    await client.push()
    assert (await client.post("/queues/q/drain", headers=key())).json == first.json == {"ok": True, "count": 3}
    assert (await client.counts())["waiting"] == 1


async def test_a_refusal_is_an_answer_too(client: Client) -> None:
    first = await client.post("/jobs/late/ack", {}, headers=key())
    assert first.status == 400
    await client.push(jobId="late")
    await client.pull()
    again = await client.post("/jobs/late/ack", {}, headers=key())
    assert (again.status, again.body) == (first.status, first.body)
    assert (await client.post("/jobs/late/ack", {}, headers=key("k2"))).status == 200


@pytest.mark.parametrize("batch", [True, False])
async def test_a_repeated_pull_gets_the_same_jobs(client: Client, batch: bool) -> None:
    async def pull(name: str) -> Any:
        if not batch:
            return await client.get("/queues/q/jobs", headers=key(name))
        return await client.post("/queues/q/jobs/pull-batch", {"count": 2, "owner": "w"}, headers=key(name))

    nothing = await pull("k1")
    jobs = [await client.push() for _ in range(4)]
    first = await pull("k1")
    assert first.body != nothing.body
    assert (await pull("k1")).body == first.body
    assert (await client.counts())["active"] == (2 if batch else 1)
    assert (await pull("k2")).body != first.body
    assert jobs


async def test_another_request_under_the_same_key(client: Client) -> None:
    await client.post("/queues/q/jobs", {"data": 1}, headers=key())
    for path, body in (("/queues/q/jobs", {"data": 2}), ("/queues/other/jobs", {"data": 1})):
        answer = await client.post(path, body, headers=key())
        assert (answer.status, answer.error) == (422, "Idempotency-Key was used for a different request")
        assert answer.json["code"] == "idempotency_key_reused"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (" ", "Idempotency-Key must not be empty"),
        ("x" * 256, "Idempotency-Key too long (max 255 characters)"),
    ],
)
async def test_rules(client: Client, text: str, error: str) -> None:
    answer = await client.post("/queues/q/jobs", {"data": 1}, headers=key(text))
    assert (answer.status, answer.error) == (400, error)


async def test_a_request_that_could_not_be_accepted_is_not_remembered(client: Client) -> None:
    assert (await client.post("/queues/q/jobs", {}, headers=key())).status == 400
    assert (await client.post("/queues/q/jobs", {"data": 1}, headers=key())).status == 200


async def test_each_token_has_its_own_keys(serve: Serve) -> None:
    client = await serve(auth_tokens=("one", "two"))
    answers = {
        token: await client.post("/queues/q/jobs", {"data": 1}, headers=key(Authorization=f"Bearer {token}"))
        for token in ("one", "two")
    }
    assert answers["one"].body != answers["two"].body


async def test_a_page_may_send_it(client: Client) -> None:
    plain = await client.send("OPTIONS", "/queues/q/jobs")
    assert plain.headers["Access-Control-Allow-Headers"] == "Content-Type, Authorization"
    asked = {"Access-Control-Request-Headers": "content-type, idempotency-key"}
    answer = await client.send("OPTIONS", "/queues/q/jobs", headers=asked)
    assert answer.headers["Access-Control-Allow-Headers"] == "Content-Type, Authorization, Idempotency-Key"

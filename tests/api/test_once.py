"""`Idempotency-Key` over HTTP: a repeat is not done again and gets the first answer."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from quorumq.cli.main import app
from quorumq.node.machine.state import forgotten, outcomes
from quorumq.node.machine.state.outcomes import scope_of
from tests.api.bullmq import TOKEN, Bull
from tests.api.conftest import Client, Serve
from tests.api.test_permissions import Keys
from tests.support.local import wall_ms


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "tokens.jsonl")


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


async def test_a_token_of_another_name_has_its_own_keys(serve: Serve, keys: Keys) -> None:
    one, other = keys.add("one", "produce"), keys.add("other", "produce")
    client = await serve(auth_tokens_file=keys.path)
    answers = [await client.post("/queues/q/jobs", {"data": 1}, headers=key() | each) for each in (one, other)]
    assert answers[0].body != answers[1].body


async def test_a_token_that_is_rotated_keeps_its_keys(serve: Serve, keys: Keys) -> None:
    before = keys.add("mailer", "produce")
    client = await serve(auth_tokens_file=keys.path)
    first = await client.post("/queues/q/jobs", {"data": 1}, headers=key() | before)
    result = CliRunner().invoke(app, ["tokens", "rotate", "mailer", "--file", str(keys.path)])
    assert result.exit_code == 0, result.output
    client.server.access.reread()
    assert (await client.post("/queues/q/jobs", {"data": 1}, headers=key() | before)).status == 401
    after = {"Authorization": f"Bearer {result.stdout.strip()}"}
    again = await client.post("/queues/q/jobs", {"data": 1}, headers=key() | after)
    assert (again.status, again.body) == (200, first.body)


async def test_a_token_of_the_settings_keeps_its_keys_wherever_it_stands(serve: Serve) -> None:
    scopes = []
    for tokens in (("mine", "yours"), ("yours", "new", "mine")):
        client = await serve(auth_tokens=tokens)
        headers = key(Authorization="Bearer mine")
        assert (await client.post("/queues/q/jobs", {"data": 1}, headers=headers)).status == 200
        scopes.append([(name, scope_of(one)) for name, one in client.engine.machine.state.outcomes.items()])
    assert scopes[0] == scopes[1]
    [(_, scope)] = scopes[0]
    # What is replicated tells whose it is, and no more of a token than eight digits of its digest.
    assert re.fullmatch(r"AUTH_TOKENS#[0-9a-f]{8}", scope)


async def test_without_tokens_everybody_is_one(client: Client) -> None:
    headers = [key(), key(Authorization="Bearer x"), key(Authorization="y")]
    answers = [await client.post("/queues/q/jobs", {"data": 1}, headers=each) for each in headers]
    assert len({answer.body for answer in answers}) == 1


async def test_the_way_a_token_is_written_makes_no_other_client(serve: Serve) -> None:
    client = await serve(auth_tokens=("one",))
    answers = [
        await client.post("/queues/q/jobs", {"data": 1}, headers=key(Authorization=text))
        for text in ("one", "Bearer one")
    ]
    assert answers[0].body == answers[1].body


@pytest.mark.parametrize("level", [0, 1])
async def test_each_part_of_a_request_is_done_and_no_part_again(client: Client, level: int) -> None:
    client.engine.machine.level = level

    async def put(kept: int, headers: dict[str, str]) -> set[int]:
        body = {"completed": kept, "failed": kept}
        found = (await client.send("PUT", "/admin/queues/q/retention", body, headers=headers)).json
        return {found["completed"], found["failed"]}

    assert await put(5, key()) == {5}
    assert await put(9, {}) == {9}
    assert await put(5, key()) == {9}


async def test_a_key_of_before_the_level_is_known_for_its_day(client: Client) -> None:
    client.engine.machine.level = 0
    first = await client.post("/queues/q/jobs", {"data": 1}, headers=key())
    client.engine.machine.level = 1
    assert (await client.post("/queues/q/jobs", {"data": 1}, headers=key())).body == first.body
    assert (await client.counts())["waiting"] == 1


REPEATED = {
    "bunqueue": ("POST", "/queues/q/jobs", {"data": 1}, {"ok": False, "code": "key_forgotten"}),
    "bulk": ("POST", "/queues/q/jobs/bulk", {"jobs": [{"data": 1}]}, {"ok": False, "code": "key_forgotten"}),
    "drain": ("POST", "/queues/other/drain", None, {"ok": False, "code": "key_forgotten"}),
    "admin": ("PUT", "/admin/queues/q/retention", {"completed": 5}, {"ok": False, "code": "key_forgotten"}),
}


@pytest.mark.parametrize("what", REPEATED)
async def test_a_repeat_whose_answer_had_to_go_is_refused(
    client: Client, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    method, path, body, shown = REPEATED[what]
    monkeypatch.setattr(outcomes, "KEYS_MAX", 1)
    first = await client.send(method, path, body, headers=key())
    assert first.status == 200
    await client.post("/queues/q/jobs", {"data": 2}, headers=key("k2"))
    before = await client.counts()
    again = await client.send(method, path, body, headers=key())
    assert again.status == 409
    assert {name: again.json[name] for name in shown} == shown
    assert await client.counts() == before
    figures = (await client.get("/prometheus")).body.decode()
    assert "\nquorumq_idempotency_evicted_total 1\n" in figures
    assert "\nquorumq_idempotency_digests 1\n" in figures
    assert "\nquorumq_idempotency_lost_total 0\n" in figures


async def test_a_repeated_pull_whose_answer_had_to_go_takes_no_other_job(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "KEYS_MAX", 1)
    for number in range(3):
        await client.push(data=number)
    pull = ("GET", "/queues/q/jobs")
    assert (await client.send(*pull, headers=key())).json["job"]
    assert (await client.send(*pull, headers=key("k2"))).json["job"]
    assert (await client.send(*pull, headers=key())).status == 409
    # One that would wait is told, too, and at once.
    assert (await client.send("GET", "/queues/q/jobs?timeout=30000", headers=key())).status in (409, 422)
    assert (await client.counts())["active"] == 2


async def test_in_bullmq_it_is_said_in_plain_text(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "KEYS_MAX", 1)
    bull = Bull(await serve(auth_tokens=(TOKEN,)))
    body = [{"name": "a", "data": 1}]
    for name in ("k1", "k2"):
        assert (await bull.send("POST", "/queues/que/jobs", body, headers=key(name))).status == 200
    again = await bull.send("POST", "/queues/que/jobs", body, headers=key("k1"))
    assert (again.status, again.body) == (409, b"This request was done before; its reply is not kept any more")


async def test_it_is_logged_whose_answers_had_to_go(
    serve: Serve, keys: Keys, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outcomes, "KEYS_MAX", 1)
    monkeypatch.setattr(outcomes, "DIGESTS_MAX", 1)
    monkeypatch.setattr(forgotten, "SLICE_MAX", 1)
    headers = keys.add("mailer", "produce")
    client = await serve(auth_tokens_file=keys.path)
    caplog.set_level("WARNING", logger="quorumq.keys")
    for number in range(3):
        await client.post("/queues/q/jobs", {"data": 1}, headers=key(f"k{number}") | headers)
    assert [record.getMessage() for record in caplog.records if record.name == "quorumq.keys"] == [
        "the answers of 1 idempotency keys had to go before their day was over, most are of mailer: "
        "a repeat of such a request is refused as key_forgotten"
    ]
    # Once a minute; then what is worse is told first.
    client.engine.clock = lambda: wall_ms() + 61_000
    await client.post("/queues/q/jobs", {"data": 1}, headers=key("k3") | headers)
    assert caplog.records[-1].getMessage().startswith("2 idempotency keys are forgotten altogether")
    assert caplog.records[-1].levelname == "ERROR"
    # By the leader alone.
    client.engine.become_leader(False)
    client.engine.clock = lambda: wall_ms() + 150_000
    await client.post("/queues/q/jobs", {"data": 1}, headers=key("k4") | headers)
    assert len([record for record in caplog.records if record.name == "quorumq.keys"]) == 2

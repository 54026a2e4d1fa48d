"""The members of the cluster over HTTP: what is shown, what is changed, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from quorumq.cluster.errors import OutcomeUnknown
from tests.api.conftest import Answer, Client

PATH = "/admin/cluster/members"


def ids(answer: Answer) -> list[tuple[str, str, bool]]:
    assert answer.status == 200, answer.body
    return [(one["id"], one["role"], one["voter"]) for one in answer.json["members"]]


async def test_a_member_comes_and_goes(client: Client) -> None:
    assert ids(await client.get(PATH)) == [("n1", "leader", True)]
    added = await client.post(PATH, {"id": "n2", "address": "h:7790"})
    assert ids(added) == [("n1", "leader", True), ("n2", "learner", False)]
    assert added.json["members"][1]["address"] == "h:7790"
    assert ids(await client.post(f"{PATH}/n2/promote")) == [("n1", "leader", True), ("n2", "follower", True)]
    for body in (None, {}, {"to": "n2"}, {"to": "n1"}):
        assert (await client.post("/admin/cluster/transfer", body)).status == 200
    assert ids(await client.delete(f"{PATH}/n2")) == [("n1", "leader", True)]


@pytest.mark.parametrize(
    ("method", "path", "body", "error"),
    [
        ("POST", PATH, {"id": "n1", "address": "h:1"}, "n1 is a member already"),
        ("POST", f"{PATH}/n1/promote", None, "n1 votes already"),
        ("POST", f"{PATH}/n9/promote", None, "n9 is not a member"),
        ("DELETE", f"{PATH}/n9", None, "n9 is not a member"),
        ("POST", "/admin/cluster/transfer", {"to": "n9"}, "n9 is not a voter"),
        ("POST", "/admin/cluster/transfer", {}, "no other voter can be reached"),
    ],
)
async def test_what_is_refused(client: Client, method: str, path: str, body: Any, error: str) -> None:
    answer = await client.send(method, path, body)
    assert (answer.status, answer.json) == (409, {"ok": False, "error": error, "code": "change_refused"})
    assert ids(await client.get(PATH)) == [("n1", "leader", True)]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "id"),
        ({"id": "n2"}, "address"),
        ({"id": "n 2", "address": "h:1"}, "id must be"),
        ({"id": "", "address": "h:1"}, "id must be"),
        ({"id": "n2", "address": "h"}, "address"),
        ({"id": "n2", "address": "h:99999"}, "address"),
        ({"id": "n2", "address": "h" * 300 + ":1"}, "address"),
        ({"id": 2, "address": "h:1"}, "str"),
        ([], "object"),
    ],
)
async def test_rules(client: Client, body: Any, word: str) -> None:
    answer = await client.post(PATH, body)
    assert (answer.status, answer.json["code"]) == (400, "invalid_request")
    assert word in answer.error


async def test_a_body_that_is_no_json(client: Client) -> None:
    for raw in (b"", b"{", b'{"id":"\xff"}'):
        assert (await client.post(PATH, raw=raw)).status == 400
    assert (await client.post("/admin/cluster/transfer", raw=b"{")).status == 400


async def test_without_a_leader(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    client.engine.available = False
    answer = await client.post(PATH, {"id": "n2", "address": "h:1"})
    assert (answer.status, answer.json["code"]) == (503, "unavailable")
    assert answer.headers["Retry-After"]
    assert ids(await client.get(PATH)) == [("n1", "leader", True)]

    async def lost(action: str, node: str, address: str) -> None:
        raise OutcomeUnknown("no answer from the leader")

    monkeypatch.setattr(client.engine, "change_members", lost)
    answer = await client.delete(f"{PATH}/n2")
    assert (answer.status, answer.json["code"]) == (503, "outcome_unknown")


async def test_the_cluster_says_it_too(client: Client) -> None:
    found = (await client.get("/admin/cluster")).json
    assert (found["cluster_name"], found["log_bytes"], found["ready_reason"]) == ("quorumq", 0, "")
    assert found["members"] == (await client.get(PATH)).json["members"]

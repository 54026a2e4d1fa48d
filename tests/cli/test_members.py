"""`quorumq members`: what each command asks of a node, and how answers and refusals are shown."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest

from tests.cli import conftest
from tests.cli.conftest import Answering

MEMBER = {"role": "follower", "connected": True, "match_index": None, "lag": None, "self": False}
ANSWER = {
    "ok": True,
    "leader": "n1",
    "members": [
        {"id": "n1", "address": "h:1", "voter": True, **MEMBER},
        {"id": "n/2", "address": "h:2", "voter": False, **MEMBER},
    ],
}


run = partial(conftest.run, "members")

MEMBERS = "/admin/cluster/members"


@pytest.mark.parametrize(
    ("arguments", "method", "path", "body"),
    [
        (["list"], "GET", MEMBERS, None),
        (["add", "n4", "h:4"], "POST", MEMBERS, {"id": "n4", "address": "h:4"}),
        (["promote", "n/4"], "POST", f"{MEMBERS}/n%2F4/promote", None),
        (["remove", "n4"], "DELETE", f"{MEMBERS}/n4", None),
        (["transfer"], "POST", "/admin/cluster/transfer", {}),
        (["transfer", "n2"], "POST", "/admin/cluster/transfer", {"to": "n2"}),
    ],
)
def test_what_is_asked(
    node: tuple[type[Answering], str], arguments: list[str], method: str, path: str, body: Any
) -> None:
    handler, url = node
    handler.body = json.dumps(ANSWER).encode()
    status, output, error = run(*arguments, "--url", url + "/", "--token", "t1")
    assert (status, error) == (0, "")
    assert handler.asked == [(method, path, "Bearer t1", body)]
    assert "leader n1" in output
    assert [line.split("│")[4].strip() for line in output.splitlines() if "h:" in line] == ["yes", "no"]


def test_a_leader_that_cannot_be_reached_is_not_called_one(node: tuple[type[Answering], str]) -> None:
    handler, url = node
    first, *others = ANSWER["members"]
    handler.body = json.dumps(ANSWER | {"members": [first | {"connected": False}, *others]}).encode()
    assert "leader unknown (it was n1)" in run("list", "--url", url)[1]


def test_a_refusal_is_one_line_and_status_1(node: tuple[type[Answering], str]) -> None:
    handler, url = node
    handler.status, handler.body = 409, b'{"ok":false,"error":"n2 leads","code":"change_refused"}'
    assert run("remove", "n2", QUORUMQ_URL=url) == (1, "", f"quorumq: {url} answered 409: n2 leads\n")
    assert handler.asked == [("DELETE", f"{MEMBERS}/n2", None, None)]


def test_nobody_there() -> None:
    status, output, error = run("list", "--url", "http://127.0.0.1:1")
    assert (status, output) == (1, "")
    assert "does not answer" in error

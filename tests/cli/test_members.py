"""`quorumq members`: what each command asks of a node, and how answers and refusals are shown."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app

MEMBER = {"role": "follower", "connected": True, "match_index": None, "lag": None, "self": False}
ANSWER = {
    "ok": True,
    "leader": "n1",
    "members": [
        {"id": "n1", "address": "h:1", "voter": True, **MEMBER},
        {"id": "n/2", "address": "h:2", "voter": False, **MEMBER},
    ],
}


class Node(BaseHTTPRequestHandler):
    """A node that notes what it is asked."""

    status = 200
    answer: Any = ANSWER
    asked: list[tuple[str, str, str | None, Any]] = []

    def reply(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        sent = json.loads(body) if body else None
        self.asked.append((self.command, self.path, self.headers.get("Authorization"), sent))
        text = json.dumps(self.answer).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_DELETE = reply

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def node() -> Iterator[tuple[type[Node], str]]:
    handler = type("OneNode", (Node,), {"asked": []})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield handler, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["members", *arguments], env={"COLUMNS": "200", **environment})
    return result.exit_code, result.stdout, result.stderr


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
def test_what_is_asked(node: tuple[type[Node], str], arguments: list[str], method: str, path: str, body: Any) -> None:
    handler, url = node
    status, output, error = run(*arguments, "--url", url + "/", "--token", "t1")
    assert (status, error) == (0, "")
    assert handler.asked == [(method, path, "Bearer t1", body)]
    assert "leader n1" in output
    assert [line.split("│")[4].strip() for line in output.splitlines() if "h:" in line] == ["yes", "no"]


def test_a_refusal_is_one_line_and_status_1(node: tuple[type[Node], str]) -> None:
    handler, url = node
    handler.status, handler.answer = 409, {"ok": False, "error": "n2 leads", "code": "change_refused"}
    assert run("remove", "n2", QUORUMQ_URL=url) == (1, "", f"quorumq: {url} answered 409: n2 leads\n")
    assert handler.asked == [("DELETE", f"{MEMBERS}/n2", None, None)]


def test_nobody_there() -> None:
    status, output, error = run("list", "--url", "http://127.0.0.1:1")
    assert (status, output) == (1, "")
    assert "does not answer" in error

"""The command line in this process, and a node that answers what a test tells it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from typer.testing import CliRunner

from quorumq.cli.main import app


def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run a command; return its exit status, what it printed, and its errors."""
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "TERMINAL_WIDTH": "200", **environment})
    return result.exit_code, result.stdout, result.stderr


class Answering(BaseHTTPRequestHandler):
    """Answers every request alike and notes it. asked: method, path, Authorization and JSON body of each."""

    status = 200
    body = b""
    asked: list[tuple[str, str, str | None, Any]] = []

    def reply(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append((self.command, self.path, self.headers.get("Authorization"), json.loads(body or b"null")))
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_GET = do_POST = do_DELETE = reply

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def node() -> Iterator[tuple[type[Answering], str]]:
    """What answers, and its URL."""
    handler = type("OneNode", (Answering,), {"asked": []})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        # The interval is how long a shutdown may take to be noticed.
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield handler, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()

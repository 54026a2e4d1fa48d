"""U+FEFF before a text in UTF-8, as some programs and editors write it: in bodies of every dialect, commands and files."""

from __future__ import annotations

from pathlib import Path

import pytest

from quorumq.api import tokens
from quorumq.api.settings.loading import load
from tests.api.conftest import Client, Serve

BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/queues/que/jobs", b'{"data":{"a":1}}'),
        ("POST", "/queues/que/jobs/bulk", b'{"jobs":[{"data":1}]}'),
        ("POST", "/queues/que/jobs/pull-batch", b'{"count":1}'),
        ("PUT", "/queues/que/stall-config", b'{"config":{"maxStalls":2}}'),
        ("POST", "/crons", b'{"name":"c","queue":"que","data":1,"repeatEvery":60000}'),
        ("POST", "/bullmq/queues/que/jobs", b'[{"name":"n","data":1}]'),
        ("POST", "/bullmq/queues/que/jobs/next", b'{"token":"t"}'),
        ("POST", "/bullmq/queues/que/pause", b""),
        ("PUT", "/admin/queues/que/retention", b'{"completed":5}'),
    ],
)
async def test_a_body_that_begins_with_a_mark(serve: Serve, method: str, path: str, body: bytes) -> None:
    """Some programs write U+FEFF before a text in UTF-8; to whoever reads it, it is not there."""
    client = await serve(auth_tokens=("t",))
    headers = {"Authorization": "Bearer t"}
    answers = [await client.send(method, path, raw=mark + body, headers=headers) for mark in (b"", BOM)]
    assert [answer.status for answer in answers] == [200, 200], answers[1].body


async def test_the_mark_is_none_of_the_data(client: Client) -> None:
    first = (await client.post("/queues/q/jobs", raw=BOM + b'{"data":"\xef\xbb\xbfx"}')).json["id"]
    assert (await client.get(f"/jobs/{first}")).json["job"]["data"] == "\ufeffx"
    assert (await client.post("/queues/q/jobs", raw=BOM + BOM + b'{"data":1}')).status == 400
    async with client.session.ws_connect(f"{client.base}/ws") as ws:
        await ws.send_str('\ufeff{"cmd":"Count","queue":"q"}')
        assert await ws.receive_json(timeout=10) == {"ok": True, "count": 1}


def test_files_that_begin_with_a_mark(tmp_path: Path) -> None:
    file, secret = tmp_path / "settings.toml", tmp_path / "secret"
    file.write_bytes(BOM + b'node_id = "n7"\n')
    secret.write_bytes(BOM + b"s3cret\n")
    config = load({"cluster_secret_file": str(secret)}, {}, file)
    assert (config.node_id, config.cluster_secret) == ("n7", "s3cret")
    line = b'{"name":"a","sha256":"%b","rights":["read"]}' % (b"0" * 64)
    assert [token.name for token in tokens.parse(BOM + line)] == ["a"]

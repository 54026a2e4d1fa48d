"""The cases recorded from the real server, run against one node in this process.

They are in tests/conformance; QUORUMQ_CONFORMANCE may name another folder.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from scripts.tools.conformance import FOLDER
from tests.api.conftest import Serve

RUNNER = FOLDER / "replay.py"

WHOLE_GROUPS = [
    "push",
    "bulk",
    "pull",
    "ack",
    "fail",
    "identity",
    "http",
    "query",
    "manage",
    "queues",
    "flow",
    "dlq",
    "limits",
    "config",
    "crons",
    "webhooks",
    "workers",
    "monitoring",
    "websocket",
    "sse",
]


async def replay(base: str, results: Path, *arguments: str) -> list[dict[str, str]]:
    """Run the runner; return what became of each case."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(RUNNER),
        "--base",
        base,
        "--json",
        str(results),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert results.is_file(), output.decode()
    outcomes: list[dict[str, str]] = json.loads(results.read_text("utf-8"))
    return outcomes


@pytest.mark.parametrize("group", WHOLE_GROUPS)
async def test_group(serve: Serve, tmp_path: Path, group: str) -> None:
    client = await serve()
    outcomes = await replay(client.base, tmp_path / "results.json", "--only", group)
    assert outcomes
    assert [item for item in outcomes if item["result"] != "pass"] == []


async def test_auth_group_with_a_token(serve: Serve, tmp_path: Path) -> None:
    client = await serve(auth_tokens=("other", "secret"))
    outcomes = await replay(client.base, tmp_path / "results.json", "--only", "auth", "--token", "secret")
    assert outcomes
    assert [item for item in outcomes if item["result"] != "pass"] == []


async def test_what_the_document_promises(serve: Serve, tmp_path: Path) -> None:
    client = await serve()
    file = FOLDER / "bunqueue-seed.jsonl"
    outcomes = await replay(client.base, tmp_path / "results.json", "--file", str(file))
    assert len(outcomes) == len([line for line in file.read_text("utf-8").splitlines() if line.strip()])
    assert [item for item in outcomes if item["result"] != "pass"] == []

"""The cases recorded from BullMQ Proxy, run against one node in this process: on the listener of its own, and under /bullmq."""

from __future__ import annotations

import asyncio
import sys

import pytest

from scripts.tools.conformance import FOLDER
from tests.api.conftest import Serve

RUNNER = FOLDER / "replay_proxy.py"
GROUPS = ["auth", "add", "add-validation", "list", "get", "workers", "process", "job-actions"]


@pytest.mark.parametrize("prefix", ["", "/bullmq"])
@pytest.mark.parametrize("group", GROUPS)
async def test_group(serve: Serve, group: str, prefix: str) -> None:
    client = await serve(auth_tokens=("tok1", "tok2"))
    listener = client.server.main if prefix else client.server.listeners[1]
    base = f"http://127.0.0.1:{listener.port}{prefix}"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(RUNNER),
        "--base",
        base,
        "--token",
        "tok1",
        "--group",
        group,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    text = output.decode()
    assert process.returncode == 0, text
    assert group in text

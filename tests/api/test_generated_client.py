"""Clients made from `/openapi.json` by somebody else's program: nothing is left out, and what it made works on jobs with parsed replies.

The program is openapi-python-client; what it stumbled over (constants without a type, schemas with the same title or a name that
no class can have) others stumble over as well.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from quorumq.api.mounts import bullmq_dialects, main_dialects
from quorumq.api.openapi import document
from tests.api.conftest import Serve

DOCUMENT = document(main_dialects(), "1")
NAME = "made_client"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A client made from the document; its folder can be imported from."""
    folder = tmp_path_factory.mktemp("client")
    (folder / "openapi.json").write_text(json.dumps(DOCUMENT))
    (folder / "config.yml").write_text("post_hooks: []\n")
    arguments = ["--path", "openapi.json", "--output-path", NAME, "--config", "config.yml", "--meta", "none"]
    result = subprocess.run(
        [sys.executable, "-m", "openapi_python_client", "generate", *arguments, "--fail-on-warning"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    said = result.stdout + result.stderr
    assert result.returncode == 0 and "WARNING" not in said and "Unable" not in said, said
    sys.path.insert(0, str(folder))
    yield folder / NAME
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
        del sys.modules[name]


def module(name: str) -> ModuleType:
    return importlib.import_module(f"{NAME}.{name}")


def test_every_operation_is_there_with_its_reply(made: Path) -> None:
    operations = [(path, one["operationId"]) for path, methods in DOCUMENT["paths"].items() for one in methods.values()]
    files = [file for file in (made / "api").rglob("*.py") if file.name != "__init__.py"]
    assert len(files) == len(operations) > 150
    without = [file.name for file in files if "response_200" not in file.read_text()]
    # These go on as WebSockets.
    assert sorted(without) == ["get_bullmq_v1_socket.py", "get_ws.py", "get_ws_queues_queue.py"]
    for file in files:
        importlib.import_module(".".join([NAME, *file.relative_to(made).with_suffix("").parts]))


def test_what_tools_stumble_over_is_not_in_the_document() -> None:
    for whole in (DOCUMENT, document(bullmq_dialects(), "1")):
        schemas = whole["components"]["schemas"]
        assert all(name.isidentifier() for name in schemas)
        assert all(schema["title"] == name for name, schema in schemas.items())
        for where in constants(whole["components"]["schemas"]):
            assert "type" in where, where
            assert len(where.get("enum", "more than one")) > 1, where


def constants(node: Any) -> Iterator[dict[str, Any]]:
    """Find every schema that names its values."""
    if isinstance(node, dict):
        if "const" in node or isinstance(node.get("enum"), list):
            yield node
        for value in node.values():
            yield from constants(value)
    elif isinstance(node, list):
        for value in node:
            yield from constants(value)


async def sent(base: str, name: str, *arguments: Any, **named: Any) -> Any:
    """Send a request with the client; return its parsed reply."""
    send: Callable[..., Any] = module(name).asyncio
    made = module("client").AuthenticatedClient(base_url=base, token="secret", raise_on_unexpected_status=True)
    async with asyncio.timeout(20), made as client:
        return await send(*arguments, client=client, **named)


async def test_it_pushes_pulls_and_acknowledges(made: Path, serve: Serve) -> None:
    client = await serve(auth_tokens=("secret",))
    models, api = module("models"), "api.jobs"
    call = partial(sent, client.base)

    options = models.PushBody(data={"to": "ada"}, priority=5, tags=["a"], job_id="j-1")
    pushed = await call(f"{api}.post_queues_queue_jobs", "mails", body=options, idempotency_key="k")
    assert isinstance(pushed, models.Pushed) and (pushed.ok, pushed.id) == (True, "j-1")
    found = await call(f"{api}.get_jobs_id", "j-1")
    assert isinstance(found, models.OneJob)
    assert (found.job.priority, found.job.tags, found.job.data) == (5, ["a"], {"to": "ada"})
    body = models.PullBody(count=1, owner="me", lock_ttl=30_000)
    pulled = await call(f"{api}.post_queues_queue_jobs_pull_batch", "mails", body=body)
    assert isinstance(pulled, models.PulledJobs)
    assert [job.id for job in pulled.jobs] == ["j-1"] and len(pulled.tokens) == 1
    refused = await call(f"{api}.post_jobs_id_ack", "j-1", body=models.AckBody(token="wrong"))
    assert isinstance(refused, models.Failure) and refused.ok is False and refused.error
    acked = await call(
        f"{api}.post_jobs_id_ack", "j-1", body=models.AckBody(result={"sent": 1}, token=pulled.tokens[0])
    )
    assert isinstance(acked, models.Ok) and acked.ok is True
    result = await call(f"{api}.get_jobs_id_result", "j-1")
    assert isinstance(result, models.ResultOf) and result.result == {"sent": 1}
    missing = await call(f"{api}.get_jobs_id", "nobody")
    assert isinstance(missing, models.Failure) and missing.error == "Job not found"
    nothing = await call(f"{api}.get_queues_queue_jobs", "mails")
    assert isinstance(nothing, models.PulledJob) and nothing.job is None
    overview = await call("api.overview.get_dashboard")
    assert isinstance(overview, models.Dashboard) and overview.stats.total_completed == 1


async def test_it_speaks_the_other_dialects(made: Path, serve: Serve) -> None:
    client = await serve(auth_tokens=("secret",))
    models, call = module("models"), partial(sent, client.base)
    job = models.NewJob(name="welcome", data={"a": 1})
    added = await call("api.bull_mq_jobs.post_bullmq_queues_queue_jobs", "mails", body=[job])
    assert [job.name for job in added] == ["welcome"]
    body = models.NextBody(token="t")
    taken = await call("api.bull_mq_manual_processing.post_bullmq_queues_queue_jobs_next", "mails", body=body)
    assert taken.name == "welcome"
    queues = await call("api.open_archiver.get_v1_jobs_queues")
    assert [queue.name for queue in queues.queues] == ["mails"]
    refused = await call("api.open_archiver.get_v1_jobs_queues_queue", "nobody")
    assert isinstance(refused, models.ArchiverError) and refused.message == "Queue not found"

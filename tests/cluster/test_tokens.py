"""Tokens on real nodes: made and revoked with the command, taken up by every node, seen in the audit, kept over a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path

from typer.testing import CliRunner

from quorumq.cli.admin import fetch
from quorumq.cli.main import app
from tests.cluster.test_strangers import logged
from tests.support.local_cluster import LocalCluster, LocalNode


def command(*arguments: str) -> str:
    """Run `quorumq tokens`; return what it printed."""
    result = CliRunner().invoke(app, ["tokens", *arguments])
    assert result.exit_code == 0, result.stderr
    return result.stdout.strip()


async def asked(node: LocalNode, path: str, token: str, url: str | None = None) -> int:
    status, _ = await asyncio.to_thread(fetch, (url or node.url) + path, token=token)
    return status


async def test_tokens_of_a_file(tmp_path: Path) -> None:
    file = str(tmp_path / "tokens.jsonl")
    # The file comes later than the nodes.
    async with LocalCluster(3, AUTH_TOKENS="root", AUTH_TOKENS_FILE=file) as cluster:
        node = cluster.nodes[0]
        assert await asked(node, "/queues", "root") == 200
        secret = command("create", "reader", "--right", "read", "--queue", "mail*", "--file", file)

        async def on_all(wanted: int) -> bool:
            answers = [await asked(one, "/queues/mails/count", secret) for one in cluster.nodes]
            return answers == [wanted] * 3

        await cluster.until("every node knows the token", lambda: on_all(200), 20)
        for one in cluster.nodes:
            assert await asked(one, "/queues/news/count", secret) == 403
            assert await asked(one, "/queues/mails/jobs", secret, one.bullmq_url) == 200
            assert await asked(one, "/admin/cluster", secret) == 403
        said = "refused token=reader client=127.0.0.1 route=GET /queues/{queue}/count queue=news status=403"
        await logged(cluster, node, said)

        await node.stop()
        await node.start()
        await cluster.ready()
        assert await asked(node, "/queues/mails/count", secret) == 200

        Path(file).write_text("{")
        await cluster.until("every node has seen the broken file", lambda: broken(cluster), 20)
        assert await on_all(200)
        Path(file).unlink()
        command("create", "other", "--right", "read", "--file", file)
        await cluster.until("the token is gone with its file", lambda: on_all(401), 20)
        for one in cluster.nodes:
            assert secret not in one.log_text()


async def broken(cluster: LocalCluster) -> bool:
    return all("cannot be used: line 1 is no JSON object" in node.log_text() for node in cluster.nodes)

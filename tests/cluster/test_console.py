"""bunqueue's own console in front of a follower, with a token, while the leader is killed: no page breaks, no button fails."""

from __future__ import annotations

import asyncio
from typing import Any

from quorumq.cli.admin import fetch
from tests.support.console import Console
from tests.support.local_cluster import LocalCluster


async def test_the_console_goes_on_while_the_leader_is_killed() -> None:
    async with LocalCluster(3, AUTH_TOKENS="secret", EVENTS_FORM="named") as cluster:
        leader = await cluster.leader()
        follower = (await cluster.followers())[0]

        async def ask(method: str, path: str, body: Any) -> tuple[int, Any]:
            how = {"token": "secret", "method": method, "body": body, "timeout_s": 30.0}
            return await asyncio.to_thread(fetch, follower.url + path, **how)  # type: ignore[arg-type]

        before = Console(ask, "before")
        await before.everything()
        during = Console(ask, "during")
        work = asyncio.create_task(during.everything())
        async with asyncio.timeout(30):
            while during.asked < 10:
                await asyncio.sleep(0.001)
        await leader.kill()
        await work
        assert during.asked == before.asked
        assert (await cluster.leader()) is not leader

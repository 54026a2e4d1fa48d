"""One flow over two queues through all dialects at once: each policy, in each order of the children's ends, then a retry or a removal."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.bullmq import TOKEN, Bull
from tests.api.conftest import Serve
from tests.api.test_flows import node

POLICIES = {
    "wait": None,
    "fail": "failParentOnFailure",
    "continue": "continueParentOnFailure",
    "ignore": "ignoreDependencyOnFailure",
    "remove": "removeDependencyOnFailure",
}
KINDS = ("processed", "unprocessed", "ignored", "failed")
# By policy: the parent's state when both children have ended, of which one failed, and how many children it counts by kind.
ENDED = {
    "wait": ("waiting-children", (1, 1, 0, 0)),
    "fail": ("failed", (1, 0, 0, 1)),
    "continue": ("waiting", (1, 0, 1, 0)),
    "ignore": ("waiting", (1, 0, 1, 0)),
    "remove": ("waiting", (1, 0, 0, 0)),
}
# The same when the failed one was put back, by the parent's rules: one of bunqueue that nobody has taken waits for it once more.
PUT_BACK = {
    "bunqueue": {
        "wait": ("waiting-children", (1, 1, 0, 0)),
        "fail": ("failed", (1, 1, 0, 0)),
        "continue": ("waiting-children", (1, 1, 0, 0)),
        "ignore": ("waiting-children", (1, 1, 0, 0)),
        "remove": ("waiting", (1, 0, 0, 0)),
    },
}
PUT_BACK["bullmq"] = PUT_BACK["bunqueue"] | {
    "continue": ("waiting", (1, 1, 0, 0)),
    "ignore": ("waiting", (1, 1, 0, 0)),
}
# And when it was removed: only who waits for it notices.
REMOVED = ENDED | {"wait": ("waiting", (1, 0, 0, 0))}


def by_own_id(children: dict[str, Any]) -> dict[str, Any]:
    """Return what is told of children by their ids in their queue: each dialect has keys of its own."""
    return {key.rpartition(":")[2]: value for key, value in children.items()}


class Flow:
    """A parent in queue `par` with the children `bad` and `good` in queue `kid`, in the words of the dialect it comes from."""

    def __init__(self, bull: Bull, origin: str) -> None:
        self.bull = bull
        self.origin = origin

    def canonical(self, queue: str, own: str) -> str:
        return f"bull:{queue}:{own}" if self.origin == "bullmq" else own

    async def bunqueue(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        answer = await self.bull.client.send(method, path, body, headers=headers)
        assert answer.status == 200, answer.body
        return answer.json

    async def add(self, policy: str | None) -> None:
        said = {policy: True} if policy else {}
        if self.origin == "bunqueue":
            tree = node("parent", "par", node("bad", "kid", **said), node("good", "kid"))
            await self.bunqueue("POST", "/flows", {"jobs": tree})
            return
        kids = [
            {"name": own, "queueName": "kid", "opts": {"jobId": own} | more}
            for own, more in (("bad", said), ("good", {}))
        ]
        tree = {"name": "parent", "queueName": "par", "opts": {"jobId": "parent"}, "children": kids}
        answer = await self.bull.post("/flows", tree)
        assert answer.status == 200, answer.body

    async def end(self, own: str) -> None:
        if own == "bad":
            await self.bull.fail(own, "boom", queue="kid")
        else:
            await self.bull.complete(own, {"of": own}, queue="kid")

    async def seen(self) -> tuple[str, tuple[int, ...]]:
        """Return the parent's state and what it counts, once every dialect has said the same."""
        parent = self.canonical("par", "parent")
        state = (await self.bunqueue("GET", f"/jobs/{parent}"))["job"]["state"]
        assert await self.bull.state("parent", queue="par") == state
        for status in ("waiting-children", "waiting", "failed"):
            page = await self.bunqueue("GET", f"/v1/jobs/queues/par?status={status}")
            assert [job["id"] for job in page["jobs"]] == (["parent"] if status == state else []), status
        for counts in (
            (await self.bunqueue("GET", "/queues/par/counts"))["counts"],
            await self.bull.counts(queue="par"),
        ):
            assert counts["waiting-children"] == (state == "waiting-children")
        told = (await self.bull.get("/queues/par/jobs/parent/dependencies")).json
        children = f"/jobs/{parent}/children"
        assert by_own_id((await self.bunqueue("GET", children))["values"]) == by_own_id(told["processed"])
        failed, ignored = [
            by_own_id((await self.bunqueue("GET", f"{children}/{kind}"))["values"]) for kind in ("failed", "ignored")
        ]
        assert failed | ignored == by_own_id(told["ignored"])
        return state, tuple(told["counts"][kind] for kind in KINDS)


@pytest.fixture
async def bull(serve: Serve) -> Bull:
    return Bull(await serve(auth_tokens=(TOKEN,)))


@pytest.mark.parametrize("origin", ["bunqueue", "bullmq"])
@pytest.mark.parametrize("then", ["nothing", "put back", "removed"])
@pytest.mark.parametrize("order", [("bad", "good"), ("good", "bad")], ids="-".join)
@pytest.mark.parametrize("policy", POLICIES)
async def test_every_dialect_tells_the_same_of_a_flow(
    bull: Bull, policy: str, order: tuple[str, str], then: str, origin: str
) -> None:
    flow = Flow(bull, origin)
    await flow.add(POLICIES[policy])
    assert await flow.seen() == ("waiting-children", (0, 2, 0, 0))
    for _ in order:
        await bull.next(queue="kid")
    for own in order:
        await flow.end(own)
    assert await flow.seen() == ENDED[policy]
    if then == "put back":
        await flow.bunqueue("POST", "/queues/kid/dlq/retry", {"jobId": flow.canonical("kid", "bad")})
        assert await flow.seen() == PUT_BACK[origin][policy]
        await bull.next(queue="kid")
        await bull.complete("bad", {"of": "bad"}, queue="kid")
        kept = (2, 0, 0, 0) if policy != "remove" else (1, 0, 0, 0)
        assert await flow.seen() == ("failed" if policy == "fail" else "waiting", kept)
    elif then == "removed":
        assert (await bull.delete("/queues/kid/jobs/bad")).status == 200
        assert await flow.seen() == REMOVED[policy]

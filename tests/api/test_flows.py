"""Flows over HTTP and WebSocket, in both dialects, each seen through the other: adding, refusing, asking, waiting, rights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from quorumq.api.dialects.bunqueue.flows import FlowInput, FlowNode, planned
from quorumq.node.machine.lifecycle.flows import JOBS_MAX, LEVELS_MAX
from tests.api.backend import connect
from tests.api.bullmq import TOKEN, Bull
from tests.api.conftest import Client, Serve
from tests.api.test_permissions import Keys


def node(job_id: str, queue: str, *children: Any, parent: Any = None, data: Any = None, **options: Any) -> list[Any]:
    """Return the nodes of a tree as bunqueue's clients plan them, children first."""
    ids = [tree[-1]["id"] for tree in children]
    found = [each for tree in children for each in tree]
    inner = dict(data or {})
    given = {"name": job_id, "data": inner, "maxAttempts": 1, **options}
    if ids:
        inner["__childrenIds"] = ids
        given |= {"childrenIds": ids, "dependsOn": ids}
    own = {"id": job_id, "queue": queue, "input": given}
    for tree in children:
        below = tree[-1]["input"]
        below["parentId"] = job_id
        below["data"] |= {"__parentId": job_id, "__parentQueue": queue}
    return [*found, own]


async def add(client: Client, *trees: list[Any]) -> Any:
    answer = await client.post("/flows", {"jobs": [each for tree in trees for each in tree]})
    assert answer.status == 200, answer.body
    return answer.json["data"]["jobs"]


async def run(client: Client, queue: str, **end: Any) -> str:
    """Take the next job of a queue and end its run; return its id."""
    job = await client.pull(queue)
    answer = await client.post(f"/jobs/{job['id']}/{'fail' if end else 'ack'}", end or {"result": {"of": job["id"]}})
    assert answer.status == 200, answer.body
    return str(job["id"])


# -- bunqueue


async def test_a_tree_runs_from_its_leaves_to_its_root(client: Client) -> None:
    jobs = await add(client, node("root", "r", node("mid", "m", node("leaf", "l")), node("other", "l")))
    assert [job["id"] for job in jobs] == ["root", "mid", "other", "leaf"], "each after its parent"
    shown = {job["id"]: job for job in jobs}
    assert shown["root"]["childrenIds"] == ["mid", "other"] and shown["root"]["dependsOn"] == ["mid", "other"]
    assert (shown["leaf"]["parentId"], shown["root"]["parentId"]) == ("mid", None)
    assert (await client.get("/queues/r/counts")).json["counts"]["waiting-children"] == 1
    assert await client.pull("r") is None
    assert {await run(client, "l"), await run(client, "l")} == {"leaf", "other"}
    assert await run(client, "m") == "mid"
    values = (await client.get("/jobs/root/children")).json["values"]
    assert values == {"m:mid": {"of": "mid"}, "l:other": {"of": "other"}}
    root = (await client.get("/jobs/root")).json["job"]
    assert (root["childrenCompleted"], root["state"]) == (2, "waiting")
    assert await run(client, "r") == "root"


POLICIES = {
    "failParentOnFailure": "failed",
    "continueParentOnFailure": "waiting",
    "ignoreDependencyOnFailure": "waiting",
    "removeDependencyOnFailure": "waiting",
    None: "waiting-children",
}


@pytest.mark.parametrize("policy", POLICIES)
async def test_each_policy_of_a_child(client: Client, policy: str | None) -> None:
    bad = node("bad", "b", **({policy: True} if policy else {}))
    await add(client, node("root", "r", bad, node("good", "g")))
    await run(client, "b", error="boom")
    if policy != "continueParentOnFailure":
        await run(client, "g")
    assert await client.state("root") == POLICIES[policy]
    failed = (await client.get("/jobs/root/children/failed")).json["values"]
    ignored = (await client.get("/jobs/root/children/ignored")).json["values"]
    assert failed == ({"b:bad": "boom"} if policy == "continueParentOnFailure" else {})
    assert ignored == ({"b:bad": "boom"} if policy == "ignoreDependencyOnFailure" else {})
    shown = (await client.get("/jobs/bad")).json["job"]
    assert {name: shown[name] for name in POLICIES if name} == {name: name == policy for name in POLICIES if name}
    if policy == "failParentOnFailure":
        entry = (await client.get("/queues/r/dlq")).json["jobs"][0]
        assert "Child job bad failed: boom" in str(entry)


async def test_a_chain_waits_link_by_link(client: Client) -> None:
    chain = [
        {"id": f"s{i}", "queue": "c", "input": {"data": {}, "dependsOn": [f"s{i - 1}"] if i else []}} for i in range(3)
    ]
    await add(client, chain[::-1])
    for i in range(3):
        assert await run(client, "c") == f"s{i}"


BAD: list[tuple[str, Any, str]] = [
    ("no array", {"jobs": 1}, "flow jobs must be an array"),
    ("nothing", {}, "flow jobs must be an array"),
    ("no object", {"jobs": [1]}, "flow jobs[0] must be an object"),
    ("no id", {"jobs": [{"queue": "q", "input": {"data": {}}}]}, "flow job id must be a string"),
    (
        "empty id",
        {"jobs": [{"id": "", "queue": "q", "input": {"data": {}}}]},
        "flow job id is invalid or is not well-formed Unicode",
    ),
    ("colon", {"jobs": [{"id": "a:b", "queue": "q", "input": {"data": {}}}]}, "flow job id cannot contain a colon"),
    ("twice", {"jobs": node("a", "q") + node("a", "q")}, "duplicate flow job id: a"),
    ("queue", {"jobs": [{"id": "a", "queue": "q q", "input": {"data": {}}}]}, "invalid flow queue: q q"),
    ("no input", {"jobs": [{"id": "a", "queue": "q"}]}, "flow job input is invalid: a"),
    ("other id", {"jobs": node("a", "q", customId="b")}, "custom id does not match planned id: a"),
    ("repeat", {"jobs": node("a", "q", repeat={"every": 5})}, "repeat is not supported inside an atomic flow"),
    ("key", {"jobs": node("a", "q", uniqueKey="u")}, "deduplication is not supported inside an atomic flow"),
    ("debounce", {"jobs": node("a", "q", debounceId="u")}, "debounce is not supported inside an atomic flow"),
    ("policy", {"jobs": node("a", "q", failParentOnFailure=True)}, "a flow failure policy requires a parent"),
    (
        "policies",
        {"jobs": node("p", "q", node("a", "q", failParentOnFailure=True, ignoreDependencyOnFailure=True))},
        "flow failure policies are mutually exclusive",
    ),
    (
        "no truth",
        {"jobs": node("p", "q", node("a", "q", failParentOnFailure=1))},
        "failParentOnFailure must be a boolean",
    ),
    ("dangling", {"jobs": node("a", "q", dependsOn=["nope"])}, "flow dependency not found: nope"),
    ("itself", {"jobs": node("a", "q", dependsOn=["a"])}, "flow job cannot depend on itself: a"),
    ("no list", {"jobs": node("a", "q", dependsOn="a")}, "dependsOn must be an array of valid string job ids"),
    (
        "twice there",
        {"jobs": node("b", "q") + node("a", "q", dependsOn=["b", "b"])},
        "duplicate dependency in flow job: a",
    ),
    ("orphan", {"jobs": node("a", "q", parentId="p", data={"__parentId": "p"})}, "flow parent not found: p"),
    (
        "one-sided",
        {"jobs": node("p", "q") + node("a", "q", parentId="p")},
        "flow parent p does not own child a",
    ),
    (
        "loose child",
        {"jobs": node("a", "q") + node("p", "q", childrenIds=["a"], dependsOn=["a"], data={"__childrenIds": ["a"]})},
        "flow child a does not point back to parent p",
    ),
    (
        "undeclared",
        {"jobs": node("a", "q") + node("p", "q", childrenIds=["a"], data={"__childrenIds": ["a"]})},
        "flow child is missing from dependencies: a",
    ),
    (
        "circle",
        {"jobs": node("a", "q", dependsOn=["b"]) + node("b", "q", dependsOn=["a"])},
        "flow contains a dependency cycle",
    ),
    (
        "data",
        {"jobs": [{"id": "a", "queue": "q", "input": {"data": [1]}}]},
        "flow job data must be an object",
    ),
    ("no data", {"jobs": [{"id": "a", "queue": "q", "input": {}}]}, "data is required"),
    ("priority", {"jobs": node("a", "q", priority="x")}, "priority must be a number"),
]


@pytest.mark.parametrize(("body", "text"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
async def test_what_is_no_flow_is_refused_whole(client: Client, body: Any, text: str) -> None:
    answer = await client.post("/flows", body)
    assert (answer.status, answer.error) == (400, text)
    assert client.server.node.machine.state.jobs == {}


async def test_edges_that_the_data_tells_otherwise(client: Client) -> None:
    tree = node("p", "q", node("a", "q"))
    tree[0]["input"]["data"]["__parentQueue"] = "other"
    assert (await client.post("/flows", {"jobs": tree})).error == "flow child a metadata does not match parent p"
    tree = node("p", "q", node("a", "q"))
    tree[1]["input"]["data"]["__childrenIds"] = []
    error = (await client.post("/flows", {"jobs": tree})).error
    assert error == "flow parent p children does not match the canonical flow topology"


async def test_the_bounds_of_a_flow(client: Client) -> None:
    flat = [each for i in range(JOBS_MAX + 1) for each in node(f"n{i}", "q")]
    assert (await client.post("/flows", {"jobs": flat})).error == f"flow exceeds the {JOBS_MAX} job limit"
    deep = node("d0", "q")
    for i in range(1, LEVELS_MAX + 1):
        deep = node(f"d{i}", "q", deep)
    assert (await client.post("/flows", {"jobs": deep})).error == f"A flow may have at most {LEVELS_MAX} levels"
    assert client.server.node.machine.state.jobs == {}
    await add(client, node("root", "q", *(node(f"c{i}", f"q{i % 10}") for i in range(2_000))))
    assert (await client.get("/jobs/root")).json["job"]["childrenIds"][1_999] == "c1999"


async def test_ids_that_are_taken_are_refused_and_nothing_is_added(client: Client) -> None:
    await client.push("q", jobId="taken")
    answer = await client.post("/flows", {"jobs": node("root", "q", node("new", "q"), node("taken", "q"))})
    assert (answer.status, answer.error) == (400, "Flow job taken already exists")
    assert await client.state("new") == "unknown"


async def test_ties_are_made_and_undone(client: Client) -> None:
    parent, child, other = [await client.push(queue, jobId=queue) for queue in ("p", "c", "o")]
    assert (
        await client.send("PUT", f"/jobs/{child}/parent", {"parentId": "nope"})
    ).error == "Parent job not found: nope"
    answer = await client.send("PUT", "/jobs/nope/parent", {"parentId": parent})
    assert (answer.status, answer.error) == (404, "Child job not found: nope")
    assert (await client.send("PUT", f"/jobs/{child}/parent", {})).error == "parentId is required"
    assert (await client.send("PUT", f"/jobs/{child}/parent", {"parentId": parent})).json == {"ok": True}
    assert await client.state(parent) == "waiting-children"
    answer = await client.send("PUT", f"/jobs/{child}/parent", {"parentId": other})
    assert answer.error == f"Job {child} already belongs to parent {parent}"
    assert (await client.delete(f"/jobs/{child}/parent")).json == {"ok": True, "removed": True}
    assert await client.state(parent) == "waiting"
    assert (await client.delete(f"/jobs/{child}/parent")).error == f"Job {child} has no parent"
    assert (await client.delete("/jobs/nope/parent")).error == "Job not found: nope"
    taken = await client.pull("o")
    answer = await client.send("PUT", f"/jobs/{child}/parent", {"parentId": taken["id"]})
    assert answer.error == f"Parent job {other} is not linkable"


async def test_unprocessed_children_go_and_the_parent_goes_on(client: Client) -> None:
    await add(client, node("root", "r", node("a", "c"), node("b", "c")))
    taken = await client.pull("c")
    assert (await client.delete("/jobs/root/children")).json == {"ok": True}
    assert sorted([await client.state("a"), await client.state("b")]) == ["active", "unknown"]
    await client.post(f"/jobs/{taken['id']}/ack", {})
    assert await client.state("root") == "waiting"
    assert (await client.delete("/jobs/unknown/children")).status == 404


async def test_a_parent_of_one_dialect_has_children_of_the_other(serve: Serve) -> None:
    """A job of bunqueue's waits for one that was added over BullMQ's routes, and cannot complete before it."""
    bull = Bull(await serve(auth_tokens=(TOKEN,)))
    bearer = {"Authorization": f"Bearer {TOKEN}"}

    async def send(method: str, path: str, body: Any = None) -> Any:
        return (await bull.client.send(method, path, body, headers=bearer)).json

    await send("POST", "/queues/que/jobs", {"data": 1, "jobId": "parent"})
    await send("GET", "/queues/que/jobs")
    opts = {"parent": {"id": "parent", "queue": "que"}}
    answer = await bull.post("/queues/kid/jobs", [{"name": "kid", "data": 1, "opts": opts}])
    assert answer.status == 200, answer.body
    assert (await send("POST", "/jobs/parent/ack", {}))["error"] == "Job parent has pending dependencies"
    move = "/jobs/{}/move-to-waiting-children"
    assert await send("POST", move.format("parent"), {}) == {"ok": True, "data": {"moved": True}}
    assert (await send("POST", move.format("parent"), {}))["error"] == "Job is not active"
    assert (await send("POST", move.format("nope"), {}))["error"] == "Job is not active"
    await bull.complete(await bull.next(queue="kid"), {"k": 1}, queue="kid")
    assert await bull.state("parent") == "waiting"
    assert (await send("GET", "/jobs/parent/children"))["values"] == {"bull:kid:1": {"k": 1}}
    shown = (await bull.get("/queues/que/jobs/parent/dependencies?types=processed")).json
    assert shown["processed"] == {"bull:kid:1": {"k": 1}}


async def test_a_push_ties_jobs_as_older_producers_make_flows(client: Client) -> None:
    """Children first, then their parent, then a command for each child: as documented clients before PUSHF do."""
    kids = [
        await client.push("k", parentId="pending", failParentOnFailure=n == 1, maxAttempts=1, jobId=f"kid{n}")
        for n in range(3)
    ]
    parent = await client.push("p", childrenIds=kids, dependsOn=kids, jobId="parent")
    shown = (await client.get(f"/jobs/{parent}")).json["job"]
    assert (shown["state"], shown["childrenIds"], shown["dependsOn"]) == ("waiting-children", kids, kids)
    for kid in kids:
        assert (await client.get(f"/jobs/{kid}")).json["job"]["parentId"] == parent
        assert (await client.send("PUT", f"/jobs/{kid}/parent", {"parentId": parent})).json == {"ok": True}
    await run(client, "k")
    assert (await client.get(f"/jobs/{parent}/children")).json["values"] == {"k:kid0": {"of": "kid0"}}
    await run(client, "k", error="boom")
    assert await client.state(parent) == "failed"


async def test_pushes_name_a_parent_that_is_there(client: Client) -> None:
    above = await client.push("p", delay=1000)
    made = await client.post(
        "/queues/k/jobs/bulk", {"jobs": [{"data": 1, "parentId": above}, {"data": 2}, {"data": 3, "parentId": above}]}
    )
    first, alone, last = made.json["ids"]
    shown = (await client.get(f"/jobs/{above}")).json["job"]
    assert (shown["state"], shown["childrenIds"]) == ("waiting-children", [first, last])
    assert (await client.get(f"/jobs/{alone}")).json["job"]["parentId"] is None
    for _ in range(3):
        await run(client, "k")
    assert await client.state(above) == "delayed"


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ({"parentId": 5}, "parentId must be a string of at most"),
        ({"parentId": "x" * 1025}, "parentId must be a string of at most"),
        ({"childrenIds": "x"}, "childrenIds must be an array of strings"),
        ({"childrenIds": [5]}, "childrenIds must be an array of strings"),
        ({"failParentOnFailure": "yes"}, "failParentOnFailure must be a boolean"),
    ],
)
async def test_a_family_that_is_none_is_refused(client: Client, family: Any, text: str) -> None:
    for path, body in (
        ("/queues/q/jobs", family | {"data": 1}),
        ("/queues/q/jobs/bulk", {"jobs": [family | {"data": 1}]}),
    ):
        answer = await client.post(path, body)
        assert answer.status == 400 and text in answer.error
    assert (await client.get("/queues")).json["queues"] == []


async def test_the_commands(client: Client) -> None:
    async with client.session.ws_connect(client.base + "/ws") as ws:

        async def command(**fields: Any) -> Any:
            await ws.send_json(fields | {"reqId": "1"})
            while (reply := await ws.receive_json()).get("reqId") != "1":
                pass
            return reply

        reply = await command(cmd="PUSHF", jobs=node("root", "r", node("kid", "k", continueParentOnFailure=True)))
        assert [job["id"] for job in reply["data"]["jobs"]] == ["root", "kid"]
        assert (await command(cmd="GetFailedChildrenValues", id="root"))["values"] == {}
        await command(cmd="PULL", queue="k")
        assert (await command(cmd="MoveToWaitingChildren", id="kid"))["data"] == {"moved": False}
        await command(cmd="FAIL", id="kid", error="boom")
        assert (await command(cmd="GetFailedChildrenValues", id="root"))["values"] == {"k:kid": "boom"}
        assert (await command(cmd="GetIgnoredChildrenFailures", id="root"))["values"] == {}
        assert (await command(cmd="GetFailedChildrenValues", id="nope"))["values"] == {}
        await command(cmd="PUSH", queue="k", data=1, jobId="late")
        await command(cmd="PUSH", queue="r", data=1, jobId="above")
        assert (await command(cmd="UpdateParent", childId="late", parentId="above"))["ok"] is True
        assert (await command(cmd="UpdateParent", childId="x", parentId="y"))["error"] == "Child job not found: x"
        assert (await command(cmd="GetState", id="above"))["state"] == "waiting-children"
        assert (await command(cmd="RemoveChildDependency", id="late"))["removed"] is True
        assert (await command(cmd="UpdateParent", childId="late", parentId="above"))["ok"] is True
        assert (await command(cmd="RemoveUnprocessedChildren", id="above"))["ok"] is True
        assert (await command(cmd="GetState", id="late"))["state"] == "unknown"


async def test_the_events_of_a_flow(client: Client) -> None:
    async with client.session.ws_connect(client.base + "/ws") as ws:
        await ws.send_json({"cmd": "Subscribe", "events": ["flow:*"]})
        await ws.receive_json()
        await add(client, node("root", "r", node("a", "c"), node("b", "c")))
        await run(client, "c")
        await run(client, "c")
        told = await ws.receive_json()
        assert (told["event"], told["data"]) == (
            "flow:completed",
            {"parentJobId": "root", "queue": "r", "childrenCount": 2},
        )
        await add(client, node("root2", "r", node("x", "d", ignoreDependencyOnFailure=True)))
        await run(client, "d", error="boom")
        told = await ws.receive_json()
        assert told["event"] == "flow:failed"
        assert told["data"] == {"parentJobId": "root2", "failedChildId": "x", "queue": "r", "error": "boom"}


# -- BullMQ


@pytest.fixture
async def bull(serve: Serve) -> Bull:
    return Bull(await serve(auth_tokens=(TOKEN,)))


TREE: dict[str, Any] = {
    "name": "parent",
    "queueName": "renders",
    "data": {"a": 1},
    "children": [
        {"name": "left", "queueName": "pages", "data": {"n": 1}, "opts": {"jobId": "left"}},
        {
            "name": "right",
            "queueName": "pages",
            "children": [{"name": "leaf", "queueName": "cuts", "opts": {"attempts": 1}}],
        },
    ],
}


async def test_a_tree_is_added_and_shown_as_bullmqs_producer_shows_it(bull: Bull) -> None:
    answer = await bull.post("/flows", TREE)
    assert answer.status == 200, answer.body
    tree = answer.json
    assert tree["job"]["name"] == "parent" and [one["job"]["name"] for one in tree["children"]] == ["left", "right"]
    leaf = tree["children"][1]["children"][0]["job"]
    assert leaf["parent"] == {"id": "2", "queueKey": "bull:pages"} and leaf["parentKey"] == "bull:pages:2"
    assert (leaf["data"], tree["job"].get("parent")) == ({}, None)
    assert await bull.state("1", queue="renders") == "waiting-children"
    assert (await bull.counts(queue="renders"))["waiting-children"] == 1
    assert await bull.next(queue="renders") is None
    await bull.complete(await bull.next(queue="cuts"), 5, queue="cuts")
    for _ in range(2):
        await bull.complete(await bull.next(queue="pages"), "v", queue="pages")
    await bull.complete(await bull.next(queue="renders"), queue="renders")


async def test_several_trees_and_none(bull: Bull) -> None:
    assert (await bull.post("/flows", [])).json == []
    answer = await bull.post("/flows", [{"name": "a", "queueName": "one"}, TREE])
    assert [tree["job"]["name"] for tree in answer.json] == ["a", "parent"]


async def test_what_a_parent_knows_comes_in_pages(bull: Bull) -> None:
    kids = [{"name": f"k{i}", "queueName": "kids", "opts": {"jobId": f"k{i}"}} for i in range(4)]
    kids[2]["opts"]["ignoreDependencyOnFailure"] = True  # type: ignore[index]
    await bull.post("/flows", {"name": "p", "queueName": "par", "children": kids})
    for i in range(3):
        job = await bull.next(queue="kids")
        await (bull.complete(job, {"v": i}, queue="kids") if i != 2 else bull.fail(job, "why", queue="kids"))
    path = "/queues/par/jobs/1/dependencies"
    assert (await bull.get(path)).json == {
        "counts": {"processed": 2, "unprocessed": 1, "ignored": 1, "failed": 0},
        "processed": {"bull:kids:k0": {"v": 0}, "bull:kids:k1": {"v": 1}},
        "unprocessed": ["bull:kids:k3"],
        "ignored": {"bull:kids:k2": "why"},
        "failed": [],
        "start": 0,
        "length": 10,
    }
    page = (await bull.get(path + "?types=processed&start=1&length=1")).json
    assert page == {"counts": {"processed": 2}, "processed": {"bull:kids:k1": {"v": 1}}, "start": 1, "length": 1}
    assert (await bull.get(path + "?types=odd")).body == b"Invalid type: odd"
    assert (await bull.get(path + "?length=101")).status == 400
    assert (await bull.get("/queues/par/jobs/77/dependencies")).status == 404


async def test_a_parent_of_either_form_of_name_in_an_add(bull: Bull) -> None:
    parent = await bull.add("parent", queue="par")
    await bull.next(queue="par")
    for queue in ("par", "bull:par"):
        answer = await bull.post(
            "/queues/kid/jobs", [{"name": "k", "data": 1, "opts": {"parent": {"id": parent, "queue": queue}}}]
        )
        assert answer.status == 200, answer.body
    assert (await bull.move(parent, "move-to-completed", queue="par")).body == (
        b"Job 1 has pending dependencies. moveToFinished"
    )
    child = {"id": "1", "queue": "bull:kid"}
    assert (
        await bull.move(parent, "move-to-waiting-children", queue="par", child={"id": "77", "queue": "kid"})
    ).json == {"moved": False}
    assert (await bull.move(parent, "move-to-waiting-children", queue="par", token="other")).status == 409
    assert (await bull.move(parent, "move-to-waiting-children", queue="par", child=child)).json == {"moved": True}
    for _ in range(2):
        await bull.complete(await bull.next(queue="kid"), queue="kid")
    job = await bull.next(queue="par")
    assert (job["id"], job["attemptsMade"]) == (parent, 0)
    assert (await bull.move(parent, "move-to-waiting-children", queue="par")).json == {"moved": False}
    await bull.complete(job, queue="par")


async def test_a_failed_child_refuses_its_parents_completion_in_bullmqs_words(bull: Bull) -> None:
    parent = await bull.add("parent", queue="par")
    await bull.next(queue="par")
    opts = {"parent": {"id": parent, "queue": "par"}, "failParentOnFailure": True}
    await bull.post("/queues/kid/jobs", [{"name": "k", "data": 1, "opts": opts}])
    await bull.fail(await bull.next(queue="kid"), queue="kid")
    answer = await bull.move(parent, "move-to-completed", queue="par")
    assert answer.status == 409
    assert answer.body == b"Cannot complete job 1 because it has at least one failed child. moveToFinished"


@pytest.mark.parametrize("prefix", ["bull", "pre"])
async def test_a_parent_that_failed_names_its_child_with_the_prefix_that_queues_have(serve: Serve, prefix: str) -> None:
    client = await serve(auth_tokens=(TOKEN,), queue_prefix=prefix)
    bull = Bull(client)
    failing = {"failParentOnFailure": True}
    kid = {"name": "k", "queueName": "kid", "opts": {"jobId": "bad"} | failing}
    tree = {"name": "p", "queueName": "par", "opts": {"jobId": "new"}, "children": [kid]}
    assert (await bull.post("/flows", tree)).status == 200
    late = {"parent": {"id": await bull.add("p", queue="par", delay=60_000), "queue": "par"}}
    await bull.post("/queues/kid/jobs", [{"name": "k", "data": 1, "opts": {"jobId": "late"} | late | failing}])
    # One that a client of the socket makes a parent, in a queue of its own.
    backend = await connect(client, token=TOKEN)
    above = {"id": await bull.add("p", queue="par", delay=60_000), "queue": f"{prefix}:par", "fpof": True}
    own = {"name": "k", "data": b"1", "opts": b"{}", "timestamp": 5, "parent": above}
    await backend.call("addJob", "other:kid", own)
    await backend.call("moveToActive", "other:kid", "t", {"lock": 30_000})
    await backend.call("moveToFailed", "other:kid", "1", "t", "broken", [-1])
    for _ in range(2):
        await bull.fail(await bull.next(queue="kid"), queue="kid")
    reasons = [job["failedReason"] for job in (await bull.get("/queues/par/jobs?statuses=failed")).json["jobs"]]
    assert sorted(reasons) == [
        f"child {name} failed" for name in sorted((f"{prefix}:kid:bad", f"{prefix}:kid:late", "other:kid:1"))
    ]
    await backend.close()


BAD_BULL: list[tuple[Any, int, bytes]] = [
    (5, 400, b"A flow must be an object with name and queueName"),
    ({"name": "x"}, 400, b"queueName is required"),
    ({"queueName": "que"}, 400, b"name is required"),
    ({"name": "x", "queueName": "q:x"}, 400, b"Queue name cannot contain :"),
    ({"name": "x", "queueName": "que", "odd": 1}, 400, b"Unexpected field: odd"),
    ({"name": "x", "queueName": "que", "children": 5}, 400, b"children must be an array"),
    ({"name": "x", "queueName": "que", "children": [5]}, 400, b"A flow must be an object with name and queueName"),
    (
        {"name": "x", "queueName": "que", "opts": {"deduplication": {"id": "d"}}},
        400,
        b"deduplication and repeat cannot be used in a flow",
    ),
    (
        {"name": "x", "queueName": "que", "opts": {"failParentOnFailure": True, "continueParentOnFailure": True}},
        400,
        b"The following options cannot be used together: failParentOnFailure, continueParentOnFailure",
    ),
    (
        {"name": "x", "queueName": "que", "opts": {"parent": {"id": "9", "queue": "que"}}},
        404,
        b"Missing key for parent job bull:que:9. addJob",
    ),
    ({"name": "x", "queueName": "que", "opts": {"parent": 5}}, 400, b"Invalid parent 5, must be an object"),
    (
        {"name": "x", "queueName": "que", "opts": {"parent": {"id": "1"}}},
        400,
        b"Invalid parent.queue undefined, must be a string",
    ),
    (
        {
            "name": "x",
            "queueName": "que",
            "children": [{"name": "y", "queueName": "que", "opts": {"parent": {"id": "1", "queue": "que"}}}],
        },
        400,
        b"parent cannot be used for a child of a flow",
    ),
]


@pytest.mark.parametrize(("body", "status", "text"), BAD_BULL)
async def test_what_is_no_tree_is_refused_in_text(bull: Bull, body: Any, status: int, text: bytes) -> None:
    answer = await bull.post("/flows", body)
    assert (answer.status, answer.body) == (status, text)
    assert bull.server.node.machine.state.jobs == {}


async def test_the_bounds_of_a_tree(bull: Bull) -> None:
    wide = {"name": "x", "queueName": "que", "children": [{"name": "y", "queueName": "que"}] * JOBS_MAX}
    assert (await bull.post("/flows", wide)).body == b"A flow must have at most %d jobs" % JOBS_MAX
    deep: Any = {"name": "x", "queueName": "que"}
    for _ in range(LEVELS_MAX):
        deep = {"name": "x", "queueName": "que", "children": [deep]}
    assert (await bull.post("/flows", deep)).body == b"A flow must have at most %d levels" % LEVELS_MAX
    assert (await bull.post("/flows", raw=b"")).status == 400
    assert (await bull.post("/flows", raw=b"{")).status == 400
    assert (await bull.post("/flows", raw=b'{"name":"x","queueName":"que"},{"name":"y"}')).status == 400


async def test_a_job_is_removed_with_its_children_as_in_bullmq(bull: Bull) -> None:
    await bull.post("/flows", TREE)
    await bull.next(queue="cuts")
    answer = await bull.delete("/queues/renders/jobs/1")
    assert answer.status == 409
    await bull.complete("1", queue="cuts")
    assert (await bull.delete("/queues/renders/jobs/1")).status == 200
    assert bull.server.node.machine.state.jobs == {}


async def test_another_parent_and_a_repeat_are_refused(bull: Bull) -> None:
    await bull.post("/flows", TREE)
    other = await bull.add("other", queue="par")
    opts = {"jobId": "left", "parent": {"id": other, "queue": "par"}}
    answer = await bull.post("/queues/pages/jobs", [{"name": "k", "data": 1, "opts": opts}])
    assert (answer.status, answer.body) == (409, b"The parent job bull:renders:1 cannot be replaced. addJob")
    opts = {"parent": {"id": other, "queue": "par"}, "deduplication": {"id": "d"}}
    answer = await bull.post("/queues/pages/jobs", [{"name": "k", "data": 1, "opts": opts}])
    assert answer.body == b"Deduplication and parent options cannot be used together"


# -- Rights


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "tokens.jsonl")


async def test_a_flow_needs_a_token_for_all_its_queues(serve: Serve, keys: Keys) -> None:
    own = keys.add("own", "produce consume read", "own", "mine")
    everything = keys.add("all", "produce consume read")
    client = await serve(auth_tokens_file=keys.path)
    bull = Bull(client, "/bullmq")

    async def status(path: str, body: Any = None, method: str = "POST", headers: Any = own) -> int:
        return (await client.send(method, path, body, headers=headers)).status

    assert await status("/flows", {"jobs": node("a", "own", node("b", "mine"))}) == 200
    assert await status("/flows", {"jobs": node("c", "own", node("d", "other"))}) == 403
    tree = {"name": "x", "queueName": "own", "children": [{"name": "y", "queueName": "other"}]}
    assert (await bull.post("/flows", tree, token="own")).status == 403
    assert await status("/flows", {"jobs": node("e", "other", node("f", "other"))}, headers=everything) == 200
    opts = {"parent": {"id": "e", "queue": "other"}}
    added = await bull.post("/queues/own/jobs", [{"name": "k", "data": 1, "opts": opts}], token="own")
    assert added.status == 403, "whoever waits for a job reads its result"
    assert await status("/flows", {"jobs": node("g", "own")}) == 200
    assert await status("/jobs/g/parent", {"parentId": "e"}, "PUT") == 400, "as if there were no such parent"
    assert await status("/jobs/f/parent", None, "DELETE") == 404
    assert await status("/flows", {"jobs": node("h", "own", node("i", "other"))}, headers=everything) == 200
    assert await status("/jobs/h/children", None, "DELETE") == 403, "some of what goes is in another queue"
    assert (await bull.delete("/queues/own/jobs/h", token="own")).status == 403
    assert await status("/jobs/h/children", None, "DELETE", everything) == 200


async def test_a_push_ties_no_job_that_the_token_is_not_for(serve: Serve, keys: Keys) -> None:
    own = keys.add("own", "produce consume read", "own")
    everything = keys.add("all", "produce consume read")
    client = await serve(auth_tokens_file=keys.path)
    for queue in ("own", "other"):
        for name in ("up", "down"):
            await client.post(f"/queues/{queue}/jobs", {"data": 1, "jobId": f"{queue}-{name}"}, headers=everything)
    family = {"parentId": "other-up", "childrenIds": ["other-down", "own-down"]}
    made = await client.post("/queues/own/jobs", {"data": 1, **family}, headers=own)
    job = (await client.get(f"/jobs/{made.json['id']}", headers=own)).json["job"]
    assert (job["parentId"], job["childrenIds"]) == (None, ["own-down"])
    made = await client.post("/queues/own/jobs", {"data": 1, **family}, headers=everything)
    job = (await client.get(f"/jobs/{made.json['id']}", headers=everything)).json["job"]
    assert (job["parentId"], job["childrenIds"]) == ("other-up", ["other-down"])


async def test_below_level_1_a_push_ties_nothing(serve: Serve) -> None:
    client = await serve()
    client.server.node.machine.level = client.server.node.machine.state.level = 0
    above = await client.push("p")
    child = await client.push("k", parentId=above)
    assert await client.state(above) == "waiting"
    assert (await client.get(f"/jobs/{child}")).json["job"]["parentId"] is None


async def test_below_level_1_a_flow_is_refused_and_told_why(serve: Serve) -> None:
    client = await serve()
    client.server.node.machine.level = 0
    answer = await client.post("/flows", {"jobs": node("a", "q", node("b", "q"))})
    assert (answer.status, answer.json["code"]) == (503, "level_too_low")


def test_a_child_is_not_looked_for_along_all_its_siblings() -> None:
    """A flow of 10,000 children was checked with fifty million comparisons, on the event loop."""

    class Row(list[str]):
        def __contains__(self, item: object) -> bool:
            raise AssertionError("it is searched from its beginning")

    ids = Row(["a", "b"])
    parent = FlowNode("p", "q", FlowInput(data=Raw(b'{"__childrenIds":["a","b"]}'), children_ids=ids, depends_on=ids))
    edges = Raw(b'{"__parentId":"p","__parentQueue":"q"}')
    children = [FlowNode(job_id, "q", FlowInput(data=edges, parent_id="p")) for job_id in ids]
    added = planned([parent, *children])
    assert [job.parent for job in added.jobs] == [-1, 0, 0]

"""bunqueue's TCP protocol against one node: replies, pipelining, tokens, bounds, events, and what goes with a connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import aiohttp
import msgpack
import msgspec
import pytest

from quorumq.api import limits, tokens
from quorumq.api.commands import connection, framing, wire
from quorumq.api.commands import tcp as listener
from quorumq.api.dialects.bunqueue.routes import ROUTES
from tests.api.conftest import Client, Serve
from tests.support.tcp_client import Refused, TcpClient, framed, pack

Open = Callable[..., Awaitable[TcpClient]]
UNDEFINED = msgpack.ExtType(0, b"\0")


@pytest.fixture
async def tcp() -> AsyncIterator[Open]:
    opened: list[TcpClient] = []

    async def start(client: Client, **more: Any) -> TcpClient:
        assert client.server.tcp is not None
        opened.append(await TcpClient.open(client.server.tcp.port, **more))
        return opened[-1]

    yield start
    for one in opened:
        await one.close()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def connections(client: Client) -> set[Any]:
    assert client.server.tcp is not None
    return client.server.tcp.connections_open


# -- Commands and replies ----------------------------------------------------------------------------------------------


async def test_a_job_from_push_to_ack(client: Client, tcp: Open) -> None:
    one = await tcp(client)
    assert (await one.ok("Ping"))["data"]["pong"] is True
    pushed = await one.ok("PUSH", queue="q", name="mail", data={"to": "x"}, priority=2)
    taken = await one.ok("PULL", queue="q", owner="w", lockTtl=30_000.0, timeout=0)
    job = taken["job"]
    assert (job["id"], job["name"], job["data"], job["priority"]) == (pushed["id"], "mail", {"to": "x"}, 2)
    # A time is beyond 32 bits, and JavaScript must get a number that it can count with.
    assert isinstance(job["createdAt"], float)
    acked = await one.ok("ACKB", ids=[job["id"]], results=[{"done": 1}], tokens=[taken["token"]])
    assert "data" not in acked
    assert (await one.ok("GetResult", id=job["id"]))["result"] == {"done": 1}
    assert await client.state(job["id"]) == "completed"


async def test_a_worker_that_returns_nothing(client: Client, tcp: Open) -> None:
    one = await tcp(client)
    await one.ok("PUSHB", queue="q", jobs=[{"data": 1}, {"data": 2, "customId": "two"}])
    first = await one.ok("PULL", queue="q")
    taken = await one.ok("PULLB", queue="q", count=10, owner="w")
    assert [job["id"] for job in taken["jobs"]] == ["two"] and len(taken["tokens"]) == 1
    ids, shown = [first["job"]["id"], "two"], ["", *taken["tokens"]]
    await one.ok("ACKB", ids=ids, results=[UNDEFINED, None], tokens=shown, removeOnCompletes=UNDEFINED)
    assert (await client.counts())["completed"] == 2


async def test_hello_says_which_protocol_is_spoken(client: Client, tcp: Open) -> None:
    said = await (await tcp(client)).ok("Hello", protocolVersion=2, capabilities=["pipelining"])
    assert (said["protocolVersion"], said["server"]) == (3, "quorumq")
    assert said["capabilities"] == ["pipelining", "separate-job-name"]


async def test_every_command_of_a_websocket_is_one_here_too(client: Client, tcp: Open) -> None:
    one = await tcp(client)
    for name in [command.name for route in ROUTES for command in route.commands]:
        reply = await one.run(name)
        assert not str(reply.get("error", "")).startswith("Unknown command"), name
    for name in ("Subscribe", "Unsubscribe", "Nope", "toString"):
        assert (await one.run(name))["error"] == f"Unknown command: {name}"


async def test_a_flow_over_tcp(client: Client, tcp: Open) -> None:
    one = await tcp(client)
    child = {"data": {"__parentId": "p", "__parentQueue": "q", "at": 2**40}, "parentId": "p"}
    parent = {"data": {"__childrenIds": ["c"]}, "childrenIds": ["c"], "dependsOn": ["c"]}
    jobs = [{"id": "c", "queue": "k", "input": child}, {"id": "p", "queue": "q", "input": parent}]
    added = (await one.ok("PUSHF", jobs=jobs))["data"]["jobs"]
    assert [(job["id"], job["state"]) for job in added] == [("p", "waiting-children"), ("c", "waiting")]
    taken = (await one.ok("PULL", queue="k"))["job"]
    assert (taken["data"]["at"], taken["parentId"]) == (2**40, "p")
    await one.ok("ACK", id="c", result={"r": 1})
    assert (await one.ok("GetChildrenValues", id="p"))["data"]["values"] == {"k:c": {"r": 1}}
    assert (await one.ok("GetState", id="p"))["state"] == "waiting"
    assert (await one.run("PUSHF", jobs=jobs))["error"] == "Flow job p already exists"


async def test_the_job_s_name(client: Client, tcp: Open) -> None:
    one = await tcp(client)

    async def named(**job: Any) -> tuple[str, Any]:
        pushed = await one.ok("PUSH", queue="q", **job)
        shown = (await one.ok("GetJob", id=pushed["id"]))["job"]
        (bulk,) = (await one.ok("PUSHB", queue="q", jobs=[job]))["ids"]
        assert (await one.ok("GetJob", id=bulk))["job"]["name"] == shown["name"]
        return shown["name"], shown["data"]

    assert await named(name="a", data={"name": "b"}) == ("a", {"name": "b"})
    # Clients of the second version of the protocol read it from where they put it.
    assert await named(data={"name": "b", "x": 1}) == ("b", {"name": "b", "x": 1})
    assert await named(data={"name": ""}) == ("default", {"name": ""})
    assert await named(data={"name": "x" * 300}) == ("default", {"name": "x" * 300})
    assert await named(data={"name": 5}) == ("default", {"name": 5})
    assert await named(data="name") == ("default", "name")
    # HTTP has one place for it.
    job = await client.push(data={"name": "b"})
    assert (await client.get(f"/jobs/{job}")).json["job"]["name"] == "default"


async def test_dates_and_binary_in_data(client: Client, tcp: Open) -> None:
    one = await tcp(client)
    data = {"at": datetime(2026, 11, 27, 10, 0, 0, tzinfo=UTC), "file": b"\0\1\xff", "gone": UNDEFINED, "n": 2**40}
    pushed = await one.ok("PUSH", queue="q", data=data)
    del data["gone"]
    assert (await one.ok("PULL", queue="q"))["job"]["data"] == data
    shown = (await client.get(f"/jobs/{pushed['id']}")).json["job"]["data"]
    assert shown["at"] == {"$date": "2026-11-27T10:00:00.000Z"}
    assert shown["file"] == {"$binary": {"base64": "AAH/", "subType": "00"}}
    await one.ok("ACK", id=pushed["id"], result=[data["at"]])
    assert (await one.ok("GetResult", id=pushed["id"]))["result"] == [data["at"]]


async def test_mistakes_are_answered_and_the_connection_goes_on(client: Client, tcp: Open) -> None:
    one = await tcp(client)
    for body, text in (
        (b"\xc1", "Invalid command format"),
        (b"", "Invalid command format"),
        (b"\x80", "Invalid command"),
        (b"\x90", "Invalid command"),
        (msgpack.packb({"cmd": ""}), "Invalid command"),
        (msgpack.packb({"cmd": 5}), "Unknown command: 5"),
        (msgpack.packb({"cmd": "PUSH", "queue": "q"}), "data is required"),
        (msgpack.packb({"cmd": "GetJob", "id": "none"}), "Job not found"),
    ):
        one.writer.write(framed(body))
        answer = await one.event()
        assert (answer["ok"], answer["error"]) == (False, text)
        assert "reqId" not in answer
    # Whoever sent a number gets it back, so that nobody waits for a reply in vain.
    reply = await one.run("PUSH", queue="q", data=msgpack.ExtType(9, b"x"))
    assert "extension 9" in reply["error"]
    assert (await one.ok("Ping"))["data"]["pong"] is True


async def test_a_number_of_any_kind_comes_back(client: Client, tcp: Open) -> None:
    one = await tcp(client)
    for number in (7, "x", 2**40, 1.5, None, UNDEFINED):
        one.writer.write(pack({"reqId": number, "cmd": "Ping"}))
        answer = await one.event()
        assert answer["data"]["pong"] is True
        assert answer.get("reqId") == (number if isinstance(number, (int, float, str)) else None)


async def test_replies_overtake_each_other(client: Client, tcp: Open) -> None:
    one = await tcp(client)
    waiting = one.send("PULL", queue="q", timeout=30_000, owner="w")
    many = await asyncio.gather(*(one.send("PUSH", queue="other", data=n) for n in range(200)))
    assert len({reply["id"] for reply in many}) == 200 and not waiting.done()
    pushed = await one.ok("PUSH", queue="q", data=1)
    taken = await waiting
    assert taken["job"]["id"] == pushed["id"] and taken["token"]
    began = asyncio.get_running_loop().time()
    nothing = await one.ok("PULLB", queue="q", count=3, timeout=200, owner="w")
    assert asyncio.get_running_loop().time() - began >= 0.19
    assert (nothing["jobs"], nothing["tokens"]) == ([], [])


async def test_a_poll_that_found_nothing_is_answered_as_truly_the_next_time(client: Client, tcp: Open) -> None:
    one, other = await tcp(client), await tcp(client)
    poll = {"queue": "q", "timeout": 0, "owner": "w", "lockTtl": 30_000}
    nothing = await one.ok("PULL", **poll)
    (known,) = connections(client) - {found for found in connections(client) if not found.known_polls}
    for _ in range(3):
        again = await one.ok("PULL", **poll)
        assert {**again, "reqId": ""} == {**nothing, "reqId": ""} and again["token"] is None
    await other.ok("PUSH", queue="q", data=1)
    taken = await one.ok("PULL", **poll)
    assert taken["job"]["data"] == 1 and taken["token"]
    # One that is wrong is refused however often it comes, and one that waits does so.
    for _ in range(2):
        with pytest.raises(Refused, match="lockTtl"):
            await one.ok("PULL", **{**poll, "lockTtl": 0})
    waiting = one.send("PULL", **{**poll, "timeout": 30_000})
    await one.ok("PULL", **poll)
    await other.ok("PUSH", queue="q", data=2)
    assert (await waiting)["job"]["data"] == 2
    assert len(known.known_polls) == 1


async def test_a_poll_is_as_new_as_a_read(client: Client, tcp: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    one = await tcp(client)
    await one.ok("PULL", queue="q")
    read = client.engine.read_index

    async def after_a_push(deadline: float) -> None:
        # This node hears of what another one was told only in the course of the read.
        monkeypatch.setattr(client.engine, "read_index", read)
        await client.push("q")
        await read(deadline)

    monkeypatch.setattr(client.engine, "read_index", after_a_push)
    assert (await one.ok("PULL", queue="q"))["job"] is not None


async def test_polls_without_a_quorum_say_so(client: Client, tcp: Open) -> None:
    one = await tcp(client)
    assert (await one.ok("PULL", queue="q"))["job"] is None
    client.engine.available = False
    refused = await asyncio.gather(*(one.send("PULL", queue="q") for _ in range(3)))
    assert [(reply["ok"], reply["code"]) for reply in refused] == [(False, "unavailable")] * 3


# -- What goes with a connection ---------------------------------------------------------------------------------------


async def test_what_was_taken_goes_back_when_the_connection_ends(client: Client, tcp: Open) -> None:
    one, other = await tcp(client), await tcp(client)
    ids = [(await one.ok("PUSH", queue="q", data=n))["id"] for n in range(4)]
    first = await one.ok("PULL", queue="q", owner="w")
    rest = await one.ok("PULLB", queue="q", count=2, owner="w")
    detached = await one.ok("PULL", queue="q", detach=True)
    # Acknowledged over another connection, as clients do that have several.
    await other.ok("ACKB", ids=[rest["jobs"][0]["id"]], tokens=[rest["tokens"][0]])
    await one.close()
    await until(lambda: client.server.node.machine.state.jobs[ids[0]].state == "waiting")
    assert [await client.state(job) for job in ids] == ["waiting", "completed", "waiting", "active"]
    assert detached["job"]["id"] == ids[3]
    # The token of a delivery that is over ends no later one.
    again = await other.ok("PULL", queue="q", owner="v")
    assert again["job"]["id"] == ids[0] and again["job"]["attempts"] == first["job"]["attempts"]
    assert (await other.run("ACK", id=ids[0], token=first["token"]))["ok"] is False
    await other.ok("ACK", id=ids[0], token=again["token"])


async def test_a_pull_that_waits_ends_with_its_connection(client: Client, tcp: Open) -> None:
    one = await tcp(client)
    one.send("PULL", queue="q", timeout=60_000)
    await until(lambda: client.server.node.waiters.count == 1)
    await one.close()
    await until(lambda: client.server.node.waiters.count == 0)
    job = await client.push()
    assert await client.state(job) == "waiting"


async def test_a_worker_goes_with_the_connection_that_it_was_heard_of_over_last(client: Client, tcp: Open) -> None:
    def registered() -> list[str]:
        return list(client.server.node.machine.state.workers.by_id)

    def later(ms: int) -> None:
        client.engine.clock = lambda: int(datetime.now(UTC).timestamp() * 1000) + ms

    one, other, third = await tcp(client), await tcp(client), await tcp(client)
    shown = (await one.ok("RegisterWorker", name="n", queues=["q"], workerId="w", concurrency=2, pid=7, hostname="h"))[
        "data"
    ]
    assert (shown["workerId"], shown["status"]) == ("w", "active")
    await other.ok("RegisterWorker", name="n", queues=["q"], workerId="v")
    later(1_000)
    await other.ok("Heartbeat", id="w", activeJobs=1)
    await one.close()
    await until(lambda: len(connections(client)) == 2 and not client.server.under_way)
    assert registered() == ["w", "v"]
    later(2_000)
    await third.ok("UnregisterWorker", workerId="v")
    await other.close()
    await until(lambda: registered() == [])


async def test_a_node_that_leaves_lets_workers_keep_their_jobs(client: Client, tcp: Open) -> None:
    one = await tcp(client)
    await one.ok("RegisterWorker", name="n", queues=["q"], workerId="w")
    job = (await one.ok("PUSH", queue="q", data=1))["id"]
    taken = await one.ok("PULL", queue="q", owner="w")
    waiting = one.send("PULL", queue="q", timeout=60_000)
    await until(lambda: client.server.node.waiters.count == 1)
    client.server.leave()
    # What is under way is finished first; a long poll ends with what it has.
    assert not one.ended
    client.server.node.drain()
    assert (await waiting)["job"] is None
    await one.end()
    await until(lambda: not client.server.under_way)
    assert await client.state(job) == "active" and list(client.server.node.machine.state.workers.by_id) == ["w"]
    # Whoever connects meanwhile is served once, and told to go elsewhere.
    again = await tcp(client)
    await again.ok("ACK", id=job, token=taken["token"])
    await again.end()
    assert await client.state(job) == "completed"


async def test_stopping_answers_what_is_under_way(serve: Serve, tcp: Open) -> None:
    client = await serve()
    one, idle = await tcp(client), await tcp(client)
    waiting = one.send("WaitJob", id=(await one.ok("PUSH", queue="q", data=1))["id"], timeout=60_000)
    await until(lambda: client.server.node.waiters.count == 1)
    client.server.node.drain()
    await client.server.stop(10)
    assert (await waiting)["completed"] is False
    await one.end()
    await idle.end()
    assert not connections(client) and not client.server.under_way


# -- Who may what ------------------------------------------------------------------------------------------------------


def token_file(path: Path, *rows: tuple[str, str, str]) -> Path:
    """Write tokens: each its own secret, with its rights and its queues."""
    made = [
        tokens.Token(name, tokens.digest(name), cast(Any, tuple(rights.split())), (queues,))
        for name, rights, queues in rows
    ]
    tokens.replace(path, b"".join(msgspec.json.encode(token) + b"\n" for token in made))
    return path


async def test_a_token_comes_first(serve: Serve, tcp: Open) -> None:
    client = await serve(auth_tokens=("sesame",))
    one = await tcp(client)
    for name in ("Ping", "Hello", "PUSH", "SubscribeEvents", "Nope"):
        assert (await one.run(name, queue="q", data=1))["error"] == "Not authenticated"
    assert (await one.run("Auth", token="wrong"))["error"] == "Invalid token"
    assert (await one.run("Auth"))["error"] == "Invalid token"
    assert client.server.audit.refusals[401] == 2
    assert "data" not in await one.ok("Auth", token="sesame")
    await one.ok("PUSH", queue="q", data="x" * 100_000)
    # Its jobs are known by whom they were pushed to, not by a connection.
    assert (await client.get("/queues/q/counts", headers={"Authorization": "Bearer sesame"})).json["counts"][
        "waiting"
    ] == 1


async def test_without_tokens_any_is_right(client: Client, tcp: Open) -> None:
    await tcp(client, token="whatever")


async def test_no_token_in_time(serve: Serve, tcp: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "AUTH_S", 0.1)
    client = await serve(auth_tokens=("sesame",))
    known = await tcp(client, token="sesame")
    stranger = await tcp(client)
    await stranger.end()
    await known.ok("Ping")


async def test_rights_and_queues_of_a_token(serve: Serve, tcp: Open, tmp_path: Path) -> None:
    rows = (("reader", "read", "a*"), ("worker", "consume", "a*"), ("all", "produce consume read", "*"))
    client = await serve(auth_tokens_file=token_file(tmp_path / "tokens", *rows))
    reader, worker, every = [await tcp(client, token=name) for name, _, _ in rows]
    job = (await every.ok("PUSH", queue="b", data=1))["id"]
    assert (await reader.run("PUSH", queue="a", data=1))[
        "error"
    ] == "Forbidden: the token does not have the right produce"
    assert (await worker.run("PULL", queue="b"))["error"] == "Forbidden: the token is not for this queue"
    assert (await reader.run("GetJob", id=job))["error"] == "Job not found"
    assert (await reader.run("SubscribeEvents", queue="b"))["error"] == "Forbidden: the token is not for this queue"
    assert "right read" in (await worker.run("SubscribeEvents", queue="a"))["error"]
    await reader.ok("SubscribeEvents", queue="a")


async def test_the_polls_of_a_token_are_not_another_s(serve: Serve, tcp: Open, tmp_path: Path) -> None:
    client = await serve(
        auth_tokens=("full",), auth_tokens_file=token_file(tmp_path / "tokens", ("reader", "read", "*"))
    )
    one = await tcp(client, token="full")
    await one.ok("PULL", queue="none")
    (theirs,) = connections(client)
    assert theirs.known_polls
    await one.ok("SubscribeEvents", queue="q")
    await one.ok("Auth", token="reader")
    assert not theirs.known_polls and not theirs.events_of
    assert (await one.run("PULL", queue="none"))["error"] == "Forbidden: the token does not have the right consume"


async def test_a_token_that_ends_takes_its_connections_with_it(serve: Serve, tcp: Open, tmp_path: Path) -> None:
    file = token_file(tmp_path / "tokens", ("a", "produce consume read", "*"), ("b", "read", "*"))
    client = await serve(auth_tokens_file=file)
    one, other = await tcp(client, token="a"), await tcp(client, token="b")
    job = (await one.ok("PUSH", queue="q", data=1))["id"]
    await one.ok("PULL", queue="q", owner="w")
    token_file(file, ("b", "read", "*"))
    await one.end()
    await until(lambda: client.server.node.machine.state.jobs[job].state == "waiting")
    await other.ok("Ping")


async def test_the_request_limit_counts_commands(serve: Serve, tcp: Open) -> None:
    client = await serve(rate_limit_max_requests=5, rate_limit_window_ms=60_000)
    one, other = await tcp(client), await tcp(client)
    for _ in range(2):
        await one.ok("PULL", queue="q")
    await one.ok("Ping")
    await other.ok("Ping")
    assert (await client.get("/ping")).status == 200
    # One limit for all that a client sends, whatever it speaks.
    assert (await one.run("PULL", queue="q"))["error"] == "Rate limit exceeded"
    assert (await client.get("/ping")).status == 429


# -- Bounds ------------------------------------------------------------------------------------------------------------


async def test_a_frame_beyond_the_bound_ends_the_connection(serve: Serve, tcp: Open) -> None:
    client = await serve(auth_tokens=("sesame",))
    stranger, known = await tcp(client), await tcp(client, token="sesame")
    for one, limit in ((stranger, framing.STRANGER_BYTES_MAX), (known, framing.FRAME_BYTES_MAX)):
        one.writer.write((limit + 1).to_bytes(4, "big") + b"x")
        answer = await one.event()
        assert answer == {"ok": False, "error": f"Frame too large: {limit + 1} bytes exceeds maximum {limit}"}
        await one.end()
    assert client.server.door.counts["frame"] == 2


async def test_large_frames_and_large_replies(client: Client, tcp: Open) -> None:
    one = await tcp(client)
    text = "x" * (3 << 20)
    pushed = await asyncio.gather(*(one.send("PUSH", queue="q", data={"n": n, "text": text}) for n in range(3)))
    assert len({reply["id"] for reply in pushed}) == 3
    taken = await one.ok("PULLB", queue="q", count=3)
    assert [len(job["data"]["text"]) for job in taken["jobs"]] == [len(text)] * 3
    assert (await one.run("PUSH", queue="q", data="x" * (11 << 20)))["error"] == "Job data too large (max 10MB)"
    assert "at most 1000000 values" in (await one.run("PUSH", queue="q", data=[[]] * 1_000_001))["error"]
    await one.ok("PUSH", queue="q", data=[0] * 300_000)
    assert "10000 items" in (await one.run("PUSHB", queue="q", jobs=[{"data": "x" * 50}] * 10_001))["error"]
    await until(lambda: not client.server.bodies.pending_bytes and not client.server.under_way)


async def test_a_reply_beyond_the_bound_is_refused_and_its_jobs_go_back(
    client: Client, tcp: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "FRAME_BYTES_MAX", 1 << 20)
    one = await tcp(client)
    ids = [await client.push(data="x" * 400_000) for _ in range(4)]
    refused = await one.run("PULLB", queue="q", count=4, owner="w", lockTtl=3_600_000)
    assert (refused["ok"], refused["code"]) == (False, "reply_too_large")
    await until(lambda: {client.server.node.machine.state.jobs[job].state for job in ids} == {"waiting"})
    assert len((await one.ok("PULLB", queue="q", count=2))["jobs"]) == 2


async def test_frames_without_room_among_the_bodies(client: Client, tcp: Open) -> None:
    one = await tcp(client)
    bodies = client.server.bodies
    taken = bodies.pending_bytes_max
    bodies.reserve(taken)
    assert (await one.run("PUSH", queue="q", data="x" * (2 << 20)))["code"] == "busy"
    await one.ok("PUSH", queue="q", data="x" * 1000)
    bodies.release(taken)
    await one.ok("PUSH", queue="q", data="x" * (2 << 20))


async def test_a_client_that_sends_too_much_is_listened_to_later(
    client: Client, tcp: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "UNDER_WAY_MAX", 3)
    one, other = await tcp(client), await tcp(client)
    waits = [one.send("PULL", queue="q", timeout=30_000) for _ in range(3)]
    await until(lambda: client.server.node.waiters.count == 3)
    behind = [one.send("Ping") for _ in range(50)]
    await other.ok("Ping")
    await asyncio.sleep(0.1)
    assert not any(one.done() for one in behind)
    await other.ok("PUSHB", queue="q", jobs=[{"data": n} for n in range(3)])
    assert {reply["job"]["data"] for reply in await asyncio.gather(*waits)} == {0, 1, 2}
    assert all(reply["ok"] for reply in await asyncio.gather(*behind))


async def test_what_waits_for_room_is_given_up_with_its_connection(
    client: Client, tcp: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "UNDER_WAY_MAX", 1)
    one = await tcp(client)
    one.send("PULL", queue="q", timeout=2_000)
    await until(lambda: client.server.node.waiters.count == 1)
    # It comes in several parts, so that it counts among the bodies.
    large = one.send("PUSH", queue="other", data="x" * (3 << 20))
    await until(lambda: client.server.bodies.pending_bytes > 3 << 20)
    (theirs,) = connections(client)
    await until(lambda: theirs.waiting)
    assert not theirs.reading
    await one.close()
    assert large.done() and large.exception() is not None
    # That the client has gone shows when it is listened to again.
    await until(lambda: not client.server.bodies.pending_bytes and not client.server.under_way)
    assert not connections(client)


async def test_what_waits_for_room_is_given_back_when_its_connection_breaks(
    client: Client, tcp: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "UNDER_WAY_MAX", 1)
    one = await tcp(client)
    sent = [one.send("PULL", queue="q", timeout=30_000)]
    await until(lambda: client.server.node.waiters.count == 1)
    sent.append(one.send("PUSH", queue="other", data="x" * (3 << 20)))
    (theirs,) = connections(client)
    await until(lambda: theirs.waiting)
    assert client.server.bodies.pending_bytes > 3 << 20
    theirs.transport.abort()
    await until(lambda: not client.server.bodies.pending_bytes)
    broken = await asyncio.gather(*sent, return_exceptions=True)
    assert all(isinstance(each, ConnectionError) for each in broken)


async def test_a_client_that_does_not_read_is_not_listened_to(
    client: Client, tcp: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "WRITE_QUEUE_BYTES_MAX", 8 << 20)
    job = await client.push(data="x" * 500_000)
    assert client.server.tcp is not None
    _, writer = await asyncio.open_connection("127.0.0.1", client.server.tcp.port, limit=1 << 10)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await until(lambda: len(connections(client)) == 1)
    (theirs,) = connections(client)
    for number in range(200):
        writer.write(pack({"cmd": "GetJob", "id": job, "reqId": str(number)}))
    await until(lambda: theirs.wire.paused or theirs.transport is None)
    # Either it is left for what is unsent, or no more of what it sends is read; the others notice nothing.
    await (await tcp(client)).ok("Ping")
    held = 0 if theirs.transport is None else theirs.transport.get_write_buffer_size()
    assert held <= 9 << 20
    writer.transport.abort()  # type: ignore[attr-defined]
    await until(lambda: theirs.transport is None and not client.server.under_way)


async def test_a_client_that_reads_too_slowly_is_left(client: Client, tcp: Open) -> None:
    client.server.pace.window_s, client.server.pace.least = 0.2, 1000
    job = await client.push(data="x" * (6 << 20))
    assert client.server.tcp is not None
    _, writer = await asyncio.open_connection("127.0.0.1", client.server.tcp.port, limit=1 << 10)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    for number in range(3):
        writer.write(pack({"cmd": "GetJob", "id": job, "reqId": str(number)}))
    await until(lambda: client.server.door.counts["reply"] == 1)
    await until(lambda: not connections(client))
    assert (await (await tcp(client)).ok("GetJob", id=job))["job"]["id"] == job
    writer.close()


async def test_events_for_a_client_that_does_not_read_are_left_out(client: Client, tcp: Open) -> None:
    one = await tcp(client)
    await one.ok("SubscribeEvents", queue="q")
    (theirs,) = connections(client)
    theirs.pause_writing()
    await client.push()
    await until(lambda: theirs.wire.missed)
    theirs.resume_writing()
    job = await client.push()
    assert (await one.event())["event"]["jobId"] == job


async def test_a_frame_that_stops_in_the_middle(client: Client, tcp: Open) -> None:
    client.server.pace.window_s = 0.2
    client.server.pace.least = 100
    idle = await tcp(client)
    stopped = await tcp(client)
    stopped.writer.write(framed(b"x" * 1000)[:20])
    await stopped.end()
    assert client.server.door.counts["body"] == 1
    # Between frames nobody has to hurry.
    await idle.ok("Ping")


async def test_too_many_connections(serve: Serve, tcp: Open) -> None:
    client = await serve(connections_max=3)
    busy = [await tcp(client) for _ in range(3)]
    for one in busy:
        await one.ok("SubscribeEvents", queue="q")
    fourth = await tcp(client)
    assert await fourth.event() == {"ok": False, "error": "Too many connections", "code": "busy"}
    await fourth.end()
    assert client.server.door.counts["all"] == 1
    # One on which nothing happens makes room.
    await busy[0].ok("UnsubscribeEvents")
    await asyncio.sleep(limits.PACE_S / 50)
    await (await tcp(client)).ok("Ping")
    await busy[0].end()
    await busy[1].ok("Ping")


async def test_connections_of_one_address(serve: Serve, tcp: Open) -> None:
    client = await serve(connections_per_client_max=2, trusted_proxies=())
    first = await tcp(client)
    await first.ok("Ping")
    await (await tcp(client)).ok("Ping")
    assert (await (await tcp(client)).event())["error"] == "Too many connections from this address"
    await first.close()
    await until(lambda: len(connections(client)) == 1)
    await (await tcp(client)).ok("Ping")


# -- Events ------------------------------------------------------------------------------------------------------------


async def test_the_events_of_one_queue(client: Client, tcp: Open) -> None:
    one = await tcp(client)
    await one.ok("SubscribeEvents", queue="q")
    await client.push("other")
    job = await client.push(data={"x": 1})
    pushed = await one.event()
    assert pushed["type"] == "event" and "reqId" not in pushed
    assert (pushed["event"]["eventType"], pushed["event"]["queue"], pushed["event"]["jobId"]) == ("pushed", "q", job)
    assert isinstance(pushed["event"]["timestamp"], float)
    await client.pull()
    assert (await one.event())["event"]["eventType"] == "pulled"
    await client.post(f"/jobs/{job}/progress", {"progress": 40})
    assert (await one.event())["event"]["progress"] == 40
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(milliseconds=5)
    await one.ok("ACK", id=job, result={"done": at})
    assert (await one.event())["event"]["data"] == {"done": at}
    # A second one takes the place of the first.
    await one.ok("SubscribeEvents", queue="other")
    await client.push()
    other = await client.push("other")
    assert (await one.event())["event"]["jobId"] == other
    await one.ok("UnsubscribeEvents")
    await client.push("other")
    await one.ok("Ping")
    assert one.events.empty()
    assert (await one.run("SubscribeEvents"))["error"] == "Queue name is required"
    assert (await one.run("SubscribeEvents", queue="a b"))["error"] == "Queue name contains invalid characters"


async def test_many_who_subscribed_hear_everything_in_order(client: Client, tcp: Open) -> None:
    several = [await tcp(client) for _ in range(4)]
    for one in several[:3]:
        await one.ok("SubscribeEvents", queue="q")
    await several[3].ok("SubscribeEvents", queue="other")
    await several[2].close()
    ids = (await several[0].ok("PUSHB", queue="q", jobs=[{"data": n} for n in range(100)]))["ids"]
    await client.push("other")
    for one in several[:2]:
        seen = [(await one.event())["event"] for _ in ids]
        assert [(event["eventType"], event["jobId"]) for event in seen] == [("pushed", job) for job in ids]
    assert (await several[3].event())["event"]["queue"] == "other"
    for one in (several[0], several[1], several[3]):
        assert client.server.streams.feed.listened_to
        await one.close()
    await until(lambda: not client.server.streams.feed.listened_to)


async def test_websockets_have_no_such_commands(client: Client) -> None:
    async with client.session.ws_connect(client.base + "/ws") as ws:
        await ws.send_json({"cmd": "SubscribeEvents", "queue": "q", "reqId": "1"})
        answer = await ws.receive(timeout=20)
        assert answer.type is aiohttp.WSMsgType.TEXT
        assert json.loads(answer.data)["error"] == "Unknown command: SubscribeEvents"


# -- The port ----------------------------------------------------------------------------------------------------------


async def test_the_port_can_be_turned_off(serve: Serve) -> None:
    client = await serve(tcp_port=None)
    assert client.server.tcp is None and len(client.server.ports) == 2


async def test_a_port_that_is_taken_is_named(serve: Serve, client: Client) -> None:
    assert client.server.tcp is not None
    taken = client.server.tcp.port
    with pytest.raises(OSError, match=rf"cannot listen on 127.0.0.1:{taken} \(TCP_PORT\): ."):
        await serve(tcp_port=taken)


async def test_figures_count_its_connections(client: Client, tcp: Open) -> None:
    before = client.server.connections
    one = await tcp(client)
    await one.ok("Ping")
    assert client.server.connections == before + 1
    assert client.server.streams.health().connections.tcp == 1
    shown = (await client.get("/health")).json["connections"]
    assert shown["tcp"] == 1 and shown["http"] == client.server.http_connections
    page = (await client.get("/prometheus")).body.decode()
    assert "\nquorumq_tcp_connections 1\n" in page and "\nquorumq_tcp_commands_total 1\n" in page

"""The socket of BullMQ's backend protocol: hello, tokens, order, windows, what waits, and how connections end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from quorumq.api import tokens
from quorumq.api.dialects.bullmq.backend import codes, connection, names, protocol, table, waits
from quorumq.api.dialects.bullmq.backend.rows import Args, Asked, Row, json_text, own, read, write
from quorumq.api.errors import Invalid
from quorumq.node.machine.operations.jobs import PushJobs, RemoveJob
from quorumq.node.machine.operations.queue_reads import QueueCounts
from quorumq.node.machine.operations.runs import ProgressJob
from quorumq.node.machine.state.job import job_spec
from tests.api.backend import ENCODE, Failed, connect
from tests.api.conftest import Client, Serve

SOCKET = "/bullmq/v1/socket"


class Ids(Args):
    ids: list[str]


class One(Args):
    id: str


async def forever(asked: Asked, args: Any) -> None:
    await asyncio.sleep(3600)


async def broken(asked: Asked, args: Any) -> None:
    raise RuntimeError("secret of a job")


TRIED: tuple[Row, ...] = (
    write("push", PushJobs, lambda asked, args: PushJobs(asked.queue, [job_spec(one, b"1") for one in args.ids]),
          lambda reply: reply.ids,
          right="produce", takes=Ids),
    write("drop", RemoveJob, lambda asked, args: RemoveJob(args.id), lambda reply: True, right="produce", takes=One),
    write("progress", ProgressJob, lambda asked, args: ProgressJob(args.id, 1), lambda reply: True, right="consume", takes=One),
    read("waiting", QueueCounts, lambda asked, args: QueueCounts(asked.queue), lambda found: found.waiting, right="read"),
    own("forever", forever, right="consume"),
    own("broken", broken, right="consume"),
)  # fmt: skip


@pytest.fixture(autouse=True)
def tried(monkeypatch: pytest.MonkeyPatch) -> None:
    for row in TRIED:
        monkeypatch.setitem(table.ROWS, row.name, row)
        monkeypatch.setitem(table.DECODERS, row.name, msgspec.msgpack.Decoder(row.takes, strict=False).decode)


def tokens_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.jsonl"
    token = tokens.Token("t1", tokens.digest("t1"), ("produce", "read"), ("q", "{b}:*"))
    tokens.replace(path, tokens.msgspec.json.encode(token) + b"\n")
    return path


async def test_hello_says_who_answers(serve: Serve) -> None:
    client = await serve()
    for base in (client, client.bullmq):
        backend = await connect(base)
        assert backend.welcome == {
            "protocol": 1, "server": backend.welcome["server"], "node": "n1",
            "nodes": [f"http://127.0.0.1:{base.listener.port}"], "clock": "server",
            "maxMessage": client.server.bodies.body_bytes_max, "window": {"calls": 1024, "bytes": 8 << 20},
            "level": 1,
        }  # fmt: skip
        assert backend.welcome["server"].startswith("quorumq ")
        assert await backend.call("ping", "") == 0
        await backend.close()


async def test_hello_tells_of_members_on_the_same_host(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """As each told where its doors are; of one that has not yet, this node's port on its host, unless that is another's host, too."""
    client = await serve()
    node, (mine,) = client.server.node, client.server.node.status().members
    others = [
        ("n2", "127.0.0.1:7791", {"http": 6791, "bullmq": 8081}),
        ("n3", "127.0.0.1:7792", {}),
        ("n4", "elsewhere:7790", {}),
        ("n5", "there:7790", {"http": 6795}),
    ]
    members = [
        mine,
        *(msgspec.structs.replace(mine, id=name, address=at, self=False, doors=doors) for name, at, doors in others),
    ]
    status = msgspec.structs.replace(node.status(), members=members)
    monkeypatch.setattr(node, "status", lambda: status)
    backend = await connect(client)
    port = client.listener.port
    told = [f"127.0.0.1:{port}", "127.0.0.1:6791", f"elsewhere:{port}", "there:6795"]
    assert backend.welcome["nodes"] == [f"http://{at}" for at in told]
    await backend.close()


async def test_writes_enter_in_order_and_reads_see_them(serve: Serve) -> None:
    backend = await connect(await serve())
    calls: list[Any] = []
    for at in range(100):
        calls += [("push", "bull:q", [[f"j{at}"]]), ("waiting", "bull:q", [])]
    found = await asyncio.gather(*await backend.send(*calls))
    assert found[::2] == [[f"j{at}"] for at in range(100)]
    assert all(count > at for at, count in enumerate(found[1::2]))
    writes = [number for number in backend.order if number % 2]
    assert writes == sorted(writes)
    # What is ready together is answered together.
    assert len(backend.messages) < 20
    await backend.close()


async def test_a_read_waits_for_the_writes_before_it(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await serve()
    backend = await connect(client)
    held: list[Any] = []
    with monkeypatch.context() as patched:
        patched.setattr(client.engine, "propose", lambda *call: held.append(call))
        push, count = await backend.send(("push", "bull:q", [["a"]]), ("waiting", "bull:q", []))
        # What needs no log is answered meanwhile.
        for _ in range(3):
            await backend.call("ping", "")
        assert len(held) == 1 and not push.done() and not count.done()
    client.engine.propose(*held[0])
    assert await asyncio.gather(push, count) == [["a"], 1]
    await backend.close()


async def test_one_bad_call_leaves_the_others_alone(serve: Serve) -> None:
    backend = await connect(await serve())
    bad = await backend.send(
        ("push", "bull:q", [["a"]]),
        ("nonsense", "bull:q", []),
        ("push", "bull:q", ["a"]),
        ("push", "bull:", [["b"]]),
        ("drop", "bull:q", ["none"]),
        ("broken", "bull:q", []),
        ("push", "bull:q", [["c"]]),
    )
    done = await asyncio.gather(*bad, return_exceptions=True)
    assert done[0] == ["a"] and done[6] == ["c"]
    assert [one.code for one in done[1:6] if isinstance(one, Failed)] == [4, 2, 2, -1, 2]
    assert "secret" not in str(done[5])
    await backend.close()


async def test_queues_have_names_of_their_own(serve: Serve) -> None:
    client = await serve()
    backend = await connect(client)
    await backend.call("push", "bull:q", ["a"])
    await backend.call("push", "{b}:q", ["b"])
    await backend.call("push", "my:app:q", ["c"])
    assert await backend.call("waiting", "bull:q") == await backend.call("waiting", "{b}:q") == 1
    # The default prefix is the queue that all dialects know; others can be named by none of them.
    assert (await client.counts("q"))["waiting"] == 1
    assert (await client.counts("my:app:q"))["waiting"] == 0
    assert {*client.server.node.machine.state.queues} == {"q", "@{b}:q", "@my:app:q"}
    await backend.close()


@pytest.mark.parametrize("bad", ["q", ":q", "bull:", "", "bull:a\0b", "bull:" + "x" * 200])
def test_what_is_no_name(bad: str) -> None:
    with pytest.raises(Invalid):
        names.named_in_state(bad, "bull")


@pytest.mark.parametrize("qualified", ["bull:q", "{b}:q", "a:b:c", "@x:y", "bull:@q"])
def test_names_go_there_and_back(qualified: str) -> None:
    assert names.qualified_of(names.named_in_state(qualified, "bull"), "bull") == qualified


async def test_a_message_that_is_none(serve: Serve) -> None:
    client = await serve()
    for frame in (b"\xc1", ENCODE([]), ENCODE({"a": 1}), ENCODE([0, [["x"]]])):
        backend = await connect(client)
        await backend.ws.send_bytes(frame)
        assert backend.reader is not None
        await asyncio.wait_for(backend.reader, 5)
        assert backend.ws.close_code == protocol.BAD_MESSAGE


async def test_another_protocol_is_told_which_is_served(serve: Serve) -> None:
    backend = await connect(await serve(), hello=False)
    await backend.ws.send_bytes(ENCODE({"protocol": 9, "session": "s"}))
    message = await backend.ws.receive(5)
    assert message.type == aiohttp.WSMsgType.CLOSE
    assert message.data == protocol.BAD_MESSAGE and "protocol 1" in message.extra


async def test_who_says_nothing_is_left(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "AUTH_S", 0.05)
    backend = await connect(await serve(), hello=False)
    message = await backend.ws.receive(5)
    assert message.data == protocol.NO_HELLO


async def test_tokens_in_the_hello_and_in_the_head(serve: Serve, tmp_path: Path) -> None:
    client = await serve(auth_tokens_file=tokens_file(tmp_path))
    for options in ({"token": "t1"}, {"headers": {"Authorization": "Bearer t1"}}):
        backend = await connect(client, **options)
        assert await backend.call("push", "bull:q", ["a"]) == ["a"]
        assert await backend.call("waiting", "{b}:q") == 0
        for name, queue in (("progress", "bull:q"), ("push", "bull:other"), ("push", "my:q"), ("forever", "bull:q")):
            with pytest.raises(Failed) as refused:
                await backend.call(name, queue, ["a"] if name == "push" else "a")
            assert refused.value.code == codes.FORBIDDEN
        await backend.close()
    backend = await connect(client, hello=False)
    await backend.ws.send_bytes(ENCODE({"protocol": 1, "session": "s", "token": "t2"}))
    assert (await backend.ws.receive(5)).data == protocol.BAD_TOKEN
    with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
        await connect(client, headers={"Authorization": "Bearer t2"})
    assert refusal.value.status == 401


async def test_what_waits_is_cancelled_and_ends_with_the_node(serve: Serve) -> None:
    client = await serve()
    backend = await connect(client)
    (first, second) = await backend.send(("forever", "bull:q", []), ("forever", "bull:q", []))
    assert await backend.call("cancel", "", 1) == 0
    assert await asyncio.wait_for(first, 5) is None and not second.done()
    client.server.leave()
    assert await asyncio.wait_for(second, 5) is None
    assert backend.reader is not None
    await asyncio.wait_for(backend.reader, 5)
    assert backend.ws.close_code == aiohttp.WSCloseCode.GOING_AWAY
    assert client.server.backends == {} and client.server.under_way == 0


async def test_more_than_the_window_ends_the_connection(serve: Serve) -> None:
    client = await serve()
    backend = await connect(client)
    client.engine.available = False
    await backend.send(*[("waiting", "bull:q", [])] * 1025)
    assert backend.reader is not None
    await asyncio.wait_for(backend.reader, 5)
    assert backend.ws.close_code == protocol.TOO_MANY
    await until_idle(client)


async def test_without_a_quorum_calls_are_to_come_again(serve: Serve) -> None:
    client = await serve()
    backend = await connect(client)
    client.engine.available = False
    for name in ("push", "waiting"):
        with pytest.raises(Failed) as refused:
            await backend.call(name, "bull:q", ["a"])
        assert refused.value.code == codes.AGAIN
    client.engine.available = True
    assert await backend.call("push", "bull:q", ["a"]) == ["a"]
    await backend.close()


async def test_a_message_beyond_the_bound(serve: Serve) -> None:
    client = await serve(body_bytes_max=100_000)
    backend = await connect(client)
    assert backend.welcome["maxMessage"] == 100_000
    await backend.ws.send_bytes(b"\0" * 100_001)
    assert backend.reader is not None
    await asyncio.wait_for(backend.reader, 5)
    assert backend.ws.close_code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG


async def test_a_plain_request_is_told_to_upgrade(serve: Serve) -> None:
    client = await serve()
    for base in (client, client.bullmq):
        assert (await base.get(SOCKET)).status == 426


@pytest.mark.parametrize("bad", [b"", b"{", b"1 2", b"1,2", b"\xff", b"]["])
def test_opaque_json_is_json(bad: bytes) -> None:
    with pytest.raises(Invalid):
        json_text("data", bad)
    assert json_text("data", b' {"a": 1}') == b' {"a": 1}'


def test_every_row_of_the_table_is_in_its_description() -> None:
    said = table.__doc__ or ""
    names_said = {word for word in said.split() if word.isidentifier()}
    assert {row.name for row in table.ROWS.values()} - {row.name for row in TRIED} <= names_said


async def test_one_job_wakes_one_worker(serve: Serve) -> None:
    client = await serve()
    backend = await connect(client)
    waiting = await backend.send(*[("wait", queue, [600_000]) for queue in ("bull:q", "bull:q", "bull:other")])
    await backend.call("push", "bull:q", ["a"])
    assert await asyncio.wait_for(waiting[0], 30) == 0
    # It did not ask for the job: the next one is woken before long.
    assert await asyncio.wait_for(waiting[1], 30) == 0
    assert await backend.call("cancel", "", 3) == 0
    assert await asyncio.wait_for(waiting[2], 30) is None
    assert await backend.call("wait", "bull:q", 1_000) == 0
    assert await backend.call("wait", "bull:other", 20) is None
    await backend.close()
    await until_idle(client)


@pytest.mark.parametrize("how", ["asks", "is gone"])
async def test_who_was_woken_holds_his_place_until_he_asks(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(waits, "HOLD_S", 3600)
    client = await serve()
    first, second = await connect(client), await connect(client)
    (woken,) = await first.send(("wait", "bull:q", [600_000]))
    await first.call("ping", "")
    (waiting,) = await second.send(("wait", "bull:q", [600_000]))
    await second.call("push", "bull:q", ["a"])
    assert await asyncio.wait_for(woken, 30) == 0
    await second.call("ping", "")
    assert not waiting.done()
    if how == "asks":
        assert (await first.call("moveToActive", "bull:q", "t", {}))[1] == "a"
        await second.call("push", "bull:q", ["b"])
    else:
        await first.close()
    assert await asyncio.wait_for(waiting, 30) == 0
    for each in (first, second):
        await each.close()
    await until_idle(client)


async def test_who_is_woken_and_gone_leaves_his_place(serve: Serve) -> None:
    client = await serve()
    first, second = await connect(client), await connect(client)
    await first.send(("wait", "bull:q", [600_000]))
    await first.call("ping", "")
    (waiting,) = await second.send(("wait", "bull:q", [600_000]))
    await second.call("push", "bull:q", ["a"])
    await first.close()
    assert await asyncio.wait_for(waiting, 30) == 0
    await second.close()
    await until_idle(client)


async def until_idle(client: Client) -> None:
    while client.server.under_way or client.server.node.waiters.count:
        await asyncio.sleep(0.01)

"""What a large body may hold, and that looking at it takes place off the loop, one body after the other."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from quorumq.api import limits, surrogates
from quorumq.api.dialects.bunqueue import pushing
from quorumq.api.errors import Invalid
from quorumq.api.weight import COMMAS_FREE, COMMAS_MAX, weigh
from tests.api.conftest import Client, Serve
from tests.api.test_http import MIB, until

BULK = "/queues/q/jobs/bulk"
MANY = COMMAS_FREE + 10


def jobs(job: str, count: int) -> bytes:
    return b'{"jobs":[%b]}' % b",".join([job.encode()] * count)


class TestWeighing:
    @pytest.mark.parametrize(
        "body",
        [
            jobs("{}", MANY),
            jobs("1", MANY),
            jobs('{"data":1}', MANY),
            b'{"jobs":[{"data":[%b]},%b]}' % (b",".join([b"1"] * MANY), b",".join([b"{}"] * MANY)),
            b"[%b]" % b",".join([b'{"name":"a","data":1}'] * MANY),
            b'{"ids":[%b]}' % b",".join([b'"a"'] * MANY),
            b'{"ids":["a"],"results":[%b]}' % b",".join([b"1"] * MANY),
            b'{"cmd":"PUSHB","queue":"q","jobs":[%b]}' % b",".join([b"{}"] * MANY),
            b'{"data":[1,2,{"a":"]"}],"jobs":[%b]}' % b",".join([b"{}"] * MANY),
            b'{"tags":[%b],"data":1}' % b",".join([b'"a"'] * MANY),
        ],
    )
    def test_too_many_in_a_list(self, body: bytes) -> None:
        with pytest.raises(Invalid, match="at most 10000 items"):
            weigh(body)

    @pytest.mark.parametrize(
        "body",
        [
            jobs(f'{{"data":1,"dependsOn":{["a"] * 10_000}}}'.replace("'", '"'), 80),
            jobs(f'{{"data":1,"tags":{[1] * 1_000}}}', 1_000),
            jobs(json.dumps({f"f{n}": 1 for n in range(100)}), 5_000),
            b"{%b}" % b",".join(b'"f%d":1' % n for n in range(COMMAS_MAX + 10)),
            b'{"backoff":{%b}}'
            % b",".join(b'"f%d":1' % n for n in range(9_000)).replace(b"1", b"[%b]" % (b"1," * 50 + b"1")),
        ],
    )
    def test_too_much_together(self, body: bytes) -> None:
        with pytest.raises(Invalid, match=f"at most {COMMAS_MAX} fields|at most 10000 items"):
            weigh(body)

    @pytest.mark.parametrize(
        "body",
        [
            # The documented ten thousand, with every option.
            jobs('{"data":[1,2,3],' + ",".join(f'"option{n}":1' for n in range(25)) + ',"tags":["a","b","c"]}', 10_000),
            # What is kept as it was sent may hold anything.
            b'{"data":[%b]}' % b",".join([b"1"] * 3 * MANY),
            b'{"data":{%b}}' % b",".join(b'"f%d":[1,{"jobs":[1,2]}]' % n for n in range(MANY)),
            b'{"result":[%b],"token":"a"}' % b",".join([b"[1,2]"] * 2 * MANY),
            jobs(f'{{"priority":1,"data":{[1] * 1_000}}}', 1_000),
            b'{"ids":["a","b"],"results":[[%b],{"a":[%b]}]}' % (b"1," * 2 * COMMAS_MAX + b"1", b"1," * MANY + b"1"),
            b'{"data":"%b"}' % (b"a,[{" * MANY),
            b'{"data":"%b\\","}' % (b'\\\\\\",' * MANY),
        ],
    )
    def test_enough(self, body: bytes) -> None:
        weigh(body)

    def test_what_is_no_json_is_left_to_others(self) -> None:
        for body in (b"," * MANY, b"]" * 10 + b"," * MANY, b'{"a' + b"," * MANY, b"[" * 20_000 + b"," * MANY):
            try:
                weigh(body)
            except Invalid as error:
                assert "at most" in str(error)


class TestOverHttp:
    @pytest.mark.parametrize(
        ("path", "body"),
        [
            (BULK, jobs("{}", 2 * MANY)),
            ("/jobs/ack-batch", b'{"ids":[%b]}' % b",".join([b'"a"'] * MANY)),
            ("/queues/q/jobs", b'{"data":1,"tags":[%b]}' % b",".join([b"1"] * 2 * MANY)),
            ("/queues/q/jobs/pull-batch", b'{"count":[%b]}' % b",".join([b"1"] * 2 * MANY)),
        ],
    )
    async def test_it_is_answered(self, client: Client, path: str, body: bytes) -> None:
        assert len(body) > limits.LARGE_BYTES
        answer = await client.post(path, raw=body)
        assert answer.status == 400
        assert "at most" in answer.error

    async def test_it_is_answered_in_the_other_dialect(self, serve: Serve) -> None:
        client = (await serve(auth_tokens=("t",))).bullmq
        body = b"[%b]" % b",".join([b'{"name":"a","data":1}'] * MANY)
        answer = await client.post("/queues/queue/jobs", raw=body, headers={"Authorization": "Bearer t"})
        assert answer.status == 400
        assert b"at most 10000 items" in answer.body

    async def test_ten_thousand_jobs_with_options(self, client: Client) -> None:
        options = {"priority": 1, "delay": 0, "maxAttempts": 3, "backoff": 1000, "ttl": 60_000, "tags": ["a", "b"]}
        options |= {"name": "n", "lifo": False, "removeOnComplete": True, "removeOnFail": True, "timeout": 1000}
        data = {"many": list(range(20)), "text": "x" * 100}
        answer = await client.post(BULK, {"jobs": [{"data": data, **options}] * 10_000})
        assert (answer.status, len(answer.json["ids"])) == (200, 10_000)

    async def test_dependencies_of_all_jobs_are_bounded_together(self, client: Client) -> None:
        first = [await client.push() for _ in range(2)]
        fits = [{"data": 1, "dependsOn": first}] * 10_000
        assert (await client.post(BULK, {"jobs": fits})).status == 200
        answer = await client.post(BULK, {"jobs": [*fits[:9_999], {"data": 1, "dependsOn": [*first, "x", "y"]}]})
        assert answer.status == 400
        assert (
            answer.error
            == f"jobs[9999]: dependsOn must have at most {pushing.DEPENDS_MAX} items in all jobs of a request"
        )

    async def test_tags_of_all_jobs_are_bounded_together(self, client: Client) -> None:
        answer = await client.post(BULK, {"jobs": [{"data": 1, "tags": [f"t{n}" for n in range(1_000)]}] * 101})
        assert answer.status == 400
        assert (
            answer.error
            == f"jobs[100]: tags must have at most {pushing.TAGS_TOGETHER_MAX} items in all jobs of a request"
        )

    async def test_half_pairs_are_bounded(self, client: Client) -> None:
        half = '"\\ud83d"'
        fits = await client.post("/queues/q/jobs", raw=b'{"data":[%b]}' % ",".join([half] * 1_000).encode())
        assert fits.status == 200
        too_many = ",".join([half] * (surrogates.HALVES_MAX + 1)).encode()
        answer = await client.post("/queues/q/jobs", raw=b'{"data":[%b]}' % too_many)
        assert (answer.status, answer.error) == (400, "Too many halves of surrogate pairs (max 20000)")


class TestTurns:
    async def test_a_large_body_is_decoded_off_the_loop(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        threads: list[str] = []
        decoded = pushing.decoded

        def look(*arguments: Any) -> Any:
            threads.append(threading.current_thread().name)
            return decoded(*arguments)

        monkeypatch.setattr(pushing, "decoded", look)
        assert (await client.post(BULK, {"jobs": [{"data": "x" * 100_000}] * 4})).status == 200
        assert (await client.post(BULK, {"jobs": [{"data": 1}]})).status == 200
        assert threads[0] != threading.main_thread().name == threads[1]

    async def test_large_ones_come_one_after_the_other_and_small_ones_between(self, client: Client) -> None:
        large = b'{"data":"%b"}' % (b"x" * MIB)
        engine, held = client.engine, []
        submit = engine.propose
        engine.propose = lambda *arguments: held.append(arguments)  # type: ignore[method-assign]
        pushing = [asyncio.ensure_future(client.post("/queues/q/jobs", raw=large)) for _ in range(3)]
        await until(lambda: client.server.bodies.waiting == 2 and held)
        assert len(held) == 1
        engine.propose = submit  # type: ignore[method-assign]
        # The first has not been answered, and others are.
        assert await client.push("other")
        submit(*held.pop())
        assert [(await one).status for one in pushing] == [200] * 3
        assert client.server.bodies.turns == 3
        assert client.server.bodies.pending_bytes == 0

    async def test_a_turn_ends_though_its_request_waits(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "TURN_S", 0.05)
        large = b'{"data":"%b"}' % (b"x" * MIB)
        engine, held = client.engine, []
        submit = engine.propose
        engine.propose = lambda *arguments: held.append(arguments)  # type: ignore[method-assign]
        first = asyncio.ensure_future(client.post("/queues/q/jobs", raw=large))
        await until(lambda: held)
        engine.propose = submit  # type: ignore[method-assign]
        assert (await client.post("/queues/q/jobs", raw=large)).status == 200
        submit(*held.pop())
        assert (await first).status == 200

    async def test_a_poll_gives_its_turn_and_its_bytes_back(self, client: Client) -> None:
        body = json.dumps({"count": 1, "timeout": 20_000}).encode() + b" " * MIB
        waiting = asyncio.ensure_future(client.post("/queues/q/jobs/pull-batch", raw=body))
        await until(lambda: client.server.waiting)
        assert client.server.bodies.pending_bytes == 0
        (call,) = client.server.waiting
        assert call.in_turn is None and call.body == b""
        await client.push()
        assert (await waiting).status == 200

    async def test_too_many_that_wait_are_told(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "LARGE_WAITING_MAX", 0)
        engine, held = client.engine, []
        submit = engine.propose
        engine.propose = lambda *arguments: held.append(arguments)  # type: ignore[method-assign]
        large = b'{"data":"%b"}' % (b"x" * MIB)
        first = asyncio.ensure_future(client.post("/queues/q/jobs", raw=large))
        await until(lambda: held)
        answer = await client.post("/queues/q/jobs", raw=large)
        assert (answer.status, "Retry-After" in answer.headers) == (503, True)
        engine.propose = submit  # type: ignore[method-assign]
        submit(*held.pop())
        assert (await first).status == 200

    async def test_commands_take_turns_too(self, client: Client) -> None:
        async with client.session.ws_connect(client.base + "/ws") as ws:
            for number in range(12):
                data = "x" * 700_000
                await ws.send_str(json.dumps({"cmd": "PUSH", "queue": "q", "data": data, "reqId": number}))
            replies = []
            while len(replies) < 12:
                # Events come in between.
                reply = json.loads(await ws.receive_str(timeout=20))
                replies += [reply] if "reqId" in reply else []
            assert sorted(reply["reqId"] for reply in replies) == list(range(12))
            assert all(reply["ok"] for reply in replies)
            await ws.send_str(json.dumps({"cmd": "PUSHB", "queue": "q", "jobs": [{}] * 2 * MANY, "reqId": 12}))
            while "reqId" not in (reply := json.loads(await ws.receive_str(timeout=20))):
                pass
            assert "at most 10000 items" in reply["error"]
        assert client.server.bodies.turns == 12
        assert client.server.bodies.pending_bytes == 0

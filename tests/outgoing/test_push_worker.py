"""Push workers over one node: what endpoints are sent, what becomes of their answers, limits, circuits, locks, stopping."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest
from aiohttp import web

from quorumq.api.outgoing.budget import ReceiveBudget
from quorumq.api.outgoing.egress import CallPolicy
from quorumq.api.outgoing.push_worker import PushWorkers
from quorumq.node.batching import Batcher
from quorumq.node.leader.assignment import AssignmentDuty
from quorumq.node.leader.clock import ClockDuty
from quorumq.node.machine.lifecycle import removal
from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operation import Operation
from quorumq.node.machine.operations.adding import AddJobs, resolve
from quorumq.node.machine.operations.flows import AddFlow, FlowJob
from quorumq.node.machine.operations.pushers import PutPusher, RemovePusher
from quorumq.node.machine.state import Backoff, Job, JobSpec, Keep, Options, job_spec, own_id
from quorumq.node.machine.state.limits import Window
from tests.support.endpoint import Endpoint, Said
from tests.support.local import LocalEngine
from tests.support.local_cluster import free_ports
from tests.support.waiting import TIMEOUT_S, after_entries

Q = "emails"


def render(job: Job, token: str) -> bytes:
    shown = {"name": job.opts.name, "id": own_id(job), "data": json.loads(job.data), "queueQualifiedName": job.queue}
    return json.dumps({"job": shown, "token": token}).encode()


def now_ms() -> int:
    return int(time.time() * 1000)


class One:
    """One node's push workers, with what they need of a node."""

    def __init__(self, **options: Any) -> None:
        self.machine = Machine()
        self.engine = LocalEngine(self.machine, clock=now_ms)
        self.engine.keep_entries = True
        self.batcher = Batcher(self.engine)
        self.clock_duty = ClockDuty(self.engine, self.machine, self.batcher, now_ms)
        self.assignment_duty = AssignmentDuty(self.engine, self.machine, self.batcher, now_ms)
        given = {"pause_s": 0.05} | options
        self.pushing = PushWorkers(self.engine, self.machine, self.batcher, now_ms, render, **given)

    async def start(self) -> One:
        await self.engine.start()
        for part in (self.clock_duty, self.assignment_duty, self.pushing):
            part.start()
        return self

    async def stop(self) -> None:
        await self.pushing.stop(0)
        self.assignment_duty.stop()
        self.clock_duty.stop()
        await self.engine.stop()
        assert self.machine.errors == 0

    async def do(self, operation: Operation) -> Any:
        return await self.batcher.add(operation, lambda reply: reply, 5)

    async def register(self, endpoint: Endpoint | str, queue: str = Q, **more: Any) -> None:
        url = endpoint if isinstance(endpoint, str) else endpoint.url
        await self.do(PutPusher(queue, url, **more))

    async def add(self, *names: str, queue: str = Q, **options: Any) -> list[str]:
        given = {"max_attempts": 1, "backoff": 0, "rejoin_last": True, "stalls_allowed": 1} | options
        specs = [JobSpec("", b'{"k":1}', Options(name=name, **given)) for name in names]
        return (await self.do(AddJobs(queue, specs))).ids

    def job(self, own: str, queue: str = Q) -> Job:
        return resolve(self.machine.state, queue, own)

    async def until(self, check: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> Any:
        """Wait until something is so, looking after every entry."""
        return await after_entries(self.machine, check, timeout_s)

    async def ended(self, own: str, queue: str = Q) -> Job:
        await self.until(lambda: self.job(own, queue).finished)
        return self.job(own, queue)


@pytest.fixture
async def ones() -> AsyncIterator[Callable[..., Any]]:
    made: list[One] = []

    async def make(**options: Any) -> One:
        made.append(One(**options))
        return await made[-1].start()

    yield make
    for one in made:
        await one.stop()


@pytest.fixture
async def one(ones: Any) -> One:
    made: One = await ones()
    return made


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    async with Endpoint() as endpoint:
        yield endpoint


def answers(gate: asyncio.Event | None = None, **options: Any) -> Callable[[Said], Any]:
    """Answer every call alike, with a gate once that is open."""

    async def answer(said: Said) -> web.StreamResponse:
        if gate is not None:
            await gate.wait()
        return web.Response(**options)

    return answer


# -- What is sent


async def test_the_call_is_what_was_registered(one: One, endpoint: Endpoint) -> None:
    headers = (("Content-Type", "application/json"), ("X-Custom", "abc"))
    await one.register(f"http://127.0.0.1:{endpoint.port}/deep/path?x=1", method="PUT", headers=headers)
    [own] = await one.add("send")
    job = await one.ended(own)
    [said] = endpoint.said
    assert (said.method, said.path) == ("PUT", "/deep/path?x=1")
    assert said.headers["X-Custom"] == "abc" and said.headers["Content-Type"] == "application/json"
    assert said.headers["Host"] == f"127.0.0.1:{endpoint.port}"
    assert said.job["name"] == "send" and said.job["id"] == own and said.job["data"] == {"k": 1}
    assert (job.state, job.result) == ("completed", b'{"done": true}')


async def test_there_is_no_content_type_unless_one_was_registered(one: One, endpoint: Endpoint) -> None:
    await one.register(endpoint)
    await one.ended((await one.add("a"))[0])
    assert "Content-Type" not in endpoint.said[0].headers


async def test_each_fetch_has_a_token_of_its_own(one: One, endpoint: Endpoint) -> None:
    await one.register(endpoint)
    for name in ("a", "b"):
        await one.ended((await one.add(name))[0])
    first, second = (said.token for said in endpoint.said)
    assert first != second
    assert first.partition(":")[0] == second.partition(":")[0] and first.partition(":")[2].isdigit()


async def test_jobs_go_in_order_one_at_a_time(one: One, endpoint: Endpoint) -> None:
    owns = await one.add("a", "b", "c", "d")
    await one.register(endpoint)
    await one.ended(owns[-1])
    assert endpoint.names == ["a", "b", "c", "d"] and endpoint.most_at_once == 1


# -- What becomes of answers


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (answers(text="plain"), b'"plain"'),
        (answers(text='{"a": [1, 2]}', content_type="application/json"), b'{"a": [1, 2]}'),
        (answers(text="42", status=201, content_type="application/json"), b"42"),
        (answers(text='"job-result"', content_type="application/json"), b'"job-result"'),
        (answers(text='"\\ud83d"', content_type="application/json"), b'"\\ud83d"'),
        (answers(body=b"\xef\xbb\xbf{}", content_type="application/json"), b"{}"),
        (answers(body="ü".encode(), content_type="text/html"), '"ü"'.encode()),
        (answers(body=b"\xff", content_type="text/html"), '"\ufffd"'.encode()),
        (answers(status=204), b'""'),
        (answers(body=b""), b'""'),
    ],
)
async def test_a_2xx_completes_the_job(one: One, endpoint: Endpoint, answer: Any, result: bytes) -> None:
    endpoint.answer = answer
    await one.register(endpoint)
    job = await one.ended((await one.add("a"))[0])
    assert (job.state, job.result, job.error) == ("completed", result, None)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (answers(status=500, text="the body is not kept"), "Internal Server Error"),
        (answers(status=400), "Bad Request"),
        (answers(status=404), "Not Found"),
        (answers(status=503), "Service Unavailable"),
        (answers(status=500, reason="No more coffee"), "No more coffee"),
        (answers(status=304), "Not Modified"),
        (answers(text="{nope", content_type="application/json"), "JSON Parse error: Expected '}'"),
        (answers(text="[1,", content_type="application/json"), "JSON Parse error: Expected ']'"),
        (answers(text="nope", content_type="application/json"), "JSON Parse error: Unexpected token"),
        (answers(text="NaN", content_type="application/json"), "JSON Parse error: Unexpected token"),
        (answers(text="", content_type="application/json"), "Unexpected end of JSON input"),
        (answers(text="[" * 100_000, content_type="application/json"), "JSON Parse error: Expected ']'"),
        (answers(status=599, reason=""), "HTTP 599"),
        (
            answers(text="x", headers={"Content-Encoding": "br"}),
            "The answer has the content coding br, which is not known",
        ),
    ],
)
async def test_anything_else_fails_it_with_its_reason(one: One, endpoint: Endpoint, answer: Any, error: str) -> None:
    endpoint.answer = answer
    await one.register(endpoint)
    job = await one.ended((await one.add("a"))[0])
    assert (job.state, job.error, job.attempts, job.result) == ("failed", error, 1, None)
    assert job.failures is not None and job.failures.runs[0].stack == f"Error: {error}"
    assert len(endpoint.said) == 1


async def test_an_endpoint_that_is_not_there_fails_the_job_as_recorded(one: One) -> None:
    await one.register("http://127.0.0.1:1/")
    job = await one.ended((await one.add("a"))[0])
    assert job.error == "ECONNREFUSED: Unable to connect. Is the computer able to access the url?"
    assert job.attempts == 1


async def test_a_slow_endpoint_is_given_up_after_the_time_out(one: One, endpoint: Endpoint) -> None:
    hang = asyncio.Event()
    endpoint.answer = answers(hang)
    await one.register(endpoint, timeout_ms=60)
    job = await one.ended((await one.add("a"))[0])
    hang.set()
    assert job.error == "The operation was aborted."


async def test_redirects_are_followed(one: One, endpoint: Endpoint) -> None:
    async def answer(said: Said) -> web.StreamResponse:
        if said.path == "/work":
            return web.Response(status=307, headers={"Location": "/there"})
        return web.Response(text=f"{said.method} {said.path}")

    endpoint.answer = answer
    await one.register(endpoint)
    job = await one.ended((await one.add("a"))[0])
    assert job.result == b'"POST /there"'


async def test_a_failed_job_is_tried_again_after_its_backoff(one: One, endpoint: Endpoint) -> None:
    endpoint.answer = answers(status=500)
    await one.register(endpoint)
    [own] = await one.add("a", max_attempts=3, backoff=Backoff("fixed", 30))
    job = await one.ended(own)
    assert (job.attempts, len(endpoint.said)) == (3, 3)
    assert len({said.token for said in endpoint.said}) == 3


async def test_a_job_that_cannot_be_rendered_fails_alone(
    ones: Any, endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    one = await ones()
    bad, good = await one.add("bad", "good")
    one.job(bad).data = b"secret, and no JSON"
    await one.register(endpoint, concurrency=2)
    await one.ended(good)
    job = await one.ended(bad)
    assert (job.state, job.error) == ("failed", "The job cannot be delivered: see the log of the server")
    assert endpoint.names == ["good"] and one.job(good).state == "completed"
    assert "secret" not in caplog.text


# -- Limits


async def test_concurrency_is_what_was_registered(one: One, endpoint: Endpoint) -> None:
    go = asyncio.Event()
    endpoint.answer = answers(go)
    owns = await one.add(*"abcdefg")
    await one.register(endpoint, concurrency=3)
    await endpoint.until(3)
    assert sum(job.state == "active" for job in one.machine.state.jobs.values()) == 3
    go.set()
    await one.until(lambda: all(one.job(own).state == "completed" for own in owns))
    assert endpoint.most_at_once == 3


async def test_the_limiter_counts_starts_in_fixed_windows(one: One, endpoint: Endpoint) -> None:
    owns = await one.add(*"abcde")
    await one.register(endpoint, concurrency=5, limit=Window(2, 150))
    await one.until(lambda: all(one.job(own).state == "completed" for own in owns))
    starts = sorted(one.job(own).processed_at or 0 for own in owns)
    assert starts[0] == starts[1] and starts[2] == starts[3]
    assert starts[2] - starts[0] >= 150 and starts[4] - starts[2] >= 150


async def test_what_is_kept_is_what_was_registered(one: One, endpoint: Endpoint) -> None:
    endpoint.answer = answers(status=500)
    await one.register(endpoint, keep_failed=Keep(None, 1))
    owns = await one.add(*"abc")
    await endpoint.until(3)
    await one.until(lambda: one.machine.state.jobs[f"bull:{Q}:{owns[-1]}"].finished)
    assert [job.opts.name for job in one.machine.state.jobs.values()] == ["c"]


async def test_registrations_beyond_the_bound_of_calls_take_turns(ones: Any, endpoint: Endpoint) -> None:
    one = await ones(calls_max=2)
    queues = [f"queue-{n}" for n in range(6)]
    for name in queues:
        await one.register(endpoint, name, concurrency=2)
        await one.add("a", "b", queue=name)
    await one.until(lambda: all(job.finished for job in one.machine.state.jobs.values()))
    assert len(endpoint.said) == 12 and endpoint.most_at_once <= 2


async def test_large_jobs_of_many_queues_take_turns_too(
    one: One, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quorumq.api.outgoing.push_worker.PULL_BYTES", 100_000)
    monkeypatch.setattr("quorumq.api.outgoing.push_worker.BYTES_MAX", 250_000)
    queues = [f"queue-{n}" for n in range(8)]
    large = JobSpec("", json.dumps("x" * 90_000).encode(), Options(name="large", max_attempts=1))
    for name in queues:
        await one.do(AddJobs(name, [large, large]))
    gate = asyncio.Event()
    endpoint.answer = answers(gate)
    # At once, so that none of them sees what the others take.
    await asyncio.gather(*(one.register(endpoint, name, concurrency=2) for name in queues))
    # Each pull brings one; the third is the last to begin while the first two are sent.
    await endpoint.until(3)
    assert one.pushing.under_way == 3
    gate.set()
    await one.until(lambda: all(job.finished for job in one.machine.state.jobs.values()))
    assert len(endpoint.said) == 16


# -- Registering again, removing


async def test_a_removed_registration_takes_no_more_jobs_and_its_active_one_finishes(
    one: One, endpoint: Endpoint
) -> None:
    go = asyncio.Event()
    endpoint.answer = answers(go, text="done")
    first, second = await one.add("a", "b")
    await one.register(endpoint)
    await endpoint.until(1)
    await one.do(RemovePusher(Q))
    go.set()
    assert (await one.ended(first)).result == b'"done"'
    assert one.job(second).state == "waiting" and len(endpoint.said) == 1
    # And there is nothing left that could take it: the next registration does.
    await one.register(endpoint)
    await one.ended(second)


async def test_a_replaced_endpoint_never_works_beside_the_new_one_beyond_the_concurrency(one: One) -> None:
    go = asyncio.Event()
    async with Endpoint(answers(go, text="old")) as old, Endpoint() as new:
        first, second = await one.add("a", "b")
        await one.register(old)
        await old.until(1)
        await one.register(new)
        # Another queue's job comes and goes, so that the node has had every chance to take too much.
        await one.register(new, "other-queue")
        await one.ended((await one.add("x", queue="other-queue"))[0], "other-queue")
        assert one.job(second).state == "waiting"
        go.set()
        await one.ended(second)
        assert one.job(first).result == b'"old"'
        assert (old.names, sorted(new.names)) == (["a"], ["b", "x"])


# -- Circuits


async def test_an_endpoint_that_is_down_burns_five_attempts_and_no_more(one: One) -> None:
    (port,) = free_ports(1)
    await one.register(f"http://127.0.0.1:{port}/work")
    owns = await one.add(*"abcdefgh")
    state = one.machine.state
    await one.until(lambda: state.pushers.by_queue[Q].circuit.failures >= 7)
    assert [one.job(own).state for own in owns].count("failed") == 5
    circuit = state.pushers.by_queue[Q].circuit
    assert circuit.error == "ECONNREFUSED: Unable to connect. Is the computer able to access the url?"
    assert circuit.next_try_at > state.pushers.by_queue[Q].registered_at
    assert one.pushing.open_circuits == 1
    async with Endpoint(port=port) as endpoint:
        rest = owns[5:]
        await one.until(lambda: all(one.job(own).state == "completed" for own in rest))
        # Nothing was counted against the jobs that came back, and they kept their order.
        assert [one.job(own).attempts for own in rest] == [0, 0, 0]
        assert endpoint.names == ["f", "g", "h"]
        await one.until(lambda: state.pushers.by_queue[Q].circuit.failures == 0)
    assert one.pushing.open_circuits == 0


async def test_calls_under_way_when_the_endpoint_goes_down_are_put_back_too(one: One) -> None:
    (port,) = free_ports(1)
    owns = await one.add(*(f"job-{n}" for n in range(20)))
    await one.register(f"http://127.0.0.1:{port}/work", concurrency=20)
    await one.until(lambda: one.machine.state.pushers.by_queue[Q].circuit.next_try_at)

    def rested() -> Any:
        """The jobs when none is active: only in this moment, single ones are tried again and again."""
        jobs = [one.job(own) for own in owns]
        if any(job.state == "active" for job in jobs):
            return None
        waiting = list(one.machine.state.queues[Q].ready)
        in_place = [job for job in jobs if job.state == "waiting"] == waiting
        return Counter(job.state for job in jobs), in_place, {(job.attempts, job.starts) for job in waiting}

    # As if they had not been taken: nothing was counted, and they are in their places.
    assert await one.until(rested) == ({"failed": 5, "waiting": 15}, True, {(0, 0)})


async def test_an_endpoint_that_says_unavailable_is_tried_with_single_jobs(ones: Any, endpoint: Endpoint) -> None:
    # Long enough that this test looks before the next try.
    one = await ones(pause_s=0.5)
    endpoint.answer = answers(status=503)
    owns = await one.add(*(f"job-{n}" for n in range(10)))
    await one.register(endpoint, concurrency=5)
    await one.until(lambda: one.machine.state.pushers.by_queue[Q].circuit.next_try_at)
    states = await one.until(
        lambda: (found := [one.job(own).state for own in owns]) and "active" not in found and found
    )
    assert states.count("failed") == 5
    # It has answered: the attempt of the single job counts.
    endpoint.most_at_once = 0
    await endpoint.until(7)
    assert endpoint.most_at_once == 1
    endpoint.answer = answers(text="ok")
    await one.until(lambda: one.job(owns[-1]).state == "completed")


async def test_ordinary_failures_do_not_open_the_circuit(one: One, endpoint: Endpoint) -> None:
    endpoint.answer = answers(status=500)
    owns = await one.add(*(f"job-{n}" for n in range(12)))
    await one.register(endpoint)
    await one.ended(owns[-1])
    assert one.machine.state.pushers.by_queue[Q].circuit.failures == 0 and one.pushing.open_circuits == 0


async def test_registering_again_closes_the_circuit(one: One, endpoint: Endpoint) -> None:
    await one.register("http://127.0.0.1:1/")
    owns = await one.add(*"abcdefg")
    await one.until(lambda: one.machine.state.pushers.by_queue[Q].circuit.next_try_at)
    await one.register(endpoint)
    await one.ended(owns[-1])
    assert one.job(owns[-1]).state == "completed"
    assert one.machine.state.pushers.by_queue[Q].circuit.failures == 0


# -- Addresses


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://[fd00:ec2::254]/",
        "http://[::ffff:169.254.169.254]/",
        "http://metadata.google.internal/",
        "http://2852039166/",
    ],
)
async def test_cloud_metadata_is_never_called(one: One, url: str) -> None:
    await one.register(url)
    job = await one.ended((await one.add("a"))[0])
    assert job.error == "EACCES: The address of the url must not be called: cloud metadata"


async def test_addresses_are_checked_at_each_hop(ones: Any, endpoint: Endpoint) -> None:
    one = await ones()
    endpoint.answer = answers(status=302, headers={"Location": "http://169.254.169.254/"})
    await one.register(endpoint)
    job = await one.ended((await one.add("a"))[0])
    assert job.error == "EACCES: The address of the url must not be called: cloud metadata"


async def test_only_the_open_internet_when_the_setting_says_so(ones: Any, endpoint: Endpoint) -> None:
    one = await ones(policy=CallPolicy(["public"]))
    await one.register(endpoint)
    job = await one.ended((await one.add("a"))[0])
    assert job.error == "EACCES: The address of the url must not be called: loopback" and not endpoint.said


async def test_a_name_is_checked_by_its_address(ones: Any, endpoint: Endpoint) -> None:
    one = await ones(policy=CallPolicy(["public", "10.0.0.0/8"]))
    await one.register(f"http://localhost:{endpoint.port}/work")
    job = await one.ended((await one.add("a"))[0])
    assert job.error == "EACCES: The address of the url must not be called: loopback" and not endpoint.said


# -- Locks, losses, stopping


async def test_a_long_call_keeps_its_lock(ones: Any, endpoint: Endpoint) -> None:
    # It is renewed at half of its time: what is left over is more than a pause of this machine takes.
    one = await ones(lock_ms=4_000)
    go = asyncio.Event()
    endpoint.answer = answers(go, text="late")
    await one.register(endpoint)
    [own] = await one.add("a")
    await endpoint.until(1)
    until = one.job(own).lock_until
    await one.until(lambda: one.job(own).lock_until > until + 500)
    go.set()
    job = await one.ended(own)
    assert (job.result, job.stalls, len(endpoint.said)) == (b'"late"', 0, 1)


async def test_results_are_told_until_the_log_hears_them(one: One, endpoint: Endpoint) -> None:
    gates = {name: asyncio.Event() for name in ("good", "bad", "late", "last")}

    async def answer(said: Said) -> web.StreamResponse:
        name = said.job["name"]
        await gates[name].wait()
        return web.Response(text=name, status=500 if name == "bad" else 200)

    endpoint.answer = answer
    await one.register(endpoint, concurrency=4)
    owns = await one.add(*gates)
    await endpoint.until(4)
    one.engine.available = False
    figures = one.pushing.figures
    for count, name in enumerate(gates):
        # Each ends while the results before it are being told in vain.
        gates[name].set()
        while figures.completed + figures.failed <= count:
            await asyncio.sleep(0.01)
    assert [one.job(own).state for own in owns] == ["active"] * 4 and one.pushing.under_way == 4
    one.engine.available = True
    jobs = [await one.ended(own) for own in owns]
    assert [job.state for job in jobs] == ["completed", "failed", "completed", "completed"]
    assert [job.result for job in jobs if job.state == "completed"] == [b'"good"', b'"late"', b'"last"']
    assert len(endpoint.said) == 4


async def test_large_results_wait_at_their_endpoints_while_the_log_cannot_take_them(
    ones: Any, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 200_000
    monkeypatch.setattr("quorumq.api.outgoing.client.ReceiveBudget", partial(ReceiveBudget, 2 * size))
    one: One = await ones()
    endpoint.answer = answers(text="x" * size)
    await one.register(endpoint, concurrency=8, timeout_ms=300)
    gate = asyncio.Event()
    endpoint.answer = answers(gate, text="x" * size)
    owns = await one.add(*"abcdefgh")
    await endpoint.until(8)
    one.engine.available = False
    gate.set()
    room = one.pushing._client.budget  # type: ignore[union-attr]
    async with asyncio.timeout(TIMEOUT_S):
        while one.pushing.figures.completed < 2 or not room.waiting:
            await asyncio.sleep(0.01)
    assert one.pushing.figures.completed < 8 and room.taken <= 3 * size + 1_000
    one.engine.available = True
    # None of them is blamed for the wait.
    assert [(await one.ended(own)).state for own in owns] == ["completed"] * 8
    await one.until(lambda: not one.pushing.under_way)
    assert (room.taken, room.waiting) == (0, 0) and len(endpoint.said) == 8


async def test_a_result_that_comes_after_the_lock_was_lost_is_dropped(ones: Any, endpoint: Endpoint) -> None:
    one = await ones(lock_ms=60_000)
    go = asyncio.Event()
    endpoint.answer = answers(go, text="late")
    await one.register(endpoint)
    [own] = await one.add("a")
    await endpoint.until(1)
    # Somebody removes the job meanwhile.
    removal.delete(one.machine.state, one.job(own))
    go.set()
    while not one.pushing.figures.lost:
        await asyncio.sleep(0)
    assert one.pushing.under_way == 0


async def test_a_result_of_a_job_with_pending_children_is_a_failed_run(one: One, endpoint: Endpoint) -> None:
    one.machine.level = 1
    go = asyncio.Event()
    endpoint.answer = answers(go, text="too early")
    await one.register(endpoint)
    [own] = await one.add("a", max_attempts=2)
    await endpoint.until(1)
    parent = one.job(own).id
    child = job_spec("child", b"1", custom=True)
    await one.do(AddFlow([FlowJob("children", child, parent_id=parent)], numbered=False))
    go.set()
    job = await one.ended(own)
    # Both runs end so, each as a failure that says why.
    assert (job.state, job.attempts, len(endpoint.said)) == ("failed", 2, 2)
    assert job.error == f"Job {parent} has pending dependencies"
    while one.pushing.under_way:
        await asyncio.sleep(0)


async def test_stopping_lets_calls_finish_and_gives_the_rest_back(ones: Any, endpoint: Endpoint) -> None:
    one = await ones()
    go, hang = asyncio.Event(), asyncio.Event()

    async def answer(said: Said) -> web.StreamResponse:
        await (go if said.job["name"] == "quick" else hang).wait()
        return web.Response(text="done")

    endpoint.answer = answer
    quick, stuck, later = await one.add("quick", "stuck", "later")
    await one.register(endpoint, concurrency=2)
    await endpoint.until(2)
    one.pushing.drain()
    assert one.engine.node_id in one.machine.state.pushers.nodes
    stopping = asyncio.create_task(one.pushing.stop(2.0))
    go.set()
    await one.ended(quick)
    await stopping
    hang.set()
    state = one.machine.state
    assert state.pushers.nodes == {} and state.pushers.by_queue[Q].node is None
    assert [one.job(own).state for own in (quick, stuck, later)] == ["completed", "waiting", "waiting"]
    # The one that was given back goes first, and its attempt does not count.
    first = state.queues[Q].ready.first()
    assert first is not None and own_id(first) == stuck and first.attempts == 0
    assert len(endpoint.said) == 2


async def test_a_node_does_nothing_while_there_is_nothing_to_do(one: One, endpoint: Endpoint) -> None:
    await one.register(endpoint)
    await one.ended((await one.add("a"))[0])
    entries = len(one.engine.entries)
    other = await one.add("x", queue="nobody-serves")
    assert one.job(other[0], "nobody-serves").state == "waiting"
    for _ in range(50):
        await asyncio.sleep(0)
    # The add, and at most what the end of the job before left behind.
    assert len(one.engine.entries) <= entries + 2

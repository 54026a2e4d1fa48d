"""The backend protocol on a node for tests, whose time is what calls say (CLOCK=clients)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.api.backend import Backend, connect
from tests.api.conftest import Client, Serve
from tests.api.test_backend_jobs import ALL, TAKING, new

START_MS = 1_487_076_708_000


@pytest.fixture
async def timed(serve: Serve) -> Client:
    return await serve(clock="clients")


async def at(backend: Backend, now_ms: int, name: str, *args: Any) -> Any:
    backend.now_ms = now_ms
    return await backend.call(name, "bull:q", *args)


async def test_the_hello_says_whose_time_holds(client: Client, timed: Client) -> None:
    for one, whose in ((client, "server"), (timed, "client")):
        backend = await connect(one)
        assert backend.welcome["clock"] == whose
        await backend.close()


async def test_times_are_those_that_calls_say_forwards_and_backwards(timed: Client) -> None:
    backend = await connect(timed)
    for now_ms in (START_MS, START_MS + 10**12, 0):
        own = await at(backend, now_ms, "addJob", new())
        taken = await at(backend, now_ms + 5, "moveToActive", "t", TAKING)
        assert taken[1] == own and taken[0]["processedOn"] == now_ms + 5
        finished, _ = await at(backend, now_ms + 9, "moveToCompleted", own, "t", b"1", ALL, None)
        assert finished == now_ms + 9
    await backend.close()


async def test_a_client_cannot_say_the_time_elsewhere(client: Client) -> None:
    backend = await connect(client)
    await at(backend, 5, "addJob", new())
    taken = await at(backend, 5, "moveToActive", "t", TAKING)
    assert taken[0]["processedOn"] > START_MS
    await backend.close()


async def test_whoever_waits_is_told_of_what_will_be_due_before_the_end(timed: Client) -> None:
    backend = await connect(timed)
    backend.now_ms = START_MS
    (waiting,) = await backend.send(("wait", "bull:q", [60_000]))
    await at(backend, START_MS, "addJob", new(delay=90_000))
    assert not waiting.done()
    await at(backend, START_MS, "addJob", new(delay=500))
    assert await asyncio.wait_for(waiting, 10) == START_MS + 500
    assert await at(backend, START_MS + 499, "moveToActive", "t", TAKING) == [None, "", 0, START_MS + 500]
    # As far as its own time goes there is nothing to wait for.
    assert await at(backend, START_MS, "wait", 1) is None
    assert (await at(backend, START_MS + 500, "moveToActive", "t", TAKING))[1] == "2"
    await backend.close()


async def test_a_limit_is_over_by_what_a_reading_says(timed: Client) -> None:
    backend = await connect(timed)
    await at(backend, START_MS, "setRateLimit", 10_000)
    assert await at(backend, START_MS + 4_000, "getRateLimitTtl") == 6_000
    assert await at(backend, START_MS + 10_000, "getRateLimitTtl") == -2
    assert await at(backend, START_MS + 1_000, "getRateLimitTtl") == 9_000
    await backend.close()

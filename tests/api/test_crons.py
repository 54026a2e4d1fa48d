"""Crons over HTTP: the rules, what is shown, replacing, deleting, firing."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.api.conftest import Client


async def test_what_is_shown(client: Client) -> None:
    assert (await client.get("/crons")).json == {"ok": True, "crons": []}
    body = {"name": "na me/x", "queue": "q", "data": 1, "schedule": "0 2 * * *", "timezone": "America/New_York"}
    cron = (await client.post("/crons", body)).json["cron"]
    due = datetime.fromtimestamp(cron.pop("nextRun") / 1000, UTC)
    assert (due.hour in (6, 7), due.minute) == (True, 0)
    assert cron == {
        "name": "na me/x",
        "jobName": "default",
        "queue": "q",
        "schedule": "0 2 * * *",
        "repeatEvery": None,
        "executions": 0,
        "maxLimit": None,
        "timezone": "America/New_York",
        "priority": 0,
    }
    assert (await client.get("/crons/na%20me%2Fx")).json["cron"]["queue"] == "q"
    await client.post("/crons", {"name": "b", "queue": "q", "data": 1, "repeatEvery": 60_000, "priority": 3})
    crons = (await client.get("/crons")).json["crons"]
    assert [(cron["name"], cron["priority"]) for cron in crons] == [("na me/x", 0), ("b", 3)]


@pytest.mark.parametrize("times", [{"schedule": "0 2 * * *"}, {"repeatEvery": 60_000}])
@pytest.mark.parametrize("zone", [{}, {"timezone": None}, {"timezone": ""}, {"timezone": "UTC"}], ids=str)
async def test_the_zone_that_counts_is_shown(client: Client, times: Any, zone: Any) -> None:
    made = (await client.post("/crons", {"name": "c", "queue": "q", "data": 1, **times, **zone})).json["cron"]
    listed = (await client.get("/dashboard")).json["crons"]["list"]
    found = [made, (await client.get("/crons/c")).json["cron"], *(await client.get("/crons")).json["crons"], *listed]
    assert [cron["timezone"] for cron in found] == ["UTC"] * 4


async def test_the_same_name_replaces(client: Client) -> None:
    await client.post("/crons", {"name": "c", "queue": "a", "data": 1, "repeatEvery": 60_000, "maxLimit": 5})
    await client.post("/crons", {"name": "c", "queue": "b", "data": 2, "repeatEvery": 30_000})
    (cron,) = (await client.get("/crons")).json["crons"]
    assert (cron["queue"], cron["repeatEvery"], cron["maxLimit"]) == ("b", 30_000, None)
    assert (await client.delete("/crons/c")).json == {"ok": True}
    for answer in (await client.delete("/crons/c"), await client.get("/crons/c")):
        assert (answer.status, answer.error) == (404, "Cron job not found")


BASE = {"name": "c", "queue": "q", "data": 1, "repeatEvery": 60_000}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"name": None}, "name is required"),
        ({"name": ""}, "name is required"),
        ({"queue": None}, "Queue name is required"),
        ({"queue": "b d"}, "Queue name contains invalid characters"),
        ({"repeatEvery": None}, "Cron job must have either schedule or repeatEvery"),
        ({"schedule": "* * * * *"}, "Cron job must have either schedule or repeatEvery, not both"),
        ({"repeatEvery": 0}, "Cron repeatEvery must be a positive safe integer number of milliseconds"),
        ({"repeatEvery": 1.5}, "Cron repeatEvery must be a positive safe integer number of milliseconds"),
        ({"repeatEvery": "x"}, "Cron repeatEvery must be a positive safe integer number of milliseconds"),
        (
            {"repeatEvery": None, "schedule": "not a cron"},
            "Invalid cron expression: Cron expression must have 5 fields, or 6 fields with leading seconds",
        ),
        (
            {"repeatEvery": None, "schedule": "99 2 * * *"},
            "Invalid cron expression: Invalid cron expression: value out of range for field",
        ),
        ({"timezone": "Mars/Base"}, "Invalid cron expression: unknown time zone 'Mars/Base'"),
        ({"priority": "x"}, "priority must be a number"),
        ({"maxLimit": -1}, "maxLimit must be at least 0"),
        ({"jobOptions": 5}, "jobOptions must be an object"),
        ({"jobOptions": {"maxAttempts": 0}}, "maxAttempts must be at least 1"),
    ],
)
async def test_rules(client: Client, change: Any, error: str) -> None:
    answer = await client.post("/crons", BASE | change)
    assert (answer.status, answer.error) == (400, error)
    assert (await client.get("/crons")).json["crons"] == []


async def test_data_is_required(client: Client) -> None:
    answer = await client.post("/crons", {key: value for key, value in BASE.items() if key != "data"})
    assert (answer.status, answer.error) == (400, "data is required")
    for raw in (b"{", b""):
        assert (await client.post("/crons", raw=raw)).error == "Invalid JSON body"


async def test_its_jobs(client: Client) -> None:
    began = time.time_ns() // 1_000_000
    body = BASE | {
        "data": {"x": 1},
        "repeatEvery": 50,
        "maxLimit": 1,
        "priority": 7,
        "jobName": "tick",
        "jobOptions": {"maxAttempts": 9, "tags": ["t"], "priority": 1, "jobId": "mine"},
    }
    assert (await client.post("/crons", body)).status == 200
    job = (await client.get("/queues/q/jobs?timeout=5000")).json["job"]
    assert (job["data"], job["priority"], job["name"], job["maxAttempts"]) == ({"x": 1}, 7, "tick", 9)
    assert (job["tags"], job["uniqueKey"]) == (["t"], "cron:c")
    assert job["id"] != "mine" and job["createdAt"] >= began + 50
    assert (await client.get("/crons/c")).status == 404


async def test_immediately(client: Client) -> None:
    await client.post("/crons", BASE | {"immediately": True, "preventOverlap": False})
    job = await client.pull()
    assert (job["data"], job["uniqueKey"]) == (1, None)
    assert (await client.get("/crons/c")).json["cron"]["executions"] == 1

"""Webhooks in the replicated state: what is to be delivered, in order, until the log says that it was."""

from __future__ import annotations

from typing import Any

import pytest

from node.operations.jobs import AckJob, FailJob, ProgressJob, PullJobs, PushJobs
from node.operations.webhooks import (
    AddWebhook,
    EnableWebhook,
    ListWebhooks,
    NoteDelivered,
    NoteUndeliverable,
    RemoveWebhook,
)
from node.refusals import TooManyWebhooks, WebhookNotFound
from node.state import job_spec
from node.state import webhook as bounds
from node.state.webhook import Delivery, Webhook
from tests.support.world import START_MS, World

ALL = ("pushed", "started", "completed", "failed", "progress")


def add(world: World, webhook_id: str = "h", events: tuple[str, ...] = ALL, **more: Any) -> Webhook:
    return world.do(AddWebhook(webhook_id, "https://example.com/x", events, **more)).webhook


def outbox(world: World, webhook_id: str = "h") -> list[Delivery]:
    return list(world.machine.state.webhooks.outboxes[webhook_id].deliveries)


def names(world: World, webhook_id: str = "h") -> list[str]:
    return [delivery.event for delivery in outbox(world, webhook_id)]


def test_the_life_of_a_job_is_put_into_the_outbox(world: World) -> None:
    add(world)
    job_id = world.push(data=b'{"z":1}', max_attempts=2, backoff=0)
    world.pull()
    world.do(ProgressJob(job_id, 40))
    world.do(FailJob(job_id, error="e1"))
    world.pull()
    world.do(AckJob(job_id, result=b'{"done":true}'))
    got = outbox(world)
    assert [delivery.event.removeprefix("job.") for delivery in got] == [
        "pushed",
        "started",
        "progress",
        "failed",
        "started",
        "completed",
    ]
    assert [delivery.number for delivery in got] == [1, 2, 3, 4, 5, 6]
    assert {(delivery.job_id, delivery.queue, delivery.at) for delivery in got} == {(job_id, "q", START_MS)}
    assert (got[2].progress, got[3].data, got[3].error, got[5].data) == (40, b'{"z":1}', "e1", b'{"done":true}')


def test_the_last_failure_is_delivered_as_well(world: World) -> None:
    add(world, events=("job.failed",))
    job = world.a_job("active", max_attempts=1)
    world.do(FailJob(job.id, error="final"))
    assert [(delivery.event, delivery.error) for delivery in outbox(world)] == [("job.failed", "final")]


def test_duplicates_push_nothing(world: World) -> None:
    add(world)
    world.push(job_id="a")
    world.push(job_id="a")
    assert names(world) == ["job.pushed"]


def test_both_spellings_and_a_queue_of_its_own(world: World) -> None:
    add(world, "short", ("completed", "job.completed"), queue="q")
    add(world, "long", ("job.completed",))
    add(world, "none", ())
    for queue in ("q", "other"):
        world.do(AckJob(world.a_job("active", queue).id))
    assert (names(world, "short"), len(names(world, "long")), names(world, "none")) == (["job.completed"], 2, [])


def test_deliveries_leave_when_the_log_says_so(world: World) -> None:
    hook = add(world)
    for _ in range(3):
        world.push()
    world.wait(500)
    assert world.do(NoteDelivered("h", 2, 201)).count == 2
    # Said again by a leader that did not hear of it: nothing happens.
    assert world.do(NoteDelivered("h", 2, 201)).count == 0
    assert world.do(NoteUndeliverable("h", 2, "late")).count == 0
    assert world.do(NoteUndeliverable("h", 3, "HTTP 500")).count == 1
    assert (hook.succeeded, hook.failed, hook.last_triggered) == (2, 1, START_MS + 500)
    assert outbox(world) == [] and world.machine.state.webhooks.waiting == {}
    shown = world.event_names()
    assert (shown.count("webhook:fired"), shown.count("webhook:failed")) == (2, 1)
    assert (world.do(NoteDelivered("nope", 1)).count, world.do(NoteUndeliverable("nope", 1, "")).count) == (0, 0)


def test_a_disabled_webhook_gets_nothing_and_keeps_its_settings(world: World) -> None:
    hook = add(world, secret="s")
    world.push()
    world.do(EnableWebhook("h", False))
    world.push()
    assert (outbox(world), hook.dropped, hook.enabled, hook.secret) == ([], 1, False, "s")
    world.do(EnableWebhook("h", True))
    world.do(EnableWebhook("h", True))
    world.push()
    assert [delivery.number for delivery in outbox(world)] == [2]
    assert [name for name in world.event_names() if "able" in name] == ["webhook:disabled", "webhook:enabled"]


def test_removing(world: World) -> None:
    add(world)
    world.push()
    world.do(RemoveWebhook("h"))
    world.push()
    assert world.ask(ListWebhooks()) == [] and world.machine.state.webhooks.listening == {}
    for operation in (RemoveWebhook("h"), EnableWebhook("h")):
        with pytest.raises(WebhookNotFound):
            world.do(operation)


def test_an_outbox_is_bounded_and_counts_what_it_lost(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "OUTBOX_MAX", 3)
    hook = add(world)
    world.do(PushJobs("q", [job_spec(f"j{i}", b"1") for i in range(5)]))
    assert ([delivery.job_id for delivery in outbox(world)], hook.dropped) == (["j2", "j3", "j4"], 2)
    monkeypatch.setattr(bounds, "OUTBOX_BYTES_MAX", 300)
    world.do(PullJobs("q", 1))
    assert ([delivery.event for delivery in outbox(world)], hook.dropped) == (["job.started"], 5)
    table = world.machine.state.webhooks.outboxes["h"]
    assert table.size == sum(map(bounds.weight_of, table.deliveries))


def test_webhooks_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.operations.webhooks.WEBHOOKS_MAX", 1)
    add(world)
    with pytest.raises(TooManyWebhooks):
        add(world, "another")


def test_what_waits_survives_an_image(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.image.PIECE_BYTES", 500)
    add(world, secret="s")
    add(world, "off")
    world.do(EnableWebhook("off", False))
    for _ in range(10):
        world.push()
    other = world.restored()
    assert list(other.state.webhooks.outboxes["h"].deliveries) == outbox(world)
    assert other.state.webhooks.outboxes["h"].size == world.machine.state.webhooks.outboxes["h"].size
    assert list(other.state.webhooks.waiting) == ["h"]
    assert [shown.waiting for shown in ListWebhooks().answer(other.state)] == [10, 0]

"""Webhooks in the replicated state: what is to be delivered, in order, until the log says that it was."""

from __future__ import annotations

from typing import Any

import pytest

from quorumq.node.machine.operations.jobs import PushJobs
from quorumq.node.machine.operations.runs import AckJob, FailJob, ProgressJob, PullJobs
from quorumq.node.machine.operations.webhooks import (
    AddWebhook,
    EnableWebhook,
    ListWebhooks,
    NoteDelivered,
    NoteUndeliverable,
    RemoveWebhook,
)
from quorumq.node.machine.refusals import TooManyWebhooks, WebhookNotFound
from quorumq.node.machine.state import job_spec
from quorumq.node.machine.state import webhook as bounds
from quorumq.node.machine.state.webhook import Delivery, Webhook
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


def test_all_outboxes_together_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "TOTAL_BYTES_MAX", 4000)
    away, near = add(world, "away"), add(world, "near", queue="near")
    for number in range(3):
        world.push("near", f"n{number}")
    for number in range(40):
        world.push("far", f"f{number}")
    webhooks = world.machine.state.webhooks
    assert 3000 < webhooks.size <= 4000
    # Whoever has most waiting loses its oldest; the other one has lost nothing.
    assert [delivery.job_id for delivery in outbox(world, "near")] == ["n0", "n1", "n2"]
    assert outbox(world, "away")[-1].job_id == "f39"
    assert (near.dropped, away.dropped) == (0, 43 - len(outbox(world, "away")))
    assert webhooks.dropped == away.dropped
    world.check()
    # A single large one is not kept either.
    world.push("far", data=b'"%s"' % (b"x" * 5000), max_attempts=1)
    job = world.pull("far", count=100)[-1]
    world.do(FailJob(job.id, error="e"))
    assert webhooks.size <= 4000
    world.do(EnableWebhook("away", False))
    world.do(RemoveWebhook("near"))
    assert webhooks.size == 0
    world.check()


def test_one_entry_brings_a_bounded_number_of_deliveries(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "ENTRY_MAX", 6)
    hooks = [add(world, "a"), add(world, "b"), add(world, "own", queue="other")]
    world.do(PushJobs("q", [job_spec(f"j{i}", b"1") for i in range(5)]))
    assert [(len(outbox(world, hook.id)), hook.dropped, hook.number) for hook in hooks] == [
        (3, 2, 5),
        (3, 2, 5),
        (0, 0, 0),
    ]
    assert [delivery.job_id for delivery in outbox(world, "a")] == ["j0", "j1", "j2"]
    world.push("other")
    assert [(len(outbox(world, hook.id)), hook.number) for hook in hooks] == [(4, 6), (4, 6), (1, 1)]
    world.check()


def test_below_level_1_only_each_outbox_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "TOTAL_BYTES_MAX", 1000)
    monkeypatch.setattr(bounds, "ENTRY_MAX", 2)
    world.machine.state.level = 0
    hook = add(world)
    world.do(PushJobs("q", [job_spec(f"j{i}", b"1") for i in range(20)]))
    assert (len(outbox(world)), hook.dropped) == (20, 0)


def test_webhooks_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorumq.node.machine.operations.webhooks.WEBHOOKS_MAX", 1)
    add(world)
    with pytest.raises(TooManyWebhooks):
        add(world, "another")


def test_what_waits_survives_an_image(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorumq.node.machine.image.PIECE_BYTES", 500)
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

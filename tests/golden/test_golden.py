"""Bytes of the past: log records and images that were written once must be read for ever.

Files are only added, by `python -m tests.golden.test_golden N`, when a format gains fields; a file that cannot be read
any more is a cluster that cannot be upgraded.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from node.machine import Machine
from node.operations import (
    adding,
    groups,
    jobs,
    keys,
    pushers,
    queues,
    repeatables,
    requests,
    schedules,
    streams,
    webhooks,
    workers,
)
from node.operations.clock import AdvanceClock
from node.state import Backoff, Dedup, Keep, Repeat, Window, job_spec
from node.state.pusher import Circuit
from tests.support.world import START_MS, World, encode

HERE = Path(__file__).parent
RECORDS = sorted(HERE.glob("records-*.bin"))
IMAGES = sorted(HERE.glob("image-*.bin"))


def records() -> list[object]:
    """Return one record of each kind, with every field that it has."""
    rich = job_spec(
        "rich",
        b'{"a":1}',
        custom=True,
        unique_key="k",
        group_id="g",
        priority=5,
        delay_ms=1.5,
        max_attempts=7,
        backoff=Backoff("linear", 10, 0.5),
        ttl_ms=60_000,
        timeout_ms=500,
        lifo=True,
        remove_on_complete=True,
        remove_on_fail=True,
        durable=True,
        name="named",
        tags=("x", "y"),
        repeat=Repeat(every_ms=100, limit=2, count=1, tz="UTC"),
    )
    after = job_spec("after", b"1", depends_on=("rich",))
    return [
        jobs.PushJobs("q", [job_spec("plain", b"1"), rich, after]),
        jobs.PullJobs("q", 2, "w", 5000, "seed"),
        jobs.AckJobs(["nope"], [None], [b"1"]),
        jobs.AckJob("nope", "t", b"1"),
        jobs.FailJob("nope", "t", "e", True, 0.5),
        jobs.ReleaseJobs([("nope", 1)], "key"),
        jobs.HeartbeatJob("plain", "seed-0", 6000),
        jobs.HeartbeatJobs(["plain"], ["seed-0"]),
        jobs.ExtendLock("plain", "seed-0", 7000),
        jobs.ExtendLocks(["plain"], ["seed-0"], [8000]),
        jobs.ProgressJob("plain", 12.5, "m", "seed-0"),
        jobs.AddLog("plain", "m", "warn"),
        jobs.ClearLogs("nope", 1),
        jobs.UpdateJobData("plain", b"2"),
        jobs.ChangePriority("rich", 9),
        jobs.ChangeDelay("nope", 5),
        jobs.MoveToDelayed("nope", 5, "t"),
        jobs.MoveToWait("nope", "t"),
        jobs.PromoteJob("nope"),
        jobs.DiscardJob("nope"),
        jobs.CancelJob("nope"),
        queues.PauseQueue("r"),
        queues.ResumeQueue("r"),
        queues.DrainQueue("r", 1),
        queues.ThinQueue("r", 5, 5, True),
        queues.CleanQueue("r", 1, "waiting", 5),
        queues.PromoteJobs("r", 1, 1),
        queues.RetryCompleted("r", "nope"),
        queues.RetryDlq("r", "nope"),
        queues.PurgeDlq("r"),
        queues.ObliterateQueue("r", 1),
        queues.SetRateLimit("s", 5, 2000),
        queues.ClearRateLimit("t"),
        queues.SetConcurrency("s", 3),
        queues.ClearConcurrency("t"),
        queues.SetStallConfig("s", True, 1000, 2, 500),
        queues.SetDlqConfig("s", True, 1000, 2, 5000, 10),
        queues.SetRetention("s", 5, 5000),
        AdvanceClock(),
        requests.Idempotent("key", b"f", encode(jobs.PushJobs("k", [job_spec("keyed", b"1")]))),
        requests.Idempotent("refused", b"f", encode(jobs.PromoteJob("nope"))),
        schedules.AddCron(
            "nightly",
            "c",
            job_spec("", b"1", priority=2),
            schedule="0 2 * * *",
            timezone="UTC",
            next_due_ms=START_MS + 1000,
            max_limit=9,
            prevent_overlap=False,
            immediately=True,
            on_missed="skip",
            needs_worker=True,
        ),
        schedules.AddCron("often", "c", job_spec("", b"2"), every_ms=500),
        schedules.FireCrons([schedules.CronFire("often", START_MS, START_MS + 500, 2, False)]),
        schedules.DeleteCron("nope"),
        schedules.FollowJobs([("nope", START_MS)]),
        workers.RegisterWorker("w1", "mailer", ("q",), 4, "host", 7),
        workers.RegisterWorker("w2"),
        workers.HeartbeatWorker("w1", 1, 5, 2, "job-1"),
        workers.UnregisterWorker("w2"),
        webhooks.AddWebhook("h1", "https://example.com/", ("pushed", "job.failed"), "q", "secret"),
        webhooks.AddWebhook("h2", "https://example.com/", ()),
        webhooks.EnableWebhook("h2", False),
        webhooks.RemoveWebhook("h2"),
        webhooks.NoteDelivered("h1", 0, 201),
        webhooks.NoteUndeliverable("h1", 0, "HTTP 500"),
        streams.KeepEvents(1000),
        queues.RemoveDeadJob("r", "nope"),
        queues.SetRateLimit("u", 5, 2000, 60_000),
        keys.FreeKey("r", "nope"),
        keys.FreeKeyOfJob("nope"),
        groups.SetGroupConcurrency("u", "g", 3),
        groups.PauseGroup("u", "h"),
        groups.ResumeGroup("u", "nope"),
        adding.AddJobs("bull", [*bullmq_jobs(), job_spec("", b"4")]),
        queues.SetWindow("bull", 5, 500),
        jobs.PullJobs("bull", 9, "w", 60_000, "", "mine", 2),
        jobs.ProgressJob("bull:bull:1", 0, None, "mine", b'{"pct":70}'),
        jobs.AddLog("bull:bull:1", "m", "info", 5),
        jobs.FinishAndPull(
            jobs.FailJob("bull:bull:1", "mine", "e", False, 0.5, "at x"), jobs.PullJobs("bull", token="t")
        ),
        jobs.FinishAndPull(jobs.AckJob("nope", "t"), jobs.PullJobs("bull")),
        jobs.MoveToDelayed("nope", 0, "t", 5),
        jobs.ChangePriority("nope", -1, True),
        jobs.RetryJob("nope", "failed", True),
        jobs.RemoveJob("nope"),
        queues.HoldQueue("bull", 700),
        queues.SetDefaults("bull", Keep(1000, 5), Keep(count=7), 2),
        queues.CheckStalled("bull"),
        queues.RetryJobs("bull", "completed", 1, START_MS, 2),
        queues.DrainQueue("r", 1, False),
        queues.ThinQueue("r", 5, 5, True, ("active",)),
        queues.ObliterateQueue("r", 1, True),
        repeatables.AddRepeating(
            adding.AddJobs("bull", [job_spec("", b"5")]),
            [
                repeatables.Repetition(
                    "nightly", job_spec("", b"6"), START_MS + 1000, "0 2 * * *", None, "UTC", 9, START_MS + 10**9, True
                ),
                repeatables.Repetition("often", job_spec("", b"7"), START_MS + 500, every_ms=500),
            ],
        ),
        pushers.JoinPushing("n1"),
        pushers.PutPusher(
            "bull", "https://example.com/", "PUT", (("X-A", "b"),), 500, 3, Window(5, 500), 2, Keep(1, 2), Keep(count=0)
        ),
        pushers.PutPusher("nope", "https://example.com/"),
        pushers.AssignPushers({"n1": ["bull"]}),
        pushers.NoteCircuits([pushers.CircuitNote("bull", 1, Circuit(3, START_MS, "refused"))]),
        pushers.PullForPusher("bull", "n1", 2, 1000, "t"),
        pushers.LeavePushing("n2"),
        pushers.RemovePusher("nope"),
        jobs.DiscardJob("nope", True),
        queues.RetryCompleted("r", None, 5, START_MS),
        queues.RetryDlq("r", None, 5),
        schedules.FireCrons([schedules.CronFire("often", START_MS + 500, START_MS + 1000, set_by=10**6)]),
    ]


def bullmq_jobs() -> list[object]:
    """Return jobs with every option of that dialect."""
    options = {"rejoin_last": True, "stalls_allowed": 1, "backoff": Backoff("exponential", 5), "max_attempts": 3}
    more = {"keep_completed": Keep(1000, 5), "keep_failed": Keep(count=7), "sent": b'{"attempts":3}'}
    return [
        job_spec("", b"1", **options, **more),
        job_spec("own", b"2", priority=-5, delay_ms=1000, unique_key="d", dedup=Dedup(5000, True, True), **options),
        job_spec("", b"3", unique_key="t", dedup=Dedup(60_000), **options),
    ]


def world_of_everything() -> World:
    world = World()
    for state in ("completed", "failed", "active", "locked", "waiting-children", "delayed", "waiting"):
        world.a_job(state, priority=2, tags=("t",))
    world.do(jobs.AddLog("job-1", "m"))
    for record in records():
        world.apply(record)
    repeats = world.push("p", repeat=Repeat(pattern="0 2 * * *", tz="UTC"))
    world.pull("p")
    world.do(jobs.AckJob(repeats))
    world.push("q")
    world.push("still-waiting")
    world.push("gone")
    world.do(queues.ObliterateQueue("gone"))
    return world


def test_a_record_of_each_kind_is_among_the_present_ones() -> None:
    from node.operation import CATALOGUE

    assert {record.__struct_config__.tag for record in records()} == set(CATALOGUE)


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_old_log_records_are_read(path: Path) -> None:
    machine = Machine()
    outcomes = machine.apply(1, START_MS, [path.read_bytes()])
    assert isinstance(outcomes[0], list)
    unread = [reply for reply in outcomes[0] if getattr(reply, "code", "") in ("operation_not_known", "internal_error")]
    assert unread == []
    assert machine.state.jobs["rich"].opts.backoff == Backoff("linear", 10, 0.5)


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_old_images_are_read(path: Path) -> None:
    machine = Machine()
    machine.restore([path.read_bytes()])
    states = [job.state for job in machine.state.jobs.values()]
    assert {"completed", "failed", "active", "waiting-children", "delayed", "waiting"} == set(states)
    again = Machine()
    again.restore(machine.image())
    assert again.full_digest() == machine.full_digest()
    if path.stem != "image-1":
        state = machine.state
        assert list(state.schedule.crons)[:2] == ["nightly", "often"] and len(state.schedule.following) == 1
        assert list(state.workers.by_id) == ["w1"] and len(state.webhooks.outboxes["h1"].deliveries) == 1
        assert requests.GetOutcome("key", b"f").answer(state).ids == ["keyed"]
    if path.stem not in ("image-1", "image-2"):
        queue = machine.state.queues["bull"]
        assert (queue.number, queue.window_count, queue.held_until) == (5, 3, START_MS + 700)
        assert queue.throttled == {"d": START_MS + 5000, "t": START_MS + 60_000}
        first = machine.state.jobs["bull:bull:1"]
        assert (first.stacks, first.starts, first.progress_json) == (["at x"], 1, b'{"pct":70}')
        assert first.opts.keep_completed == Keep(1000, 5) and first.opts.sent == b'{"attempts":3}'
        assert [cron.key for cron in machine.state.schedule.crons.values()][2:] == ["nightly", "often"]
    if path.stem not in ("image-1", "image-2", "image-3"):
        assert machine.state.gone.pushed == 1
        assert all(cron.set_by for cron in machine.state.schedule.crons.values())
    machine.apply(machine.index + 1, START_MS + 10**10, [encode([jobs.PullJobs("q", 9)])])
    assert machine.errors == 0


if __name__ == "__main__":
    number = int(sys.argv[1])
    (HERE / f"records-{number}.bin").write_bytes(msgspec.msgpack.encode(records()))
    (HERE / f"image-{number}.bin").write_bytes(b"".join(world_of_everything().machine.image()))

"""Bytes of the past: log records and images that were written once must be read for ever.

Files are only added, by `python -m tests.golden.test_golden N`, when a format gains fields; a file that cannot be read
any more is a cluster that cannot be upgraded.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operations import (
    adding,
    dlq,
    dlq_filter,
    flows,
    groups,
    jobs,
    keys,
    pushers,
    queues,
    repeatables,
    requests,
    requeue,
    retention,
    runs,
    schedules,
    settings,
    streams,
    webhooks,
    workers,
)
from quorumq.node.machine.operations.clock import AdvanceClock
from quorumq.node.machine.state import Backoff, Dedup, Keep, Repeat, Window, job_spec
from quorumq.node.machine.state.forgotten import HOUR_MS
from quorumq.node.machine.state.group import GroupUse
from quorumq.node.machine.state.outcomes import scope_of
from quorumq.node.machine.state.pusher import Circuit
from quorumq.node.machine.state.queue import Retention
from tests.golden import bullmq_records
from tests.support.world import START_MS, World, encode

HERE = Path(__file__).parent
RECORDS = sorted(HERE.glob("records-*.bin"))
IMAGES = sorted(HERE.glob("image-*.bin"))


def records() -> list[object]:
    """Return records that are applied again for ever, with every field that they have; test_fields.py has one of each kind."""
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
        runs.PullJobs("q", 2, "w", 5000, "seed"),
        runs.AckJobs(["nope"], [None], [b"1"]),
        runs.AckJob("nope", "t", b"1"),
        runs.FailJob("nope", "t", "e", True, 0.5),
        runs.ReleaseJobs([("nope", 1)], "key"),
        runs.HeartbeatJob("plain", "seed-0", 6000),
        runs.HeartbeatJobs(["plain"], ["seed-0"]),
        runs.ExtendLock("plain", "seed-0", 7000),
        runs.ExtendLocks(["plain"], ["seed-0"], [8000]),
        runs.ProgressJob("plain", 12.5, "m", "seed-0"),
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
        dlq.RetryDlq("r", "nope"),
        dlq.PurgeDlq("r"),
        queues.ObliterateQueue("r", 1),
        settings.SetRateLimit("s", 5, 2000),
        settings.ClearRateLimit("t"),
        settings.SetConcurrency("s", 3),
        settings.ClearConcurrency("t"),
        settings.SetStallConfig("s", True, 1000, 2, 500),
        settings.SetDlqConfig("s", True, 1000, 2, 5000, 10),
        settings.SetRetention("s", 5, 5000),
        AdvanceClock(),
        requests.Idempotent("key", b"f", encode(jobs.PushJobs("k", [job_spec("keyed", b"1")])), "mailer", "old"),
        requests.Idempotent("refused", b"f", encode(jobs.PromoteJob("nope")), ""),
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
        dlq.RemoveDeadJob("r", "nope"),
        settings.SetRateLimit("u", 5, 2000, 60_000),
        keys.FreeKey("r", "nope"),
        keys.FreeKeyOfJob("nope"),
        groups.SetGroupConcurrency("u", "g", 3),
        groups.PauseGroup("u", "h"),
        groups.ResumeGroup("u", "nope"),
        adding.AddJobs("bull", [*bullmq_jobs(), job_spec("", b"4")]),
        settings.SetWindow("bull", 5, 500),
        runs.PullJobs("bull", 9, "w", 60_000, "", "mine", 2),
        runs.ProgressJob("bull:bull:1", 0, None, "mine", b'{"pct":70}'),
        jobs.AddLog("bull:bull:1", "m", "info", 5),
        runs.FinishAndPull(
            runs.FailJob("bull:bull:1", "mine", "e", False, 0.5, "at x"), runs.PullJobs("bull", token="t")
        ),
        runs.FinishAndPull(runs.AckJob("nope", "t"), runs.PullJobs("bull")),
        jobs.MoveToDelayed("nope", 0, "t", 5),
        jobs.ChangePriority("nope", -1, True),
        jobs.RetryJob("nope", "failed", True),
        jobs.RemoveJob("nope"),
        settings.HoldQueue("bull", 700),
        settings.SetDefaults("bull", Keep(1000, 5), Keep(count=7), 2),
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
        dlq.RetryDlq("r", None, 5),
        schedules.FireCrons([schedules.CronFire("often", START_MS + 500, START_MS + 1000, set_by=10**6)]),
        runs.AckJob("nope", "t", b"1", True),
        runs.FailJob("nope", "t", "e", False, 0.5, "at x", True),
        jobs.ChangeDelay("nope", 5, False, "t"),
        jobs.ClearLogs("nope", 1, True),
        queues.DrainQueue("r", 1, False, True),
        queues.ThinQueue("r", 5, 5, False, (), True),
        queues.CleanQueue("r", 1, "waiting", 5, True),
        retention.ThinFinished(1000, 5000, 100),
        retention.SetDefaultRetention(1000, 1 << 20, 5000, 0),
        retention.FollowRetention("u"),
        groups.SetGroupRateLimit("bull", "g", 3, 700),
        groups.HoldGroup("bull", "h", 900),
        groups.SetUsualGroup("bull", 4, 2, 600),
        requeue.RequeueJob("nope", "t"),
        dlq.RetryDlq("r", None, 5, filter=dlq_filter.DlqFilter("stalled", 1, 2, True, True, 3)),
        flows.AddFlow(
            [
                flows.FlowJob("fp", job_spec("flow-parent", b"1", custom=True)),
                flows.FlowJob("fc", job_spec("flow-child", b"2", custom=True), 0, None, "ignore"),
                flows.FlowJob("fc", job_spec("flow-other", b"3", custom=True), 0),
            ]
        ),
        flows.AddFlow([flows.FlowJob("fc", job_spec("flow-late", b"4", custom=True), -1, "flow-parent", "fail")]),
        flows.AddFlow([flows.FlowJob("flow-bull", job_spec("", b"5", rejoin_last=True))], True),
        flows.AttachChild("flow-late", "flow-parent"),
        flows.DetachChild("flow-other"),
        flows.RemoveUnprocessedChildren("flow-other"),
        flows.AwaitChildren("nope", "t", "flow-child", True),
        jobs.RemoveJob("nope", True),
        *bullmq_records.beside_jobs(),
        *bullmq_records.about_jobs(),
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
    world.do(runs.AckJob(repeats))
    world.push("q")
    world.push("still-waiting")
    world.push("gone")
    world.do(queues.ObliterateQueue("gone"))
    world.push("drained", repeat=Repeat(every_ms=1000))
    world.do(queues.DrainQueue("drained"))
    world.do(groups.SetGroupRateLimit("grouped", "g", 3, 700))
    world.push("grouped", group_id="g")
    world.pull("grouped")
    for job_id in world.pull_ids("fc", 2):
        world.do(runs.AckJob(job_id, None, b"7") if job_id == "flow-other" else runs.FailJob(job_id, None, "e", True))
    for _ in range(2):
        dead = world.push("dead", "order", max_attempts=1)
        world.pull("dead", owner="w", token_seed="t")
        world.do(runs.FailJob(dead, "t-0"))
    world.machine.state.outcomes.restore_digests("mailer", START_MS // HOUR_MS, bytes(range(16)))
    return world


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
    if int(path.stem.removeprefix("image-")) >= 6:
        state = machine.state
        assert state.retention == Retention(1000, 1 << 20, 5000, None)
        assert state.queues["s"].settings.own == ("completed", "completed_bytes", "failed", "failed_age_ms")
        assert [job.at_ms for job in state.schedule.held.values()] == [START_MS + 1000]
        first, second = state.queues["dead"].jobs.values()
        assert (first.called, second.id) == ("order", "order")
        assert [len(state.spent.by_job[job.id]) for job in (first, second)] == [1, 1]
    if int(path.stem.removeprefix("image-")) >= 15:
        grouped, bull = machine.state.queues["grouped"], machine.state.queues["bull"]
        assert grouped.group_settings["g"].rate == bull.group_settings["g"].rate == Window(3, 700)
        assert grouped.group_uses == {"g": GroupUse(START_MS, 1, 0, START_MS + 700)}
        completions, failures = machine.state.queues["q"].completions, machine.state.queues["dead"].failures
        assert completions is not None and failures is not None
        assert (failures.last_at, failures.series()) == (START_MS, [2]) and completions.last_count > 0
        assert bull.group_uses == {"h": GroupUse(0, 0, START_MS + 900, START_MS + 900)}
    if int(path.stem.removeprefix("image-")) >= 15:
        outcomes = machine.state.outcomes
        assert [scope_of(outcome) for _, outcome in outcomes.items()] == ["mailer", ""]
        assert [(scope, piece.hour, piece.bytes()) for scope, piece in outcomes.slices()] == [
            ("mailer", START_MS // HOUR_MS, bytes(range(16)))
        ]
    if int(path.stem.removeprefix("image-")) >= 15:
        parent = machine.state.jobs["flow-parent"].flow
        assert parent is not None and parent.pending == 1
        assert [None if end is None else end.how for end in parent.children.values()] == ["ignored", None]
        late = machine.state.jobs["flow-late"].flow
        assert late is not None and (late.parent, late.on_failure) == ("flow-parent", "fail")
    machine.apply(machine.index + 1, START_MS + 10**10, [encode([runs.PullJobs("q", 9)])])
    assert machine.errors == 0


if __name__ == "__main__":
    number = int(sys.argv[1])
    (HERE / f"records-{number}.bin").write_bytes(msgspec.msgpack.encode(records()))
    (HERE / f"image-{number}.bin").write_bytes(b"".join(world_of_everything().machine.image()))

"""Records of the operations of BullMQ's backend protocol, for the golden bytes."""

from __future__ import annotations

from quorumq.node.machine.lifecycle.bullmq.running import Wish
from quorumq.node.machine.operations import jobs
from quorumq.node.machine.operations.bullmq import (
    adding,
    changing,
    limits,
    logs,
    metas,
    presence,
    removing,
    running,
    sessions,
    streams,
)
from quorumq.node.machine.state import job_spec
from quorumq.node.machine.state.bullmq.facts import NamedJob
from quorumq.node.machine.state.bullmq.presence import Client
from quorumq.node.machine.state.job import Dedup, Keep
from tests.support.world import encode


def beside_jobs() -> list[object]:
    """Return those about what there is beside jobs: fields, events."""
    return [
        metas.SetMeta("meta", {"version": "bullmq:6.7.0", "concurrency": "3", "max": "5"}),
        metas.RemoveMeta("meta", ["max"]),
        metas.Pause("meta", True),
        streams.OpenStream("opened"),
        streams.PublishEvent("meta", (("event", "mine"), ("x", "y")), 5),
        streams.TrimEvents("opened", 5),
        logs.AppendLog("meta", "nope", "line", 5),
        logs.CutLog("meta", "nope", 5),
        sessions.CallOnce("client", 1, 0, encode(metas.SetMeta("meta", {"a": "b"}))),
        sessions.CallOnce("client", 2, 1, encode(jobs.PromoteJob("nope"))),
        presence.NotePresence(
            "n1", [Client("c1", "meta", "bull:bWV0YQ==", "127.0.0.1:5", 7)], ["c2"], True, ["client"]
        ),
    ]


def about_jobs() -> list[object]:
    """Return those about jobs, and about queues as workers see them."""
    kept_away = job_spec("", b"3", unique_key="last", dedup=Dedup(None, False, False, True, True), rejoin_last=True)
    root = NamedJob(job_spec("root", b"4", custom=True, rejoin_last=True), 1, to_children=True)
    leaf = NamedJob(
        job_spec("", b"5", rejoin_last=True, delay_ms=5),
        2,
        3,
        ("named", "root"),
        "bull:named:root",
        b'{"id":"root","queueKey":"bull:named"}',
        "fail",
        repeat_key="r",
    )
    wish = Wish("t", 5_000, "w", 9, 60_000)
    keep = Keep(1_000, 5, 7)
    return [
        adding.AddNamedJobs(
            "named", [NamedJob(job_spec(f"own-{at}", b"1", custom=True, rejoin_last=True), at) for at in range(7)]
        ),
        adding.AddNamedJobs("named", [NamedJob(kept_away, 1)]),
        adding.AddNamedFlow([adding.FlowPart("named", root), adding.FlowPart("leaves", leaf, 0)]),
        running.TakeNext("named", wish),
        running.CompleteRun("named", "own-0", "t", b"1", keep, wish),
        running.FailRun("named", "own-1", "t", "broken", b'["stack"]', keep, wish),
        running.DelayRun("named", "own-2", "t", 1.5, True, "later", b"[]", wish),
        running.RetryRun("named", "own-3", "t", "again", b"[]"),
        running.TakeNext("named", wish),
        running.GiveBack("named", "own-4", "t"),
        running.AwaitNamedChildren("named", "own-4", "t", [("leaves", "1")]),
        *(running.TakeNext("named", wish) for _ in range(3)),
        running.ExtendNamedLocks("named", ["own-5"], ["t"], 9_000),
        running.CheckNamedStalled("named", 2, 1_000),
        limits.LimitFor("named", 500),
        limits.Unlimit("opened"),
        changing.UpdateNamedData("named", "own-6", b"2"),
        changing.UpdateNamedProgress("named", "own-6", b"7", 7),
        changing.ChangeNamedDelay("named", "own-2", 70_000),
        changing.ChangeNamedPriority("named", "own-6", 3, True),
        changing.PromoteNamed("named", "nope"),
        changing.PromoteAllNamed("leaves", 5),
        changing.RetryNamed("named", "own-1", "failed", True, True),
        changing.RetryAllNamed("leaves", "completed", 5, 6),
        changing.FreeNamedKey("named", "nope", "own-6"),
        removing.RemoveNamed("named", "own-3", True),
        removing.RemoveUnprocessed("named", "own-6"),
        removing.RemoveDependency("leaves", "1", [("named", "nope")]),
        removing.CleanNamed("leaves", "wait", 5, 6),
        removing.ObliterateNamed("leaves", 5, True),
        # The job that holds the key is taken, and another one is kept away meanwhile.
        running.TakeNext("named", Wish("0")),
        adding.AddNamedJobs("named", [NamedJob(kept_away, 1)]),
    ]

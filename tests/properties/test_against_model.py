"""Random histories: the machine and the naive model answer alike, step by step, and an image is the whole state."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operation import Operation
from quorumq.node.machine.operations.adding import AddJobs
from quorumq.node.machine.operations.dlq import PurgeDlq, RetryDlq
from quorumq.node.machine.operations.groups import (
    GetGroup,
    HoldGroup,
    PauseGroup,
    ResumeGroup,
    SetGroupConcurrency,
    SetGroupRateLimit,
)
from quorumq.node.machine.operations.jobs import (
    CancelJob,
    ChangeDelay,
    ChangePriority,
    DiscardJob,
    MoveToDelayed,
    MoveToWait,
    PromoteJob,
    PushJobs,
    RemoveJob,
    RetryJob,
)
from quorumq.node.machine.operations.keys import FreeKey, GetKeyHolder
from quorumq.node.machine.operations.queue_reads import ListJobs, ListStatus, PriorityCounts, QueueCounts
from quorumq.node.machine.operations.queues import (
    CleanQueue,
    DrainQueue,
    ObliterateQueue,
    PauseQueue,
    PromoteJobs,
    ResumeQueue,
    RetryCompleted,
    RetryJobs,
)
from quorumq.node.machine.operations.requeue import RequeueJob
from quorumq.node.machine.operations.runs import (
    AckJob,
    AckJobs,
    ExtendLock,
    FailJob,
    FinishAndPull,
    HeartbeatJob,
    ProgressJob,
    PullJobs,
    ReleaseJobs,
)
from quorumq.node.machine.operations.settings import (
    ClearConcurrency,
    ClearRateLimit,
    HoldQueue,
    SetConcurrency,
    SetDefaults,
    SetRateLimit,
    SetWindow,
)
from quorumq.node.machine.refusals import Refusal
from quorumq.node.machine.state import Dedup, Keep, job_spec
from tests.properties.model import Model, Refused
from tests.support.indexes import check_indexes
from tests.support.world import START_MS, World

QUEUES = ("a", "b")
# Few ids, so that generations of one id meet often.
IDS = (*(f"j{i}" for i in range(10)), *(f"bull:a:{i}" for i in (1, 2, 3, "x", "y")), "bull:b:1", "bull:b:2")
OWN = ("", "", "", "x", "y")
KEEPS = (Keep(count=0), Keep(count=1), Keep(count=2), Keep(age_ms=5000), Keep(age_ms=1000, count=4))
DEDUPS = (
    Dedup(),
    Dedup(ttl_ms=1500),
    Dedup(ttl_ms=1500, extend=True),
    Dedup(ttl_ms=1500, extend=True, replace=True),
    Dedup(ttl_ms=1500, replace=True),
    Dedup(replace=True),
)
CLEANED = (None, "waiting", "delayed", "completed", "failed")
FIELDS = ("state", "run_at", "attempts", "stalls", "token", "lock_until", "fence", "progress", "result", "ending")
FIELDS += ("starts", "processed_at", "delay_left")

queues = st.sampled_from(QUEUES)
groups = st.sampled_from(("g", "h"))
ids = st.sampled_from(IDS)
tokens = st.none() | st.just("right") | st.just("wrong") | st.just("old")
options = st.fixed_dictionaries(
    {},
    optional={
        "priority": st.sampled_from([-5, 0, 1, 7]),
        "delay_ms": st.sampled_from([0, 1, 1000, 40_000]),
        "lifo": st.booleans(),
        "max_attempts": st.integers(1, 4),
        "backoff": st.sampled_from([0, 10, 5000]),
        "ttl_ms": st.sampled_from([0, 500, 45_000]),
        "timeout_ms": st.sampled_from([0, 700, 60_000]),
        "unique_key": st.sampled_from(["u", "v"]),
        "group_id": st.sampled_from(["g", "h"]),
        "remove_on_complete": st.booleans(),
        "remove_on_fail": st.booleans(),
        "depends_on": st.lists(ids, max_size=2, unique=True).map(tuple),
        "rejoin_last": st.booleans(),
        "stalls_allowed": st.sampled_from([0, 1]),
        "keep_completed": st.sampled_from(KEEPS),
        "keep_failed": st.sampled_from(KEEPS),
        "dedup": st.sampled_from(DEDUPS),
    },
)


class Histories(RuleBasedStateMachine):
    """Drives both, with the same operations at the same times."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.model = Model(START_MS)
        self.pulls = 0

    # -- Doing the same on both sides

    def both(self, operation: Operation, expected: Any, *arguments: Any, **more: Any) -> Any:
        """Apply an operation and its model; return the reply when neither refused."""
        self.model.advance(self.world.now_ms)
        try:
            wanted, code = expected(*arguments, **more), None
        except Refused as refused:
            wanted, code = None, str(refused)
        reply = self.world.apply(operation)[0]
        if isinstance(reply, Refusal) or code is not None:
            assert isinstance(reply, Refusal), (operation, code, reply)
            assert reply.code == code, operation
            return None
        return reply, wanted

    def do(self, operation: Operation) -> Any:
        """Apply an operation that is not refused, once the model has done what is due: any entry does that first."""
        self.model.advance(self.world.now_ms)
        return self.world.do(operation)

    def token_of(self, job_id: str, kind: str | None) -> str | None:
        job = self.model.find(job_id)
        if kind == "right":
            return job.token if job is not None else "gone"
        if kind == "old":
            return min(job.spent, default="none") if job is not None else "gone"
        return kind

    # -- Steps

    @rule(queue=queues, job_id=ids, opts=options)
    def push(self, queue: str, job_id: str, opts: dict[str, Any]) -> None:
        operation = PushJobs(queue, [job_spec(job_id, b"1", **opts)])
        if (got := self.both(operation, self.model.push, queue, job_id, **opts)) is not None:
            assert got[0].ids == [got[1]]

    @rule(queue=queues, own=st.sampled_from(OWN), opts=options)
    def add(self, queue: str, own: str, opts: dict[str, Any]) -> None:
        opts = {name: value for name, value in opts.items() if name != "depends_on"}
        reply = self.do(AddJobs(queue, [job_spec(own, b"1", **opts)]))
        wanted, duplicate = self.model.add(queue, own, **opts)
        assert (reply.ids, reply.duplicates) == ([wanted.removeprefix(f"bull:{queue}:")], [duplicate])

    @rule(
        queue=queues,
        count=st.integers(1, 4),
        owner=st.sampled_from([None, "w"]),
        lock_ms=st.sampled_from([900, 20_000]),
        token=st.sampled_from([None, None, "mine"]),
        active_max=st.sampled_from([None, None, 1, 2]),
    )
    def pull(
        self, queue: str, count: int, owner: str | None, lock_ms: int, token: str | None, active_max: int | None
    ) -> None:
        self.pulls += 1
        seed = f"t{self.pulls}"
        arguments = (queue, count, owner, lock_ms, seed, token, active_max)
        reply, wanted = self.both(PullJobs(*arguments), self.model.pull, *arguments)
        assert [job.id for job in reply.jobs] == wanted
        if token is not None:
            assert reply.tokens == [token] * len(wanted)
        else:
            assert reply.tokens == (None if owner is None else [f"{seed}-{i}" for i in range(len(wanted))])

    @rule(queue=queues, job_id=ids, kind=tokens, fails=st.booleans(), own=st.sampled_from([None, "mine"]))
    def finish_and_pull(self, queue: str, job_id: str, kind: str | None, fails: bool, own: str | None) -> None:
        token = self.token_of(job_id, kind)
        finish = FailJob(job_id, token, "e") if fails else AckJob(job_id, token)

        def expected() -> list[str]:
            if fails:
                self.model.fail(job_id, token, False)
            else:
                self.model.ack(job_id, token, None)
            return self.model.pull(queue, 1, None, 900, "", own)

        if (got := self.both(FinishAndPull(finish, PullJobs(queue, lock_ms=900, token=own)), expected)) is not None:
            assert [job.id for job in got[0].next.jobs] == got[1]

    @rule(job_id=ids, kind=tokens, result=st.sampled_from([None, b"1", b'{"a":2}']), must_hold=st.booleans())
    def ack(self, job_id: str, kind: str | None, result: bytes | None, must_hold: bool) -> None:
        token = self.token_of(job_id, kind)
        self.both(AckJob(job_id, token, result, must_hold), self.model.ack, job_id, token, result, must_hold)

    @rule(job_ids=st.lists(ids, max_size=4), kind=tokens)
    def ack_batch(self, job_ids: list[str], kind: str | None) -> None:
        given = [self.token_of(job_id, kind) for job_id in job_ids]
        reply = self.do(AckJobs(job_ids, given))
        done, refused = [], []
        for job_id, token in zip(job_ids, given, strict=True):
            try:
                done.append(self.model.ack(job_id, token, None))
            except Refused as refusal:
                refused.append(str(refusal))
        assert (reply.job_ids, [refusal.code for refusal in reply.refused]) == (done, refused)

    @rule(job_id=ids, kind=tokens, forced=st.booleans())
    def requeue(self, job_id: str, kind: str | None, forced: bool) -> None:
        token = self.token_of(job_id, kind)
        self.both(RequeueJob(job_id, token, forced), self.model.requeue, job_id, token, forced)

    @rule(job_id=ids, kind=tokens, unrecoverable=st.booleans())
    def fail(self, job_id: str, kind: str | None, unrecoverable: bool) -> None:
        token = self.token_of(job_id, kind)
        self.both(FailJob(job_id, token, "e", unrecoverable), self.model.fail, job_id, token, unrecoverable)

    @rule(job_id=ids, kind=tokens, duration_ms=st.sampled_from([None, 1500]))
    def heartbeat(self, job_id: str, kind: str | None, duration_ms: int | None) -> None:
        token = self.token_of(job_id, kind)
        self.both(HeartbeatJob(job_id, token, duration_ms), self.model.heartbeat, job_id, token, duration_ms)

    @rule(job_id=ids, kind=tokens, duration_ms=st.sampled_from([None, 2500]))
    def extend_lock(self, job_id: str, kind: str | None, duration_ms: int | None) -> None:
        token = self.token_of(job_id, kind)
        self.both(ExtendLock(job_id, token, duration_ms), self.model.extend_lock, job_id, token, duration_ms)

    @rule(job_id=ids, progress=st.sampled_from([-1, 0, 33, 99.5, 200]))
    def report(self, job_id: str, progress: float) -> None:
        self.both(ProgressJob(job_id, progress), self.model.report, job_id, progress)

    @rule(job_id=ids)
    def cancel(self, job_id: str) -> None:
        self.both(CancelJob(job_id), self.model.cancel, job_id)

    @rule(job_id=ids)
    def remove(self, job_id: str) -> None:
        self.both(RemoveJob(job_id), self.model.remove, job_id)

    @rule(job_id=ids, state=st.sampled_from([None, "failed", "completed"]), reset=st.booleans())
    def retry(self, job_id: str, state: str | None, reset: bool) -> None:
        self.both(RetryJob(job_id, state, reset), self.model.retry, job_id, state, reset)

    @rule(queue=queues, state=st.sampled_from(["failed", "completed"]), count=st.sampled_from([None, 0, 1, 2]))
    def retry_jobs(self, queue: str, state: str, count: int | None) -> None:
        assert self.do(RetryJobs(queue, state, count)).count == self.model.retry_jobs(queue, state, count)

    @rule(job_id=ids)
    def promote(self, job_id: str) -> None:
        self.both(PromoteJob(job_id), self.model.promote, job_id)

    @rule(job_id=ids, late=st.booleans())
    def release(self, job_id: str, late: bool) -> None:
        job = self.model.find(job_id)
        fence = (job.fence if job is not None else 0) - int(late)
        reply, wanted = self.both(ReleaseJobs([(job_id, fence)]), self.model.release, job_id, fence)
        assert reply.count == wanted

    @rule(queue=queues, key=st.sampled_from(["u", "v"]))
    def free_key(self, queue: str, key: str) -> None:
        holder = self.world.ask(GetKeyHolder(queue, key))
        assert holder == self.model.holder(queue, key)
        assert self.do(FreeKey(queue, key)).count == self.model.free(queue, key)

    @rule(queue=queues)
    def pause(self, queue: str) -> None:
        self.do(PauseQueue(queue))
        self.model.paused.add(queue)

    @rule(queue=queues)
    def resume(self, queue: str) -> None:
        self.do(ResumeQueue(queue))
        self.model.paused.discard(queue)

    # -- Managing

    @rule(job_id=ids, priority=st.sampled_from([-5, 0, 7]))
    def change_priority(self, job_id: str, priority: int) -> None:
        self.both(ChangePriority(job_id, priority), self.model.change_priority, job_id, priority)

    @rule(job_id=ids, kind=tokens)
    def move_to_wait(self, job_id: str, kind: str | None) -> None:
        token = self.token_of(job_id, kind)
        self.both(MoveToWait(job_id, token), self.model.move_to_wait, job_id, token)

    @rule(
        job_id=ids,
        delay_ms=st.sampled_from([0, 900]),
        record=st.sampled_from([MoveToDelayed, ChangeDelay]),
        kind=tokens,
    )
    def delay(self, job_id: str, delay_ms: int, record: type, kind: str | None) -> None:
        token = self.token_of(job_id, kind)
        operation = record(job_id, delay_ms, token=token)
        self.both(operation, self.model.delay, job_id, delay_ms, token, asks=record is ChangeDelay)

    @rule(job_id=ids)
    def discard(self, job_id: str) -> None:
        self.both(DiscardJob(job_id), self.model.discard, job_id)

    @rule(queue=queues, delayed=st.booleans())
    def drain(self, queue: str, delayed: bool) -> None:
        assert self.do(DrainQueue(queue, delayed=delayed)).count == self.model.drain(queue, delayed=delayed)

    @rule(queue=queues, only_idle=st.booleans())
    def obliterate(self, queue: str, only_idle: bool) -> None:
        operation = ObliterateQueue(queue, only_idle=only_idle)
        if (got := self.both(operation, self.model.obliterate, queue, only_idle=only_idle)) is not None:
            assert got[0].count == got[1]

    @rule(
        queue=queues,
        grace_ms=st.sampled_from([0, 1000]),
        state=st.sampled_from([None, "waiting", "delayed", "completed", "failed"]),
        limit=st.integers(0, 3),
    )
    def clean(self, queue: str, grace_ms: int, state: str | None, limit: int) -> None:
        reply = self.do(CleanQueue(queue, grace_ms, state, limit))
        assert reply.job_ids == self.model.clean(queue, grace_ms, state, limit)

    @rule(queue=queues, count=st.sampled_from([None, 0, 1, 2]))
    def promote_jobs(self, queue: str, count: int | None) -> None:
        assert self.do(PromoteJobs(queue, count)).count == self.model.promote_jobs(queue, count)

    @rule(queue=queues, state=st.sampled_from(["completed", "failed"]), job_id=st.none() | ids)
    def revive(self, queue: str, state: str, job_id: str | None) -> None:
        record = RetryCompleted if state == "completed" else RetryDlq
        assert self.do(record(queue, job_id)).count == self.model.revive(queue, state, job_id)

    @rule(queue=queues)
    def purge(self, queue: str) -> None:
        assert self.do(PurgeDlq(queue)).count == self.model.purge(queue)

    @rule(queue=queues, limit=st.sampled_from([None, None, 0, 1, 2]))
    def set_concurrency(self, queue: str, limit: int | None) -> None:
        if limit is None:
            self.do(ClearConcurrency(queue))
            self.model.concurrency.pop(queue, None)
        else:
            self.do(SetConcurrency(queue, limit))
            self.model.concurrency[queue] = limit

    @rule(queue=queues, limit=st.sampled_from([None, None, 1, 3]))
    def set_rate(self, queue: str, limit: int | None) -> None:
        if limit is None:
            self.do(ClearRateLimit(queue))
            self.model.rates.pop(queue, None)
        else:
            self.do(SetRateLimit(queue, limit))
            self.model.set_rate(queue, limit)

    @rule(queue=queues, most=st.sampled_from([None, None, 0, 1, 3]), duration_ms=st.sampled_from([499, 2000]))
    def set_window(self, queue: str, most: int | None, duration_ms: int) -> None:
        self.do(SetWindow(queue, most, duration_ms))
        self.model.set_window(queue, most, duration_ms)

    @rule(queue=queues, duration_ms=st.sampled_from([0, 100, 1500]))
    def hold(self, queue: str, duration_ms: int) -> None:
        self.do(HoldQueue(queue, duration_ms))
        self.model.held_until[queue] = self.world.now_ms + duration_ms

    @rule(queue=queues, group=groups, limit=st.sampled_from([None, 0, 2, 3]))
    def limit_group(self, queue: str, group: str, limit: int | None) -> None:
        self.do(SetGroupConcurrency(queue, group, limit))
        self.model.groups.of(queue, group).concurrency = 1 if limit is None else limit

    @rule(queue=queues, group=groups, most=st.sampled_from([None, 0, 1, 2]), duration_ms=st.sampled_from([499, 2000]))
    def limit_rate_of_group(self, queue: str, group: str, most: int | None, duration_ms: int) -> None:
        rate = None if most is None else (most, duration_ms)
        is_change = self.do(SetGroupRateLimit(queue, group, most, duration_ms))
        assert is_change == self.model.groups.of(queue, group).set_rate(rate)

    @rule(queue=queues, group=groups, duration_ms=st.sampled_from([0, 100, 1500]))
    def hold_group(self, queue: str, group: str, duration_ms: int) -> None:
        self.do(HoldGroup(queue, group, duration_ms))
        self.model.groups.of(queue, group).held_until = self.world.now_ms + duration_ms if duration_ms else 0

    @rule(queue=queues, group=groups, paused=st.booleans())
    def pause_group(self, queue: str, group: str, paused: bool) -> None:
        self.do(PauseGroup(queue, group) if paused else ResumeGroup(queue, group))
        self.model.groups.of(queue, group).paused = paused

    @rule(
        queue=queues,
        completed=st.sampled_from([None, *KEEPS]),
        failed=st.sampled_from([None, *KEEPS]),
        stalls=st.sampled_from([None, 0, 1]),
    )
    def set_defaults(self, queue: str, completed: Keep | None, failed: Keep | None, stalls: int | None) -> None:
        self.do(SetDefaults(queue, completed, failed, stalls))
        given = {"keep_completed": completed, "keep_failed": failed, "stalls_allowed": stalls}
        self.model.defaults[queue] = {name: value for name, value in given.items() if value is not None}

    @rule(ms=st.sampled_from([1, 10, 499, 1000, 5000, 29_999, 60_000]))
    def wait(self, ms: int) -> None:
        self.world.now_ms += ms
        self.world.tick()
        self.model.advance(self.world.now_ms)

    @rule(days=st.sampled_from([1, 8]))
    def wait_days(self, days: int) -> None:
        self.wait(days * 24 * 3600 * 1000)

    @rule()
    def restart(self) -> None:
        """Go on with a machine made from the image of this one: nothing may change by it."""
        image = list(self.world.machine.image())
        digest = self.world.machine.full_digest()
        # A reader may get the pieces cut anywhere.
        flat = b"".join(image)
        cut = [flat[i : i + 700] for i in range(0, len(flat), 700)]
        machine = Machine()
        machine.events_wanted = True
        machine.restore(cut)
        assert machine.full_digest() == digest
        assert machine.digest() == self.world.machine.digest()
        self.world.machine = machine

    # -- What must be equal after each step

    @invariant()
    def answers_are_equal(self) -> None:
        assert self.world.machine.errors == 0
        for queue in QUEUES:
            counts = self.world.ask(QueueCounts(queue))
            wanted = self.model.counts(queue)
            assert {name: getattr(counts, name) for name in wanted} == wanted
            assert self.world.count(queue) == len(self.model.list_all(queue))
            assert self.world.ask(PriorityCounts(queue)) == self.model.priority_counts(queue)
            assert [job.id for job in self.world.ask(ListJobs(queue))] == self.model.list_all(queue)
            waiting = [job.id for job in self.model.waiting(queue)]
            assert [job.id for job in self.world.ask(ListJobs(queue, "waiting"))] == waiting
            assert [job.id for job in self.world.ask(ListJobs(queue, "waiting", 2, 1))] == waiting[1:3]
            prioritized = [job.id for job in self.model.waiting(queue) if job.opt("priority", 0) > 0]
            assert [job.id for job in self.world.ask(ListJobs(queue, "prioritized"))] == prioritized
            for status in ("waiting", "prioritized", "delayed", "active", "completed", "failed"):
                listed = self.model.list_status(queue, status)
                assert [job.id for job in self.world.ask(ListStatus(queue, status))] == listed
                page = self.world.ask(ListStatus(queue, status, 1, 2, newest=True))
                assert [job.id for job in page] == listed[::-1][1:3]
            for group_id in ("g", "h"):
                shown, group = self.world.ask(GetGroup(queue, group_id)), self.model.groups.of(queue, group_id)
                ends = (
                    group.held_until
                    if group.held_until > self.model.now
                    else max(group.ends(self.model.now), default=None)
                )
                assert shown.free_at_ms() == ends
            for state in ("completed", "failed"):
                ended = sorted(self.model.in_state(queue, state), key=lambda job: job.ending)
                assert [job.id for job in self.world.ask(ListJobs(queue, state))] == [job.id for job in ended]

    @invariant()
    def records_are_equal(self) -> None:
        jobs = self.world.machine.state.jobs
        assert sorted(jobs) == sorted(job.id for job in self.model.jobs)
        for wanted in self.model.jobs:
            job = jobs[wanted.id]
            got = {name: getattr(job, name) for name in FIELDS}
            assert got == {name: getattr(wanted, name) for name in FIELDS}
            assert job.due == (wanted.due() or 0)

    @invariant()
    def indexes_follow_from_the_records(self) -> None:
        check_indexes(self.world.machine.state)

    @invariant()
    def the_next_alarm_is_never_late(self) -> None:
        due, wanted = self.world.machine.state.next_due_ms(self.world.now_ms), self.model.next_due()
        assert (due is None) == (wanted is None)
        if due is not None and wanted is not None:
            assert wanted - 1024 <= due <= wanted


Histories.TestCase.settings = settings(
    max_examples=80, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
# A history is some milliseconds; on a machine with much else to do all of them take minutes.
TestHistories = pytest.mark.timeout(600)(Histories.TestCase)


# Which token is shown, of those of a job.
KINDS = ("right", "right", "wrong", "old", None)


def random_options(pick: random.Random) -> dict[str, Any]:
    choices: dict[str, list[Any]] = {
        "priority": [-5, 0, 1, 7],
        "delay_ms": [0, 1, 1000, 40_000],
        "lifo": [True],
        "max_attempts": [1, 2, 4],
        "backoff": [0, 10, 5000],
        "ttl_ms": [0, 500, 45_000],
        "timeout_ms": [0, 700, 60_000],
        "unique_key": ["u", "v"],
        "group_id": ["g", "h"],
        "remove_on_complete": [True],
        "remove_on_fail": [True],
        "rejoin_last": [True],
        "stalls_allowed": [0, 1],
        "keep_completed": list(KEEPS),
        "keep_failed": list(KEEPS),
        "dedup": list(DEDUPS),
    }
    names = pick.sample(sorted(choices), pick.choice([0, 1, 1, 2, 3]))
    opts = {name: pick.choice(choices[name]) for name in names}
    if "dedup" in opts:
        opts["unique_key"] = pick.choice(["u", "v"])
    if pick.random() < 0.15:
        opts["depends_on"] = tuple(pick.sample(IDS, pick.choice([1, 2])))
    return opts


def keyed_options(pick: random.Random) -> dict[str, Any]:
    opts = {"unique_key": pick.choice(["u", "v"]), "dedup": pick.choice(DEDUPS)}
    return opts | pick.choice([{}, {}, {"delay_ms": 1000}, {"keep_completed": Keep(count=0)}])


@pytest.mark.parametrize("seed", range(16))
def test_long_histories(seed: int) -> None:
    """The same on long walks, with the steps weighed so that jobs get far."""
    pick = random.Random(seed)
    pair = Histories()
    steps: list[tuple[float, Any]] = [
        (30, lambda: pair.push(pick.choice(QUEUES), pick.choice(IDS), random_options(pick))),
        (15, lambda: pair.add(pick.choice(QUEUES), pick.choice(OWN), random_options(pick))),
        (
            22,
            lambda: pair.pull(
                pick.choice(QUEUES),
                pick.choice([1, 1, 2, 4]),
                pick.choice([None, "w"]),
                900,
                pick.choice([None, None, "mine"]),
                pick.choice([None, None, None, 2]),
            ),
        ),
        (
            4,
            lambda: pair.finish_and_pull(
                pick.choice(QUEUES), pick.choice(IDS), "right", pick.random() < 0.5, pick.choice([None, "mine"])
            ),
        ),
        (1, lambda: pair.free_key(pick.choice(QUEUES), pick.choice(["u", "v"]))),
        (2, lambda: pair.remove(pick.choice(IDS))),
        (4, lambda: pair.retry(pick.choice(IDS), pick.choice([None, None, "failed"]), pick.random() < 0.3)),
        (1, lambda: pair.retry_jobs(pick.choice(QUEUES), pick.choice(CLEANED[3:]), pick.choice([None, 1]))),
        (3, lambda: pair.set_window(pick.choice(QUEUES), pick.choice([None, 1, 2, 3]), pick.choice([499, 2000]))),
        (8, lambda: pair.add(pick.choice(QUEUES), "", keyed_options(pick))),
        (1, lambda: pair.hold(pick.choice(QUEUES), pick.choice([0, 100, 1500]))),
        (1, lambda: pair.limit_group(pick.choice(QUEUES), pick.choice("gh"), pick.choice([None, 0, 2, 3]))),
        (
            2,
            lambda: pair.limit_rate_of_group(
                pick.choice(QUEUES), pick.choice("gh"), pick.choice([None, 0, 1, 2]), pick.choice([499, 2000])
            ),
        ),
        (1, lambda: pair.hold_group(pick.choice(QUEUES), pick.choice("gh"), pick.choice([0, 100, 1500]))),
        (1, lambda: pair.pause_group(pick.choice(QUEUES), pick.choice("gh"), pick.random() < 0.2)),
        (
            1,
            lambda: pair.set_defaults(
                pick.choice(QUEUES),
                pick.choice([None, None, *KEEPS]),
                pick.choice([None, None, *KEEPS]),
                pick.choice([None, None, 0, 1]),
            ),
        ),
        (8, lambda: pair.ack(pick.choice(IDS), pick.choice(KINDS), b"1", pick.random() < 0.2)),
        (3, lambda: pair.ack_batch(pick.choices(IDS, k=3), "right")),
        (2, lambda: pair.requeue(pick.choice(IDS), pick.choice(KINDS), pick.random() < 0.5)),
        (10, lambda: pair.fail(pick.choice(IDS), pick.choice(KINDS), pick.random() < 0.1)),
        (5, lambda: pair.heartbeat(pick.choice(IDS), pick.choice(["right", "wrong", None]), pick.choice([None, 1500]))),
        (3, lambda: pair.extend_lock(pick.choice(IDS), pick.choice(["right", None]), pick.choice([None, 2500]))),
        (2, lambda: pair.report(pick.choice(IDS), 50)),
        (3, lambda: pair.cancel(pick.choice(IDS))),
        (3, lambda: pair.promote(pick.choice(IDS))),
        (5, lambda: pair.release(pick.choice(IDS), pick.random() < 0.2)),
        (1, lambda: pair.pause(pick.choice(QUEUES))),
        (3, lambda: pair.resume(pick.choice(QUEUES))),
        (12, lambda: pair.wait(pick.choice([1, 10, 499, 1000, 5000, 29_999]))),
        (1, pair.restart),
        (2, lambda: pair.change_priority(pick.choice(IDS), pick.choice([-5, 0, 7]))),
        (2, lambda: pair.move_to_wait(pick.choice(IDS), pick.choice(["right", "right", None]))),
        (
            3,
            lambda: pair.delay(
                pick.choice(IDS), pick.choice([0, 900]), pick.choice([MoveToDelayed, ChangeDelay]), pick.choice(KINDS)
            ),
        ),
        (1, lambda: pair.discard(pick.choice(IDS))),
        (0.5, lambda: pair.drain(pick.choice(QUEUES), pick.random() < 0.5)),
        (0.5, lambda: pair.obliterate(pick.choice(QUEUES), pick.random() < 0.7)),
        (
            0.6,
            lambda: pair.clean(pick.choice(QUEUES), pick.choice([0, 1000]), pick.choice(CLEANED), pick.choice([1, 9])),
        ),
        (1, lambda: pair.promote_jobs(pick.choice(QUEUES), pick.choice([None, 1]))),
        (2, lambda: pair.revive(pick.choice(QUEUES), pick.choice(CLEANED[3:]), pick.choice([None, *IDS]))),
        (0.3, lambda: pair.purge(pick.choice(QUEUES))),
        (2, lambda: pair.set_concurrency(pick.choice(QUEUES), pick.choice([None, 0, 1, 2]))),
        (2, lambda: pair.set_rate(pick.choice(QUEUES), pick.choice([None, 1, 3]))),
    ]
    weights = [weight for weight, _ in steps]
    for _ in range(400):
        pick.choices(steps, weights)[0][1]()
        pair.answers_are_equal()
        pair.records_are_equal()
        pair.indexes_follow_from_the_records()
        pair.the_next_alarm_is_never_late()

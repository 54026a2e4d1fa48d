"""Below feature level 1 every entry means what it meant to the previous version, to the byte: the same random history for both.

The previous version runs from its wheel, in a process of its own; what it is told are the bytes of the log.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quorumq.node.machine.machine import Machine
from quorumq.node.machine.operation import Operation
from quorumq.node.machine.operations.adding import AddJobs
from quorumq.node.machine.operations.dlq import PurgeDlq, RemoveDeadJob, RetryDlq
from quorumq.node.machine.operations.jobs import (
    AddLog,
    CancelJob,
    ChangeDelay,
    ChangePriority,
    ClearLogs,
    DiscardJob,
    MoveToDelayed,
    MoveToWait,
    PromoteJob,
    PushJobs,
    RemoveJob,
    RetryJob,
)
from quorumq.node.machine.operations.queues import (
    CleanQueue,
    DrainQueue,
    ObliterateQueue,
    RetryCompleted,
    RetryJobs,
    ThinQueue,
)
from quorumq.node.machine.operations.repeatables import AddRepeating, Repetition
from quorumq.node.machine.operations.requests import Idempotent
from quorumq.node.machine.operations.runs import (
    AckJob,
    AckJobs,
    FailJob,
    FinishAndPull,
    HeartbeatJob,
    ProgressJob,
    PullJobs,
    ReleaseJobs,
)
from quorumq.node.machine.operations.schedules import AddCron, CronFire, FireCrons, FollowJobs
from quorumq.node.machine.operations.settings import SetDlqConfig, SetRetention, SetStallConfig
from quorumq.node.machine.operations.workers import HeartbeatWorker, RegisterWorker
from quorumq.node.machine.refusals import Refusal
from quorumq.node.machine.state import Repeat, job_spec
from tests.support.versions import PREVIOUS, unpacked
from tests.support.world import START_MS

QUEUES = ("a", "b")
IDS = (*(f"j{number}" for number in range(8)), "bull:a:1", "bull:a:x")
TOKENS = (None, "w1", "w2", "s1-0", "s2-0", "bogus")
ENTRIES = 500
# After so many of them whole images are compared.
WHOLE = 10
encode = msgspec.msgpack.Encoder().encode
# Refusals within a reply, by their codes.
encode_reply = msgspec.msgpack.Encoder(enc_hook=lambda refusal: refusal.code).encode

# What runs in the previous version: reads entries, writes a line for each and one for all.
REPLAY = """
import sys
import msgspec
WHOLE = int(sys.argv[1])
from node.machine import Machine
from node.refusals import Refusal

encode = msgspec.msgpack.Encoder(enc_hook=lambda refusal: refusal.code).encode

def shown(reply):
    return reply.code if isinstance(reply, Refusal) else encode(reply).hex()

machine = Machine()
for index, now_ms, payload in msgspec.msgpack.decode(sys.stdin.buffer.read()):
    [outcome] = machine.apply(index, now_ms, [payload])
    print(machine.digest() if index % WHOLE else machine.full_digest(), *map(shown, outcome))
print(machine.errors)
"""


def shown(reply: Any) -> str:
    return reply.code if isinstance(reply, Refusal) else encode_reply(reply).hex()


class History:
    """Random operations, weighed so that jobs get lost, finish, come back and repeat."""

    def __init__(self, seed: int) -> None:
        self.pick = random.Random(seed)
        self.pulls = 0
        self.due: dict[str, int] = {}
        self.now_ms = START_MS

    def options(self) -> dict[str, Any]:
        chosen: dict[str, Any] = {
            "lifo": True,
            "max_attempts": self.pick.choice([1, 2, 3]),
            "backoff": self.pick.choice([0, 50]),
            "timeout_ms": self.pick.choice([300, 900]),
            "delay_ms": 200,
            "ttl_ms": self.pick.choice([300, 3000]),
            "priority": self.pick.choice([-3, 5]),
            "group_id": "g",
            "unique_key": self.pick.choice("uv"),
            "rejoin_last": True,
            "stalls_allowed": 1,
            "remove_on_complete": True,
            "repeat": self.pick.choice([Repeat(every_ms=700, limit=3), Repeat(pattern="* * * * * *")]),
        }
        return {name: chosen[name] for name in self.pick.sample(sorted(chosen), self.pick.choice([0, 1, 2, 3]))}

    def operation(self) -> Operation:
        pick = self.pick
        queue, job_id, token = pick.choice(QUEUES), pick.choice(IDS), pick.choice(TOKENS)
        spec = job_spec(job_id, b"1", custom=True, **self.options())
        self.pulls += 1
        pull = PullJobs(queue, 2, pick.choice([None, "w1"]), 500, f"s{self.pulls % 3}", pick.choice([None, None, "w2"]))
        every = Repetition(pick.choice("kl"), job_spec("", b"1"), self.now_ms + 400, every_ms=400, limit=4)
        makes: list[tuple[int, Callable[[], Operation]]] = [
            (12, lambda: PushJobs(queue, [spec])),
            (4, lambda: AddJobs(queue, [job_spec(pick.choice(["", "x"]), b"2")])),
            (14, lambda: pull),
            (6, lambda: AckJob(job_id, token, b"1")),
            (2, lambda: AckJobs([job_id], [token])),
            (6, lambda: FailJob(job_id, token, "e")),
            (2, lambda: FinishAndPull(AckJob(job_id, token), pull)),
            (2, lambda: MoveToDelayed(job_id, 100, token)),
            (1, lambda: MoveToDelayed(job_id, 0, token, self.now_ms + 100, only_active=True)),
            (2, lambda: ChangeDelay(job_id, 100)),
            (2, lambda: MoveToWait(job_id, token)),
            (2, lambda: ProgressJob(job_id, 5, None, token)),
            (1, lambda: HeartbeatJob(job_id, token)),
            (1, lambda: ReleaseJobs([(job_id, self.pulls)])),
            (1, lambda: ChangePriority(job_id, pick.choice([0, 7]))),
            (1, lambda: pick.choice([CancelJob, RemoveJob, DiscardJob, PromoteJob, ClearLogs])(job_id)),
            (1, lambda: AddLog(job_id, "m")),
            (3, lambda: RetryDlq(queue, pick.choice([None, job_id]))),
            (1, lambda: RemoveDeadJob(queue, job_id)),
            (2, lambda: RetryJob(job_id)),
            (1, lambda: RetryJobs(queue, "failed", 1)),
            (1, lambda: RetryCompleted(queue)),
            (1, lambda: DrainQueue(queue, delayed=pick.random() < 0.5)),
            (1, lambda: CleanQueue(queue, 0, pick.choice([None, "waiting", "failed"]), 2)),
            (1, lambda: ThinQueue(queue, 10**9, 1)),
            (1, lambda: PurgeDlq(queue)),
            (1, lambda: ObliterateQueue(queue)),
            (1, lambda: SetStallConfig(queue, pick.random() < 0.5, 1000, 2, 100)),
            (1, lambda: SetDlqConfig(queue, pick.random() < 0.5, 500, 1, 60_000, 3)),
            (1, lambda: SetRetention(queue, 3)),
            (1, lambda: RegisterWorker("w1", "name", (queue,), 3)),
            (1, lambda: HeartbeatWorker("w1", 2, 3, pick.choice([1, 5]))),
            (2, lambda: AddCron(pick.choice("cd"), queue, job_spec("", b"1"), every_ms=300, max_limit=3)),
            (2, lambda: AddRepeating(AddJobs(queue, []), [every])),
        ]
        return pick.choices([make for _, make in makes], [weight for weight, _ in makes])[0]()

    def entry(self, machine: Machine) -> list[Operation]:
        """Return the operations of an entry; what the leader's clockwork would send is among them."""
        state = machine.state
        made = [self.operation() for _ in range(self.pick.choice([1, 1, 2, 3]))]
        if self.pick.random() < 0.3:
            made = [Idempotent(f"key {self.pulls}", b"f", encode(made[0])), *made[1:]]
        due = [cron for cron in state.schedule.upcoming() if cron.next_due <= self.now_ms]
        if due:
            made.append(FireCrons([CronFire(one.name, one.next_due, one.next_due + 300) for one in due]))
        if state.schedule.following:
            made.append(FollowJobs([(job_id, self.now_ms + 250) for job_id in state.schedule.following]))
        return made


@pytest.mark.parametrize("seed", range(8))
def test_below_level_1_the_same_log_gives_the_same_state(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    machine, history = Machine(), History(seed)
    machine.level = 0
    entries: list[tuple[int, int, bytes]] = []
    lines: list[str] = []
    for index in range(1, ENTRIES + 1):
        history.now_ms += history.pick.choice([0, 1, 40, 400, 1500])
        payload = encode(history.entry(machine))
        [outcome] = machine.apply(index, history.now_ms, [payload])
        entries.append((index, history.now_ms, payload))
        digest = machine.digest() if index % WHOLE else machine.full_digest()
        lines.append(" ".join([digest, *map(shown, outcome)]))
    assert machine.errors == 0
    place: Path = unpacked(PREVIOUS, tmp_path_factory.getbasetemp())
    run = subprocess.run(
        [sys.executable, "-P", "-c", REPLAY, str(WHOLE)],
        input=encode(entries),
        capture_output=True,
        check=True,
        cwd=place,
        env={"PYTHONPATH": str(place)},
    )
    *before, last = run.stdout.decode().splitlines()
    different = [index for index, (ours, theirs) in enumerate(zip(lines, before, strict=True)) if ours != theirs]
    assert different == []
    assert last == "0"
